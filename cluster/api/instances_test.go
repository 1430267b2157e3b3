package api_test

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/store"
)

func client(l *acstest.Lab, creds aws.CredentialsProvider) *ecs.Client {
	return ecs.New(ecs.Options{Region: acstest.LabRegion, BaseEndpoint: &l.URL, Credentials: creds})
}

func registration(arn string) *ecs.RegisterContainerInstanceInput {
	in := &ecs.RegisterContainerInstanceInput{
		TotalResources: []types.Resource{
			{Name: aws.String("CPU"), Type: aws.String("INTEGER"), IntegerValue: 1024},
			{Name: aws.String("MEMORY"), Type: aws.String("INTEGER"), IntegerValue: 2048},
			{Name: aws.String("PORTS"), Type: aws.String("STRINGSET"), StringSetValue: []string{"51678", "22"}},
			{Name: aws.String("PORTS_UDP"), Type: aws.String("STRINGSET"), StringSetValue: []string{}},
		},
		Attributes: []types.Attribute{{Name: aws.String("ecs.os-type"), Value: aws.String("linux")}, {Name: aws.String("ecs.capability.full-sync")}},
	}
	if arn != "" {
		in.ContainerInstanceArn = &arn
	}
	return in
}

func TestRegisterContainerInstance(t *testing.T) {
	l := newLab(t, nil)
	ctx := context.Background()
	c := client(l, l.InstanceKey("AKIAREG"))
	first, err := c.RegisterContainerInstance(ctx, registration(""))
	if err != nil {
		t.Fatal(err)
	}
	i := first.ContainerInstance
	arn := aws.ToString(i.ContainerInstanceArn)
	if aws.ToString(i.Status) != "ACTIVE" || i.AgentConnected || i.RegisteredAt == nil || !strings.HasPrefix(aws.ToString(i.Ec2InstanceId), "mi-") {
		t.Errorf("answer: %+v", i)
	}
	var names []string
	for _, at := range i.Attributes {
		names = append(names, aws.ToString(at.Name)+"="+aws.ToString(at.Value))
	}
	if diff := cmp.Diff([]string{"ecs.os-type=linux", "ecs.capability.full-sync=", "ecs.availability-zone=us-east-1a"}, names); diff != "" {
		t.Errorf("attributes:\n%s", diff)
	}
	if _, err := l.Operator.PutAttributes(ctx, &ecs.PutAttributesInput{Attributes: []types.Attribute{
		{Name: aws.String("rack"), Value: aws.String("7"), TargetId: &arn, TargetType: types.TargetTypeContainerInstance},
	}}); err != nil {
		t.Fatal(err)
	}
	// The agent comes back with its ARN, with less to offer and another version.
	again := registration(arn)
	again.TotalResources[0].IntegerValue = 512
	again.Attributes = again.Attributes[:1]
	second, err := c.RegisterContainerInstance(ctx, again)
	if err != nil {
		t.Fatal(err)
	}
	i = second.ContainerInstance
	names = nil
	for _, at := range i.Attributes {
		names = append(names, aws.ToString(at.Name)+"="+aws.ToString(at.Value))
	}
	if aws.ToString(i.ContainerInstanceArn) != arn || i.RemainingResources[0].IntegerValue != 512 {
		t.Errorf("re-registration: %+v", i)
	}
	if diff := cmp.Diff([]string{"ecs.os-type=linux", "ecs.availability-zone=us-east-1a", "rack=7"}, names); diff != "" {
		t.Errorf("attributes after re-registration:\n%s", diff)
	}
	// And with its key alone, having lost its state.
	third, err := c.RegisterContainerInstance(ctx, registration(""))
	if err != nil {
		t.Fatal(err)
	}
	if got := aws.ToString(third.ContainerInstance.ContainerInstanceArn); got != arn {
		t.Errorf("the same key got %s, then %s", arn, got)
	}
	// Another key cannot have the instance.
	if _, err := client(l, l.InstanceKey("AKIATHIEF")).RegisterContainerInstance(ctx, registration(arn)); code(err) != "AccessDeniedException" {
		t.Errorf("another key registered the instance: %v", err)
	}
}

