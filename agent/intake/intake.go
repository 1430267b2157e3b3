package intake

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/acs"
)

// Engine is the set of tasks, as intake needs it.
type Engine interface {
	// Known returns the desired status of a task that the engine has.
	Known(arn string) (desired task.Status, ok bool)
	// Accept takes up tasks whose commit has succeeded; known ones are left alone.
	Accept(tasks ...task.Stored)
	// SetDesired raises the desired status of a task and returns when that is durable.
	// A task that the engine does not have is an error of class NotFound.
	SetDesired(ctx context.Context, arn string, s task.Status, seq int64) error
	// Running lists the tasks whose desired status is RUNNING.
	Running() []string
}

// Store makes commits durable and remembers what was committed.
type Store interface {
	Commit(ctx context.Context, c task.Commit) error
	// Seen reports whether a message with this id was committed lately.
	Seen(messageID string) bool
	// Tombstone reports whether a task was forgotten lately.
	Tombstone(arn string) bool
	// Sequence is the highest sequence number that was committed.
	Sequence() int64
}

// Credentials keeps credentials in memory. roleType is acs.RoleTaskApplication or
// acs.RoleTaskExecution.
type Credentials interface {
	Set(taskARN, roleType string, c acs.IAMRoleCredentials)
}

// Config is what an Intake is made of.
type Config struct {
	Engine      Engine
	Store       Store
	Credentials Credentials
	// Attachments and Policies may be nil: then network interfaces are not taken.
	Attachments Attachments
	Policies    Policies
	// Pool may be nil: then this host has no block volumes of its own.
	Pool Pool
	// NoPrivileged refuses privileged containers (ECS_DISABLE_PRIVILEGED).
	NoPrivileged bool
	// Confirmed, if set, is called after each task manifest that was obeyed: from then
	// on the cluster is known to know what runs here.
	Confirmed func()
	// Heartbeat, if set, is called for each heartbeat of the cluster.
	Heartbeat func()
	// Lost, if set, says that the state was lost: nothing new is started and nothing that
	// runs is touched before the cluster has said what it knows.
	Lost *Lost
	Log  *slog.Logger
}

// Intake is the handler of the agent's session. Its methods may be called from several
// sessions; messages are worked on one at a time all the same.
type Intake struct {
	c  Config
	mu sync.Mutex // held while a message is worked on

	manifest string // message id of the last manifest, until its stops are verified
	timeline int64  // its sequence number
	lost     lost
}

// New makes an intake. It is to be closed if Config.Lost is set.
func New(c Config) *Intake {
	in := &Intake{c: c}
	in.begin(c.Lost)
	return in
}

// orders is what a payload comes to.
type orders struct {
	stops   []string      // known tasks to stop
	starts  []task.Stored // tasks to take up
	adopted []task.Stored // tasks that were found and are taken up
	batch   []task.Batch
	silent  bool // something in it cannot even be reported, so the message is not answered
}

