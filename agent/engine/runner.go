package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/task"
)

// runner is the one goroutine that owns one task. Nobody else changes what is known
// of it: outcomes of actions, runtime events and orders of the cluster come to it as
// mail.
type runner struct {
	e    *Engine
	task *task.Task
	id   string
	log  *slog.Logger

	k     *task.Known
	dirty map[task.ResourceID]bool // records that differ from what is stored
	known bool                     // so does the Known itself
	lines []task.Event             // for the event log, with the next commit
	late  time.Time                // when what is not stored yet is stored at the latest

	// making is the context of every Ensure; it ends when the task is to stop.
	making     context.Context
	stopMaking context.CancelFunc

	turn     atomic.Int64  // when the turn that is being taken began, in ns; 0 while waiting
	mail     chan struct{} // there is something in the box
	mu       sync.Mutex
	facts    []task.Fact
	orders   []order
	notes    []task.Event // lines for the event log that come from outside
	doubt    bool
	snapshot View
}

// order is a desired status from the cluster; done is answered when it is durable.
type order struct {
	status task.Status
	seq    int64
	done   chan error
}

func newRunner(e *Engine, t *task.Task, k *task.Known) *runner {
	r := &runner{
		e: e, task: t, id: t.ID(), k: k, log: e.log.With("task", t.ID()),
		dirty: make(map[task.ResourceID]bool), mail: make(chan struct{}, 1),
	}
	r.making, r.stopMaking = context.WithCancel(e.ctx)
	r.publish()
	return r
}

func (r *runner) fact(f task.Fact) {
	r.mu.Lock()
	r.facts = append(r.facts, f)
	r.mu.Unlock()
	r.ring()
}

// note puts a line into the event log.
func (r *runner) note(ev task.Event) {
	r.mu.Lock()
	r.notes = append(r.notes, ev)
	r.mu.Unlock()
	r.ring()
}

// suspect says that events may have been missed.
func (r *runner) suspect() {
	r.mu.Lock()
	r.doubt = true
	r.mu.Unlock()
	r.ring()
}

func (r *runner) ring() {
	select {
	case r.mail <- struct{}{}:
	default:
	}
}

func (r *runner) setDesired(ctx context.Context, s task.Status, seq int64) error {
	o := order{status: s, seq: seq, done: make(chan error, 1)}
	r.mu.Lock()
	r.orders = append(r.orders, o)
	r.mu.Unlock()
	r.ring()
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-r.e.ctx.Done():
		return task.Fail(task.Unavailable, "", errors.New("the agent is shutting down"))
	}
}

// run is the life of a task: decide, make durable, act, wait for news.
func (r *runner) run() {
	defer r.stopMaking()
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer r.turn.Store(0)
	for {
		r.turn.Store(time.Now().UnixNano())
		orders := r.fold()
		step := plan.Next(r.task, r.k, r.e.c.Settings, time.Now())
		if !r.commit(&step, len(orders) > 0) {
			return // the agent ends; what was not stored was not begun either
		}
		for _, o := range orders {
			o.done <- nil
		}
		if r.k.Desired == task.StatusStopped {
			r.stopMaking()
		}
		r.publish()
		if step.Done {
			r.e.forget(r.id)
			return
		}
		for _, a := range step.Do {
			r.start(a)
		}
		if !r.wait(timer, earlier(step.Wake, r.late)) {
			return
		}
	}
}

// wait returns when there is mail or it is time, and false when the agent ends.
func (r *runner) wait(timer *time.Timer, wake time.Time) bool {
	r.turn.Store(0)
	var alarm <-chan time.Time
	if !wake.IsZero() {
		timer.Reset(time.Until(wake))
		alarm = timer.C
	}
	select {
	case <-r.mail:
		return true
	case <-alarm:
		return true
	case <-r.e.ctx.Done():
		return false
	}
}

