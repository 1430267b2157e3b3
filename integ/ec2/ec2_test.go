package ec2

import (
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/agent/ec2/ec2test"
	"berth.dev/berth/integ/host"
	"berth.dev/berth/integ/system"
)

func TestMain(m *testing.M) { host.Main(m) }

// TestSpotInstance registers an instance under its identity, with its tags and the
// settings of its user data, once it has left its warm pool, and takes it away.
func TestSpotInstance(t *testing.T) {
	imds := ec2test.Start(t, map[string]string{
		"dynamic/instance-identity/document":           `{"instanceId":"i-0123456789abcdef0","region":"us-east-1","instanceType":"m5.large"}`,
		"dynamic/instance-identity/signature":          "signed",
		"user-data":                                    `{"ECSAgentConfiguration":{"SpotInstanceDrainingEnabled":true,"InstanceAttributes":{"rack":"r7"},"ReservedMemory":32}}`,
		"meta-data/tags/instance":                      "team",
		"meta-data/tags/instance/team":                 "a",
		"meta-data/autoscaling/target-lifecycle-state": "InService",
	})
	s := system.Start(t, system.Options{AgentEnv: []string{
		"ECS_EXTERNAL=false", "BERTH_IMDS_ENDPOINT=" + imds.URL, "ECS_CONTAINER_INSTANCE_PROPAGATE_TAGS_FROM=ec2_instance", "ECS_WARM_POOLS_CHECK=true",
	}})
	list, err := s.ECS.ListContainerInstances(t.Context(), &ecs.ListContainerInstancesInput{})
	if err != nil || len(list.ContainerInstanceArns) != 1 {
		t.Fatalf("instances %v, %v", list, err)
	}
	describe := func() types.ContainerInstance {
		t.Helper()
		out, err := s.ECS.DescribeContainerInstances(t.Context(), &ecs.DescribeContainerInstancesInput{
			ContainerInstances: list.ContainerInstanceArns, Include: []types.ContainerInstanceField{types.ContainerInstanceFieldTags},
		})
		if err != nil || len(out.ContainerInstances) != 1 {
			t.Fatalf("describe: %v, %v", out, err)
		}
		return out.ContainerInstances[0]
	}
	i := describe()
	if aws.ToString(i.Ec2InstanceId) != "i-0123456789abcdef0" || aws.ToString(i.Status) != "ACTIVE" {
		t.Errorf("the instance is %s, %s", aws.ToString(i.Ec2InstanceId), aws.ToString(i.Status))
	}
	if len(i.Tags) != 1 || aws.ToString(i.Tags[0].Key) != "team" || aws.ToString(i.Tags[0].Value) != "a" {
		t.Errorf("tags %v", i.Tags)
	}
	attributes := map[string]string{}
	for _, a := range i.Attributes {
		attributes[aws.ToString(a.Name)] = aws.ToString(a.Value)
	}
	if attributes["rack"] != "r7" || attributes["ecs.instance-type"] != "m5.large" {
		t.Errorf("attributes %v", attributes)
	}
	imds.Set("meta-data/spot/instance-action", `{"action":"terminate","time":"2026-01-01T00:00:00Z"}`)
	system.Until(t, 30*time.Second, "draining", func() error {
		if got := aws.ToString(describe().Status); got != "DRAINING" {
			return fmt.Errorf("the instance is %s", got)
		}
		return nil
	})
}
