package api

import (
	"fmt"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/integ/lab"
)

func TestContainerInstances(t *testing.T) {
	l := lab.Start(t)
	a := l.Agent(lab.Shape{Attributes: map[string]string{"stack": "prod"}, GPUs: []string{"gpu-0"}})
	b := l.Agent(lab.Shape{Attributes: map[string]string{"stack": "test"}})
	d := must[*ecs.DescribeContainerInstancesOutput](t, "describe")(l.ECS.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{
		ContainerInstances: []string{a.ARN, b.ARN, "missing"},
	}))
	sameSet(t, "failures", failures(d.Failures), []string{"MISSING arn:aws:ecs:us-east-1:123456789012:container-instance/default/missing"})
	if len(d.ContainerInstances) != 2 {
		t.Fatalf("described %d instances", len(d.ContainerInstances))
	}
	i := d.ContainerInstances[0]
	if *i.Status != "ACTIVE" || !i.AgentConnected || aws.ToString(i.Ec2InstanceId) == "" || i.RegisteredAt == nil || *i.VersionInfo.AgentVersion != "1.86.0" {
		t.Errorf("instance: %+v", i)
	}
	names := func(list []types.Resource) []string {
		var out []string
		for _, r := range list {
			out = append(out, *r.Name)
		}
		return out
	}
	for _, list := range [][]types.Resource{i.RegisteredResources, i.RemainingResources} {
		sameSet(t, "resources", names(list), []string{"CPU", "MEMORY", "PORTS", "PORTS_UDP", "GPU"})
	}

	list := func(in *ecs.ListContainerInstancesInput) []string {
		return must[*ecs.ListContainerInstancesOutput](t, "list")(l.ECS.ListContainerInstances(ctx, in)).ContainerInstanceArns
	}
	register(t, l, batch("b"))
	out := must[*ecs.StartTaskOutput](t, "start")(l.ECS.StartTask(ctx, &ecs.StartTaskInput{TaskDefinition: s("b"), ContainerInstances: []string{b.ARN}}))
	waitStatus(t, l, "default", "RUNNING", arnsOf(out.Tasks)...)
	for filter, want := range map[string][]string{
		"":                                {a.ARN, b.ARN},
		"attribute:stack == prod":         {a.ARN},
		"attribute:stack in [prod, test]": {a.ARN, b.ARN},
		"not (attribute:stack =~ p.*)":    {b.ARN},
		"runningTasksCount > 0":           {b.ARN},
		"task:group == family:b":          {b.ARN},
		"agentConnected == true and agentVersion >= 1.85": {a.ARN, b.ARN},
		"registeredAt < 2020-01-01":                       nil,
	} {
		in := &ecs.ListContainerInstancesInput{}
		if filter != "" {
			in.Filter = &filter
		}
		sameSet(t, "filter "+filter, list(in), want)
	}
	_, err := l.ECS.ListContainerInstances(ctx, &ecs.ListContainerInstancesInput{Filter: s("attribute:stack = prod")})
	wantCode(t, "bad filter", err, "InvalidParameterException")

	up := must[*ecs.UpdateContainerInstancesStateOutput](t, "drain")(l.ECS.UpdateContainerInstancesState(ctx, &ecs.UpdateContainerInstancesStateInput{
		ContainerInstances: []string{b.ARN, "missing"}, Status: types.ContainerInstanceStatusDraining,
	}))
	if len(up.ContainerInstances) != 1 || *up.ContainerInstances[0].Status != "DRAINING" || len(up.Failures) != 1 {
		t.Errorf("drain: %+v %v", up.ContainerInstances, failures(up.Failures))
	}
	sameSet(t, "DRAINING", list(&ecs.ListContainerInstancesInput{Status: types.ContainerInstanceStatusDraining}), []string{b.ARN})
	sameSet(t, "ACTIVE", list(&ecs.ListContainerInstancesInput{Status: types.ContainerInstanceStatusActive}), []string{a.ARN})
	sameSet(t, "without a status", list(&ecs.ListContainerInstancesInput{}), []string{a.ARN, b.ARN})
	r := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b"), Count: aws.Int32(4)})
	for _, task := range r.Tasks {
		if *task.ContainerInstanceArn != a.ARN {
			t.Errorf("placed on a draining instance")
		}
	}
	_, err = l.ECS.UpdateContainerInstancesState(ctx, &ecs.UpdateContainerInstancesStateInput{ContainerInstances: []string{b.ARN}, Status: "DEREGISTERING"})
	wantCode(t, "a state nobody may set", err, "InvalidParameterException")

	_, err = l.ECS.DeregisterContainerInstance(ctx, &ecs.DeregisterContainerInstanceInput{ContainerInstance: &b.ARN})
	wantCode(t, "deregister with a task", err, "InvalidParameterException")
	gone := must[*ecs.DeregisterContainerInstanceOutput](t, "deregister")(l.ECS.DeregisterContainerInstance(ctx, &ecs.DeregisterContainerInstanceInput{
		ContainerInstance: &b.ARN, Force: aws.Bool(true),
	}))
	if *gone.ContainerInstance.Status != "INACTIVE" {
		t.Errorf("deregistered with status %s", *gone.ContainerInstance.Status)
	}
	sameSet(t, "after deregistration", list(&ecs.ListContainerInstancesInput{}), []string{a.ARN})
	_, err = l.ECS.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{Cluster: s("nowhere"), ContainerInstances: []string{a.ARN}})
	if c := code(err); c != "ClusterNotFoundException" && c != "InvalidParameterException" {
		t.Errorf("another cluster: %q", c)
	}
}

