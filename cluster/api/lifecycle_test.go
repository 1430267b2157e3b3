package api

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/google/go-cmp/cmp"
)

// change is short for one submission about the containers "web" (essential) and "side".
type change struct {
	status, reason string
	web, side      *types.ContainerStateChange
}

func (c change) input() *ecs.SubmitTaskStateChangeInput {
	in := &ecs.SubmitTaskStateChangeInput{Reason: &c.reason}
	if c.status != "" {
		in.Status = &c.status
	}
	for name, s := range map[string]*types.ContainerStateChange{"web": c.web, "side": c.side} {
		if s != nil {
			s.ContainerName = aws.String(name)
			in.Containers = append(in.Containers, *s)
		}
	}
	return in
}

func exited(code int32) *types.ContainerStateChange {
	return &types.ContainerStateChange{Status: aws.String("STOPPED"), ExitCode: &code}
}

func failed(reason string) *types.ContainerStateChange {
	return &types.ContainerStateChange{Status: aws.String("STOPPED"), Reason: &reason}
}

func TestApplyTaskChange(t *testing.T) {
	up := &types.ContainerStateChange{Status: aws.String("RUNNING"), RuntimeId: aws.String("r")}
	digest := &types.ContainerStateChange{Status: aws.String("PENDING"), ImageDigest: aws.String("sha256:1")}
	userStop := func(task *types.Task) {
		task.DesiredStatus, task.StopCode, task.StoppedReason = aws.String("STOPPED"), types.TaskStopCodeUserInitiated, aws.String("enough")
	}
	type result struct {
		Last, Desired, Web, Code, Reason string
	}
	cases := map[string]struct {
		before  func(*types.Task)
		changes []change
		want    result
	}{
		"pending with a digest":             {changes: []change{{status: "PENDING", web: digest}}, want: result{"PENDING", "RUNNING", "PENDING", "", ""}},
		"running":                           {changes: []change{{status: "RUNNING", web: up}}, want: result{"RUNNING", "RUNNING", "RUNNING", "", ""}},
		"running, then pending":             {changes: []change{{status: "RUNNING", web: up}, {status: "PENDING", web: digest}}, want: result{"RUNNING", "RUNNING", "RUNNING", "", ""}},
		"stopped is final":                  {changes: []change{{status: "RUNNING"}, {status: "STOPPED", web: exited(0)}, {status: "RUNNING", web: up}}, want: result{"STOPPED", "STOPPED", "STOPPED", "EssentialContainerExited", reasonEssentialExited}},
		"exit without RUNNING":              {changes: []change{{status: "STOPPED", web: exited(1)}}, want: result{"STOPPED", "STOPPED", "STOPPED", "EssentialContainerExited", reasonEssentialExited}},
		"reason of the agent":               {changes: []change{{status: "RUNNING"}, {status: "STOPPED", reason: "TaskStateError: x", web: exited(1)}}, want: result{"STOPPED", "STOPPED", "STOPPED", "EssentialContainerExited", "TaskStateError: x"}},
		"out of memory":                     {changes: []change{{status: "RUNNING"}, {status: "STOPPED", web: &types.ContainerStateChange{Status: aws.String("STOPPED"), ExitCode: aws.Int32(137), Reason: aws.String("OutOfMemoryError: Container killed due to memory usage")}}}, want: result{"STOPPED", "STOPPED", "STOPPED", "EssentialContainerExited", reasonEssentialExited}},
		"pull fails":                        {changes: []change{{status: "STOPPED", web: failed("CannotPullContainerError: x")}}, want: result{"STOPPED", "STOPPED", "STOPPED", "TaskFailedToStart", "CannotPullContainerError: x"}},
		"sidecar ran, essential fails":      {changes: []change{{status: "STOPPED", side: exited(0), web: failed("CannotStartContainerError: x")}}, want: result{"STOPPED", "STOPPED", "STOPPED", "TaskFailedToStart", "CannotStartContainerError: x"}},
		"task cannot be loaded":             {changes: []change{{status: "STOPPED", reason: "UnrecogniedTaskError: x"}}, want: result{"STOPPED", "STOPPED", "STOPPED", "TaskFailedToStart", "UnrecogniedTaskError: x"}},
		"stopped without a word":            {changes: []change{{status: "STOPPED"}}, want: result{"STOPPED", "STOPPED", "STOPPED", "TaskFailedToStart", reasonFailedToStart}},
		"user's stop keeps its reason":      {before: userStop, changes: []change{{status: "RUNNING", web: up}, {status: "STOPPED", reason: "other", web: exited(143)}}, want: result{"STOPPED", "STOPPED", "STOPPED", "UserInitiated", "enough"}},
		"essential container ends first":    {changes: []change{{status: "RUNNING"}, {status: "RUNNING", web: exited(2)}}, want: result{"RUNNING", "STOPPED", "STOPPED", "EssentialContainerExited", reasonEssentialExited}},
		"non-essential container may end":   {changes: []change{{status: "RUNNING", web: up}, {status: "RUNNING", side: exited(2)}}, want: result{"RUNNING", "RUNNING", "RUNNING", "", ""}},
		"unknown container is passed over":  {changes: []change{{status: "RUNNING", web: up}, {status: ""}}, want: result{"RUNNING", "RUNNING", "RUNNING", "", ""}},
		"first reason of a container stays": {changes: []change{{status: "PENDING", web: &types.ContainerStateChange{Reason: aws.String("CannotPullContainerError: 1")}}, {status: "STOPPED", web: failed("CannotCreateContainerError: 2")}}, want: result{"STOPPED", "STOPPED", "STOPPED", "TaskFailedToStart", "CannotPullContainerError: 1"}},
	}
	def := &types.TaskDefinition{ContainerDefinitions: []types.ContainerDefinition{
		{Name: aws.String("web")}, {Name: aws.String("side"), Essential: aws.Bool(false)},
	}}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			task := &types.Task{LastStatus: aws.String("PENDING"), DesiredStatus: aws.String("RUNNING"), Version: 1, Containers: []types.Container{
				{Name: aws.String("web"), LastStatus: aws.String("PENDING")}, {Name: aws.String("side"), LastStatus: aws.String("PENDING")},
			}}
			if c.before != nil {
				c.before(task)
			}
			now := time.Unix(1000, 0)
			for _, ch := range c.changes {
				version := task.Version
				if changed := applyTaskChange(task, def, ch.input(), now); changed != (task.Version > version) {
					t.Errorf("changed = %t, version %d after %d", changed, task.Version, version)
				}
				again := task.Version
				if applyTaskChange(task, def, ch.input(), now.Add(time.Minute)) || task.Version != again {
					t.Errorf("the repetition of %+v changed the task", ch)
				}
			}
			got := result{str(task.LastStatus), str(task.DesiredStatus), str(task.Containers[0].LastStatus), string(task.StopCode), str(task.StoppedReason)}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
			if got.Last == statusStopped && (task.StoppedAt == nil || task.StoppingAt == nil) {
				t.Error("a stopped task lacks its times")
			}
		})
	}
}