// fold takes what is in the box into what is known, and returns the orders that wait
// for their commit.
func (r *runner) fold() []order {
	r.mu.Lock()
	facts, orders, doubt := r.facts, r.orders, r.doubt
	r.lines = append(r.lines, r.notes...)
	r.facts, r.orders, r.notes, r.doubt = nil, nil, nil, false
	r.mu.Unlock()
	for _, f := range facts {
		ev, news := plan.Fold(r.task, r.k, f)
		if !news {
			continue
		}
		r.dirty[f.Resource] = true
		r.known = r.known || ev.Kind == task.EventExited
		r.lines = append(r.lines, ev)
		if ev.Kind == task.EventExited {
			r.log.Info("container ended", "container", f.Resource.Name, "exit", r.k.Resource(f.Resource).Exit)
		}
		if ev.Kind == task.EventActionFailed {
			r.log.Warn("action failed", "kind", f.Resource.Kind, "container", f.Resource.Name, "verb", f.Verb, "err", ev.Text)
		}
	}
	if doubt {
		plan.Suspect(r.k)
	}
	for _, o := range orders {
		r.obey(o)
	}
	if r.k.Status == task.StatusStopped && time.Since(r.k.Stopped) >= r.e.c.Settings.Retention && r.e.c.Undelivered != nil {
		r.k.Undelivered = r.e.c.Undelivered(r.id)
	}
	return orders
}

// obey raises the desired status; an order that would lower it is answered and has
// no effect (agent protocol, "Adding a task": only upwards).
func (r *runner) obey(o order) {
	if o.seq > r.k.DesiredSeq {
		r.k.DesiredSeq = o.seq
		r.known = true
	}
	if o.status <= r.k.Desired {
		return
	}
	r.k.Desired = o.status
	r.k.StopRequested = time.Now()
	r.known = true
	r.lines = append(r.lines, task.Event{At: r.k.StopRequested, Kind: task.EventDesired, Text: o.status.String() + ": by the cluster"})
}

// lazy is how long news may wait for a commit when nothing depends on it.
const lazy = time.Second

// commit stores what changed since the last one, and keeps trying until it is stored
// or the agent ends: an action whose intent is not on disk is never begun. News that
// nothing depends on, such as a resource that has become present, waits for the next
// commit that is needed: after a crash it is simply found out again.
func (r *runner) commit(step *plan.Step, ordered bool) bool {
	for _, id := range step.Changed {
		r.dirty[id] = true
	}
	r.known = r.known || step.Known
	r.lines = append(r.lines, step.Events...)
	if len(r.dirty) == 0 && !r.known && len(r.lines) == 0 && !step.Done {
		return true
	}
	if !ordered && !needed(step) && !r.carries(task.EventExited, task.VerbNone) {
		now := time.Now()
		if r.late.IsZero() {
			r.late = now.Add(lazy)
		}
		if now.Before(r.late) {
			return true
		}
	}
	r.late = time.Time{}
	b := task.Batch{TaskID: r.id, Events: r.lines, Changes: step.Report, Delete: step.Done}
	if r.known {
		b.Known = r.k
	}
	b.Records = make(map[task.ResourceID]*task.Record, len(r.dirty))
	for id := range r.dirty {
		b.Records[id] = r.k.Resource(id)
	}
	if fail.Point(r.before(step)) != nil || !r.store(task.Commit{Batches: []task.Batch{b}}) || fail.Point(r.after()) != nil {
		return false
	}
	clear(r.dirty)
	r.known, r.lines = false, nil
	return true
}

// needed reports whether something of a step must not happen before it is on disk.
// Admission and probes leave nothing on the host.
func needed(step *plan.Step) bool {
	if step.Done || len(step.Report) > 0 {
		return true
	}
	return slices.ContainsFunc(step.Do, func(a plan.Action) bool {
		return a.Verb != task.VerbProbe && a.Verb != task.VerbCheck && a.Resource.Kind != task.KindAdmission
	})
}

// earlier is the first of two times, of which zero means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// before and after name the failpoints that a commit passes, by what it carries.
func (r *runner) before(step *plan.Step) fail.Name {
	switch {
	case step.Done:
		return fail.RetentionBeforeDelete
	case r.carries(task.EventExited, task.VerbNone):
		return fail.ExitObserved
	default:
		return fail.IntentBeforeCommit
	}
}

func (r *runner) after() fail.Name {
	switch {
	case r.carries(task.EventExited, task.VerbNone):
		return fail.ExitAfterCommit
	case r.carries(task.EventActionDone, task.VerbStart):
		return fail.ProcessAfterStartCommit
	default:
		return fail.IntentAfterCommit
	}
}

func (r *runner) carries(kind task.EventKind, verb task.Verb) bool {
	for i := range r.lines {
		if r.lines[i].Kind == kind && r.lines[i].Verb == verb {
			return true
		}
	}
	return false
}