func TestListContainerInstancesPages(t *testing.T) {
	l := lab.Start(t)
	createCluster(t, l, "default")
	var want []string
	for i := range 23 {
		key := l.InstanceKey()
		out := must[*ecs.RegisterContainerInstanceOutput](t, "register")(l.Client(key).RegisterContainerInstance(ctx, &ecs.RegisterContainerInstanceInput{
			TotalResources: []types.Resource{{Name: s("CPU"), Type: s("INTEGER"), IntegerValue: 1024}, {Name: s("MEMORY"), Type: s("INTEGER"), IntegerValue: 1024}},
			Attributes:     []types.Attribute{{Name: s("n"), Value: s(fmt.Sprint(i))}},
		}))
		want = append(want, *out.ContainerInstance.ContainerInstanceArn)
	}
	var got []string
	p := ecs.NewListContainerInstancesPaginator(l.ECS, &ecs.ListContainerInstancesInput{MaxResults: aws.Int32(5), Filter: s("attribute:n exists")})
	for p.HasMorePages() {
		got = append(got, must[*ecs.ListContainerInstancesOutput](t, "page")(p.NextPage(ctx)).ContainerInstanceArns...)
	}
	sameSet(t, "all pages", got, want)
	few := must[*ecs.ListContainerInstancesOutput](t, "list")(l.ECS.ListContainerInstances(ctx, &ecs.ListContainerInstancesInput{Filter: s("attribute:n < 5"), MaxResults: aws.Int32(5)}))
	if len(few.ContainerInstanceArns) != 5 || few.NextToken != nil {
		t.Errorf("a page that is exactly full: %d, next %v", len(few.ContainerInstanceArns), few.NextToken)
	}
}

