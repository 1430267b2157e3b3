// Package attach keeps track of network interfaces and block volumes that the cluster
// announces before the tasks that use them: it waits until each is on the host and tells
// the cluster (agent protocol, "Server -> agent messages", "ENI watcher", "Volumes and
// EBS").
//
// An announcement is durable before it is answered, with the time at which it expires.
// What was announced is waited for again after a restart of the agent. That an interface
// is there is committed together with the report of it, so that it is told exactly as
// often as the outbox tells anything. One that does not come in time is forgotten, and
// what was made for it taken away; the cluster has ended its task by then.
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/agent/task"
)

// Store makes attachments durable.
type Store interface {
	Commit(ctx context.Context, c task.Commit) error
	Attachments(ctx context.Context) ([]task.Attachment, error)
}

// Devices finds interfaces on the host, and makes those that nobody plugs in.
type Devices interface {
	// Prepare makes the device, if that is the agent's to do. It may be called again.
	Prepare(ctx context.Context, i *task.Interface) error
	// Await returns when the device is there. It ends with ctx.
	Await(ctx context.Context, i *task.Interface) error
	// Abandon takes away what Prepare made, unless a task has it.
	Abandon(ctx context.Context, i *task.Interface) error
}

// Volumes makes block volumes ready.
type Volumes interface {
	// Stage returns when the volume is mounted for its task. It ends with ctx, and may be
	// called again.
	Stage(ctx context.Context, taskID string, v *task.Volume) error
	// Unstage takes away what Stage left for a task that never came.
	Unstage(ctx context.Context, taskID string, v *task.Volume) error
}

// Config is what a Keeper is made of.
type Config struct {
	Store   Store
	Devices Devices
	Volumes Volumes // nil: this host takes no block volumes
	// Known returns the desired status of a task that the agent has, or had lately.
	Known func(taskARN string) (task.Status, bool)
	// Held reports whether the agent has a task: its volumes are taken away with it.
	Held func(taskARN string) bool
	// Submit tells the cluster of a volume, or of an interface of the instance, which
	// belongs to no task.
	Submit func(ctx context.Context, attachmentARN string, s task.AttachmentStatus) error
	Log    *slog.Logger
}

// sweepEvery is how often attachments are looked for that are no longer needed, and
// maxAttachments bounds how many are kept.
const (
	sweepEvery     = 5 * time.Second
	maxAttachments = 4096
	retryMin       = 100 * time.Millisecond
	retryMax       = 5 * time.Second
)

// Keeper keeps the attachments of this host. It is driven by Run.
type Keeper struct {
	c Config

	mu      sync.Mutex
	ctx     context.Context // of Run; nil before
	known   map[string]*entry
	waiting sync.WaitGroup
}

// entry is one attachment. Its record is changed with the Keeper's lock held.
type entry struct {
	record  task.Attachment
	waiting bool
	cancel  context.CancelFunc // of the wait
}

// New makes a Keeper with what is stored.
func New(ctx context.Context, c Config) (*Keeper, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{c: c, known: map[string]*entry{}}
	stored, err := c.Store.Attachments(ctx)
	if err != nil {
		return nil, fmt.Errorf("attachments: %w", err)
	}
	for _, a := range stored {
		k.known[a.ARN] = &entry{record: a}
	}
	return k, nil
}

// Run waits for what was announced until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	k.mu.Lock()
	k.ctx = ctx
	for _, e := range k.known {
		if e.record.Status != task.AttachmentAttached {
			k.start(e) // the report of the others is in the outbox
		}
	}
	k.mu.Unlock()
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			k.sweep(ctx)
		case <-ctx.Done():
			k.mu.Lock()
			k.ctx = nil
			k.mu.Unlock()
			k.waiting.Wait()
			return ctx.Err()
		}
	}
}