// TestKeysAreForOneInstance: an instance key cannot act for another instance, nor use
// the operator's operations.
func TestKeysAreForOneInstance(t *testing.T) {
	l := newLab(t, nil)
	ctx := context.Background()
	mine, other := client(l, l.InstanceKey("AKIAMINE")), client(l, l.InstanceKey("AKIAYOURS"))
	reg, err := mine.RegisterContainerInstance(ctx, registration(""))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.RegisterContainerInstance(ctx, registration("")); err != nil {
		t.Fatal(err)
	}
	arn := aws.ToString(reg.ContainerInstance.ContainerInstanceArn)
	if err := l.Store.Update(ctx, func(tx *store.Tx) error {
		key := store.Key("default", arn[strings.LastIndexByte(arn, '/')+1:])
		i, _ := store.Get(tx, store.Instances, key)
		on := *i
		on.Instance.AgentConnected = true
		store.Put(tx, store.Instances, key, &on)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	define(t, l, &ecs.RegisterTaskDefinitionInput{Family: aws.String("s"), ContainerDefinitions: []types.ContainerDefinition{{Name: aws.String("web"), Image: aws.String("i"), Memory: aws.Int32(64)}}})
	out, err := l.Operator.StartTask(ctx, &ecs.StartTaskInput{TaskDefinition: aws.String("s"), ContainerInstances: []string{arn}})
	if err != nil || len(out.Tasks) != 1 {
		t.Fatalf("StartTask: %+v, %v", out, err)
	}
	task := out.Tasks[0].TaskArn
	calls := map[string]func(*ecs.Client) error{
		"submit task": func(c *ecs.Client) error {
			_, err := c.SubmitTaskStateChange(ctx, &ecs.SubmitTaskStateChangeInput{Task: task, Status: aws.String("RUNNING")})
			return err
		},
		"submit container": func(c *ecs.Client) error {
			_, err := c.SubmitContainerStateChange(ctx, &ecs.SubmitContainerStateChangeInput{Task: task, ContainerName: aws.String("web"), Status: aws.String("RUNNING")})
			return err
		},
		"drain": func(c *ecs.Client) error {
			_, err := c.UpdateContainerInstancesState(ctx, &ecs.UpdateContainerInstancesStateInput{ContainerInstances: []string{arn}, Status: types.ContainerInstanceStatusDraining})
			return err
		},
		"discover": func(c *ecs.Client) error {
			_, err := c.DiscoverPollEndpoint(ctx, &ecs.DiscoverPollEndpointInput{ContainerInstance: &arn})
			return err
		},
	}
	for name, call := range calls {
		if err := call(other); code(err) != "AccessDeniedException" {
			t.Errorf("%s with another instance's key: %v", name, err)
		}
		if err := call(mine); err != nil {
			t.Errorf("%s with the instance's own key: %v", name, err)
		}
	}
	if _, err := mine.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("s")}); code(err) != "AccessDeniedException" {
		t.Errorf("RunTask with an instance key: %v", err)
	}
}

func TestListAndDrainContainerInstances(t *testing.T) {
	l := newLab(t, nil)
	arns := instances(t, l, 5, 1000, 1000)
	define(t, l, small("s"))
	ctx := context.Background()
	if _, err := l.Operator.UpdateContainerInstancesState(ctx, &ecs.UpdateContainerInstancesStateInput{ContainerInstances: arns[:1], Status: types.ContainerInstanceStatusDraining}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Operator.DeregisterContainerInstance(ctx, &ecs.DeregisterContainerInstanceInput{ContainerInstance: &arns[1]}); err != nil {
		t.Fatal(err)
	}
	out, err := l.Operator.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("s"), Count: aws.Int32(9)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range out.Tasks {
		if on := aws.ToString(out.Tasks[i].ContainerInstanceArn); on == arns[0] || on == arns[1] {
			t.Errorf("placed on %s, which takes no tasks", on)
		}
	}
	list := func(status types.ContainerInstanceStatus, filter string) int {
		t.Helper()
		n := 0
		p := ecs.NewListContainerInstancesPaginator(l.Operator, &ecs.ListContainerInstancesInput{Status: status, Filter: &filter, MaxResults: aws.Int32(2)})
		for p.HasMorePages() {
			page, err := p.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			n += len(page.ContainerInstanceArns)
		}
		return n
	}
	got := []int{
		list("", ""), list(types.ContainerInstanceStatusDraining, ""), list(types.ContainerInstanceStatusActive, ""),
		list("", "attribute:ecs.availability-zone == us-east-1a"), list("", "runningTasksCount == 0"), list("", "task:group == family:s"), list("", "agentConnected == false"),
	}
	if diff := cmp.Diff([]int{4, 1, 3, 1, 4, 3, 0}, got); diff != "" {
		t.Errorf("all, draining, active, by zone, by running tasks, by group, disconnected:\n%s", diff)
	}
	if _, err := l.Operator.ListContainerInstances(ctx, &ecs.ListContainerInstancesInput{Filter: aws.String("attribute: ==")}); code(err) != "InvalidParameterException" {
		t.Errorf("bad filter: %v", err)
	}
	d, err := l.Operator.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{ContainerInstances: []string{arns[2], strings.Repeat("e", 32)}})
	if err != nil {
		t.Fatal(err)
	}
	if i := d.ContainerInstances[0]; i.PendingTasksCount != 3 || i.RemainingResources[0].IntegerValue != 1000-3*64 {
		t.Errorf("instance: %+v", i)
	}
	if len(d.Failures) != 1 || aws.ToString(d.Failures[0].Reason) != "MISSING" {
		t.Errorf("failures: %+v", d.Failures)
	}
}