func TestRegisterContainerInstanceAgain(t *testing.T) {
	l := lab.Start(t)
	a := l.Agent(lab.Shape{Attributes: map[string]string{"stack": "prod"}})
	must[*ecs.PutAttributesOutput](t, "put")(l.ECS.PutAttributes(ctx, &ecs.PutAttributesInput{Attributes: []types.Attribute{{Name: s("mine"), Value: s("1"), TargetId: &a.ARN}}}))
	out := must[*ecs.RegisterContainerInstanceOutput](t, "register again")(a.ECS.RegisterContainerInstance(ctx, &ecs.RegisterContainerInstanceInput{
		ContainerInstanceArn: &a.ARN,
		TotalResources:       []types.Resource{{Name: s("CPU"), Type: s("INTEGER"), IntegerValue: 2048}, {Name: s("MEMORY"), Type: s("INTEGER"), IntegerValue: 4096}},
		Attributes:           []types.Attribute{{Name: s("new"), Value: s("x")}},
	}))
	i := out.ContainerInstance
	if *i.ContainerInstanceArn != a.ARN {
		t.Errorf("another ARN: %s", *i.ContainerInstanceArn)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(i.Attributes, func(at types.Attribute) bool { return *at.Name == name })
	}
	if !has("mine") || !has("new") {
		t.Errorf("attributes after it: %+v", i.Attributes)
	}
}

func TestAttributes(t *testing.T) {
	l := lab.Start(t)
	a, b := l.Agent(lab.Shape{}), l.Agent(lab.Shape{})
	put := func(attrs ...types.Attribute) error {
		_, err := l.ECS.PutAttributes(ctx, &ecs.PutAttributesInput{Attributes: attrs})
		return err
	}
	on := func(name, value string, target *lab.Agent) types.Attribute {
		return types.Attribute{Name: &name, Value: &value, TargetId: &target.ARN, TargetType: types.TargetTypeContainerInstance}
	}
	if err := put(on("stack", "prod", a), on("stack", "test", b), on("rack", "1", a)); err != nil {
		t.Fatal(err)
	}
	if err := put(on("stack", "dev", b)); err != nil {
		t.Fatal(err)
	}
	list := func(in *ecs.ListAttributesInput) []string {
		in.TargetType = types.TargetTypeContainerInstance
		in.MaxResults = aws.Int32(2)
		var out []string
		for p := ecs.NewListAttributesPaginator(l.ECS, in); p.HasMorePages(); {
			for _, at := range must[*ecs.ListAttributesOutput](t, "page")(p.NextPage(ctx)).Attributes {
				out = append(out, *at.Name+"="+aws.ToString(at.Value)+" "+*at.TargetId)
			}
		}
		return out
	}
	sameSet(t, "stack", list(&ecs.ListAttributesInput{AttributeName: s("stack")}), []string{"stack=prod " + a.ARN, "stack=dev " + b.ARN})
	sameSet(t, "stack of a value", list(&ecs.ListAttributesInput{AttributeName: s("stack"), AttributeValue: s("dev")}), []string{"stack=dev " + b.ARN})
	must[*ecs.DeleteAttributesOutput](t, "delete")(l.ECS.DeleteAttributes(ctx, &ecs.DeleteAttributesInput{Attributes: []types.Attribute{{Name: s("stack"), TargetId: &b.ARN}}}))
	sameSet(t, "stack after delete", list(&ecs.ListAttributesInput{AttributeName: s("stack")}), []string{"stack=prod " + a.ARN})

	_, err := l.ECS.ListAttributes(ctx, &ecs.ListAttributesInput{TargetType: types.TargetTypeContainerInstance, AttributeValue: s("x")})
	wantCode(t, "a value without a name", err, "InvalidParameterException")
	err = put(types.Attribute{Name: s("x"), Value: s("y"), TargetId: s("00000000000000000000000000000000")})
	wantCode(t, "an unknown target", err, "TargetNotFoundException")
	var many []types.Attribute
	for i := range 11 {
		many = append(many, on(fmt.Sprint("m", i), "", b))
	}
	if c := code(put(many...)); c != "InvalidParameterException" && c != "AttributeLimitExceededException" {
		t.Errorf("eleven attributes in a call: %q", c)
	}
	if err := put(many[:10]...); err != nil {
		t.Errorf("ten attributes: %v", err)
	}
	wantCode(t, "the eleventh of an instance", put(many[10]), "AttributeLimitExceededException")
}