func (r *runner) store(c task.Commit) bool {
	delay := 50 * time.Millisecond
	for failed := false; ; failed = true {
		err := r.e.c.Store.Commit(r.e.ctx, c)
		if err == nil {
			if failed && r.e.c.StoreFailed != nil {
				r.e.c.StoreFailed(nil)
			}
			return true
		}
		if r.e.ctx.Err() != nil {
			return false
		}
		if r.e.c.StoreFailed != nil {
			r.e.c.StoreFailed(err)
		}
		r.log.Error("state cannot be stored; nothing is begun until it can", "err", err)
		r.turn.Store(0) // it is known why this takes long
		select {
		case <-time.After(delay):
			delay = min(2*delay, 5*time.Second)
		case <-r.e.ctx.Done():
			return false
		}
		r.turn.Store(time.Now().UnixNano())
	}
}

// start carries out one action in a goroutine of its own; its outcome comes as a fact.
func (r *runner) start(a plan.Action) {
	adapter := r.e.kinds[a.Resource.Kind]
	handle := r.k.Resource(a.Resource).Handle
	var deps Deps
	if a.Verb == task.VerbEnsure {
		deps = r.deps(handle)
	}
	parent := r.e.ctx
	if a.Verb == task.VerbEnsure || a.Verb == task.VerbCheck {
		parent = r.making
	}
	r.e.wg.Go(func() {
		ctx, cancel := parent, context.CancelFunc(func() {})
		free, err := r.slot(parent, a)
		if err == nil {
			if a.Deadline > 0 {
				ctx, cancel = context.WithTimeout(parent, a.Deadline)
			}
			begin := time.Now()
			var f task.Fact
			f, err = r.act(ctx, adapter, a, handle, deps)
			free()
			if err == nil {
				r.log.Debug("action done", "kind", a.Resource.Kind, "container", a.Resource.Name, "verb", a.Verb, "attempt", a.Attempt, "dur", time.Since(begin))
				cancel()
				r.fact(f)
				return
			}
		}
		failure := failedFact(ctx, a, err)
		cancel()
		if r.e.ctx.Err() != nil {
			return // the agent ends: the outcome is left to the next start's probe
		}
		r.fact(failure)
	})
}

// deps copies the records that an Ensure may look at, because the runner goes on.
func (r *runner) deps(handle task.Handle) Deps {
	records := make(map[task.ResourceID]task.Record, len(r.k.Resources))
	for id, rec := range r.k.Resources {
		records[id] = *rec
	}
	return Deps{Handle: handle, Since: r.k.Received, Get: func(id task.ResourceID) (task.Record, bool) {
		rec, ok := records[id]
		return rec, ok
	}}
}

// slot waits for leave to make something of a bounded kind.
func (r *runner) slot(ctx context.Context, a plan.Action) (free func(), err error) {
	slots := r.e.slots[a.Resource.Kind]
	switch a.Verb {
	case task.VerbEnsure, task.VerbStart:
	case task.VerbCheck:
		slots = r.e.checks
	default:
		slots = nil
	}
	if slots == nil {
		return func() {}, nil
	}
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// act calls the adapter. A panic of an adapter fails this action and nothing else.
func (r *runner) act(ctx context.Context, adapter Resource, a plan.Action, h task.Handle, d Deps) (f task.Fact, err error) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("adapter panicked", "kind", a.Resource.Kind, "verb", a.Verb, "panic", p)
			err = task.Failf(task.Invalid, task.TaskStateInvalid, "%s of %s panicked: %v", a.Verb, a.Resource, p)
		}
	}()
	if adapter == nil && a.Verb == task.VerbRemove {
		return task.Fact{Resource: a.Resource, Verb: a.Verb, At: time.Now()}, nil // it was never made
	}
	if adapter == nil {
		return f, task.Failf(task.Invalid, task.ResourceInitialization, "this agent cannot make a %s", a.Resource.Kind)
	}
	name := a.Resource.Name
	f = task.Fact{Resource: a.Resource, Verb: a.Verb, Incarnation: a.Incarnation}
	switch a.Verb {
	case task.VerbEnsure:
		f.Result, err = adapter.Ensure(ctx, r.task, name, d)
	case task.VerbRemove:
		err = adapter.Remove(ctx, r.task, name, h)
	case task.VerbProbe:
		var o task.Observed
		o, err = adapter.Probe(ctx, r.task, name, h)
		f.Observed = &o
	case task.VerbCheck:
		checker, ok := adapter.(Checker)
		if !ok {
			return f, task.Failf(task.Invalid, task.TaskStateInvalid, "%s cannot check health", a.Resource)
		}
		var c task.Check
		c, err = checker.Check(ctx, r.task, name, h)
		f.Result.Check = &c
	default:
		p, ok := adapter.(Process)
		if !ok {
			return f, task.Failf(task.Invalid, task.TaskStateInvalid, "%s cannot %s", a.Resource, a.Verb)
		}
		switch a.Verb {
		case task.VerbStart:
			err = errors.Join(p.Start(ctx, r.task, name, h), fail.Point(fail.ProcessAfterStart))
		case task.VerbStop:
			err = errors.Join(p.Stop(ctx, r.task, name, h), fail.Point(fail.StopAfterTerm))
		case task.VerbKill:
			err = errors.Join(p.Kill(ctx, r.task, name, h), fail.Point(fail.StopAfterKill))
		case task.VerbRetire:
			err = p.Retire(ctx, r.task, name, h)
		default:
			err = task.Failf(task.Invalid, task.TaskStateInvalid, "unknown verb %q for %s", a.Verb, a.Resource)
		}
	}
	f.At = time.Now()
	return f, err
}

