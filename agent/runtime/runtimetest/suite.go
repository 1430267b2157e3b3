package runtimetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
)

// Runtime is what the suite tests.
type Runtime interface {
	engine.Process
	engine.Checker
	engine.Observer
	engine.Sweeper
}

// Harness is one runtime under test.
type Harness struct {
	Runtime Runtime
	// Image is an image whose program understands the commands of Behavior.
	Image string
	// Program is the image's program, which runs the commands of Behavior in a container
	// that is there already; "" where the commands alone do.
	Program string
	// Deps are the records that the containers of t build on.
	Deps func(t *testing.T, of *task.Task) engine.Deps
	// Ready waits until the program of a started container handles signals; nil where
	// it does at once.
	Ready func(t *testing.T, of *task.Task, name string)
}

// Suite tests what the engine relies on. open is called once.
func Suite(t *testing.T, open func(t *testing.T) Harness) {
	h := open(t)
	watch := newWatcher(t, h.Runtime)
	for _, tc := range []struct {
		name string
		run  func(t *testing.T, s *session)
	}{
		{"life of a container that ends by itself", testExit},
		{"stop signal", testStop},
		{"a container that ignores the stop signal is killed", testKill},
		{"everything may be asked twice", testTwice},
		{"remove without ensure, and of a running container", testRemove},
		{"a lost handle is no loss", testLostHandle},
		{"a command that does not exist", testBadCommand},
		{"containers of one task are independent", testGroup},
		{"owned and sweep", testSweep},
		{"health checks", testChecks},
		{"a container is started again", testIncarnations},
		{"the leader is started again while others run", testIncarnationOfLeader},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.run(t, &session{t: t, h: h, watch: watch})
		})
	}
}

// wait is how long the suite waits for something that must happen.
const wait = 2 * time.Minute

// watcher collects observed exits.
type watcher struct {
	mu    sync.Mutex
	exits map[string][]task.Exit // by task, container and incarnation
	wake  chan struct{}
}

func newWatcher(t *testing.T, o engine.Observer) *watcher {
	w := &watcher{exits: map[string][]task.Exit{}, wake: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	var once sync.Once
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// The error says only that ctx ended.
		_ = o.Observe(ctx, func(taskID, name string, ob task.Observed) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if ob.Process == task.ProcessExited {
				key := fmt.Sprintf("%s/%s#%d", taskID, name, ob.Incarnation)
				w.exits[key] = append(w.exits[key], *ob.Exit)
			}
			select {
			case w.wake <- struct{}{}:
			default:
			}
		}, func() { once.Do(func() { close(ready) }) })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	select {
	case <-ready:
	case <-time.After(wait):
		t.Fatal("Observe never said that it is ready by calling lost")
	}
	return w
}

func (w *watcher) exit(t *testing.T, taskID, name string) task.Exit {
	t.Helper()
	return w.exitOf(t, taskID, name, 0)
}

func (w *watcher) exitOf(t *testing.T, taskID, name string, incarnation int) task.Exit {
	t.Helper()
	name = fmt.Sprintf("%s#%d", name, incarnation)
	deadline := time.After(wait)
	for {
		w.mu.Lock()
		got := slices.Clone(w.exits[taskID+"/"+name])
		w.mu.Unlock()
		if len(got) > 0 {
			if len(got) > 1 {
				t.Errorf("the end of %s was told %d times", name, len(got))
			}
			return got[0]
		}
		select {
		case <-w.wake:
		case <-time.After(20 * time.Millisecond):
		case <-deadline:
			t.Fatalf("the end of %s was not observed", name)
		}
	}
}

type session struct {
	t     *testing.T
	h     Harness
	watch *watcher
}

// task makes a task whose containers have the given commands, named c0, c1, ….
func (s *session) task(commands ...string) *task.Task {
	id := fmt.Sprintf("suite%d", time.Now().UnixNano())
	t := &task.Task{
		ARN: "arn:aws:ecs:us-east-1:000000000000:task/default/" + id, Family: "suite", Version: "1",
		NetworkMode: task.NetworkHost,
	}
	for i, c := range commands {
		t.Containers = append(t.Containers, task.Container{
			Name: fmt.Sprintf("c%d", i), Image: s.h.Image, Command: strings.Fields(c), Essential: true,
		})
	}
	s.t.Cleanup(func() {
		for i := len(t.Containers) - 1; i >= 0; i-- {
			if err := s.h.Runtime.Remove(context.Background(), t, t.Containers[i].Name, nil); err != nil {
				s.t.Errorf("clean-up: %v", err)
			}
		}
	})
	return t
}

func (s *session) ensure(t *task.Task, name string) task.Result {
	s.t.Helper()
	return s.ensureAs(t, name, 0)
}

