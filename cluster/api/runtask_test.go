package api_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/store"
)

// newLab starts a lab with the default cluster.
func newLab(t testing.TB, config func(*api.Config)) *acstest.Lab {
	t.Helper()
	l := acstest.NewLab(t, config, nil)
	if _, err := l.Operator.CreateCluster(context.Background(), &ecs.CreateClusterInput{}); err != nil {
		t.Fatal(err)
	}
	return l
}

func define(t testing.TB, l *acstest.Lab, in *ecs.RegisterTaskDefinitionInput) {
	t.Helper()
	if _, err := l.Operator.RegisterTaskDefinition(context.Background(), in); err != nil {
		t.Fatal(err)
	}
}

// small is a definition of 64 CPU units and 64 MiB.
func small(family string) *ecs.RegisterTaskDefinitionInput {
	return &ecs.RegisterTaskDefinitionInput{Family: &family, ContainerDefinitions: []types.ContainerDefinition{{
		Name: aws.String("web"), Image: aws.String("my-image"), Cpu: 64, Memory: aws.Int32(64),
	}}}
}

// instances puts records of connected instances into the store, as fast as it gets.
func instances(t testing.TB, l *acstest.Lab, n int, cpu, memory int32) []string {
	t.Helper()
	var arns []string
	ids := make([]string, n)
	for i := range n {
		ids[i] = fmt.Sprintf("%032x", i+1)
		arns = append(arns, "arn:aws:ecs:us-east-1:000000000000:container-instance/default/"+ids[i])
	}
	now := time.Now()
	for chunk := range slices.Chunk(ids, 100) {
		err := l.Store.Update(context.Background(), func(tx *store.Tx) error {
			for _, id := range chunk {
				zone := "us-east-1" + string("abc"[id[31]%3])
				store.Put(tx, store.Instances, store.Key("default", id), &store.Instance{ID: id, ClusterName: "default", Node: "elsewhere", Instance: types.ContainerInstance{
					ContainerInstanceArn: aws.String("arn:aws:ecs:us-east-1:000000000000:container-instance/default/" + id),
					Status:               aws.String("ACTIVE"), AgentConnected: true, RegisteredAt: &now,
					Attributes: []types.Attribute{
						{Name: aws.String("ecs.availability-zone"), Value: &zone}, {Name: aws.String("ecs.cpu-architecture"), Value: aws.String("x86_64")},
						{Name: aws.String("com.amazonaws.ecs.capability.docker-remote-api.1.18")},
						{Name: aws.String("com.amazonaws.ecs.capability.docker-remote-api.1.24")}, {Name: aws.String("ecs.capability.container-health-check")},
					},
					RegisteredResources: []types.Resource{
						{Name: aws.String("CPU"), Type: aws.String("INTEGER"), IntegerValue: cpu},
						{Name: aws.String("MEMORY"), Type: aws.String("INTEGER"), IntegerValue: memory},
						{Name: aws.String("PORTS"), Type: aws.String("STRINGSET"), StringSetValue: []string{"22"}},
					},
				}})
				store.Put(tx, store.Allocations, store.Key("default", id), &store.Allocation{CPU: int64(cpu), Memory: int64(memory), TCP: []int32{22}})
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return arns
}

func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

// TestNeverPlacedWhereItDoesNotFit: 100 callers at once ask for more than there is.
func TestNeverPlacedWhereItDoesNotFit(t *testing.T) {
	l := newLab(t, nil)
	instances(t, l, 10, 1024, 1024)
	define(t, l, &ecs.RegisterTaskDefinitionInput{Family: aws.String("big"), ContainerDefinitions: []types.ContainerDefinition{{
		Name: aws.String("web"), Image: aws.String("i"), Cpu: 100, Memory: aws.Int32(150),
	}}})
	define(t, l, &ecs.RegisterTaskDefinitionInput{Family: aws.String("port"), ContainerDefinitions: []types.ContainerDefinition{{
		Name: aws.String("web"), Image: aws.String("i"), Cpu: 1, Memory: aws.Int32(6),
		PortMappings: []types.PortMapping{{ContainerPort: aws.Int32(80), HostPort: aws.Int32(80)}},
	}}})
	var mu sync.Mutex
	placed, reasons := map[string]int{}, map[string]int{}
	var wg sync.WaitGroup
	for n := range 100 {
		wg.Go(func() {
			family := []string{"big", "port"}[n%2]
			out, err := l.Operator.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: &family, Count: aws.Int32(2)})
			if err != nil {
				t.Error(err)
				return
			}
			if len(out.Tasks)+len(out.Failures) != 2 {
				t.Errorf("%d tasks and %d failures for 2 wanted", len(out.Tasks), len(out.Failures))
			}
			mu.Lock()
			defer mu.Unlock()
			placed[family] += len(out.Tasks)
			for _, f := range out.Failures {
				reasons[family+" "+aws.ToString(f.Reason)]++
			}
		})
	}
	wg.Wait()
	if placed["port"] != 10 {
		t.Errorf("%d tasks with the port on 10 instances", placed["port"])
	}
	// 6 of 150 MiB fit on each instance beside one of 6 MiB.
	if placed["big"] != 60 {
		t.Errorf("%d big tasks placed, 60 fit", placed["big"])
	}
	want := map[string]int{"big RESOURCE:MEMORY": 40, "port RESOURCE:PORTS": 90}
	if diff := cmp.Diff(want, reasons); diff != "" {
		t.Errorf("failures:\n%s", diff)
	}
	checkBooks(t, l, 1024, 1024)
}

// checkBooks compares what the allocations say is left with what the tasks hold.
func checkBooks(t *testing.T, l *acstest.Lab, cpu, memory int64) {
	t.Helper()
	l.Store.View(func(r store.Reader) {
		store.Scan(r, store.Allocations, "", func(key string, a *store.Allocation) bool {
			id := key[strings.LastIndexByte(key, '/')+1:]
			left := store.Allocation{CPU: cpu, Memory: memory, TCP: []int32{22}}
			store.Lookup(r, store.TasksByInstance, id, func(_ string, task *store.Task) bool {
				if aws.ToString(task.Task.LastStatus) != "STOPPED" {
					left.CPU -= task.Held.CPU
					left.Memory -= task.Held.Memory
					left.TCP = append(left.TCP, task.Held.TCP...)
				}
				return true
			})
			slices.Sort(left.TCP)
			if left.CPU < 0 || left.Memory < 0 || len(slices.Compact(slices.Clone(left.TCP))) != len(left.TCP) {
				t.Errorf("instance %s is overcommitted: %+v", id, left)
			}
			if left.CPU != a.CPU || left.Memory != a.Memory || !slices.Equal(left.TCP, a.TCP) {
				t.Errorf("allocation of %s is %+v, its tasks leave %+v", id, *a, left)
			}
			return true
		})
	})
}

// TestResourcesComeBack runs far more tasks through an instance than fit at once.
func TestResourcesComeBack(t *testing.T) {
	l := newLab(t, nil)
	define(t, l, small("s"))
	a, err := acstest.Start(context.Background(), acstest.Config{
		Endpoint: l.URL, Region: acstest.LabRegion, Credentials: l.InstanceKey("AKIACYCLE"), CPU: 256, Memory: 256,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	ctx := context.Background()
	for range 10 {
		var tasks []string
		acstest.WaitFor(t, "room for four tasks", func() bool {
			out, err := l.Operator.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("s"), Count: aws.Int32(4)})
			if err != nil {
				t.Fatal(err)
			}
			for i := range out.Tasks {
				tasks = append(tasks, aws.ToString(out.Tasks[i].TaskArn))
			}
			return len(tasks) >= 4
		})
		var wg sync.WaitGroup
		for _, arn := range tasks {
			wg.Go(func() {
				if _, err := l.Operator.StopTask(ctx, &ecs.StopTaskInput{Task: &arn}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	acstest.WaitFor(t, "all room to be back", func() bool {
		out, err := l.Operator.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{ContainerInstances: []string{a.ARN()}})
		if err != nil {
			t.Fatal(err)
		}
		i := out.ContainerInstances[0]
		return i.RunningTasksCount == 0 && i.PendingTasksCount == 0 && cmp.Equal(i.RemainingResources[0].IntegerValue, int32(256)) && cmp.Equal(i.RemainingResources[1].IntegerValue, int32(256))
	})
}

func TestClientToken(t *testing.T) {
	l := newLab(t, nil)
	instances(t, l, 1, 4096, 4096)
	define(t, l, small("s"))
	ctx := context.Background()
	run := func(count int32) (*ecs.RunTaskOutput, error) {
		return l.Operator.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: aws.String("s"), Count: &count, ClientToken: aws.String("once")})
	}
	var mu sync.Mutex
	seen := map[string]bool{}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			out, err := run(2)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for i := range out.Tasks {
				seen[aws.ToString(out.Tasks[i].TaskArn)] = true
			}
		})
	}
	wg.Wait()
	if len(seen) != 2 {
		t.Errorf("20 calls with one token started %d tasks, want 2", len(seen))
	}
	_, err := run(3)
	var conflict *types.ConflictException
	if !errors.As(err, &conflict) || len(conflict.ResourceIds) != 2 {
		t.Errorf("the token with other parameters: %v", err)
	}
	checkBooks(t, l, 4096, 4096)
}

func TestRunTaskAnswer(t *testing.T) {
	l := newLab(t, nil)
	instances(t, l, 1, 4096, 4096)
	define(t, l, small("s"))
	out, err := l.Operator.RunTask(context.Background(), &ecs.RunTaskInput{
		TaskDefinition: aws.String("s"), StartedBy: aws.String("me"), EnableECSManagedTags: true,
		Tags:      []types.Tag{{Key: aws.String("a"), Value: aws.String("b")}},
		Overrides: &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{{Name: aws.String("web"), Command: []string{"x"}, Cpu: aws.Int32(128)}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	task := out.Tasks[0]
	got := map[string]string{
		"group": aws.ToString(task.Group), "lastStatus": aws.ToString(task.LastStatus), "desiredStatus": aws.ToString(task.DesiredStatus),
		"startedBy": aws.ToString(task.StartedBy), "cpu": aws.ToString(task.Cpu), "memory": aws.ToString(task.Memory),
		"launchType": string(task.LaunchType), "health": string(task.HealthStatus), "definition": aws.ToString(task.TaskDefinitionArn),
		"container cpu": aws.ToString(task.Containers[0].Cpu), "container memory": aws.ToString(task.Containers[0].Memory),
		"container status": aws.ToString(task.Containers[0].LastStatus), "container task": aws.ToString(task.Containers[0].TaskArn),
		"version": fmt.Sprint(task.Version), "tags": fmt.Sprint(len(task.Tags)), "architecture": aws.ToString(task.Attributes[0].Value),
	}
	want := map[string]string{
		"group": "family:s", "lastStatus": "PENDING", "desiredStatus": "RUNNING", "startedBy": "me", "cpu": "128", "memory": "64",
		"launchType": "EC2", "health": "UNKNOWN", "definition": "arn:aws:ecs:us-east-1:000000000000:task-definition/s:1",
		"container cpu": "128", "container memory": "64", "container status": "PENDING", "container task": aws.ToString(task.TaskArn),
		"version": "1", "tags": "2", "architecture": "x86_64",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(aws.ToString(task.Containers[0].ContainerArn), "arn:aws:ecs:us-east-1:000000000000:container/default/") {
		t.Errorf("container ARN %s", aws.ToString(task.Containers[0].ContainerArn))
	}
}

// TestDefaultLogDriverMode keeps the caller's setting with the tasks that it launches.
func TestDefaultLogDriverMode(t *testing.T) {
	l := newLab(t, nil)
	arns := instances(t, l, 1, 4096, 4096)
	define(t, l, small("s"))
	launch := func(start bool) string {
		t.Helper()
		var tasks []types.Task
		if start {
			out, err := l.Operator.StartTask(t.Context(), &ecs.StartTaskInput{TaskDefinition: aws.String("s"), ContainerInstances: arns})
			if err != nil {
				t.Fatal(err)
			}
			tasks = out.Tasks
		} else {
			out, err := l.Operator.RunTask(t.Context(), &ecs.RunTaskInput{TaskDefinition: aws.String("s")})
			if err != nil {
				t.Fatal(err)
			}
			tasks = out.Tasks
		}
		arn := aws.ToString(tasks[0].TaskArn)
		mode := "no record"
		l.Store.View(func(r store.Reader) {
			if tk, ok := store.Get(r, store.Tasks, store.Key("default", arn[strings.LastIndexByte(arn, '/')+1:])); ok {
				mode = tk.LogMode
			}
		})
		return mode
	}
	if got := launch(false); got != "non-blocking" {
		t.Errorf("as it comes: %q", got)
	}
	if _, err := l.Operator.PutAccountSettingDefault(t.Context(), &ecs.PutAccountSettingDefaultInput{Name: "defaultLogDriverMode", Value: aws.String("blocking")}); err != nil {
		t.Fatal(err)
	}
	if run, start := launch(false), launch(true); run != "blocking" || start != "blocking" {
		t.Errorf("with the setting: %q and %q", run, start)
	}
}

func TestRunTaskErrors(t *testing.T) {
	l := newLab(t, nil)
	define(t, l, small("s"))
	vpc := small("vpc")
	vpc.NetworkMode = types.NetworkModeAwsvpc
	define(t, l, vpc)
	ctx := context.Background()
	network := &types.NetworkConfiguration{AwsvpcConfiguration: &types.AwsVpcConfiguration{Subnets: []string{"subnet-1"}}}
	cases := map[string]struct {
		in         *ecs.RunTaskInput
		code, text string
	}{
		"no instances":     {&ecs.RunTaskInput{TaskDefinition: aws.String("s")}, "InvalidParameterException", "No Container Instances were found in your cluster."},
		"count 0":          {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), Count: aws.Int32(0)}, "InvalidParameterException", "count"},
		"count 11":         {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), Count: aws.Int32(11)}, "InvalidParameterException", "count"},
		"no definition":    {&ecs.RunTaskInput{TaskDefinition: aws.String("none")}, "ClientException", "TaskDefinition not found."},
		"no cluster":       {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), Cluster: aws.String("none")}, "ClusterNotFoundException", "Cluster not found."},
		"no network":       {&ecs.RunTaskInput{TaskDefinition: aws.String("vpc")}, "InvalidParameterException", "Network Configuration must be provided when networkMode 'awsvpc' is specified."},
		"network":          {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), NetworkConfiguration: network}, "InvalidParameterException", "Network Configuration is not valid for the given networkMode of this task definition."},
		"service tags":     {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), PropagateTags: types.PropagateTagsService}, "InvalidParameterException", "SERVICE"},
		"override of none": {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), Overrides: &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{{Name: aws.String("x")}}}}, "InvalidParameterException", `"x"`},
		"long overrides": {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), Overrides: &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{
			{Name: aws.String("web"), Command: []string{strings.Repeat("x", 8192)}}}}}, "InvalidParameterException", "8192"},
		"two kinds of capacity": {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), LaunchType: types.LaunchTypeEc2,
			CapacityProviderStrategy: []types.CapacityProviderStrategyItem{{CapacityProvider: aws.String("p")}}}, "InvalidParameterException", "launch type"},
		"bad constraint": {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), PlacementConstraints: []types.PlacementConstraint{
			{Type: types.PlacementConstraintTypeMemberOf, Expression: aws.String("attribute:x ==")}}}, "InvalidParameterException", "placementConstraints[0]"},
		"service group": {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), Group: aws.String("service:x")}, "InvalidParameterException", "service:x"},
		"bad token":     {&ecs.RunTaskInput{TaskDefinition: aws.String("s"), ClientToken: aws.String("a b")}, "InvalidParameterException", "clientToken"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := l.Operator.RunTask(ctx, c.in)
			if code(err) != c.code || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v, want %s with %q", err, c.code, c.text)
			}
		})
	}
}

