// Package runtimetest holds a runtime that exists only in memory, with behaviour that a
// test scripts, and the conformance suite that it and the real runtime both pass.
package runtimetest

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
)

// Behavior scripts one container, by name. The zero value does what the command says.
//
// Commands are those of the probe program: "exit N" ends with code N when started,
// "sleep" runs until a stop signal and ends with code 0, "ignore-term" runs until it is
// killed, "print N" prints N lines and ends; anything else is a command that does not
// exist. A command may begin with a program path. Of a shell, "sh -c", it understands the
// scripts that parseScript describes.
type Behavior struct {
	EnsureError error         // returned by every Ensure
	StartError  error         // returned by every Start
	StopError   error         // returned by every Stop
	RemoveError error         // returned by every Remove
	ProbeError  error         // returned by every Probe
	EnsureDelay time.Duration // before an Ensure does anything
	StartDelay  time.Duration
	Hang        bool          // Ensure blocks until its context ends
	RunFor      time.Duration // how long "exit N" runs first
	OOMKilled   bool          // its end is told as one by lack of memory
}

// Fake is a runtime in memory. It serves task.KindContainer.
type Fake struct {
	// Script is looked up by container name, then by "". Set it before use, or with Set.
	Script map[string]Behavior

	mu         sync.Mutex
	containers map[string]*container
	observers  map[int]observer
	nextID     int
	calls      []string
}

type observer struct {
	seen func(taskID, name string, o task.Observed)
	lost func()
}

type container struct {
	arn, taskID, name string
	prog              program
	halt              chan struct{} // closed when the process is to go no further
	state             task.ProcessState
	exit              *task.Exit
	timer             *time.Timer
	incarnation       int
	files             map[string]bool // that scripts have made in the container
}

var (
	_ engine.Process  = (*Fake)(nil)
	_ engine.Observer = (*Fake)(nil)
	_ engine.Sweeper  = (*Fake)(nil)
)

// New returns a fake without a script.
func New() *Fake {
	return &Fake{Script: map[string]Behavior{}, containers: map[string]*container{}, observers: map[int]observer{}}
}

// Set scripts the containers of a name from now on.
func (f *Fake) Set(name string, b Behavior) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.Script[name] = b
}

// callsKept is how many calls are remembered.
const callsKept = 4096

// Calls lists what was asked lately, "Verb task-id/name".
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Exit ends a running container from outside, as a kill on the host would.
func (f *Fake) Exit(taskID, name string, code int) error {
	f.mu.Lock()
	c := f.find(taskID, name)
	if c == nil || c.state != task.ProcessRunning {
		f.mu.Unlock()
		return fmt.Errorf("container %s of task %s does not run", name, taskID)
	}
	tell := f.end(c, code)
	f.mu.Unlock()
	tell()
	return nil
}

// Vanish takes a container away without a word.
func (f *Fake) Vanish(taskID, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.find(taskID, name); c != nil {
		delete(f.containers, c.arn+"/"+c.name)
	}
}

// Lose tells all observers that events may have been missed.
func (f *Fake) Lose() {
	f.mu.Lock()
	obs := slices.Collect(maps.Values(f.observers))
	f.mu.Unlock()
	for _, o := range obs {
		o.lost()
	}
}

func (f *Fake) find(taskID, name string) *container {
	for _, c := range f.containers {
		if c.taskID == taskID && c.name == name {
			return c
		}
	}
	return nil
}

func (f *Fake) called(verb task.Verb, t *task.Task, name string) (*container, Behavior) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.calls) >= callsKept {
		f.calls = slices.Delete(f.calls, 0, callsKept/2)
	}
	f.calls = append(f.calls, fmt.Sprintf("%s %s/%s", verb, t.ID(), name))
	b, ok := f.Script[name]
	if !ok {
		b = f.Script[""]
	}
	return f.containers[t.ARN+"/"+name], b
}

// Kind is task.KindContainer.
func (f *Fake) Kind() string { return task.KindContainer }

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return task.Fail(task.Canceled, "", ctx.Err())
	case <-time.After(d):
		return nil
	}
}