// Payload takes over the tasks of a payload. It answers once all that the payload asks
// for is durable. A task that cannot be understood is reported STOPPED with the reason,
// and the payload is answered all the same, since the report is durable too
// (reliability plan, N5; the reference agent never answers such a payload).
func (in *Intake) Payload(ctx context.Context, m *acs.PayloadMessage, r acs.Responder) error {
	if m.MessageID == "" || m.ClusterARN == "" || m.ContainerInstanceARN == "" {
		return errors.New("payload without messageId, clusterArn or containerInstanceArn")
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.c.Store.Seen(m.MessageID) {
		in.keepCredentials(m)
		return in.ackPayload(ctx, m, r)
	}
	o := in.sort(m, time.Now())
	if err := in.stop(ctx, o.stops, m.SeqNum); err != nil {
		return fmt.Errorf("payload %s: %w", m.MessageID, err)
	}
	commit := task.Commit{Sequence: m.SeqNum, Batches: o.batch}
	if !o.silent {
		commit.Message = &task.Message{ID: m.MessageID, At: time.Now()}
	}
	if err := fail.Point(fail.IntakeBeforeCommit); err != nil {
		return err
	}
	if err := in.c.Store.Commit(ctx, commit); err != nil {
		return fmt.Errorf("payload %s: %w", m.MessageID, err)
	}
	in.keepCredentials(m)
	defer in.accept(&o) // also when the session is gone: it is committed
	if o.silent {
		return fmt.Errorf("payload %s: a task in it has no usable ARN", m.MessageID)
	}
	if err := fail.Point(fail.IntakeAfterCommit); err != nil {
		return err
	}
	return errors.Join(in.ackPayload(ctx, m, r), fail.Point(fail.IntakeAfterAck))
}

// sort decides what each task of a payload comes to. Stops come first, whatever their
// place in the payload.
func (in *Intake) sort(m *acs.PayloadMessage, now time.Time) orders {
	var o orders
	here := make(map[string]bool, len(m.Tasks)) // new in this payload
	for _, stops := range []bool{true, false} {
		for i := range m.Tasks {
			w := &m.Tasks[i]
			if (w.DesiredStatus == "STOPPED") != stops {
				continue
			}
			in.sortTask(&o, m, w, here, now)
		}
	}
	return o
}

func (in *Intake) sortTask(o *orders, m *acs.PayloadMessage, w *acs.Task, here map[string]bool, now time.Time) {
	log := in.c.Log.With("task", shortARN(w.ARN), "messageId", m.MessageID)
	if !taskARN.MatchString(w.ARN) {
		log.Warn("task without a usable ARN")
		o.silent = true
		return
	}
	desired, err := task.ParseDesired(w.DesiredStatus)
	known := in.known(w.ARN)
	found, isFound := in.lost.found[w.ARN]
	switch {
	case known && err == nil && desired == task.StatusStopped:
		o.stops = append(o.stops, w.ARN)
		return
	case known || here[w.ARN]:
		// A known task only ever stops, and of two entries for one new task the stop
		// came first.
		return
	case isFound && err == nil:
		here[w.ARN] = true
		in.adopt(o, found, desired, m.SeqNum, now)
		return
	case in.c.Store.Tombstone(w.ARN):
		log.Info("task was stopped and forgotten; telling again", "desired", w.DesiredStatus)
		o.batch = append(o.batch, report(w, m.ClusterARN, &Rejection{}, now))
		return
	}
	here[w.ARN] = true
	if err != nil {
		log.Warn("task refused", "err", err)
		o.batch = append(o.batch, report(w, m.ClusterARN, unloadable(err), now))
		return
	}
	t, err := in.translate(w, m.ClusterARN)
	if err != nil {
		log.Warn("task refused", "err", err)
		o.batch = append(o.batch, report(w, m.ClusterARN, err, now))
		return
	}
	k := &task.Known{Desired: desired, DesiredSeq: m.SeqNum, Received: now}
	event := task.Event{At: now, Kind: task.EventReceived, Text: fmt.Sprintf("%s in message %s, sequence %d", desired, m.MessageID, m.SeqNum)}
	if desired == task.StatusStopped {
		// A stop that came before its start: the task is known from now on, so that the
		// start finds it stopped, and is reported STOPPED though nothing ever ran.
		k.StopRequested = now
	}
	o.batch = append(o.batch, task.Batch{TaskID: t.ID(), Task: t, Known: k, Events: []task.Event{event}})
	o.starts = append(o.starts, task.Stored{Task: t, Known: k})
}

// translate is Translate and what this agent's settings forbid.
func (in *Intake) translate(w *acs.Task, clusterARN string) (*task.Task, error) {
	t, err := Translate(w, clusterARN)
	if err != nil {
		return nil, err
	}
	for i := range t.Containers {
		if c := &t.Containers[i]; in.c.NoPrivileged && c.HostConfig.Privileged {
			return nil, &Rejection{
				Container: c.Name,
				Fault:     string(task.HostConfigInvalid) + ": privileged containers are disabled on this instance (ECS_DISABLE_PRIVILEGED)",
			}
		}
	}
	return t, nil
}

// report is the batch for a task that is not taken: the report of its end and nothing
// else.
func report(w *acs.Task, clusterARN string, why error, now time.Time) task.Batch {
	change := task.Change{TaskARN: w.ARN, ClusterARN: clusterARN, Status: task.StatusStopped, ExecutionStopped: now}
	var rejected *Rejection
	if !errors.As(why, &rejected) {
		rejected = &Rejection{Reason: why.Error()}
	}
	change.Reason = rejected.Reason
	for i := range w.Containers {
		if i == maxContainers {
			break
		}
		c := task.ContainerChange{Name: w.Containers[i].Name, Status: task.ContainerStopped}
		if c.Name == rejected.Container {
			c.Reason = rejected.Fault
		}
		change.Containers = append(change.Containers, c)
	}
	id := (&task.Task{ARN: w.ARN}).ID()
	return task.Batch{TaskID: id, Changes: []task.Change{change}}
}

// stopLimit bounds the wait for orders to stop to become durable. They are carried out
// later all the same; only the message stays unanswered and comes again.
const stopLimit = 30 * time.Second

// stop has known tasks stopped, all at once, so that their commits share one.
func (in *Intake) stop(ctx context.Context, arns []string, seq int64) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	var g errgroup.Group
	for _, arn := range arns {
		g.Go(func() error {
			err := in.setDesired(ctx, arn, seq)
			if task.ClassOf(err) == task.NotFound {
				return nil // it ended and was forgotten meanwhile
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("stop tasks: %w", err)
	}
	return nil
}

// credentialsOf calls fn for each set of credentials of a payload.
func credentialsOf(m *acs.PayloadMessage, fn func(taskARN, roleType string, c *acs.IAMRoleCredentials)) {
	for i := range m.Tasks {
		t := &m.Tasks[i]
		if c := t.RoleCredentials; c != nil && c.CredentialsID != "" {
			fn(t.ARN, acs.RoleTaskApplication, c)
		}
		if c := t.ExecutionRoleCredentials; c != nil && c.CredentialsID != "" {
			fn(t.ARN, acs.RoleTaskExecution, c)
		}
	}
}

// keepCredentials keeps those of tasks that run or will run here.
func (in *Intake) keepCredentials(m *acs.PayloadMessage) {
	starting := make(map[string]bool, len(m.Tasks))
	for i := range m.Tasks {
		starting[m.Tasks[i].ARN] = m.Tasks[i].DesiredStatus == "RUNNING" && !in.c.Store.Tombstone(m.Tasks[i].ARN)
	}
	credentialsOf(m, func(arn, roleType string, c *acs.IAMRoleCredentials) {
		if starting[arn] && taskARN.MatchString(arn) {
			in.c.Credentials.Set(arn, roleType, *c)
		}
	})
}

// ackPayload acknowledges the payload and each set of credentials in it.
func (in *Intake) ackPayload(ctx context.Context, m *acs.PayloadMessage, r acs.Responder) error {
	err := r.Send(ctx, &acs.AckRequest{Cluster: m.ClusterARN, ContainerInstance: m.ContainerInstanceARN, MessageID: m.MessageID})
	credentialsOf(m, func(_, _ string, c *acs.IAMRoleCredentials) {
		if err == nil {
			err = r.Send(ctx, &acs.IAMRoleCredentialsAckRequest{MessageID: m.MessageID, Expiration: c.Expiration, CredentialsID: c.CredentialsID})
		}
	})
	return err
}

// shortARN keeps what is logged of a string from the wire to what an ARN can be.
func shortARN(s string) string {
	if !taskARN.MatchString(s) {
		return "(not an ARN)"
	}
	return (&task.Task{ARN: s}).ID()
}