// ensureAs makes an incarnation of a container.
func (s *session) ensureAs(t *task.Task, name string, incarnation int) task.Result {
	s.t.Helper()
	deps := s.h.Deps(s.t, t)
	get := deps.Get
	deps.Get = func(id task.ResourceID) (task.Record, bool) {
		if id == (task.ResourceID{Kind: task.KindContainer, Name: name}) {
			return task.Record{Incarnation: incarnation}, true
		}
		if get == nil {
			return task.Record{}, false
		}
		return get(id)
	}
	r, err := s.h.Runtime.Ensure(s.t.Context(), t, name, deps)
	if err != nil {
		s.t.Fatalf("Ensure %s: %v", name, err)
	}
	if r.RuntimeID == "" || len(r.Handle) == 0 {
		s.t.Fatalf("Ensure %s gave no id or handle: %+v", name, r)
	}
	return r
}

func (s *session) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) probe(t *task.Task, name string, h task.Handle, exists bool, p task.ProcessState) task.Observed {
	s.t.Helper()
	o, err := s.h.Runtime.Probe(s.t.Context(), t, name, h)
	if err != nil {
		s.t.Fatalf("Probe %s: %v", name, err)
	}
	if o.Exists != exists || o.Process != p {
		s.t.Fatalf("Probe %s: exists %v process %q, want %v and %q", name, o.Exists, o.Process, exists, p)
	}
	return o
}

func testExit(t *testing.T, s *session) {
	tk := s.task("exit 3")
	s.probe(tk, "c0", nil, false, task.ProcessNone)
	r := s.ensure(tk, "c0")
	s.probe(tk, "c0", r.Handle, true, task.ProcessCreated)
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", r.Handle))
	if e := s.watch.exit(t, tk.ID(), "c0"); e.Code != 3 || e.Signal != 0 || e.OOMKilled || time.Since(e.At).Abs() > time.Minute {
		t.Errorf("observed %+v", e)
	}
	if o := s.probe(tk, "c0", r.Handle, true, task.ProcessExited); o.Exit == nil || o.Exit.Code != 3 {
		t.Errorf("probed %+v", o.Exit)
	}
	s.ok(s.h.Runtime.Retire(t.Context(), tk, "c0", r.Handle))
	s.probe(tk, "c0", r.Handle, true, task.ProcessNone)
	s.ok(s.h.Runtime.Remove(t.Context(), tk, "c0", r.Handle))
	s.probe(tk, "c0", r.Handle, false, task.ProcessNone)
}

func testStop(t *testing.T, s *session) {
	tk := s.task("sleep")
	r := s.ensure(tk, "c0")
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", r.Handle))
	s.probe(tk, "c0", r.Handle, true, task.ProcessRunning)
	s.ready(tk, "c0")
	s.ok(s.h.Runtime.Stop(t.Context(), tk, "c0", r.Handle))
	if e := s.watch.exit(t, tk.ID(), "c0"); e.Code != 0 {
		t.Errorf("ended with %+v", e)
	}
}

func (s *session) ready(tk *task.Task, name string) {
	if s.h.Ready != nil {
		s.h.Ready(s.t, tk, name)
	}
}

func testKill(t *testing.T, s *session) {
	tk := s.task("ignore-term")
	r := s.ensure(tk, "c0")
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", r.Handle))
	s.ready(tk, "c0")
	s.ok(s.h.Runtime.Stop(t.Context(), tk, "c0", r.Handle))
	s.probe(tk, "c0", r.Handle, true, task.ProcessRunning)
	s.ok(s.h.Runtime.Kill(t.Context(), tk, "c0", r.Handle))
	if e := s.watch.exit(t, tk.ID(), "c0"); e.Code != 137 || e.Signal != 9 || e.OOMKilled {
		t.Errorf("ended with %+v", e)
	}
}

func testTwice(t *testing.T, s *session) {
	tk := s.task("sleep")
	r := s.ensure(tk, "c0")
	again := s.ensure(tk, "c0")
	if again.RuntimeID != r.RuntimeID {
		t.Errorf("second Ensure made %s, first %s", again.RuntimeID, r.RuntimeID)
	}
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", r.Handle))
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", r.Handle))
	s.ensure(tk, "c0")
	s.probe(tk, "c0", r.Handle, true, task.ProcessRunning)
	if err := s.h.Runtime.Retire(t.Context(), tk, "c0", r.Handle); err == nil {
		t.Error("Retire of a running process succeeded")
	}
	s.ok(s.h.Runtime.Kill(t.Context(), tk, "c0", r.Handle))
	s.watch.exit(t, tk.ID(), "c0")
	for range 2 {
		s.ok(s.h.Runtime.Kill(t.Context(), tk, "c0", r.Handle))
		s.ok(s.h.Runtime.Stop(t.Context(), tk, "c0", r.Handle))
	}
	for range 2 {
		s.ok(s.h.Runtime.Retire(t.Context(), tk, "c0", r.Handle))
		s.ok(s.h.Runtime.Stop(t.Context(), tk, "c0", r.Handle))
	}
	for range 2 {
		s.ok(s.h.Runtime.Remove(t.Context(), tk, "c0", r.Handle))
	}
	s.ok(s.h.Runtime.Kill(t.Context(), tk, "c0", r.Handle))
}

