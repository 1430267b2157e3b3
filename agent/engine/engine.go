package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/task"
)

// Config is what an Engine is made of.
type Config struct {
	Store     Store
	Resources []Resource // one adapter per kind that plan names, admission excepted
	Admission *Admission
	Settings  plan.Settings
	// Parallel bounds how many Ensure and Start actions of one kind run at the same
	// time over all tasks; a kind that is not named is not bounded. Creating more
	// containers at once than the host has processors for makes all of them late.
	Parallel map[string]int
	// Undelivered reports whether the outbox still holds rows of a task.
	Undelivered func(taskID string) bool
	// StoreFailed is called with each failure of a commit, and with nil when commits
	// work again.
	StoreFailed func(error)
	// Published, if set, is called with a task as it stands each time something of it
	// may have changed. It must return at once and must not call the engine.
	Published func(View)
	// Rebooted says that the host was restarted since the state was written.
	Rebooted bool
	Log      *slog.Logger
}

// Engine owns all tasks of this host.
type Engine struct {
	c      Config
	kinds  map[string]Resource
	slots  map[string]chan struct{}
	checks chan struct{} // bounds the health checks that run at the same time
	log    *slog.Logger

	ctx    context.Context // ends when the agent ends; no task is stopped for it
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	tasks map[string]*runner // by task ID
}

// parallelChecks is how many health checks run at the same time on a host. One takes a few
// hundredths of a second of a processor to begin, and may then wait for its whole timeout.
const parallelChecks = 16

// New makes an engine. It does nothing until Start.
func New(c Config) (*Engine, error) {
	e := &Engine{
		c: c, log: c.Log, kinds: make(map[string]Resource), slots: make(map[string]chan struct{}),
		tasks: make(map[string]*runner),
	}
	e.checks = make(chan struct{}, parallelChecks)
	if c.Admission == nil {
		return nil, errors.New("engine: Admission is missing")
	}
	c.Admission.tell = e.waits
	for _, r := range append([]Resource{c.Admission}, c.Resources...) {
		if e.kinds[r.Kind()] != nil {
			return nil, fmt.Errorf("engine: two adapters for kind %q", r.Kind())
		}
		e.kinds[r.Kind()] = r
	}
	for _, kind := range []string{task.KindCgroup, task.KindNetwork, task.KindImage, task.KindContainer} {
		if e.kinds[kind] == nil {
			return nil, fmt.Errorf("engine: no adapter for kind %q", kind)
		}
	}
	if _, ok := e.kinds[task.KindContainer].(Process); !ok {
		return nil, errors.New("engine: the container adapter cannot start processes")
	}
	for kind, n := range c.Parallel {
		e.slots[kind] = make(chan struct{}, n)
	}
	return e, nil
}

// Start loads what is stored and takes up every task where it was left. What was
// being done then is found out by probing; there is no other restore. It returns
// when all runners go; ctx is only for loading.
func (e *Engine) Start(ctx context.Context) error {
	stored, err := e.c.Store.Load(ctx)
	if err != nil {
		return fmt.Errorf("load tasks: %w", err)
	}
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for _, s := range stored {
		if r := s.Known.Resources[plan.Admission]; r != nil && r.Phase == task.Present {
			e.c.Admission.restore(s.Task)
		}
		plan.Recover(s.Known, e.c.Rebooted)
		e.launch(s.Task, s.Known)
	}
	for _, r := range e.kinds {
		if o, ok := r.(Observer); ok {
			e.wg.Go(func() { e.observe(r.Kind(), o) })
		}
	}
	return nil
}

// Close ends the runners and leaves every container as it is.
func (e *Engine) Close() {
	if e.cancel != nil {
		e.cancel()
	}
	e.wg.Wait()
}

func (e *Engine) observe(kind string, o Observer) {
	seen := func(taskID, name string, what task.Observed) {
		if r := e.byID(taskID); r != nil {
			r.fact(task.Fact{Resource: task.ResourceID{Kind: kind, Name: name}, At: time.Now(), Observed: &what})
		}
	}
	lost := func() {
		for _, r := range e.all() {
			r.suspect()
		}
	}
	if err := o.Observe(e.ctx, seen, lost); err != nil && e.ctx.Err() == nil {
		e.log.Error("observing ended; running processes are found by probing only", "kind", kind, "err", err)
	}
}

// waits notes that a task has to wait for its share of the host, and for what.
func (e *Engine) waits(arn, why string) {
	r := e.byARN(arn)
	if r == nil {
		return
	}
	r.log.Info("the task waits for resources of the host", "why", why)
	r.note(task.Event{At: time.Now(), Kind: task.EventWaiting, Resource: plan.Admission, Text: why})
}

// Waiting lists the tasks that wait for their share of the host, in order.
func (e *Engine) Waiting() []Waiting { return e.c.Admission.Waiting() }

// Accept takes up tasks whose commit has succeeded. A task that is known already is
// left alone.
func (e *Engine) Accept(accepted ...task.Stored) {
	for _, a := range accepted {
		if e.byID(a.Task.ID()) == nil {
			e.launch(a.Task, a.Known)
		}
	}
}

