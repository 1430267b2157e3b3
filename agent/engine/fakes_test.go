package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/task"
)

// memoryStore keeps commits as JSON, as the database does.
type memoryStore struct {
	mu      sync.Mutex
	tasks   map[string]*memoryTask
	outbox  []task.Change
	commits int
	fail    error
}

type memoryTask struct {
	task, known []byte
	records     map[task.ResourceID][]byte
	events      []task.Event
}

func (s *memoryStore) Commit(_ context.Context, c task.Commit) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.commits++
	if s.tasks == nil {
		s.tasks = map[string]*memoryTask{}
	}
	for _, b := range c.Batches {
		m := s.tasks[b.TaskID]
		if m == nil {
			m = &memoryTask{records: map[task.ResourceID][]byte{}}
			s.tasks[b.TaskID] = m
		}
		if b.Task != nil {
			m.task = encode(b.Task)
		}
		if b.Known != nil {
			m.known = encode(b.Known)
		}
		for id, r := range b.Records {
			m.records[id] = encode(r)
		}
		m.events = append(m.events, b.Events...)
		s.outbox = append(s.outbox, b.Changes...)
		if b.Delete {
			delete(s.tasks, b.TaskID)
		}
	}
	return nil
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func (s *memoryStore) Load(context.Context) ([]task.Stored, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []task.Stored
	for _, m := range s.tasks {
		st := task.Stored{Task: &task.Task{}, Known: &task.Known{}}
		if err := errors.Join(json.Unmarshal(m.task, st.Task), json.Unmarshal(m.known, st.Known)); err != nil {
			return nil, err
		}
		for id, b := range m.records {
			if err := json.Unmarshal(b, st.Known.Resource(id)); err != nil {
				return nil, err
			}
		}
		out = append(out, st)
	}
	return out, nil
}

func (s *memoryStore) setFail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *memoryStore) reported() []task.Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]task.Change(nil), s.outbox...)
}

// host is a world of things that outlives an engine, as a real host does.
type host struct {
	mu     sync.Mutex
	things map[string]task.Observed
	starts map[string]int
	seen   func(taskID, name string, o task.Observed)
	making int
	most   int // most Ensures of containers at once
	ignore bool
	panics bool
	slow   time.Duration
}

type fakeResource struct {
	kind string
	h    *host
}

func (f *fakeResource) Kind() string { return f.kind }

func (f *fakeResource) key(t *task.Task, name string) string {
	return f.kind + "/" + t.ID() + "/" + name
}

func (f *fakeResource) Ensure(ctx context.Context, t *task.Task, name string, _ Deps) (task.Result, error) {
	f.h.mu.Lock()
	if f.h.panics && f.kind == task.KindContainer {
		f.h.mu.Unlock()
		panic("made to")
	}
	f.h.making++
	if f.kind == task.KindContainer {
		f.h.most = max(f.h.most, f.h.making)
	}
	f.h.mu.Unlock()
	if f.h.slow > 0 && f.kind == task.KindContainer {
		select {
		case <-time.After(f.h.slow):
		case <-ctx.Done():
		}
	}
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	f.h.making--
	if ctx.Err() != nil {
		return task.Result{}, ctx.Err()
	}
	o := task.Observed{Exists: true}
	if f.kind == task.KindContainer {
		o.Process = task.ProcessCreated
	}
	f.h.things[f.key(t, name)] = o
	return task.Result{Handle: task.Handle(`{}`), RuntimeID: "id-" + name}, nil
}

func (f *fakeResource) Remove(_ context.Context, t *task.Task, name string, _ task.Handle) error {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	delete(f.h.things, f.key(t, name))
	return nil
}

func (f *fakeResource) Probe(_ context.Context, t *task.Task, name string, _ task.Handle) (task.Observed, error) {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	return f.h.things[f.key(t, name)], nil
}

type fakeContainers struct{ fakeResource }

func (f *fakeContainers) Start(_ context.Context, t *task.Task, name string, _ task.Handle) error {
	f.h.mu.Lock()
	defer f.h.mu.Unlock()
	key := f.key(t, name)
	f.h.starts[key]++
	o := f.h.things[key]
	if o.Process != task.ProcessCreated {
		return task.Failf(task.Invalid, task.CannotStartContainer, "process is %q", o.Process)
	}
	o.Process = task.ProcessRunning
	f.h.things[key] = o
	return nil
}