// Ensure makes the container.
func (f *Fake) Ensure(ctx context.Context, t *task.Task, name string, d engine.Deps) (task.Result, error) {
	_, b := f.called(task.VerbEnsure, t, name)
	if b.Hang {
		<-ctx.Done()
		return task.Result{}, task.Fail(task.Canceled, "", ctx.Err())
	}
	if err := pause(ctx, b.EnsureDelay); err != nil {
		return task.Result{}, err
	}
	if b.EnsureError != nil {
		return task.Result{}, b.EnsureError
	}
	prog, err := programOf(t.Container(name))
	if err != nil {
		return task.Result{}, err
	}
	incarnation := 0
	if d.Get != nil {
		self, _ := d.Get(task.ResourceID{Kind: task.KindContainer, Name: name})
		incarnation = self.Incarnation
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key := t.ARN + "/" + name
	old := f.containers[key]
	if old == nil || old.incarnation < incarnation {
		c := &container{
			arn: t.ARN, taskID: t.ID(), name: name, prog: prog, state: task.ProcessCreated,
			incarnation: incarnation, files: map[string]bool{}, halt: make(chan struct{}),
		}
		if old != nil {
			if old.state == task.ProcessRunning {
				return task.Result{}, task.Failf(task.Unavailable, task.CannotCreateContainer, "the process before runs still")
			}
			c.files = old.files
		}
		f.containers[key] = c
	}
	h, err := json.Marshal(map[string]string{"id": key})
	return task.Result{Handle: h, RuntimeID: key + "#" + strconv.Itoa(incarnation)}, err
}

// Start starts it.
func (f *Fake) Start(ctx context.Context, t *task.Task, name string, _ task.Handle) error {
	c, b := f.called(task.VerbStart, t, name)
	if err := pause(ctx, b.StartDelay); err != nil {
		return err
	}
	if b.StartError != nil {
		return b.StartError
	}
	f.mu.Lock()
	tell := func() {}
	switch {
	case c == nil || c.state == task.ProcessNone:
		f.mu.Unlock()
		return task.Failf(task.NotFound, task.CannotStartContainer, "no such process")
	case c.state == task.ProcessCreated:
		c.state = task.ProcessRunning
		switch code, at := c.prog.ends(); {
		case !at:
			go f.interpret(c)
		case b.RunFor > 0:
			c.timer = time.AfterFunc(b.RunFor, func() { f.endIfRunning(c, code) })
		default:
			tell = f.end(c, code)
		}
	}
	f.mu.Unlock()
	tell()
	return nil
}

// end ends c; the caller holds the lock and calls what it returns without it.
func (f *Fake) end(c *container, code int) func() {
	b, ok := f.Script[c.name]
	if !ok {
		b = f.Script[""]
	}
	c.state = task.ProcessExited
	close(c.halt)
	c.exit = &task.Exit{Code: code, At: time.Now(), OOMKilled: b.OOMKilled && code != 0}
	if code > 128 {
		c.exit.Signal = code - 128
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	exit := *c.exit
	obs := slices.Collect(maps.Values(f.observers))
	return func() {
		for _, o := range obs {
			o.seen(c.taskID, c.name, task.Observed{Exists: true, Process: task.ProcessExited, Exit: &exit, Incarnation: c.incarnation})
		}
	}
}

func (f *Fake) endIfRunning(c *container, code int) {
	f.mu.Lock()
	tell := func() {}
	if c.state == task.ProcessRunning {
		tell = f.end(c, code)
	}
	f.mu.Unlock()
	tell()
}

// Stop delivers the stop signal.
func (f *Fake) Stop(_ context.Context, t *task.Task, name string, _ task.Handle) error {
	c, b := f.called(task.VerbStop, t, name)
	if b.StopError != nil {
		return b.StopError
	}
	if c != nil {
		f.mu.Lock()
		code, ends := c.prog.term()
		f.mu.Unlock()
		if ends {
			f.endIfRunning(c, code)
		}
	}
	return nil
}

// Kill ends it.
func (f *Fake) Kill(_ context.Context, t *task.Task, name string, _ task.Handle) error {
	if c, _ := f.called(task.VerbKill, t, name); c != nil {
		f.endIfRunning(c, 137)
	}
	return nil
}

// Retire forgets the ended process.
func (f *Fake) Retire(_ context.Context, t *task.Task, name string, _ task.Handle) error {
	c, _ := f.called(task.VerbRetire, t, name)
	f.mu.Lock()
	defer f.mu.Unlock()
	if c == nil {
		return nil
	}
	if c.state == task.ProcessRunning {
		return task.Failf(task.Unavailable, "", "the process has not ended")
	}
	c.state, c.exit = task.ProcessNone, nil
	return nil
}

// Remove takes it away.
func (f *Fake) Remove(_ context.Context, t *task.Task, name string, _ task.Handle) error {
	c, b := f.called(task.VerbRemove, t, name)
	if b.RemoveError != nil {
		return b.RemoveError
	}
	if c != nil {
		f.endIfRunning(c, 137)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, t.ARN+"/"+name)
	return nil
}

// Probe says what there is.
func (f *Fake) Probe(_ context.Context, t *task.Task, name string, _ task.Handle) (task.Observed, error) {
	c, b := f.called(task.VerbProbe, t, name)
	if b.ProbeError != nil {
		return task.Observed{}, b.ProbeError
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c == nil {
		return task.Observed{}, nil
	}
	return task.Observed{Exists: true, Process: c.state, Exit: c.exit, Incarnation: c.incarnation}, nil
}

// Observe tells of ends until ctx ends.
func (f *Fake) Observe(ctx context.Context, seen func(taskID, name string, o task.Observed), lost func()) error {
	f.mu.Lock()
	id := f.nextID
	f.nextID++
	f.observers[id] = observer{seen, lost}
	f.mu.Unlock()
	lost()
	<-ctx.Done()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.observers, id)
	return ctx.Err()
}

// Owned lists all containers.
func (f *Fake) Owned(context.Context) ([]task.Owned, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []task.Owned
	for key, c := range f.containers {
		h, err := json.Marshal(map[string]string{"id": key})
		if err != nil {
			return nil, err
		}
		out = append(out, task.Owned{
			Resource: task.ResourceID{Kind: task.KindContainer, Name: c.name}, TaskARN: c.arn, TaskID: c.taskID, Handle: h,
		})
	}
	return out, nil
}

// Sweep removes one.
func (f *Fake) Sweep(_ context.Context, o task.Owned) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, o.TaskARN+"/"+o.Resource.Name)
	return nil
}
