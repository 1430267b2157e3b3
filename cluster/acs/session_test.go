package acs_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	cacs "berth.dev/berth/cluster/acs"
	"berth.dev/berth/cluster/acs/acstest"
	"berth.dev/berth/wire/acs"
)

// prepare makes the default cluster and the sample definition.
func prepare(t testing.TB, l *acstest.Lab) {
	t.Helper()
	ctx := context.Background()
	if _, err := l.Operator.CreateCluster(ctx, &ecs.CreateClusterInput{}); err != nil {
		t.Fatal(err)
	}
	_, err := l.Operator.RegisterTaskDefinition(ctx, &ecs.RegisterTaskDefinitionInput{
		Family: aws.String("sample"), ContainerDefinitions: []types.ContainerDefinition{{
			Name: aws.String("web"), Image: aws.String("my-image"), Cpu: 64, Memory: aws.Int32(64),
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// agent starts an instance and waits until tasks can be placed on it.
func agent(t testing.TB, l *acstest.Lab, c acstest.Config) *acstest.Agent {
	t.Helper()
	c.Endpoint, c.Region = l.URL, acstest.LabRegion
	if c.Credentials == nil {
		c.Credentials = l.InstanceKey(fmt.Sprintf("AKIAINSTANCE%08d", time.Now().UnixNano()%100_000_000))
	}
	a, err := acstest.Start(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	connected(t, l, a.ARN(), true)
	return a
}

func connected(t testing.TB, l *acstest.Lab, arn string, want bool) {
	t.Helper()
	acstest.WaitFor(t, fmt.Sprintf("agentConnected = %t", want), func() bool {
		out, err := l.Operator.DescribeContainerInstances(context.Background(), &ecs.DescribeContainerInstancesInput{ContainerInstances: []string{arn}})
		return err == nil && len(out.ContainerInstances) == 1 && out.ContainerInstances[0].AgentConnected == want
	})
}

func runTasks(t testing.TB, l *acstest.Lab, count int32) []string {
	t.Helper()
	out, err := l.Operator.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: aws.String("sample"), Count: &count})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Tasks) != int(count) {
		t.Fatalf("placed %d of %d tasks, failures %+v", len(out.Tasks), count, out.Failures)
	}
	var arns []string
	for i := range out.Tasks {
		arns = append(arns, *out.Tasks[i].TaskArn)
	}
	return arns
}

func describe(t testing.TB, l *acstest.Lab, arns ...string) []types.Task {
	t.Helper()
	out, err := l.Operator.DescribeTasks(context.Background(), &ecs.DescribeTasksInput{Tasks: arns})
	if err != nil {
		t.Fatal(err)
	}
	return out.Tasks
}

func reach(t testing.TB, l *acstest.Lab, status string, arns ...string) []types.Task {
	t.Helper()
	var tasks []types.Task
	acstest.WaitFor(t, fmt.Sprintf("%d tasks %s", len(arns), status), func() bool {
		tasks = describe(t, l, arns...)
		for i := range tasks {
			if aws.ToString(tasks[i].LastStatus) != status {
				return false
			}
		}
		return len(tasks) == len(arns)
	})
	return tasks
}

func TestRunAndStop(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	agent(t, l, acstest.Config{})
	arns := runTasks(t, l, 3)
	for _, task := range reach(t, l, "RUNNING", arns...) {
		if task.StartedAt == nil || task.CreatedAt == nil || task.Connectivity != types.ConnectivityConnected {
			t.Errorf("a running task lacks its times: %+v", task)
		}
		if c := task.Containers[0]; aws.ToString(c.RuntimeId) == "" || aws.ToString(c.ImageDigest) == "" || aws.ToString(c.LastStatus) != "RUNNING" {
			t.Errorf("container of a running task: %+v", c)
		}
	}
	out, err := l.Operator.StopTask(context.Background(), &ecs.StopTaskInput{Task: &arns[0], Reason: aws.String("enough")})
	if err != nil {
		t.Fatal(err)
	}
	if got := aws.ToString(out.Task.DesiredStatus); got != "STOPPED" {
		t.Errorf("StopTask answers with desiredStatus %s", got)
	}
	task := reach(t, l, "STOPPED", arns[0])[0]
	if task.StopCode != types.TaskStopCodeUserInitiated || aws.ToString(task.StoppedReason) != "enough" {
		t.Errorf("stopCode %s, stoppedReason %q", task.StopCode, aws.ToString(task.StoppedReason))
	}
	if task.StoppingAt == nil || task.StoppedAt == nil || task.ExecutionStoppedAt == nil {
		t.Errorf("a stopped task lacks its times: %+v", task)
	}
	if code := task.Containers[0].ExitCode; code == nil || *code != 143 {
		t.Errorf("exit code %v, want 143", code)
	}
}

func TestEndsByItself(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	agent(t, l, acstest.Config{Life: func(*acs.Task) (time.Duration, int32) { return 0, 7 }})
	task := reach(t, l, "STOPPED", runTasks(t, l, 1)...)[0]
	if task.StopCode != types.TaskStopCodeEssentialContainerExited || aws.ToString(task.StoppedReason) != "Essential container in task exited" {
		t.Errorf("stopCode %s, stoppedReason %q", task.StopCode, aws.ToString(task.StoppedReason))
	}
	if code := task.Containers[0].ExitCode; code == nil || *code != 7 {
		t.Errorf("exit code %v, want 7", code)
	}
}

func TestFailsToStart(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	const reason = "CannotPullContainerError: no such image"
	agent(t, l, acstest.Config{FailStart: func(*acs.Task) string { return reason }})
	task := reach(t, l, "STOPPED", runTasks(t, l, 1)...)[0]
	if task.StopCode != types.TaskStopCodeTaskFailedToStart || aws.ToString(task.StoppedReason) != reason {
		t.Errorf("stopCode %s, stoppedReason %q", task.StopCode, aws.ToString(task.StoppedReason))
	}
}

// TestPlacedWhileAgentIsAway shows that what changed without a session is made good by
// the next one.
func TestPlacedWhileAgentIsAway(t *testing.T) {
	l := acstest.NewLab(t, nil, func(c *cacs.Config) { c.Grace = time.Hour })
	prepare(t, l)
	key := l.InstanceKey("AKIAINSTANCEAWAY")
	first := agent(t, l, acstest.Config{Credentials: key})
	running := runTasks(t, l, 2)
	reach(t, l, "RUNNING", running...)
	first.Close()
	placed := runTasks(t, l, 2)
	if _, err := l.Operator.StopTask(context.Background(), &ecs.StopTaskInput{Task: &running[0]}); err != nil {
		t.Fatal(err)
	}
	second := agent(t, l, acstest.Config{Credentials: key})
	if second.ARN() != first.ARN() {
		t.Errorf("the key's second registration got %s, the first %s", second.ARN(), first.ARN())
	}
	reach(t, l, "RUNNING", placed...)
	reach(t, l, "STOPPED", running[0])
}

func TestReconnect(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	a := agent(t, l, acstest.Config{})
	running := runTasks(t, l, 2)
	reach(t, l, "RUNNING", running...)
	for n := 1; n <= 5; n++ {
		a.Disconnect()
		acstest.WaitFor(t, "the next session", func() bool { return a.Sessions() == n+1 })
		reach(t, l, "RUNNING", runTasks(t, l, 1)...)
	}
	reach(t, l, "RUNNING", running...)
	if got := len(a.Tasks()); got != 7 {
		t.Errorf("agent has %d tasks, want 7", got)
	}
}

// TestClusterRestart loses neither what is placed nor what runs.
func TestClusterRestart(t *testing.T) {
	l := acstest.NewLab(t, nil, nil)
	prepare(t, l)
	a := agent(t, l, acstest.Config{})
	before := runTasks(t, l, 3)
	reach(t, l, "RUNNING", before...)
	sessions := a.Sessions()
	l.Stop()
	if err := a.Exit(before[0], 3); err != nil { // reported when the cluster is back
		t.Fatal(err)
	}
	l.Start()
	acstest.WaitFor(t, "a session with the new cluster", func() bool { return a.Sessions() > sessions })
	connected(t, l, a.ARN(), true)
	if code := reach(t, l, "STOPPED", before[0])[0].Containers[0].ExitCode; code == nil || *code != 3 {
		t.Errorf("exit code %v, want 3", code)
	}
	after := runTasks(t, l, 2)
	reach(t, l, "RUNNING", append(after, before[1:]...)...)
}

func TestAgentConnectedFollowsTheSession(t *testing.T) {
	l := acstest.NewLab(t, nil, func(c *cacs.Config) { c.Grace = 10 * time.Millisecond })
	prepare(t, l)
	a := agent(t, l, acstest.Config{})
	a.Close()
	connected(t, l, a.ARN(), false)
	out, err := l.Operator.RunTask(context.Background(), &ecs.RunTaskInput{TaskDefinition: aws.String("sample")})
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Failures) != 1 || aws.ToString(out.Failures[0].Reason) != "AGENT" {
		t.Errorf("RunTask without a connected agent: tasks %d, failures %+v", len(out.Tasks), out.Failures)
	}
}

// TestConnectedIsSweptAfterRestart finds the agents that did not survive the cluster.
func TestConnectedIsSweptAfterRestart(t *testing.T) {
	l := acstest.NewLab(t, nil, func(c *cacs.Config) { c.Grace = 20 * time.Millisecond })
	prepare(t, l)
	a := agent(t, l, acstest.Config{})
	l.Stop()
	a.Close()
	l.Start()
	connected(t, l, a.ARN(), false)
}
