package api

import (
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

	"berth.dev/berth/integ/await"
	"berth.dev/berth/integ/lab"
)

func TestTaskLife(t *testing.T) {
	l := lab.Start(t)
	a := l.Agent(lab.Shape{ExitCode: 143})
	d := register(t, l, web("my-task"))
	out := run(t, l, &ecs.RunTaskInput{
		TaskDefinition: s("my-task"), StartedBy: s("me"), Group: s("mine"), ReferenceId: s("ref"),
		Tags:      []types.Tag{{Key: s("k"), Value: s("v")}},
		Overrides: &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{{Name: s("web"), Command: []string{"serve"}, Environment: []types.KeyValuePair{{Name: s("A"), Value: s("B")}}}}},
	})
	if len(out.Tasks) != 1 || len(out.Failures) != 0 {
		t.Fatalf("run: %+v %v", out.Tasks, failures(out.Failures))
	}
	task := out.Tasks[0]
	arn := *task.TaskArn
	if !strings.HasPrefix(arn, "arn:aws:ecs:us-east-1:123456789012:task/default/") || *task.ContainerInstanceArn != a.ARN ||
		*task.TaskDefinitionArn != *d.TaskDefinitionArn || *task.Group != "mine" || *task.StartedBy != "me" || *task.DesiredStatus != "RUNNING" ||
		task.CreatedAt == nil || task.Overrides.ContainerOverrides[0].Command[0] != "serve" {
		t.Errorf("started as %+v", task)
	}
	up := waitStatus(t, l, "default", "RUNNING", arn)[0]
	if up.StartedAt == nil || up.PullStartedAt == nil || up.PullStoppedAt == nil || up.Connectivity != types.ConnectivityConnected {
		t.Errorf("running without its times or connectivity: %+v", up)
	}
	c := up.Containers[0]
	if *c.LastStatus != "RUNNING" || aws.ToString(c.RuntimeId) != "run-web" || aws.ToString(c.ImageDigest) != lab.Digest ||
		len(c.NetworkBindings) != 1 || *c.NetworkBindings[0].HostPort != 80 || !strings.HasPrefix(*c.ContainerArn, "arn:aws:ecs:us-east-1:123456789012:container/default/") {
		t.Errorf("container is %+v", c)
	}
	tagged := must[*ecs.DescribeTasksOutput](t, "with tags")(l.ECS.DescribeTasks(ctx, &ecs.DescribeTasksInput{
		Tasks: []string{arn[strings.LastIndexByte(arn, '/')+1:]}, Include: []types.TaskField{types.TaskFieldTags},
	}))
	if len(tagged.Tasks) != 1 || len(tagged.Tasks[0].Tags) != 1 || len(up.Tags) != 0 {
		t.Errorf("tags by id: %+v", tagged.Tasks)
	}

	stop := must[*ecs.StopTaskOutput](t, "stop")(l.ECS.StopTask(ctx, &ecs.StopTaskInput{Task: &arn, Reason: s("enough")}))
	if *stop.Task.DesiredStatus != "STOPPED" || stop.Task.StopCode != types.TaskStopCodeUserInitiated {
		t.Errorf("stop answers %s %s", *stop.Task.DesiredStatus, stop.Task.StopCode)
	}
	down := waitStatus(t, l, "default", "STOPPED", arn)[0]
	if aws.ToString(down.StoppedReason) != "enough" || down.StopCode != types.TaskStopCodeUserInitiated || down.StoppedAt == nil || down.StoppingAt == nil ||
		down.ExecutionStoppedAt == nil || aws.ToInt32(down.Containers[0].ExitCode) != 143 {
		t.Errorf("stopped as %+v", down)
	}
	must[*ecs.StopTaskOutput](t, "stop again")(l.ECS.StopTask(ctx, &ecs.StopTaskInput{Task: &arn}))

	l.Reopen()
	if again := describe(t, l, "default", arn)[0]; *again.LastStatus != "STOPPED" || aws.ToString(again.StoppedReason) != "enough" {
		t.Errorf("after a restart of the cluster: %+v", again)
	}
}