// failedFact turns an error of an adapter into a fact. A deadline that has passed is
// final and carries the name that tools know.
func failedFact(ctx context.Context, a plan.Action, err error) task.Fact {
	f := task.Fact{Resource: a.Resource, Verb: a.Verb, Incarnation: a.Incarnation, At: time.Now(), Class: task.ClassOf(err)}
	reason := task.ReasonOf(err, fallbackCode(a))
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		f.Class = task.Invalid
		reason = task.Reason{Code: task.DockerTimeout, Detail: fmt.Sprintf("Could not transition to %s; timed out after waiting %v", transition(a), a.Deadline)}
	case errors.Is(ctx.Err(), context.Canceled):
		f.Class = task.Canceled
	}
	f.Failure = &reason
	return f
}

func fallbackCode(a plan.Action) task.Code {
	switch a.Resource.Kind {
	case task.KindCgroup:
		return task.CgroupFailed
	case task.KindNetwork:
		return task.ContainerNetworking
	case task.KindImage:
		return task.CannotPullContainer
	case task.KindContainer:
		switch a.Verb {
		case task.VerbEnsure:
			return task.CannotCreateContainer
		case task.VerbStart:
			return task.CannotStartContainer
		case task.VerbProbe:
			return task.CannotInspectContainer
		default:
			return task.CannotStopContainer
		}
	default:
		return task.ResourceInitialization
	}
}

// transition is the protocol's word for what an action was to bring about (agent
// protocol, "Error names and texts").
func transition(a plan.Action) string {
	switch {
	case a.Resource.Kind == task.KindImage:
		return "pulled"
	case a.Verb == task.VerbEnsure:
		return "created"
	case a.Verb == task.VerbStart:
		return "started"
	case a.Verb == task.VerbProbe:
		return "inspecting"
	case a.Verb == task.VerbRemove || a.Verb == task.VerbRetire:
		return "removing"
	default:
		return "stopped"
	}
}

// publish makes what is known readable for others.
func (r *runner) publish() {
	v := View{Task: r.task, Known: *r.k, Containers: plan.ContainerStatuses(r.task, r.k)}
	v.Known.SentContainers = maps.Clone(r.k.SentContainers)
	v.Known.Resources = make(map[task.ResourceID]*task.Record, len(r.k.Resources))
	for id, rec := range r.k.Resources {
		c := *rec
		v.Known.Resources[id] = &c
	}
	r.mu.Lock()
	r.snapshot = v
	r.mu.Unlock()
	if r.e.c.Published != nil {
		r.e.c.Published(v)
	}
}

func (r *runner) view() View {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snapshot
}

// MarshalJSON encodes a view with its resources by "kind/name".
func (v View) MarshalJSON() ([]byte, error) {
	type plain struct {
		Task       *task.Task              `json:"task"`
		Known      task.Known              `json:"known"`
		Containers map[string]string       `json:"containers"`
		Resources  map[string]*task.Record `json:"resources"`
	}
	p := plain{Task: v.Task, Known: v.Known, Containers: map[string]string{}, Resources: map[string]*task.Record{}}
	for name, s := range v.Containers {
		p.Containers[name] = s.String()
	}
	for id, rec := range v.Known.Resources {
		p.Resources[id.String()] = rec
	}
	return json.Marshal(p)
}
