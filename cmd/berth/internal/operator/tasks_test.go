package operator

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

func someTask(id, definition string) types.Task {
	return types.Task{
		TaskArn:           aws.String("arn:aws:ecs:us-east-1:000000000000:task/default/" + id),
		TaskDefinitionArn: aws.String("arn:aws:ecs:us-east-1:000000000000:task-definition/" + definition),
	}
}

func TestTaskIsFoundByWhatPeopleType(t *testing.T) {
	tasks := []types.Task{
		someTask("abcd1111", "web:2"), someTask("abcd2222", "web:1"), someTask("ffff3333", "db:7"),
	}
	for _, tt := range []struct {
		what, want, err string
		desired         types.DesiredStatus
	}{
		{what: "abcd1", want: "abcd1111"},
		{what: "db", want: "ffff3333"},
		{what: "web:1", want: "abcd2222"},
		{what: "web", err: "means 2 tasks: abcd1111, abcd2222"},
		{what: "web", want: "abcd1111", desired: types.DesiredStatusStopped}, // the newest
		{what: "abcd", err: "means 2 tasks", desired: types.DesiredStatusStopped},
		{what: "abc"}, // too short to be an id
		{what: "nothing"},
	} {
		desired := tt.desired
		if desired == "" {
			desired = types.DesiredStatusRunning
		}
		got, err := pick(tasks, tt.what, desired)
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: error %v, want %q", tt.what, err, tt.err)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.what, err)
		case tt.want == "" && got != nil, tt.want != "" && (got == nil || Tail(got.TaskArn) != tt.want):
			t.Errorf("%s: %v, want %q", tt.what, got, tt.want)
		}
	}
}

func TestExitCodeOfTask(t *testing.T) {
	container := func(name string, code int32) types.Container {
		c := types.Container{Name: aws.String(name)}
		if code >= 0 {
			c.ExitCode = aws.Int32(code)
		}
		return c
	}
	for name, tt := range map[string]struct {
		task types.Task
		want int
	}{
		"success":            {types.Task{Containers: []types.Container{container("main", 0)}}, 0},
		"failure":            {types.Task{Containers: []types.Container{container("main", 3)}}, 3},
		"sidecar is ignored": {types.Task{Containers: []types.Container{container("side", 9), container("main", 0)}}, 0},
		"never ran":          {types.Task{Containers: []types.Container{container("main", -1)}}, 1},
		"did not start":      {types.Task{StopCode: types.TaskStopCodeTaskFailedToStart, Containers: []types.Container{container("main", 0)}}, 1},
		"second failed":      {types.Task{Containers: []types.Container{container("main", 0), container("more", 137)}}, 137},
	} {
		if got := ExitCode(&tt.task, func(n string) bool { return n != "side" }); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

func TestPlacementFailuresAreExplained(t *testing.T) {
	for reason, want := range map[string]string{"RESOURCE:PORTS": "host port", "AGENT": "not connected", "SOMETHING": "SOMETHING"} {
		if got := explainFailure(types.Failure{Reason: &reason}); !strings.Contains(got, want) || !strings.Contains(got, reason) {
			t.Errorf("%s: %q", reason, got)
		}
	}
}

func TestAReasonIsSaidOnce(t *testing.T) {
	stopped := types.Task{
		StoppedReason: aws.String("CannotPullContainerError: no"),
		Containers: []types.Container{
			{Name: aws.String("web"), Reason: aws.String("CannotPullContainerError: no")},
			{Name: aws.String("side"), ExitCode: aws.Int32(137), Reason: aws.String("OutOfMemoryError")},
		},
	}
	if got, want := WhyStopped(&stopped), "CannotPullContainerError: no; container side: exit code 137, OutOfMemoryError"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := WhyStopped(&types.Task{}); got != "no reason is known" {
		t.Errorf("%q", got)
	}
}