func TestRunTaskErrors(t *testing.T) {
	l := lab.Start(t)
	createCluster(t, l, "default")
	register(t, l, web("w"))
	vpc := web("v")
	vpc.NetworkMode = types.NetworkModeAwsvpc
	register(t, l, vpc)
	must[*ecs.DeregisterTaskDefinitionOutput](t, "deregister")(func() (*ecs.DeregisterTaskDefinitionOutput, error) {
		register(t, l, web("old"))
		return l.ECS.DeregisterTaskDefinition(ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: s("old:1")})
	}())
	_, err := l.ECS.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: s("w")})
	wantCode(t, "no instances", err, "InvalidParameterException")
	if err != nil && !strings.Contains(err.Error(), "No Container Instances were found in your cluster.") {
		t.Errorf("no instances: %v", err)
	}
	l.Agent(lab.Shape{})
	member := func(expr string) []types.PlacementConstraint {
		return []types.PlacementConstraint{{Type: types.PlacementConstraintTypeMemberOf, Expression: &expr}}
	}
	for name, tt := range map[string]struct {
		in   ecs.RunTaskInput
		code string
	}{
		"unknown cluster":      {ecs.RunTaskInput{Cluster: s("nowhere"), TaskDefinition: s("w")}, "ClusterNotFoundException"},
		"unknown definition":   {ecs.RunTaskInput{TaskDefinition: s("none")}, "ClientException"},
		"inactive definition":  {ecs.RunTaskInput{TaskDefinition: s("old:1")}, "ClientException"},
		"count 0":              {ecs.RunTaskInput{TaskDefinition: s("w"), Count: aws.Int32(0)}, "InvalidParameterException"},
		"count 11":             {ecs.RunTaskInput{TaskDefinition: s("w"), Count: aws.Int32(11)}, "InvalidParameterException"},
		"awsvpc without":       {ecs.RunTaskInput{TaskDefinition: s("v")}, "InvalidParameterException"},
		"propagate SERVICE":    {ecs.RunTaskInput{TaskDefinition: s("w"), PropagateTags: types.PropagateTagsService}, "InvalidParameterException"},
		"bad expression":       {ecs.RunTaskInput{TaskDefinition: s("w"), PlacementConstraints: member("attribute:x = y")}, "InvalidParameterException"},
		"bad strategy":         {ecs.RunTaskInput{TaskDefinition: s("w"), PlacementStrategy: []types.PlacementStrategy{{Type: "binpack", Field: s("disk")}}}, "InvalidParameterException"},
		"unknown override":     {ecs.RunTaskInput{TaskDefinition: s("w"), Overrides: &types.TaskOverride{ContainerOverrides: []types.ContainerOverride{{Name: s("ghost")}}}}, "InvalidParameterException"},
		"long startedBy":       {ecs.RunTaskInput{TaskDefinition: s("w"), StartedBy: s(strings.Repeat("x", 129))}, "InvalidParameterException"},
		"both kinds of launch": {ecs.RunTaskInput{TaskDefinition: s("w"), LaunchType: types.LaunchTypeEc2, CapacityProviderStrategy: []types.CapacityProviderStrategyItem{{CapacityProvider: s("p")}}}, "InvalidParameterException"},
		"ARN of another":       {ecs.RunTaskInput{Cluster: s("arn:aws:ecs:us-east-1:123456789012:service/x"), TaskDefinition: s("w")}, "InvalidParameterException"},
	} {
		_, err := l.ECS.RunTask(ctx, &tt.in)
		wantCode(t, name, err, tt.code)
	}
	if _, err := l.ECS.StopTask(ctx, &ecs.StopTaskInput{Task: s("0123456789abcdef0123456789abcdef")}); code(err) != "InvalidParameterException" {
		t.Errorf("stop of an unknown task: %v", err)
	}
	d := must[*ecs.DescribeTasksOutput](t, "describe")(l.ECS.DescribeTasks(ctx, &ecs.DescribeTasksInput{Tasks: []string{"0123456789abcdef0123456789abcdef"}}))
	sameSet(t, "unknown task", failures(d.Failures), []string{"MISSING arn:aws:ecs:us-east-1:123456789012:task/default/0123456789abcdef0123456789abcdef"})
}

