package engine_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/runtime/runtimetest"
	"berth.dev/berth/agent/task"
)

// forgetful stores nothing.
type forgetful struct{}

func (forgetful) Load(context.Context) ([]task.Stored, error) { return nil, nil }
func (forgetful) Commit(context.Context, task.Commit) error   { return nil }

// always stands for a kind of resource that is there.
type always string

func (a always) Kind() string { return string(a) }

func (a always) Ensure(context.Context, *task.Task, string, engine.Deps) (task.Result, error) {
	return task.Result{Handle: task.Handle(`{}`)}, nil
}

func (a always) Remove(context.Context, *task.Task, string, task.Handle) error { return nil }

func (a always) Probe(context.Context, *task.Task, string, task.Handle) (task.Observed, error) {
	return task.Observed{Exists: true}, nil
}

// TestMemoryDoesNotGrow runs thousands of tasks one after another, some of which are
// started again, checked, stopped or fail, and compares what is left in memory.
func TestMemoryDoesNotGrow(t *testing.T) {
	tasks := 5000
	if testing.Short() {
		tasks = 500
	}
	e, err := engine.New(engine.Config{
		Store:     forgetful{},
		Resources: []engine.Resource{always(task.KindCgroup), always(task.KindNetwork), always(task.KindImage), always(task.KindEndpoint), runtimetest.New()},
		Admission: engine.NewAdmission(engine.Share{CPU: 4096, Memory: 4096}, nil),
		Settings: plan.Settings{
			StopTimeout: time.Second, CreateTimeout: time.Minute, StartTimeout: time.Minute, PullTimeout: time.Minute, Relist: time.Minute,
		},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for i := range tasks / 10 { // what is made once is made then
		play(t, e, i)
	}
	heap, goroutines := footprint()
	for i := range tasks {
		play(t, e, i)
	}
	heapAfter, goroutinesAfter := footprint()
	t.Logf("heap %d KiB, then %d; goroutines %d, then %d", heap>>10, heapAfter>>10, goroutines, goroutinesAfter)
	if heapAfter > heap+512<<10 {
		t.Errorf("%d tasks left %d bytes in memory", tasks, heapAfter-heap)
	}
	if goroutinesAfter > goroutines+5 { // some are about to end
		t.Errorf("%d tasks left %d goroutines", tasks, goroutinesAfter-goroutines)
	}
}

// play runs one task from its acceptance until it is forgotten.
func play(t *testing.T, e *engine.Engine, i int) {
	t.Helper()
	tk := &task.Task{
		ARN: fmt.Sprintf("arn:aws:ecs:us-east-1:1:task/default/%d-%d", time.Now().UnixNano(), i), NetworkMode: task.NetworkBridge,
		Containers: []task.Container{
			{Name: "main", Essential: true, Command: []string{"exit", "0"}, CPU: 10, Memory: 10, DependsOn: []task.Dependency{{Container: "init", Condition: task.ConditionSuccess}}},
			{Name: "init", Command: []string{"exit", fmt.Sprint(i % 2)}, CPU: 10, Memory: 10},
			{Name: "side", Command: []string{"sleep"}, CPU: 10, Memory: 10, HealthCheckType: "docker", Config: task.Config{
				Healthcheck: &task.Healthcheck{Test: []string{"CMD", "true"}, Interval: time.Millisecond},
			}},
		},
	}
	if i%5 == 0 {
		tk.Containers[2].Command = []string{"no-such-program"}
	}
	if i%7 == 0 {
		tk.Containers[2].Command, tk.Containers[2].Restart = []string{"sh", "-c", "test -e /ran && exit 1; touch /ran; exit 1"}, &task.Restart{}
	}
	e.Accept(task.Stored{Task: tk, Known: &task.Known{Desired: task.StatusRunning, Received: time.Now()}})
	tick := time.NewTicker(200 * time.Microsecond)
	defer tick.Stop()
	deadline := time.Now().Add(2 * time.Minute)
	for known := true; known; _, known = e.Known(tk.ARN) {
		if time.Now().After(deadline) {
			v, _ := e.View(tk.ARN)
			b, err := v.MarshalJSON()
			t.Fatalf("task %d is not forgotten: %s %v", i, b, err)
		}
		<-tick.C
	}
}

// footprint is what is in use when everything has come to rest.
func footprint() (heap uint64, goroutines int) {
	var m runtime.MemStats
	for range 5 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, runtime.NumGoroutine()
}
