package intake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// Credentials keeps new credentials of a task's role. They are kept also for a task
// that is not known, whose payload may be on its way, but only those of known tasks
// are acknowledged (agent protocol, "Server -> agent messages").
func (in *Intake) Credentials(ctx context.Context, m *acs.IAMRoleCredentialsMessage, r acs.Responder) error {
	c := m.RoleCredentials
	switch {
	case m.MessageID == "" || m.TaskARN == "" || c == nil || c.CredentialsID == "":
		return errors.New("credentials without messageId, taskArn or credentialsId")
	case m.RoleType != acs.RoleTaskApplication && m.RoleType != acs.RoleTaskExecution:
		return errors.New("credentials of an unknown role type")
	case !taskARN.MatchString(m.TaskARN):
		return errors.New("credentials of a task without a usable ARN")
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.c.Credentials.Set(m.TaskARN, m.RoleType, *c)
	if _, known := in.c.Engine.Known(m.TaskARN); !known {
		return fmt.Errorf("credentials of task %s, which is not known here", shortARN(m.TaskARN))
	}
	return r.Send(ctx, &acs.IAMRoleCredentialsAckRequest{MessageID: m.MessageID, Expiration: c.Expiration, CredentialsID: c.CredentialsID})
}

// Manifest compares what the cluster believes to run here with what does. Tasks that
// run and are not listed as RUNNING are not stopped but asked about.
func (in *Intake) Manifest(ctx context.Context, m *acs.TaskManifestMessage, r acs.Responder) error {
	if m.MessageID == "" || m.ClusterARN == "" || m.ContainerInstanceARN == "" {
		return errors.New("task manifest without messageId, clusterArn or containerInstanceArn")
	}
	wanted := make(map[string]bool, len(m.Tasks))
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if t.TaskARN == "" || t.DesiredStatus == "" {
			return errors.New("task manifest with an entry without taskArn or desiredStatus")
		}
		if t.DesiredStatus == "RUNNING" {
			wanted[t.TaskARN] = true
		}
	}
	ack := &acs.AckRequest{Cluster: m.ClusterARN, ContainerInstance: m.ContainerInstanceARN, MessageID: m.MessageID}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.c.Store.Seen(m.MessageID) {
		return r.Send(ctx, ack)
	}
	if last := in.c.Store.Sequence(); m.Timeline <= last {
		in.c.Log.Info("task manifest is out of date", "timeline", m.Timeline, "sequence", last)
		return nil
	}
	found, err := in.settle(m, time.Now())
	if err != nil {
		return err
	}
	err = in.c.Store.Commit(ctx, task.Commit{Message: &task.Message{ID: m.MessageID, At: time.Now()}, Sequence: m.Timeline, Batches: found.batch})
	if err != nil {
		return fmt.Errorf("task manifest %s: %w", m.MessageID, err)
	}
	in.manifest, in.timeline = m.MessageID, m.Timeline
	in.accept(found)
	in.release()
	if in.c.Confirmed != nil {
		in.c.Confirmed()
	}
	if err := r.Send(ctx, ack); err != nil {
		return err
	}
	running := in.c.Engine.Running()
	slices.Sort(running)
	ask := &acs.TaskStopVerificationMessage{MessageID: m.MessageID}
	for _, arn := range running {
		if !wanted[arn] {
			ask.StopCandidates = append(ask.StopCandidates, acs.TaskIdentifier{TaskARN: arn, TaskClusterARN: m.ClusterARN, DesiredStatus: "STOPPED"})
		}
	}
	if len(ask.StopCandidates) == 0 {
		return nil
	}
	in.c.Log.Info("running tasks are not in the task manifest; asking", "tasks", len(ask.StopCandidates), "timeline", m.Timeline)
	return r.Send(ctx, ask)
}

// StopVerified stops the tasks that the cluster says are to stop, if it answers the
// last manifest, and once only.
func (in *Intake) StopVerified(ctx context.Context, m *acs.TaskStopVerificationAck) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if m.MessageID == "" || m.MessageID != in.manifest {
		return errors.New("stop verification does not answer the last task manifest")
	}
	var arns []string
	for i := range m.StopTasks {
		if arn := m.StopTasks[i].TaskARN; arn != "" {
			arns = append(arns, arn)
		}
	}
	if err := in.stop(ctx, arns, in.timeline); err != nil {
		return err
	}
	in.manifest = ""
	return nil
}

// Heartbeat answers a heartbeat.
func (in *Intake) Heartbeat(ctx context.Context, m *acs.HeartbeatMessage, r acs.Responder) error {
	if in.c.Heartbeat != nil {
		in.c.Heartbeat()
	}
	return r.Send(ctx, &acs.HeartbeatAckRequest{MessageID: m.MessageID})
}