func TestRunTaskClientToken(t *testing.T) {
	l := lab.Start(t)
	l.Agent(lab.Shape{})
	register(t, l, batch("b"))
	in := &ecs.RunTaskInput{TaskDefinition: s("b"), Count: aws.Int32(3), ClientToken: s("token-1")}
	first, second := run(t, l, in), run(t, l, in)
	sameSet(t, "tasks of one token", arnsOf(second.Tasks), arnsOf(first.Tasks))
	other := *in
	other.Count = aws.Int32(2)
	_, err := l.ECS.RunTask(ctx, &other)
	var conflict *types.ConflictException
	if !errors.As(err, &conflict) {
		t.Fatalf("another request with the token: %v", err)
	}
	sameSet(t, "resourceIds", conflict.ResourceIds, arnsOf(first.Tasks))

	// Concurrent repeats of one token make one set of tasks.
	var wg sync.WaitGroup
	got := make([][]string, 10)
	for i := range got {
		wg.Go(func() {
			out, err := l.ECS.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: s("b"), ClientToken: s("token-2")})
			if err == nil {
				got[i] = arnsOf(out.Tasks)
			} else {
				t.Errorf("repeat %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for _, arns := range got {
		if !slices.Equal(arns, got[0]) {
			t.Errorf("repeats made different tasks: %v", got)
			break
		}
	}
}

func TestPlacement(t *testing.T) {
	l := lab.Start(t)
	shape := func(zone, stack string) lab.Shape {
		return lab.Shape{CPU: 1024, Memory: 2048, Attributes: map[string]string{"ecs.availability-zone": zone, "stack": stack}}
	}
	a1, a2, b1 := l.Agent(shape("us-east-1a", "prod")), l.Agent(shape("us-east-1a", "test")), l.Agent(shape("us-east-1b", "prod"))
	register(t, l, batch("b"))
	register(t, l, web("w"))
	on := func(out *ecs.RunTaskOutput) map[string]int {
		n := map[string]int{}
		for _, task := range out.Tasks {
			n[*task.ContainerInstanceArn]++
		}
		return n
	}
	stopAll := func(out *ecs.RunTaskOutput) {
		for _, arn := range arnsOf(out.Tasks) {
			must[*ecs.StopTaskOutput](t, "stop")(l.ECS.StopTask(ctx, &ecs.StopTaskInput{Task: &arn}))
		}
		if len(out.Tasks) > 0 {
			waitStatus(t, l, "default", "STOPPED", arnsOf(out.Tasks)...)
		}
	}
	member := types.PlacementConstraint{Type: types.PlacementConstraintTypeMemberOf, Expression: s("attribute:stack == prod")}
	distinct := types.PlacementConstraint{Type: types.PlacementConstraintTypeDistinctInstance}

	spread := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b"), Count: aws.Int32(4)})
	if n := on(spread); n[b1.ARN] != 2 || n[a1.ARN] != 1 || n[a2.ARN] != 1 {
		t.Errorf("default spread: %v", n)
	}
	stopAll(spread)
	prod := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b"), Count: aws.Int32(4), PlacementConstraints: []types.PlacementConstraint{member}})
	if n := on(prod); n[a2.ARN] != 0 || len(prod.Tasks) != 4 {
		t.Errorf("memberOf prod: %v", n)
	}
	stopAll(prod)
	apart := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b"), Count: aws.Int32(5), PlacementConstraints: []types.PlacementConstraint{distinct}})
	if n := on(apart); len(apart.Tasks) != 3 || len(n) != 3 || len(apart.Failures) != 2 || !strings.Contains(*apart.Failures[0].Reason, "distinctInstance") {
		t.Errorf("distinctInstance: %v, failures %v", n, failures(apart.Failures))
	}
	stopAll(apart)
	packed := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b"), Count: aws.Int32(4), PlacementStrategy: []types.PlacementStrategy{{Type: "binpack", Field: s("memory")}}})
	if n := on(packed); len(n) != 1 {
		t.Errorf("binpack memory: %v", n)
	}
	stopAll(packed)
	ports := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("w"), Count: aws.Int32(5)})
	if n := on(ports); len(n) != 3 || len(ports.Failures) != 2 || *ports.Failures[0].Reason != "RESOURCE:PORTS" {
		t.Errorf("fixed port: %v, failures %v", n, failures(ports.Failures))
	}
	stopAll(ports)
	full := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b"), Count: aws.Int32(10)})
	more := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b"), Count: aws.Int32(4)})
	if len(full.Tasks) != 10 || len(more.Tasks) != 2 || len(more.Failures) != 2 || !strings.HasPrefix(*more.Failures[0].Reason, "RESOURCE:") {
		t.Errorf("%d and %d tasks placed, failures %v", len(full.Tasks), len(more.Tasks), failures(more.Failures))
	}
	stopAll(full)
	stopAll(more)
	none := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b"), PlacementConstraints: []types.PlacementConstraint{{Type: "memberOf", Expression: s("attribute:stack == dev")}}})
	if len(none.Failures) != 1 || !strings.HasPrefix(*none.Failures[0].Reason, "MemberOf") {
		t.Errorf("memberOf nothing: %v", failures(none.Failures))
	}
	a1.Leave()
	a1.WaitConnected(false)
	a2.Leave()
	b1.Leave()
	a2.WaitConnected(false)
	b1.WaitConnected(false)
	away := run(t, l, &ecs.RunTaskInput{TaskDefinition: s("b")})
	if len(away.Failures) != 1 || *away.Failures[0].Reason != "AGENT" {
		t.Errorf("no agent connected: %v", failures(away.Failures))
	}
}

