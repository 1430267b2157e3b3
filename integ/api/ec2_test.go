package api

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"

	"berth.dev/berth/integ/lab"
)

// ec2 runs a command of the EC2 API that must succeed and returns its answer.
func (c cli) ec2(args ...string) map[string]any {
	c.t.Helper()
	text, err := command(c.t, c.env, "/usr/bin/aws", append([]string{"ec2", "--endpoint-url", c.l.URL, "--output", "json"}, args...)...)
	if err != nil {
		c.t.Fatalf("aws ec2 %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	var out map[string]any
	if strings.TrimSpace(text) != "" {
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			c.t.Fatalf("aws ec2 %s printed no JSON: %v\n%s", args[0], err, text)
		}
	}
	return out
}

func (c cli) ec2Fails(code string, args ...string) {
	c.t.Helper()
	text, err := command(c.t, c.env, "/usr/bin/aws", append([]string{"ec2", "--endpoint-url", c.l.URL}, args...)...)
	if err == nil || !strings.Contains(text, "("+code+")") {
		c.t.Errorf("aws ec2 %s: got %v, want %s\n%s", args[0], err, code, text)
	}
}

// TestNetworksByTheCLI is the life of a subnet and a security group, as people type it.
func TestNetworksByTheCLI(t *testing.T) {
	t.Parallel()
	l := lab.Start(t)
	c := cli{t, l, cliEnv(l, l.Key)}
	home := at(t, c.ec2("describe-vpcs", "--filters", "Name=is-default,Values=true"), "Vpcs", 0, "VpcId").(string)
	first := at(t, c.ec2("describe-subnets", "--filters", "Name=vpc-id,Values="+home), "Subnets", 0)
	if at(t, first, "AvailableIpAddressCount") != 4091.0 || at(t, first, "State") != "available" {
		t.Errorf("default subnet: %v", first)
	}
	sg := at(t, c.ec2("create-security-group", "--group-name", "web", "--description", "of the shop",
		"--tag-specifications", "ResourceType=security-group,Tags=[{Key=team,Value=shop}]"), "GroupId").(string)
	rule := at(t, c.ec2("authorize-security-group-ingress", "--group-id", sg, "--protocol", "tcp", "--port", "80", "--cidr", "0.0.0.0/0"),
		"SecurityGroupRules", 0, "SecurityGroupRuleId").(string)
	c.ec2("authorize-security-group-ingress", "--group-id", sg, "--protocol", "tcp", "--port", "8080-8090", "--source-group", sg)
	c.ec2Fails("InvalidPermission.Duplicate", "authorize-security-group-ingress", "--group-id", sg, "--protocol", "tcp", "--port", "80", "--cidr", "0.0.0.0/0")
	c.ec2Fails("InvalidGroup.Duplicate", "create-security-group", "--group-name", "web", "--description", "again")
	c.ec2Fails("InvalidGroup.NotFound", "describe-security-groups", "--group-ids", "sg-00000000000000000")

	g := at(t, c.ec2("describe-security-groups", "--filters", "Name=tag:team,Values=sh*"), "SecurityGroups", 0)
	if at(t, g, "GroupName") != "web" || at(t, g, "IpPermissions", 0, "FromPort") == nil || at(t, g, "IpPermissionsEgress", 0, "IpProtocol") != "-1" {
		t.Errorf("group: %v", g)
	}
	c.ec2("revoke-security-group-ingress", "--group-id", sg, "--security-group-rule-ids", rule)
	rules, _ := at(t, c.ec2("describe-security-group-rules", "--filters", "Name=group-id,Values="+sg), "SecurityGroupRules").([]any)
	if len(rules) != 2 {
		t.Errorf("%d rules, want that of the group itself and the outbound one: %v", len(rules), rules)
	}
	c.ec2("create-tags", "--resources", sg, "--tags", "Key=a,Value=b")
	if got := at(t, c.ec2("describe-tags", "--filters", "Name=resource-id,Values="+sg, "Name=key,Values=a"), "Tags", 0, "Value"); got != "b" {
		t.Errorf("tag: %v", got)
	}

	vpc := at(t, c.ec2("create-vpc", "--cidr-block", "10.50.0.0/16"), "Vpc", "VpcId").(string)
	subnet := at(t, c.ec2("create-subnet", "--vpc-id", vpc, "--cidr-block", "10.50.1.0/24"), "Subnet", "SubnetId").(string)
	c.ec2Fails("InvalidSubnet.Conflict", "create-subnet", "--vpc-id", vpc, "--cidr-block", "10.50.1.128/25")
	c.ec2Fails("InvalidSubnet.Range", "create-subnet", "--vpc-id", vpc, "--cidr-block", "10.51.1.0/24")
	c.ec2Fails("DependencyViolation", "delete-vpc", "--vpc-id", vpc)
	c.ec2Fails("MissingParameter", "create-subnet", "--vpc-id", vpc, "--ipv6-native")
	c.ec2Fails("InvalidSubnet.Range", "create-subnet", "--vpc-id", vpc, "--ipv6-native", "--ipv6-cidr-block", "fd00:1::/64")
	c.ec2("delete-subnet", "--subnet-id", subnet)
	c.ec2("delete-vpc", "--vpc-id", vpc)
	c.nativeSubnet()
	c.ec2("delete-security-group", "--group-id", sg)
	if got := at(t, c.ec2("describe-availability-zones"), "AvailabilityZones", 0, "ZoneName"); got != lab.Region+"a" {
		t.Errorf("zone: %v", got)
	}
	c.ec2Fails("MissingAuthenticationToken", "describe-vpcs", "--no-sign-request")
}

// nativeSubnet makes a subnet that has IPv6 alone.
func (c cli) nativeSubnet() {
	t := c.t
	t.Helper()
	made := at(t, c.ec2("create-vpc", "--cidr-block", "10.52.0.0/16", "--amazon-provided-ipv6-cidr-block"), "Vpc")
	vpc, whole := at(t, made, "VpcId").(string), at(t, made, "Ipv6CidrBlockAssociationSet", 0, "Ipv6CidrBlock").(string)
	create := []string{"create-subnet", "--vpc-id", vpc, "--ipv6-native", "--ipv6-cidr-block", strings.TrimSuffix(whole, "56") + "64"}
	subnet := at(t, c.ec2(create...), "Subnet")
	if v4, ok := subnet.(map[string]any)["CidrBlock"]; ok || at(t, subnet, "Ipv6Native") != true || at(t, subnet, "AssignIpv6AddressOnCreation") != true {
		t.Errorf("a subnet without IPv4 with the range %v: %v", v4, subnet)
	}
	c.ec2Fails("InvalidSubnet.Conflict", create...)
	c.ec2Fails("InvalidParameterCombination", append(create, "--cidr-block", "10.52.0.0/24")...)
	c.ec2("delete-subnet", "--subnet-id", at(t, subnet, "SubnetId").(string))
	c.ec2("delete-vpc", "--vpc-id", vpc)
}

// TestDiscovery is what Prometheus' discovery of ECS and of EC2 asks: services, of which
// there are none, and the instances under the tasks.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	l := lab.Start(t)
	a := l.Agent(lab.Shape{})
	c := cli{t, l, cliEnv(l, l.Key)}
	services := must[*ecs.ListServicesOutput](t, "list services")(l.ECS.ListServices(ctx, &ecs.ListServicesInput{Cluster: s("default")}))
	if services.ServiceArns == nil || len(services.ServiceArns) > 0 {
		t.Errorf("services: %v", services.ServiceArns)
	}
	_, err := l.ECS.ListServices(ctx, &ecs.ListServicesInput{Cluster: s("nowhere")})
	wantCode(t, "services of no cluster", err, "ClusterNotFoundException")
	found := must[*ecs.DescribeServicesOutput](t, "describe services")(l.ECS.DescribeServices(ctx, &ecs.DescribeServicesInput{Services: []string{"web"}}))
	sameSet(t, "failures", failures(found.Failures), []string{"MISSING arn:aws:ecs:" + lab.Region + ":" + lab.Account + ":service/default/web"})

	instances := must[*ecs.DescribeContainerInstancesOutput](t, "describe instances")(l.ECS.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{ContainerInstances: []string{a.ARN}}))
	id := *instances.ContainerInstances[0].Ec2InstanceId
	i := at(t, c.ec2("describe-instances", "--instance-ids", id, "--filters", "Name=instance-state-name,Values=running"), "Reservations", 0, "Instances", 0)
	if at(t, i, "InstanceId") != id || at(t, i, "PrivateIpAddress") != "127.0.0.1" || at(t, i, "Placement", "AvailabilityZone") != lab.Region+"a" || at(t, i, "State", "Name") != "running" {
		t.Errorf("instance: %v", i)
	}
	if list, _ := c.ec2("describe-instances", "--filters", "Name=tag:no,Values=such")["Reservations"].([]any); len(list) > 0 {
		t.Errorf("instances with a tag that none has: %v", list)
	}
	c.ec2Fails("InvalidInstanceID.NotFound", "describe-instances", "--instance-ids", "i-00000000000000000")
	if _, err := l.ECS.DeregisterContainerInstance(ctx, &ecs.DeregisterContainerInstanceInput{ContainerInstance: &a.ARN, Force: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	c.ec2Fails("InvalidInstanceID.NotFound", "describe-instances", "--instance-ids", id)
}