func TestStartTask(t *testing.T) {
	l := newLab(t, nil)
	arns := instances(t, l, 2, 100, 100)
	define(t, l, small("s"))
	missing := strings.Repeat("f", 32)
	out, err := l.Operator.StartTask(context.Background(), &ecs.StartTaskInput{TaskDefinition: aws.String("s"), ContainerInstances: []string{arns[0], arns[0], arns[1], missing}})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Tasks) != 2 || aws.ToString(out.Tasks[0].ContainerInstanceArn) != arns[0] || aws.ToString(out.Tasks[1].ContainerInstanceArn) != arns[1] {
		t.Errorf("tasks: %+v", out.Tasks)
	}
	var reasons []string
	for _, f := range out.Failures {
		reasons = append(reasons, aws.ToString(f.Reason))
	}
	if diff := cmp.Diff([]string{"RESOURCE:CPU", "MISSING"}, reasons); diff != "" {
		t.Error(diff)
	}
}

func TestListTasks(t *testing.T) {
	l := newLab(t, nil)
	arns := instances(t, l, 2, 4096, 4096)
	define(t, l, small("one"))
	define(t, l, small("two"))
	ctx := context.Background()
	for i, family := range []string{"one", "two"} {
		if _, err := l.Operator.StartTask(ctx, &ecs.StartTaskInput{TaskDefinition: &family, ContainerInstances: []string{arns[i], arns[i], arns[i]}, StartedBy: &family}); err != nil {
			t.Fatal(err)
		}
	}
	list := func(in ecs.ListTasksInput) int {
		t.Helper()
		in.MaxResults = aws.Int32(2)
		seen := map[string]bool{}
		p := ecs.NewListTasksPaginator(l.Operator, &in)
		for p.HasMorePages() {
			page, err := p.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(page.TaskArns) > 2 {
				t.Fatalf("a page of %d", len(page.TaskArns))
			}
			for _, arn := range page.TaskArns {
				seen[arn] = true
			}
		}
		return len(seen)
	}
	all, err := l.Operator.ListTasks(ctx, &ecs.ListTasksInput{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Operator.StopTask(ctx, &ecs.StopTaskInput{Task: &all.TaskArns[0]}); err != nil {
		t.Fatal(err)
	}
	got := []int{
		list(ecs.ListTasksInput{}), list(ecs.ListTasksInput{DesiredStatus: types.DesiredStatusStopped}), list(ecs.ListTasksInput{DesiredStatus: types.DesiredStatusPending}),
		list(ecs.ListTasksInput{Family: aws.String("one")}) + list(ecs.ListTasksInput{Family: aws.String("two")}),
		list(ecs.ListTasksInput{ContainerInstance: &arns[0]}) + list(ecs.ListTasksInput{ContainerInstance: &arns[1]}),
		list(ecs.ListTasksInput{StartedBy: aws.String("one")}) + list(ecs.ListTasksInput{StartedBy: aws.String("two")}),
		list(ecs.ListTasksInput{LaunchType: types.LaunchTypeFargate}),
	}
	if diff := cmp.Diff([]int{5, 1, 0, 5, 5, 5, 0}, got); diff != "" {
		t.Errorf("all, stopped, pending, by family, by instance, by startedBy, by launch type:\n%s", diff)
	}
	if _, err := l.Operator.ListTasks(ctx, &ecs.ListTasksInput{ServiceName: aws.String("none")}); code(err) != "ServiceNotFoundException" {
		t.Errorf("unknown service: %v", err)
	}
	d, err := l.Operator.DescribeTasks(ctx, &ecs.DescribeTasksInput{Tasks: []string{strings.Repeat("0", 32)}})
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Failures) != 1 || aws.ToString(d.Failures[0].Reason) != "MISSING" || aws.ToString(d.Failures[0].Arn) != "arn:aws:ecs:us-east-1:000000000000:task/default/"+strings.Repeat("0", 32) {
		t.Errorf("unknown task: %+v", d.Failures)
	}
}