// A hundred concurrent calls never put more on an instance than it has.
func TestRunTaskConcurrently(t *testing.T) {
	l := lab.Start(t)
	for range 4 {
		l.Agent(lab.Shape{CPU: 256 * 20, Memory: 1 << 20, Quiet: true})
	}
	register(t, l, batch("b"))
	var (
		wg             sync.WaitGroup
		mu             sync.Mutex
		placed, failed int
	)
	for range 100 {
		wg.Go(func() {
			out, err := l.ECS.RunTask(ctx, &ecs.RunTaskInput{TaskDefinition: s("b")})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("run: %v", err)
				return
			}
			placed += len(out.Tasks)
			for _, f := range out.Failures {
				failed++
				if *f.Reason != "RESOURCE:CPU" {
					t.Errorf("failure %s", *f.Reason)
				}
			}
		})
	}
	wg.Wait()
	if placed != 80 || failed != 20 {
		t.Errorf("%d placed and %d failed, want 80 and 20", placed, failed)
	}
	in := must[*ecs.ListContainerInstancesOutput](t, "list")(l.ECS.ListContainerInstances(ctx, &ecs.ListContainerInstancesInput{}))
	d := must[*ecs.DescribeContainerInstancesOutput](t, "describe")(l.ECS.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{ContainerInstances: in.ContainerInstanceArns}))
	for _, i := range d.ContainerInstances {
		for _, r := range i.RemainingResources {
			if *r.Name == "CPU" && r.IntegerValue != 0 {
				t.Errorf("%s has %d CPU units left", *i.ContainerInstanceArn, r.IntegerValue)
			}
		}
		if i.PendingTasksCount != 20 {
			t.Errorf("%s has %d pending tasks", *i.ContainerInstanceArn, i.PendingTasksCount)
		}
	}
}

