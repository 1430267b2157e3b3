package model

import (
	"reflect"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

func TestValidator(t *testing.T) {
	m, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	tags := func(key string, value string) *ecs.TagResourceInput {
		return &ecs.TagResourceInput{ResourceArn: aws.String("arn"), Tags: []types.Tag{{Key: &key, Value: &value}}}
	}
	tests := map[string]struct {
		operation string
		in        any
		want      string
	}{
		"fine":             {"TagResource", tags("k", ""), ""},
		"required":         {"DeleteCluster", &ecs.DeleteClusterInput{}, "1 validation error detected: Value null at 'cluster' failed to satisfy constraint: Member must not be null"},
		"two":              {"RegisterTaskDefinition", &ecs.RegisterTaskDefinitionInput{}, "2 validation errors detected: Value null at 'containerDefinitions' failed to satisfy constraint: Member must not be null; Value null at 'family' failed to satisfy constraint: Member must not be null"},
		"enum":             {"RunTask", &ecs.RunTaskInput{TaskDefinition: aws.String("a"), LaunchType: "MOON"}, "1 validation error detected: Value 'MOON' at 'launchType' failed to satisfy constraint: Member must satisfy enum value set: [EC2, FARGATE, EXTERNAL, MANAGED_INSTANCES]"},
		"enum in a list":   {"DescribeClusters", &ecs.DescribeClustersInput{Include: []types.ClusterField{"TAGS", "NO"}}, "Value 'NO' at 'include.2.member' failed to satisfy constraint: Member must satisfy enum value set"},
		"length":           {"TagResource", tags(strings.Repeat("k", 129), "v"), "at 'tags.1.member.key' failed to satisfy constraint: Member must have length less than or equal to 128"},
		"minimum":          {"TagResource", tags("k", strings.Repeat("é", 256)), ""},
		"pattern":          {"TagResource", tags("k<", "v"), "Value 'k<' at 'tags.1.member.key' failed to satisfy constraint: Member must satisfy regular expression pattern"},
		"number":           {"RunTask", &ecs.RunTaskInput{TaskDefinition: aws.String("a"), CapacityProviderStrategy: []types.CapacityProviderStrategyItem{{CapacityProvider: aws.String("a"), Weight: 1001}}}, "Value '1001' at 'capacityProviderStrategy.1.member.weight' failed to satisfy constraint: Member must have value less than or equal to 1000"},
		"nested required":  {"PutAttributes", &ecs.PutAttributesInput{Attributes: []types.Attribute{{}}}, "Value null at 'attributes.1.member.name' failed to satisfy constraint: Member must not be null"},
		"zero is a number": {"RegisterTaskDefinition", &ecs.RegisterTaskDefinitionInput{Family: aws.String("f"), ContainerDefinitions: []types.ContainerDefinition{{Ulimits: []types.Ulimit{{Name: "core"}}}}}, ""},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			v, err := m.Validator(tc.operation, reflect.TypeOf(tc.in))
			if err != nil {
				t.Fatal(err)
			}
			err = v.Check(tc.in)
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
	if _, err := m.Validator("NoSuch", reflect.TypeFor[struct{}]()); err == nil {
		t.Error("an unknown operation has a validator")
	}
}

func TestViolationsAreBounded(t *testing.T) {
	m, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	v, err := m.Validator("PutAttributes", reflect.TypeFor[ecs.PutAttributesInput]())
	if err != nil {
		t.Fatal(err)
	}
	err = v.Check(&ecs.PutAttributesInput{Attributes: make([]types.Attribute, 10000)})
	if n := strings.Count(err.Error(), "Member must not be null"); n != maxViolations {
		t.Errorf("%d violations are listed", n)
	}
}

func BenchmarkLoad(b *testing.B) {
	for b.Loop() {
		if _, err := Load(); err != nil {
			b.Fatal(err)
		}
	}
}
