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

// holdLimit is how long new tasks wait for a task manifest after the state was lost. A
// control plane that sends none, though the protocol asks for one after each connect,
// must not keep this host idle for ever.
const holdLimit = 2 * time.Minute

// Lost is what an agent begins with whose state database is gone.
type Lost struct {
	// Found are tasks that the runtime tells of and no record does. They are left alone
	// until the cluster names them, or has sent a list of its tasks without them.
	Found []task.Stored
}

// lost is what waits for the word of the cluster. It is guarded by Intake.mu.
type lost struct {
	found   map[string]task.Stored // by ARN
	holds   bool                   // new tasks wait
	waiting []task.Stored          // committed and not taken up
	limit   *time.Timer
}

// begin has what was found wait, and new tasks with it.
func (in *Intake) begin(l *Lost) {
	if l == nil {
		return
	}
	in.lost = lost{found: make(map[string]task.Stored, len(l.Found)), holds: true}
	for _, s := range l.Found {
		in.lost.found[s.Task.ARN] = s
	}
	in.lost.limit = time.AfterFunc(holdLimit, func() {
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.lost.holds {
			in.c.Log.Warn("no task manifest came; new tasks are started without", "limit", holdLimit)
			in.release()
		}
	})
}

// Close ends the wait for a manifest; what waits is taken up by the next start.
func (in *Intake) Close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.lost.holds, in.lost.waiting = false, nil
	if in.lost.limit != nil {
		in.lost.limit.Stop()
	}
}

// adopt makes a found task one of the agent's, with the desired status that the cluster
// has for it.
func (in *Intake) adopt(o *orders, s task.Stored, desired task.Status, seq int64, now time.Time) {
	k := s.Known
	k.Desired, k.DesiredSeq, k.Sent = desired, seq, task.StatusNone
	text := fmt.Sprintf("found on the host after the state was lost; %s, sequence %d", desired, seq)
	if desired == task.StatusStopped {
		k.StopRequested = now
	}
	o.batch = append(o.batch, task.Batch{
		TaskID: s.Task.ID(), Task: s.Task, Known: k, Records: k.Resources,
		Events: []task.Event{{At: now, Kind: task.EventAdopted, Text: text}},
	})
	o.adopted = append(o.adopted, s)
}

// accept takes up what was committed, except what has to wait.
func (in *Intake) accept(o *orders) {
	for _, s := range o.adopted {
		delete(in.lost.found, s.Task.ARN)
		in.c.Log.Info("task of before the loss of the state goes on", "task", s.Task.ID(), "desired", s.Known.Desired)
	}
	in.c.Engine.Accept(o.adopted...)
	if in.lost.holds {
		in.lost.waiting = append(in.lost.waiting, o.starts...)
		return
	}
	in.c.Engine.Accept(o.starts...)
}

// release takes up the tasks that wait.
func (in *Intake) release() {
	waiting := in.lost.waiting
	in.lost.holds, in.lost.waiting = false, nil
	if in.lost.limit != nil {
		in.lost.limit.Stop()
	}
	in.c.Engine.Accept(waiting...)
}

// waits finds a task that was committed and not taken up.
func (in *Intake) waits(arn string) *task.Stored {
	i := slices.IndexFunc(in.lost.waiting, func(s task.Stored) bool { return s.Task.ARN == arn })
	if i < 0 {
		return nil
	}
	return &in.lost.waiting[i]
}

// known reports whether a task is the engine's or will be.
func (in *Intake) known(arn string) bool {
	_, ok := in.c.Engine.Known(arn)
	return ok || in.waits(arn) != nil
}

// setDesired stops a task of the engine's, or one that waits to become one.
func (in *Intake) setDesired(ctx context.Context, arn string, seq int64) error {
	err := in.c.Engine.SetDesired(ctx, arn, task.StatusStopped, seq)
	s := in.waits(arn)
	if s == nil || task.ClassOf(err) != task.NotFound {
		return err
	}
	k := *s.Known
	k.Desired, k.DesiredSeq, k.StopRequested = task.StatusStopped, max(k.DesiredSeq, seq), time.Now()
	if err := in.c.Store.Commit(ctx, task.Commit{Batches: []task.Batch{{TaskID: s.Task.ID(), Known: &k}}}); err != nil {
		return err
	}
	*s.Known = k
	return nil
}

// settle decides about what was found by the cluster's list of its tasks. One that is
// not on it goes on in silence until the cluster has confirmed that it is to stop: of its
// end it has heard, or does not want to.
func (in *Intake) settle(m *acs.TaskManifestMessage, now time.Time) (*orders, error) {
	o := &orders{}
	for i := range m.Tasks {
		s, ok := in.lost.found[m.Tasks[i].TaskARN]
		if !ok {
			continue
		}
		desired, err := task.ParseDesired(m.Tasks[i].DesiredStatus)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("task manifest entry of task %s", s.Task.ID()), err)
		}
		in.adopt(o, s, desired, m.Timeline, now)
	}
	listed := len(o.adopted)
	for arn, s := range in.lost.found {
		if slices.ContainsFunc(o.adopted[:listed], func(a task.Stored) bool { return a.Task.ARN == arn }) {
			continue
		}
		in.adopt(o, s, task.StatusRunning, m.Timeline, now)
		s.Known.Sent = task.StatusStopped
	}
	return o, nil
}