func TestStartTask(t *testing.T) {
	l := lab.Start(t)
	a, b := l.Agent(lab.Shape{}), l.Agent(lab.Shape{})
	register(t, l, web("w"))
	out := must[*ecs.StartTaskOutput](t, "start")(l.ECS.StartTask(ctx, &ecs.StartTaskInput{
		TaskDefinition: s("w"), StartedBy: s("x"), ContainerInstances: []string{a.ARN, b.ARN[strings.LastIndexByte(b.ARN, '/')+1:], "00000000000000000000000000000000"},
	}))
	if len(out.Tasks) != 2 || *out.Tasks[0].ContainerInstanceArn != a.ARN || *out.Tasks[1].ContainerInstanceArn != b.ARN {
		t.Errorf("started %v", arnsOf(out.Tasks))
	}
	sameSet(t, "failures", failures(out.Failures), []string{"MISSING arn:aws:ecs:us-east-1:123456789012:container-instance/default/00000000000000000000000000000000"})
	again := must[*ecs.StartTaskOutput](t, "start again")(l.ECS.StartTask(ctx, &ecs.StartTaskInput{TaskDefinition: s("w"), ContainerInstances: []string{a.ARN}}))
	sameSet(t, "the port is taken", failures(again.Failures), []string{"RESOURCE:PORTS " + a.ARN})
	_, err := l.ECS.StartTask(ctx, &ecs.StartTaskInput{TaskDefinition: s("w"), ContainerInstances: make([]string, 11)})
	wantCode(t, "eleven instances", err, "InvalidParameterException")
	_, err = l.ECS.StartTask(ctx, &ecs.StartTaskInput{TaskDefinition: s("w"), ContainerInstances: []string{a.ARN}, StartedBy: s(strings.Repeat("x", 37))})
	wantCode(t, "long startedBy", err, "InvalidParameterException")
	waitStatus(t, l, "default", "RUNNING", arnsOf(out.Tasks)...)
}

func TestListTasks(t *testing.T) {
	l := lab.Start(t)
	a, b := l.Agent(lab.Shape{}), l.Agent(lab.Shape{})
	register(t, l, batch("one"))
	register(t, l, batch("two"))
	start := func(family, by string, on *lab.Agent) []string {
		out := must[*ecs.StartTaskOutput](t, "start")(l.ECS.StartTask(ctx, &ecs.StartTaskInput{TaskDefinition: &family, StartedBy: &by, ContainerInstances: []string{on.ARN}}))
		return arnsOf(out.Tasks)
	}
	var oneA, twoA, oneB []string
	for range 4 {
		oneA = append(oneA, start("one", "x", a)...)
		twoA = append(twoA, start("two", "y", a)...)
		oneB = append(oneB, start("one", "y", b)...)
	}
	all := slices.Concat(oneA, twoA, oneB)
	waitStatus(t, l, "default", "RUNNING", all...)
	list := func(in *ecs.ListTasksInput) []string {
		var out []string
		in.MaxResults = aws.Int32(3)
		for p := ecs.NewListTasksPaginator(l.ECS, in); p.HasMorePages(); {
			out = append(out, must[*ecs.ListTasksOutput](t, "page")(p.NextPage(ctx)).TaskArns...)
		}
		return out
	}
	sameSet(t, "all", list(&ecs.ListTasksInput{}), all)
	sameSet(t, "family", list(&ecs.ListTasksInput{Family: s("one")}), slices.Concat(oneA, oneB))
	sameSet(t, "instance", list(&ecs.ListTasksInput{ContainerInstance: &a.ARN}), slices.Concat(oneA, twoA))
	sameSet(t, "startedBy", list(&ecs.ListTasksInput{StartedBy: s("y")}), slices.Concat(twoA, oneB))
	sameSet(t, "stopped", list(&ecs.ListTasksInput{DesiredStatus: types.DesiredStatusStopped}), nil)
	must[*ecs.StopTaskOutput](t, "stop")(l.ECS.StopTask(ctx, &ecs.StopTaskInput{Task: &oneA[0]}))
	waitStatus(t, l, "default", "STOPPED", oneA[0])
	sameSet(t, "stopped", list(&ecs.ListTasksInput{DesiredStatus: types.DesiredStatusStopped}), oneA[:1])
	sameSet(t, "running", list(&ecs.ListTasksInput{ContainerInstance: &a.ARN, Family: s("one")}), oneA[1:])
	_, err := l.ECS.ListTasks(ctx, &ecs.ListTasksInput{ServiceName: s("none")})
	wantCode(t, "unknown service", err, "ServiceNotFoundException")
	_, err = l.ECS.ListTasks(ctx, &ecs.ListTasksInput{Cluster: s("nowhere")})
	wantCode(t, "unknown cluster", err, "ClusterNotFoundException")
	first := must[*ecs.ListTasksOutput](t, "list")(l.ECS.ListTasks(ctx, &ecs.ListTasksInput{MaxResults: aws.Int32(1)}))
	_, err = l.ECS.ListTasks(ctx, &ecs.ListTasksInput{Family: s("one"), NextToken: first.NextToken})
	wantCode(t, "a token with other filters", err, "InvalidParameterException")
}