func testRemove(t *testing.T, s *session) {
	tk := s.task("ignore-term")
	s.ok(s.h.Runtime.Remove(t.Context(), tk, "c0", nil))
	s.ok(s.h.Runtime.Retire(t.Context(), tk, "c0", nil))
	r := s.ensure(tk, "c0")
	s.ok(s.h.Runtime.Remove(t.Context(), tk, "c0", r.Handle)) // created, never started
	s.probe(tk, "c0", r.Handle, false, task.ProcessNone)
	r = s.ensure(tk, "c0")
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", r.Handle))
	s.ok(s.h.Runtime.Remove(t.Context(), tk, "c0", r.Handle))
	s.probe(tk, "c0", r.Handle, false, task.ProcessNone)
}

func testLostHandle(t *testing.T, s *session) {
	tk := s.task("sleep")
	s.ensure(tk, "c0")
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", nil))
	s.probe(tk, "c0", nil, true, task.ProcessRunning)
	s.ready(tk, "c0")
	s.ok(s.h.Runtime.Stop(t.Context(), tk, "c0", nil))
	s.watch.exit(t, tk.ID(), "c0")
	s.ok(s.h.Runtime.Retire(t.Context(), tk, "c0", nil))
	s.ok(s.h.Runtime.Remove(t.Context(), tk, "c0", nil))
	s.probe(tk, "c0", nil, false, task.ProcessNone)
}

func testBadCommand(t *testing.T, s *session) {
	tk := s.task("sleep")
	tk.Containers[0].EntryPoint = &[]string{}
	tk.Containers[0].Command = []string{"no-such-program"}
	_, err := s.h.Runtime.Ensure(t.Context(), tk, "c0", s.h.Deps(t, tk))
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Fatalf("got %v, want an error that names the command", err)
	}
	if r := task.ReasonOf(err, ""); r.Code != task.CannotStartContainer || task.ClassOf(err).Retriable() {
		t.Errorf("got reason %q, class %q", r.Code, task.ClassOf(err))
	}
	s.ok(s.h.Runtime.Remove(t.Context(), tk, "c0", nil))
	s.probe(tk, "c0", nil, false, task.ProcessNone)
}

func testGroup(t *testing.T, s *session) {
	tk := s.task("sleep", "exit 5", "sleep", "ignore-term")
	handles := make([]task.Handle, len(tk.Containers))
	var all sync.WaitGroup
	errs := make([]error, len(handles))
	for i := range tk.Containers {
		all.Go(func() {
			name := tk.Containers[i].Name
			r, err := s.h.Runtime.Ensure(t.Context(), tk, name, s.h.Deps(t, tk))
			if err == nil {
				err = s.h.Runtime.Start(t.Context(), tk, name, r.Handle)
			}
			handles[i], errs[i] = r.Handle, err
		})
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("c%d: %v", i, err)
		}
	}
	if e := s.watch.exit(t, tk.ID(), "c1"); e.Code != 5 {
		t.Errorf("c1 ended with %+v", e)
	}
	// The order is that of the names, so whichever leads is retired before others once.
	for _, i := range []int{1, 0, 2, 3} {
		name := tk.Containers[i].Name
		if i != 1 {
			s.probe(tk, name, handles[i], true, task.ProcessRunning)
			s.ok(s.h.Runtime.Kill(t.Context(), tk, name, handles[i]))
			if e := s.watch.exit(t, tk.ID(), name); e.Code != 137 && e.Code != 0 {
				t.Errorf("%s ended with %+v", name, e)
			}
		}
		s.ok(s.h.Runtime.Retire(t.Context(), tk, name, handles[i]))
	}
	for i, c := range tk.Containers {
		s.probe(tk, c.Name, handles[i], true, task.ProcessNone)
		s.ok(s.h.Runtime.Remove(t.Context(), tk, c.Name, handles[i]))
		s.probe(tk, c.Name, handles[i], false, task.ProcessNone)
	}
}

func testSweep(t *testing.T, s *session) {
	tk := s.task("sleep")
	r := s.ensure(tk, "c0")
	s.ok(s.h.Runtime.Start(t.Context(), tk, "c0", r.Handle))
	mine := func() []task.Owned {
		all, err := s.h.Runtime.Owned(t.Context())
		s.ok(err)
		return slices.DeleteFunc(all, func(o task.Owned) bool { return o.TaskARN != tk.ARN })
	}
	got := mine()
	if len(got) != 1 || got[0].TaskID != tk.ID() || got[0].Resource != (task.ResourceID{Kind: task.KindContainer, Name: "c0"}) {
		t.Fatalf("owned: %+v", got)
	}
	s.ok(s.h.Runtime.Sweep(t.Context(), got[0]))
	if got := mine(); len(got) != 0 {
		t.Errorf("still owned: %+v", got)
	}
	s.probe(tk, "c0", r.Handle, false, task.ProcessNone)
}