func TestDiscoverPollEndpoint(t *testing.T) {
	l := newLab(t, nil)
	out, err := l.Operator.DiscoverPollEndpoint(context.Background(), &ecs.DiscoverPollEndpointInput{})
	if err != nil {
		t.Fatal(err)
	}
	if aws.ToString(out.Endpoint) != l.URL || aws.ToString(out.TelemetryEndpoint) != l.URL+"/tcs" {
		t.Errorf("endpoints %s and %s", aws.ToString(out.Endpoint), aws.ToString(out.TelemetryEndpoint))
	}
}

// TestStoppedTasksExpire after their time, and not before.
func TestStoppedTasksExpire(t *testing.T) {
	var ahead atomic.Int64
	l := newLab(t, func(c *api.Config) {
		c.StoppedRetention = 2 * time.Minute
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	arns := instances(t, l, 1, 1000, 1000)
	define(t, l, small("s"))
	ctx := context.Background()
	out, err := l.Operator.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("s"), Count: aws.Int32(3)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range out.Tasks[:2] {
		if _, err := l.Operator.SubmitTaskStateChange(ctx, &ecs.SubmitTaskStateChangeInput{Task: out.Tasks[i].TaskArn, Status: aws.String("STOPPED")}); err != nil {
			t.Fatal(err)
		}
	}
	left := func() int {
		t.Helper()
		if err := l.API.Expire(ctx); err != nil {
			t.Fatal(err)
		}
		d, err := l.Operator.DescribeTasks(ctx, &ecs.DescribeTasksInput{Tasks: []string{*out.Tasks[0].TaskArn, *out.Tasks[1].TaskArn, *out.Tasks[2].TaskArn}})
		if err != nil {
			t.Fatal(err)
		}
		return len(d.Tasks)
	}
	before := left()
	ahead.Store(int64(3 * time.Minute))
	if got := [2]int{before, left()}; got != [2]int{3, 1} {
		t.Errorf("tasks before and after the time: %v, want 3 and 1; instance %s", got, arns[0])
	}
}

// TestTwoPlacers stands for two processes on one etcd: each has its own view, and only
// the allocations' revisions keep them apart.
func TestTwoPlacers(t *testing.T) {
	l := newLab(t, nil)
	instances(t, l, 5, 640, 640)
	define(t, l, small("s"))
	second, err := api.New(l.Store, nil, l.API.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- second.RunTasks(ctx) }()
	defer func() { cancel(); <-ended }()
	var placed atomic.Int64
	var wg sync.WaitGroup
	for n := range 60 {
		wg.Go(func() {
			a := []*api.API{l.API, second}[n%2]
			out, err := a.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("s")})
			if err != nil {
				t.Error(err)
				return
			}
			placed.Add(int64(len(out.Tasks)))
		})
	}
	wg.Wait()
	if placed.Load() != 50 {
		t.Errorf("%d tasks placed, 50 fit", placed.Load())
	}
	checkBooks(t, l, 640, 640)
}