func TestSubmit(t *testing.T) {
	l := lab.Start(t)
	a, other := l.Agent(lab.Shape{Quiet: true}), l.Agent(lab.Shape{})
	register(t, l, batch("b"))
	out := must[*ecs.StartTaskOutput](t, "start")(l.ECS.StartTask(ctx, &ecs.StartTaskInput{TaskDefinition: s("b"), ContainerInstances: []string{a.ARN}}))
	arn := arnsOf(out.Tasks)[0]
	_, err := other.ECS.SubmitTaskStateChange(ctx, &ecs.SubmitTaskStateChangeInput{Task: &arn, Status: s("RUNNING")})
	wantCode(t, "a report of another instance", err, "AccessDeniedException")
	await.Until(t, 10*time.Second, "the payload is there", func() error { return a.Report(arn, "RUNNING", 0, "") })
	waitStatus(t, l, "default", "RUNNING", arn)
	must[*ecs.SubmitContainerStateChangeOutput](t, "container")(a.ECS.SubmitContainerStateChange(ctx, &ecs.SubmitContainerStateChangeInput{
		Task: &arn, ContainerName: s("web"), Status: s("STOPPED"), ExitCode: aws.Int32(7),
	}))
	if err := a.Report(arn, "STOPPED", 7, "Essential container in task exited"); err != nil {
		t.Fatal(err)
	}
	got := waitStatus(t, l, "default", "STOPPED", arn)[0]
	if got.StopCode != types.TaskStopCodeEssentialContainerExited || aws.ToInt32(got.Containers[0].ExitCode) != 7 || aws.ToString(got.StoppedReason) != "Essential container in task exited" {
		t.Errorf("stopped as %s %q exit %v", got.StopCode, aws.ToString(got.StoppedReason), got.Containers[0].ExitCode)
	}
	must[*ecs.SubmitTaskStateChangeOutput](t, "late")(a.ECS.SubmitTaskStateChange(ctx, &ecs.SubmitTaskStateChangeInput{Task: &arn, Status: s("RUNNING")}))
	if again := describe(t, l, "default", arn)[0]; *again.LastStatus != "STOPPED" {
		t.Errorf("a late report brought it back as %s", *again.LastStatus)
	}
	must[*ecs.SubmitAttachmentStateChangesOutput](t, "attachments")(a.ECS.SubmitAttachmentStateChanges(ctx, &ecs.SubmitAttachmentStateChangesInput{
		Attachments: []types.AttachmentStateChange{{AttachmentArn: s("arn:aws:ecs:us-east-1:123456789012:attachment/x"), Status: s("ATTACHED")}},
	}))
	d := must[*ecs.DiscoverPollEndpointOutput](t, "discover")(a.ECS.DiscoverPollEndpoint(ctx, &ecs.DiscoverPollEndpointInput{ContainerInstance: &a.ARN}))
	if aws.ToString(d.Endpoint) == "" || aws.ToString(d.TelemetryEndpoint) == "" {
		t.Errorf("endpoints: %+v", d)
	}
	_, err = a.ECS.SubmitTaskStateChange(ctx, &ecs.SubmitTaskStateChangeInput{Task: &arn, Status: s("DANCING")})
	wantCode(t, "an unknown status", err, "InvalidParameterException")
	left := must[*ecs.DescribeContainerInstancesOutput](t, "describe")(l.ECS.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{ContainerInstances: []string{a.ARN}}))
	for i, r := range left.ContainerInstances[0].RemainingResources {
		if total := left.ContainerInstances[0].RegisteredResources[i]; r.IntegerValue != total.IntegerValue {
			t.Errorf("%s: %d of %d came back", *r.Name, r.IntegerValue, total.IntegerValue)
		}
	}
	if !strings.HasPrefix(fmt.Sprint(a.Err()), "<nil>") {
		t.Error(a.Err())
	}
}