// Accept returns when the attachments are durable. One that is known already is waited for
// or told of again, and keeps the later of the two expiries.
func (k *Keeper) Accept(ctx context.Context, list []task.Attachment) error {
	k.mu.Lock()
	commit := task.Commit{Attachments: map[string]*task.Attachment{}}
	for i := range list {
		a := list[i]
		if a.Volume != nil && k.c.Volumes == nil {
			k.mu.Unlock()
			return errors.New("this agent takes no block volumes")
		}
		if e := k.known[a.ARN]; e != nil {
			if name(&e.record) != name(&a) || e.record.TaskARN != a.TaskARN {
				k.mu.Unlock()
				return fmt.Errorf("attachment %s was announced before with another device or task", a.ARN)
			}
			a.Status = e.record.Status
			if e.record.Expires.After(a.Expires) {
				a.Expires = e.record.Expires
			}
		}
		commit.Attachments[a.ARN] = &a
	}
	full := len(k.known)+len(list) > maxAttachments
	k.mu.Unlock()
	if full {
		return fmt.Errorf("more than %d attachments are waited for", maxAttachments)
	}
	if err := k.c.Store.Commit(ctx, commit); err != nil {
		return fmt.Errorf("attachments: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for arn, a := range commit.Attachments {
		e := k.known[arn]
		if e == nil {
			e = &entry{}
			k.known[arn] = e
		}
		e.record = *a
		k.start(e)
	}
	return nil
}

// start waits for an attachment in a goroutine, unless one does. It is called with the
// lock held.
func (k *Keeper) start(e *entry) {
	if e.waiting || k.ctx == nil {
		return
	}
	e.waiting = true
	ctx, cancel := context.WithCancel(k.ctx)
	e.cancel = cancel
	a := e.record
	k.waiting.Go(func() {
		defer cancel()
		err := k.attach(ctx, a)
		k.mu.Lock()
		defer k.mu.Unlock()
		e.waiting = false
		if err == nil {
			e.record.Status = task.AttachmentAttached
		} else if ctx.Err() == nil {
			k.c.Log.Warn("what was announced did not come", "attachment", a.ARN, "device", name(&a), "err", err)
		}
	})
}

// attach waits for one interface or volume and has the cluster told.
func (k *Keeper) attach(ctx context.Context, a task.Attachment) error {
	if a.Volume != nil {
		return k.stage(ctx, a)
	}
	start := time.Now()
	ctx, cancel := context.WithDeadline(ctx, a.Expires)
	defer cancel()
	if err := k.retry(ctx, a, "prepare", func() error { return k.c.Devices.Prepare(ctx, &a.Interface) }); err != nil {
		return err
	}
	if err := k.retry(ctx, a, "wait for", func() error { return k.c.Devices.Await(ctx, &a.Interface) }); err != nil {
		return err
	}
	a.Status = task.AttachmentAttached
	commit := task.Commit{Attachments: map[string]*task.Attachment{a.ARN: &a}}
	if a.TaskARN != "" {
		id := (&task.Task{ARN: a.TaskARN}).ID()
		commit.Batches = []task.Batch{{TaskID: id, Changes: []task.Change{{
			TaskARN: a.TaskARN, ClusterARN: a.ClusterARN,
			Attachments: []task.AttachmentChange{{ARN: a.ARN, Status: a.Status}},
		}}}}
	} else if err := k.retry(ctx, a, "report", func() error { return k.c.Submit(ctx, a.ARN, a.Status) }); err != nil {
		return err
	}
	if err := k.retry(ctx, a, "record", func() error { return k.c.Store.Commit(ctx, commit) }); err != nil {
		return err
	}
	k.c.Log.Info("a network interface is attached", "attachment", a.ARN, "interface", a.Interface.ID, "mac", a.Interface.MAC, "dur", time.Since(start))
	return nil
}

// retry does something until it succeeds, ctx ends, or it cannot ever succeed.
func (k *Keeper) retry(ctx context.Context, a task.Attachment, what string, fn func() error) error {
	delay := retryMin
	for attempt := 1; ; attempt++ {
		err := fn()
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%s %s: %w", what, name(&a), err)
		if ctx.Err() != nil || task.ClassOf(err) == task.Invalid {
			return err
		}
		k.c.Log.Warn("trying again to attach what was announced", "attachment", a.ARN, "attempt", attempt, "err", err)
		select {
		case <-time.After(delay):
			delay = min(2*delay, retryMax)
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// sweep forgets attachments that have expired and whose task is not here, and those whose
// task is to end.
func (k *Keeper) sweep(ctx context.Context) {
	now := time.Now()
	var gone []task.Attachment
	k.mu.Lock()
	for _, e := range k.known {
		if e.record.TaskARN == "" && e.record.Status == task.AttachmentAttached {
			continue // of the instance
		}
		desired, known := k.c.Known(e.record.TaskARN)
		if e.record.Volume != nil && k.c.Held(e.record.TaskARN) {
			continue // a process may still use it
		}
		switch {
		case !(known && desired == task.StatusStopped || !known && now.After(e.record.Expires)):
		case e.waiting:
			e.cancel() // what it makes is taken away the next time
		default:
			gone = append(gone, e.record)
		}
	}
	k.mu.Unlock()
	for _, a := range gone {
		if err := k.forget(ctx, a); err != nil && ctx.Err() == nil {
			k.c.Log.Warn("what was announced and nobody needs cannot be taken away yet", "attachment", a.ARN, "err", err)
		}
	}
}

func (k *Keeper) forget(ctx context.Context, a task.Attachment) error {
	if err := k.abandon(ctx, a); err != nil {
		return err
	}
	if err := k.c.Store.Commit(ctx, task.Commit{Attachments: map[string]*task.Attachment{a.ARN: nil}}); err != nil {
		return err
	}
	k.mu.Lock()
	delete(k.known, a.ARN)
	k.mu.Unlock()
	k.c.Log.Debug("attachment forgotten", "attachment", a.ARN, "task", a.TaskARN[strings.LastIndexByte(a.TaskARN, '/')+1:])
	return nil
}

// Interfaces are those of all attachments that are known.
func (k *Keeper) Interfaces() []task.Interface {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]task.Interface, 0, len(k.known))
	for _, e := range k.known {
		if e.record.Volume == nil {
			out = append(out, e.record.Interface)
		}
	}
	return out
}
