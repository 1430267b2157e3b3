package api_test

import (
	"context"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/wire/tcs"
)

func TestHealthOfTasks(t *testing.T) {
	l := newLab(t, nil)
	arns := instances(t, l, 2, 1024, 1024)
	check := &types.HealthCheck{Command: []string{"CMD", "true"}}
	define(t, l, &ecs.RegisterTaskDefinitionInput{Family: aws.String("f"), ContainerDefinitions: []types.ContainerDefinition{
		{Name: aws.String("a"), Image: aws.String("i"), Memory: aws.Int32(6), HealthCheck: check},
		{Name: aws.String("b"), Image: aws.String("i"), Memory: aws.Int32(6), HealthCheck: check},
		{Name: aws.String("side"), Image: aws.String("i"), Memory: aws.Int32(6), HealthCheck: check, Essential: aws.Bool(false)},
		{Name: aws.String("plain"), Image: aws.String("i"), Memory: aws.Int32(6)},
	}})
	ctx := context.Background()
	out, err := l.Operator.StartTask(ctx, &ecs.StartTaskInput{TaskDefinition: aws.String("f"), ContainerInstances: arns[:1]})
	if err != nil || len(out.Tasks) != 1 {
		t.Fatal(out, err)
	}
	arn := aws.ToString(out.Tasks[0].TaskArn)
	for _, step := range []struct {
		from, a, b, side string
		want             types.HealthStatus
	}{
		{arns[0], "HEALTHY", "UNKNOWN", "UNKNOWN", "UNKNOWN"},
		{arns[0], "HEALTHY", "HEALTHY", "UNHEALTHY", "HEALTHY"},
		{arns[1], "UNHEALTHY", "UNHEALTHY", "UNHEALTHY", "HEALTHY"}, // not its task
		{arns[0], "HEALTHY", "UNHEALTHY", "HEALTHY", "UNHEALTHY"},
		{arns[0], "nonsense", "HEALTHY", "HEALTHY", "HEALTHY"},
	} {
		err := l.API.ReportHealth(ctx, step.from, []tcs.TaskHealth{{TaskARN: arn, Containers: []tcs.ContainerHealth{
			{ContainerName: "a", HealthStatus: step.a}, {ContainerName: "b", HealthStatus: step.b},
			{ContainerName: "side", HealthStatus: step.side}, {ContainerName: "unknown", HealthStatus: "HEALTHY"},
		}}, {TaskARN: "no ARN"}, {TaskARN: arn + "0"}})
		if err != nil {
			t.Fatal(err)
		}
		d, err := l.Operator.DescribeTasks(ctx, &ecs.DescribeTasksInput{Tasks: []string{arn}})
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Tasks[0].HealthStatus; got != step.want {
			t.Errorf("after %+v the task is %s", step, got)
		}
		if got := d.Tasks[0].Containers[3].HealthStatus; got != types.HealthStatusUnknown {
			t.Errorf("a container without a check is %s", got)
		}
	}
}

func TestInstanceStatus(t *testing.T) {
	l := newLab(t, nil)
	arn := instances(t, l, 1, 1024, 1024)[0]
	ctx := context.Background()
	at := time.Now().Truncate(time.Second)
	for i, step := range []struct {
		status string
		after  time.Duration
		want   types.InstanceHealthCheckState
		shown  time.Duration // of lastUpdated, after at
	}{
		{"OK", 0, "OK", 0},
		{"OK", time.Minute, "OK", 0}, // not worth a transaction
		{"IMPAIRED", 2 * time.Minute, "IMPAIRED", 2 * time.Minute},
		{"IMPAIRED", 10 * time.Minute, "IMPAIRED", 10 * time.Minute},
	} {
		now := tcs.Time{Time: at.Add(step.after)}
		err := l.API.ReportInstanceStatus(ctx, arn, []tcs.InstanceStatus{
			{Type: "ContainerRuntime", Status: step.status, LastUpdated: now, LastStatusChange: now}, {Type: "Other", Status: "IMPAIRED", LastUpdated: now},
		})
		if err != nil {
			t.Fatal(err)
		}
		d, err := l.Operator.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{
			ContainerInstances: []string{arn}, Include: []types.ContainerInstanceField{types.ContainerInstanceFieldContainerInstanceHealth},
		})
		if err != nil {
			t.Fatal(err)
		}
		h := d.ContainerInstances[0].HealthStatus
		if h == nil || h.OverallStatus != step.want || len(h.Details) != 1 || !h.Details[0].LastUpdated.Equal(at.Add(step.shown)) {
			t.Errorf("step %d: %+v", i, h)
		}
	}
	d, err := l.Operator.DescribeContainerInstances(ctx, &ecs.DescribeContainerInstancesInput{ContainerInstances: []string{arn}})
	if err != nil || d.ContainerInstances[0].HealthStatus != nil {
		t.Errorf("health is shown although nobody asked for it (%v)", err)
	}
}