func (f *fakeContainers) Stop(_ context.Context, t *task.Task, name string, _ task.Handle) error {
	f.h.mu.Lock()
	ignore := f.h.ignore
	f.h.mu.Unlock()
	if !ignore {
		f.end(t.ID(), name, 143)
	}
	return nil
}

func (f *fakeContainers) Kill(_ context.Context, t *task.Task, name string, _ task.Handle) error {
	f.end(t.ID(), name, 137)
	return nil
}

func (f *fakeContainers) Retire(context.Context, *task.Task, string, task.Handle) error { return nil }

func (f *fakeContainers) Observe(ctx context.Context, seen func(string, string, task.Observed), _ func()) error {
	f.h.mu.Lock()
	f.h.seen = seen
	f.h.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

// end ends a process and tells the observer, if there is one.
func (f *fakeContainers) end(taskID, name string, code int) {
	f.h.mu.Lock()
	key := f.kind + "/" + taskID + "/" + name
	o := f.h.things[key]
	if o.Process != task.ProcessRunning {
		f.h.mu.Unlock()
		return
	}
	o.Process, o.Exit = task.ProcessExited, &task.Exit{Code: code, At: time.Now()}
	f.h.things[key] = o
	seen := f.h.seen
	f.h.mu.Unlock()
	if seen != nil {
		seen(taskID, name, o)
	}
}

func newHost() *host { return &host{things: map[string]task.Observed{}, starts: map[string]int{}} }

func startEngine(t *testing.T, h *host, s Store) (*Engine, *fakeContainers) {
	t.Helper()
	containers := &fakeContainers{fakeResource{task.KindContainer, h}}
	e, err := New(Config{
		Store: s,
		Resources: []Resource{
			&fakeResource{task.KindCgroup, h}, &fakeResource{task.KindNetwork, h}, &fakeResource{task.KindImage, h},
			&fakeResource{task.KindEndpoint, h}, containers,
		},
		Admission: NewAdmission(Share{CPU: 4096, Memory: 4096}, []Port{{22, "tcp"}}),
		Settings: plan.Settings{
			StopTimeout: 30 * time.Second, CreateTimeout: time.Minute, StartTimeout: time.Minute,
			PullTimeout: time.Minute, Retention: time.Hour, Relist: time.Minute,
		},
		Parallel: map[string]int{task.KindContainer: 2},
		Log:      slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return e, containers
}

func newTask(id string, containers ...string) *task.Task {
	t := &task.Task{ARN: "arn:aws:ecs:us-east-1:1:task/default/" + id, NetworkMode: task.NetworkNone}
	for _, c := range containers {
		t.Containers = append(t.Containers, task.Container{Name: c, Essential: true, CPU: 256, Memory: 128})
	}
	return t
}

// accept commits a task as intake does and hands it over.
func accept(t *testing.T, e *Engine, s Store, tasks ...*task.Task) {
	t.Helper()
	for _, tk := range tasks {
		k := &task.Known{Desired: task.StatusRunning, Received: time.Now()}
		if err := s.Commit(t.Context(), task.Commit{Batches: []task.Batch{{TaskID: tk.ID(), Task: tk, Known: k}}}); err != nil {
			t.Fatal(err)
		}
		e.Accept(task.Stored{Task: tk, Known: k})
	}
}

func statusOf(t *testing.T, e *Engine, tk *task.Task) task.Status {
	t.Helper()
	v, ok := e.View(tk.ARN)
	if !ok {
		t.Fatalf("task %s is not known", tk.ID())
	}
	return v.Known.Status
}

func wantStatus(t *testing.T, e *Engine, tk *task.Task, want task.Status) {
	t.Helper()
	if got := statusOf(t, e, tk); got != want {
		v, _ := e.View(tk.ARN)
		t.Fatalf("status %v, want %v: %s", got, want, encode(v))
	}
}

func many(n int) []*task.Task {
	var out []*task.Task
	for i := range n {
		out = append(out, newTask(fmt.Sprintf("t%d", i), "web"))
	}
	return out
}
