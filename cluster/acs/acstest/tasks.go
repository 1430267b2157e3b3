package acstest

import (
	"context"
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/smithy-go"

	"berth.dev/berth/wire/acs"
)

// handle acts on one message as an agent does.
func (a *Agent) handle(ctx context.Context, m acs.Message) error {
	switch m := m.(type) {
	case *acs.HeartbeatMessage:
		return a.Send(ctx, &acs.HeartbeatAckRequest{MessageID: m.MessageID})
	case *acs.PayloadMessage:
		for i := range m.Tasks {
			a.accept(ctx, &m.Tasks[i])
		}
		a.raise(m.SeqNum)
		return a.Send(ctx, &acs.AckRequest{Cluster: m.ClusterARN, ContainerInstance: m.ContainerInstanceARN, MessageID: m.MessageID})
	case *acs.TaskManifestMessage:
		if !a.raise(m.Timeline) {
			return nil
		}
		if err := a.Send(ctx, &acs.AckRequest{Cluster: m.ClusterARN, ContainerInstance: m.ContainerInstanceARN, MessageID: m.MessageID}); err != nil {
			return err
		}
		if strangers := a.notIn(m); len(strangers) > 0 {
			return a.Send(ctx, &acs.TaskStopVerificationMessage{MessageID: m.MessageID, StopCandidates: strangers})
		}
	case *acs.TaskStopVerificationAck:
		for _, t := range m.StopTasks {
			a.tell(ctx, t.TaskARN, stopped)
		}
	case *acs.IAMRoleCredentialsMessage:
		if c := m.RoleCredentials; c != nil {
			return a.Send(ctx, &acs.IAMRoleCredentialsAckRequest{MessageID: m.MessageID, CredentialsID: c.CredentialsID, Expiration: c.Expiration})
		}
	}
	return nil
}

// raise notes a sequence number; false means that there was a higher one.
func (a *Agent) raise(n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n <= a.timeline {
		return false
	}
	a.timeline = n
	return true
}

// accept takes one task of a payload over; a known one can only be stopped.
func (a *Agent) accept(ctx context.Context, t *acs.Task) {
	a.mu.Lock()
	_, known := a.tasks[t.ARN]
	if known {
		a.mu.Unlock()
		a.tell(ctx, t.ARN, t.DesiredStatus)
		return
	}
	e := &entry{task: t, desired: t.DesiredStatus, last: "PENDING", exit: make(chan int32, 1)}
	a.tasks[t.ARN] = e
	a.mu.Unlock()
	a.work.Go(func() { a.live(ctx, e) })
}

func (a *Agent) tell(_ context.Context, arn, desired string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.tasks[arn]
	if !ok || desired != stopped || e.desired == stopped {
		return
	}
	e.desired = stopped
	select {
	case e.exit <- killed:
	default:
	}
}

// notIn lists the tasks that the manifest does not want running.
func (a *Agent) notIn(m *acs.TaskManifestMessage) []acs.TaskIdentifier {
	wanted := make(map[string]bool, len(m.Tasks))
	for _, t := range m.Tasks {
		wanted[t.TaskARN] = t.DesiredStatus == running
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []acs.TaskIdentifier
	for arn, e := range a.tasks {
		if e.desired == running && e.last != stopped && !wanted[arn] {
			out = append(out, acs.TaskIdentifier{TaskARN: arn, TaskClusterARN: m.ClusterARN, DesiredStatus: stopped})
		}
	}
	return out
}

// live takes one task from its start to its end.
func (a *Agent) live(ctx context.Context, e *entry) {
	a.mu.Lock()
	wanted := e.desired
	a.mu.Unlock()
	if wanted == stopped { // never seen, and to be stopped: no exit code
		a.report(ctx, e, stopped, nil, "")
		return
	}
	if a.FailStart != nil {
		if why := a.FailStart(e.task); why != "" {
			a.report(ctx, e, stopped, nil, why)
			return
		}
	}
	a.report(ctx, e, running, nil, "")
	var end <-chan time.Time
	code := int32(killed)
	if a.Life != nil {
		if d, c := a.Life(e.task); d >= 0 {
			t := time.NewTimer(d)
			defer t.Stop()
			end, code = t.C, c
		}
	}
	select {
	case <-ctx.Done():
		return
	case <-end:
	case code = <-e.exit:
	}
	a.report(ctx, e, stopped, &code, "")
}

// report submits a status until the cluster has taken it or has refused it for good.
func (a *Agent) report(ctx context.Context, e *entry, status string, code *int32, reason string) {
	a.mu.Lock()
	e.last = status
	a.mu.Unlock()
	now := time.Now()
	in := &ecs.SubmitTaskStateChangeInput{Cluster: &e.task.TaskClusterARN, Task: &e.task.ARN, Status: &status, Reason: aws.String("")}
	if status == stopped {
		in.ExecutionStoppedAt = &now
	}
	for i := range e.task.Containers {
		c := &e.task.Containers[i]
		change := types.ContainerStateChange{ContainerName: &c.Name, Status: &status, ExitCode: code}
		if reason != "" {
			change.Reason = &reason
		} else {
			change.RuntimeId, change.ImageDigest = aws.String("fake-"+c.Name), aws.String("sha256:0000")
		}
		for _, p := range c.PortMappings {
			change.NetworkBindings = append(change.NetworkBindings, types.NetworkBinding{
				BindIP: aws.String("0.0.0.0"), ContainerPort: aws.Int32(int32(p.ContainerPort)), HostPort: aws.Int32(int32(p.HostPort)),
				Protocol: types.TransportProtocol(p.Protocol),
			})
		}
		in.Containers = append(in.Containers, change)
	}
	for delay := 20 * time.Millisecond; ctx.Err() == nil; delay = min(2*delay, time.Second) {
		_, err := a.client.SubmitTaskStateChange(ctx, in)
		if err == nil {
			return
		}
		var refused smithy.APIError
		if errors.As(err, &refused) && refused.ErrorCode() == "InvalidParameterException" {
			a.Log.Warn("report is refused", "task", e.task.ARN, "err", err)
			return
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}
