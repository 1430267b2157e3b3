package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/smithy-go"

	"berth.dev/berth/integ/await"
	"berth.dev/berth/integ/lab"
)

var ctx = context.Background()

func s(v string) *string { return &v }

// code is the code of an API error, "" for none.
func code(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	if err != nil {
		return "not an API error: " + err.Error()
	}
	return ""
}

func wantCode(t *testing.T, what string, err error, want string) {
	t.Helper()
	if got := code(err); got != want {
		t.Errorf("%s: got %q (%v), want %q", what, got, err, want)
	}
}

func must[T any](t *testing.T, what string) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return v
	}
}

// web is the definition of the sample task.
func web(family string) *ecs.RegisterTaskDefinitionInput {
	return &ecs.RegisterTaskDefinitionInput{
		Family: &family,
		ContainerDefinitions: []types.ContainerDefinition{{
			Name: s("web"), Image: s("my-image"), Cpu: 256, Memory: aws.Int32(512),
			PortMappings: []types.PortMapping{{ContainerPort: aws.Int32(80), HostPort: aws.Int32(80)}},
		}},
	}
}

// batch is a definition without ports.
func batch(family string) *ecs.RegisterTaskDefinitionInput {
	in := web(family)
	in.ContainerDefinitions[0].PortMappings = nil
	return in
}

func register(t *testing.T, l *lab.Lab, in *ecs.RegisterTaskDefinitionInput) *types.TaskDefinition {
	t.Helper()
	return must[*ecs.RegisterTaskDefinitionOutput](t, "register")(l.ECS.RegisterTaskDefinition(ctx, in)).TaskDefinition
}

func createCluster(t *testing.T, l *lab.Lab, name string) {
	t.Helper()
	must[*ecs.CreateClusterOutput](t, "create cluster")(l.ECS.CreateCluster(ctx, &ecs.CreateClusterInput{ClusterName: &name}))
}

func run(t *testing.T, l *lab.Lab, in *ecs.RunTaskInput) *ecs.RunTaskOutput {
	t.Helper()
	return must[*ecs.RunTaskOutput](t, "run task")(l.ECS.RunTask(ctx, in))
}

func describe(t *testing.T, l *lab.Lab, cluster string, arns ...string) []types.Task {
	t.Helper()
	out := must[*ecs.DescribeTasksOutput](t, "describe tasks")(l.ECS.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: &cluster, Tasks: arns}))
	if len(out.Failures) > 0 || len(out.Tasks) != len(arns) {
		t.Fatalf("describe tasks: %d of %d, failures %v", len(out.Tasks), len(arns), failures(out.Failures))
	}
	return out.Tasks
}

func waitStatus(t *testing.T, l *lab.Lab, cluster, status string, arns ...string) []types.Task {
	t.Helper()
	var tasks []types.Task
	await.Until(t, 20*time.Second, "tasks are "+status, func() error {
		tasks = describe(t, l, cluster, arns...)
		for _, task := range tasks {
			if *task.LastStatus != status {
				return fmt.Errorf("%s is %s", *task.TaskArn, *task.LastStatus)
			}
		}
		return nil
	})
	return tasks
}

func arnsOf(tasks []types.Task) []string {
	var out []string
	for _, task := range tasks {
		out = append(out, *task.TaskArn)
	}
	return out
}

func failures(list []types.Failure) []string {
	var out []string
	for _, f := range list {
		out = append(out, aws.ToString(f.Reason)+" "+aws.ToString(f.Arn))
	}
	return out
}

func sameSet(t *testing.T, what string, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %v\nwant %v", what, got, want)
	}
}