func (e *Engine) launch(t *task.Task, k *task.Known) {
	r := newRunner(e, t, k)
	e.mu.Lock()
	e.tasks[t.ID()] = r
	e.mu.Unlock()
	e.wg.Go(r.run)
}

func (e *Engine) forget(id string) {
	e.mu.Lock()
	delete(e.tasks, id)
	e.mu.Unlock()
}

func (e *Engine) byID(id string) *runner {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.tasks[id]
}

func (e *Engine) byARN(arn string) *runner {
	t := task.Task{ARN: arn}
	if r := e.byID(t.ID()); r != nil && r.task.ARN == arn {
		return r
	}
	return nil
}

func (e *Engine) all() []*runner {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]*runner, 0, len(e.tasks))
	for _, r := range e.tasks {
		out = append(out, r)
	}
	return out
}

// Known returns the desired status of a task that the engine has.
func (e *Engine) Known(arn string) (desired task.Status, ok bool) {
	r := e.byARN(arn)
	if r == nil {
		return task.StatusNone, false
	}
	return r.view().Known.Desired, true
}

// Running lists the ARNs of the tasks whose desired status is RUNNING.
func (e *Engine) Running() []string {
	var arns []string
	for _, r := range e.all() {
		if r.view().Known.Desired == task.StatusRunning {
			arns = append(arns, r.task.ARN)
		}
	}
	return arns
}

// SetDesired raises the desired status of a task; it never lowers it. It returns when
// the change is durable. A task that the engine does not have is NotFound.
func (e *Engine) SetDesired(ctx context.Context, arn string, s task.Status, seq int64) error {
	r := e.byARN(arn)
	if r == nil {
		return task.Failf(task.NotFound, "", "task %s is not known here", arn)
	}
	return r.setDesired(ctx, s, seq)
}

// Stalled lists the tasks whose loop has been in one turn for longer than limit. A turn
// decides and stores and waits for nothing else, so such a loop hangs. A state that
// cannot be stored is no stall: its turn goes on when it can.
func (e *Engine) Stalled(limit time.Duration) []string {
	var ids []string
	for _, r := range e.all() {
		if began := r.turn.Load(); began != 0 && time.Since(time.Unix(0, began)) > limit {
			ids = append(ids, r.id)
		}
	}
	return ids
}

// View is a task as it stands, for people and for the metadata endpoints. It shares
// nothing with the engine.
type View struct {
	Task       *task.Task // never changes; shared
	Known      task.Known
	Containers map[string]task.ContainerStatus
}

// Views returns every task.
func (e *Engine) Views() []View {
	all := e.all()
	out := make([]View, 0, len(all))
	for _, r := range all {
		out = append(out, r.view())
	}
	return out
}

// View returns the task with this ARN.
func (e *Engine) View(arn string) (View, bool) {
	r := e.byARN(arn)
	if r == nil {
		return View{}, false
	}
	return r.view(), true
}

// Sweep removes what adapters own on the host for tasks that are not known.
func (e *Engine) Sweep(ctx context.Context) (removed int, err error) {
	// What stands on others goes first: containers, what they were given, networks, cgroups.
	last := []string{task.KindNetwork, task.KindCgroup}
	adapters := []Resource{e.kinds[task.KindContainer]}
	for _, kind := range slices.Sorted(maps.Keys(e.kinds)) {
		if kind != task.KindContainer && !slices.Contains(last, kind) {
			adapters = append(adapters, e.kinds[kind])
		}
	}
	for _, kind := range last {
		adapters = append(adapters, e.kinds[kind])
	}
	return Sweep(ctx, adapters, func(taskID string) bool { return e.byID(taskID) != nil }, e.log)
}

// Sweep removes what the adapters own on the host, kind by kind in the order given,
// except what belongs to a task to keep. Things of one kind may hold each other up, as
// containers that share a shim do; so it goes round for as long as that helps.
func Sweep(ctx context.Context, adapters []Resource, keep func(taskID string) bool, log *slog.Logger) (removed int, err error) {
	var errs []error
	for _, r := range adapters {
		s, ok := r.(Sweeper)
		if !ok {
			continue
		}
		n, err := sweepKind(ctx, s, keep, log)
		removed += n
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %ss: %w", r.Kind(), err))
		}
	}
	return removed, errors.Join(errs...)
}

func sweepKind(ctx context.Context, s Sweeper, keep func(taskID string) bool, log *slog.Logger) (removed int, err error) {
	for {
		owned, err := s.Owned(ctx)
		if err != nil {
			return removed, err
		}
		progress := false
		var errs []error
		for _, o := range owned {
			if keep(o.TaskID) {
				continue
			}
			if err := errors.Join(fail.Point(fail.SweepBeforeRemove), s.Sweep(ctx, o)); err != nil {
				errs = append(errs, fmt.Errorf("%s of task %s: %w", o.Resource, o.TaskID, err))
				continue
			}
			progress = true
			removed++
			log.Info("swept", "task", o.TaskID, "kind", o.Resource.Kind, "container", o.Resource.Name)
		}
		if len(errs) == 0 || !progress {
			return removed, errors.Join(errs...)
		}
	}
}