func TestExitCodeAndBindingsAreKept(t *testing.T) {
	task := &types.Task{LastStatus: aws.String("RUNNING"), DesiredStatus: aws.String("RUNNING"), Containers: []types.Container{{Name: aws.String("web")}}}
	bound := []types.NetworkBinding{{HostPort: aws.Int32(80)}}
	applyTaskChange(task, nil, &ecs.SubmitTaskStateChangeInput{Status: aws.String("RUNNING"), Containers: []types.ContainerStateChange{
		{ContainerName: aws.String("web"), NetworkBindings: bound},
	}}, time.Now())
	at := time.Unix(50, 0)
	applyTaskChange(task, nil, &ecs.SubmitTaskStateChangeInput{Status: aws.String("STOPPED"), ExecutionStoppedAt: &at, Containers: []types.ContainerStateChange{
		{ContainerName: aws.String("web"), ExitCode: aws.Int32(0), Status: aws.String("STOPPED")},
	}}, time.Unix(60, 0))
	c := task.Containers[0]
	if c.ExitCode == nil || *c.ExitCode != 0 || len(c.NetworkBindings) != 1 {
		t.Errorf("container: %+v", c)
	}
	if !task.ExecutionStoppedAt.Equal(at) || !task.StoppingAt.Equal(at) || !task.StoppedAt.Equal(time.Unix(60, 0)) {
		t.Errorf("times: execution %v, stopping %v, stopped %v", task.ExecutionStoppedAt, task.StoppingAt, task.StoppedAt)
	}
}
