package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/stats"
	wire "berth.dev/berth/wire/tcs"
)

// hosts are tasks and a cgroup hierarchy of plain files.
type hosts struct {
	t     *testing.T
	root  string
	mu    sync.Mutex
	views []engine.View
	cpu   int
	down  error
}

func newHosts(t *testing.T) *hosts {
	return &hosts{t: t, root: t.TempDir()}
}

// add makes a task with one running container.
func (h *hosts) add(id string, c task.Container) *task.Record {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := &task.Task{ARN: "arn:aws:ecs:r:1:task/lab/" + id, ClusterARN: "arn:aws:ecs:r:1:cluster/lab", Family: "f", Version: "3", NetworkMode: task.NetworkHost, Containers: []task.Container{c}}
	r := &task.Record{Phase: task.Present, Started: time.Unix(1, 0), RuntimeID: id + "-1", Handle: task.Handle(fmt.Sprintf(`{"cgroup":"/%s"}`, id))}
	k := task.Known{Resources: map[task.ResourceID]*task.Record{plan.Container(c.Name): r}}
	h.views = append(h.views, engine.View{Task: t, Known: k})
	h.write(id)
	return r
}

func (h *hosts) write(id string) {
	h.cpu += 1000
	for name, text := range map[string]string{"cpu.stat": fmt.Sprintf("usage_usec %d\n", h.cpu), "memory.current": "2097152\n", "memory.stat": "inactive_file 0\n"} {
		path := filepath.Join(h.root, id, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			h.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *hosts) watcher() *Watcher {
	return New(Config{
		Views:       func() []engine.View { h.mu.Lock(); defer h.mu.Unlock(); return append([]engine.View{}, h.views...) },
		Hierarchies: stats.Hierarchies{Unified: h.root}, Interval: time.Second,
		CheckRuntime: func(context.Context) error { h.mu.Lock(); defer h.mu.Unlock(); return h.down },
		Log:          slog.New(slog.DiscardHandler),
	})
}

// look samples once, as Run does.
func look(w *Watcher, n int) {
	for range n {
		w.follow()
		w.samples.Sample()
	}
}

func TestMetricsOfATask(t *testing.T) {
	h := newHosts(t)
	w := h.watcher()
	if tasks, idle := w.Metrics(); len(tasks) != 0 || !idle {
		t.Errorf("without tasks: %v, idle %t", tasks, idle)
	}
	r := h.add("a", task.Container{Name: "web"})
	look(w, 1)
	if tasks, idle := w.Metrics(); len(tasks) != 0 || idle {
		t.Errorf("after one sample: %v, idle %t", tasks, idle)
	}
	look(w, 1)
	tasks, idle := w.Metrics()
	if idle || len(tasks) != 1 || tasks[0].TaskARN != "arn:aws:ecs:r:1:task/lab/a" || tasks[0].TaskDefinitionFamily != "f" || tasks[0].TaskDefinitionVersion != "3" {
		t.Fatalf("%+v, idle %t", tasks, idle)
	}
	m := tasks[0].ContainerMetrics[0]
	if m.ContainerName != "web" || m.Memory.SampleCount != 2 || m.Memory.Sum != 4 || m.CPU.SampleCount != 1 || m.Network != nil || m.Restart != nil {
		t.Errorf("%+v", m)
	}
	// What was measured last is told after the container has ended, once.
	look(w, 1)
	h.mu.Lock()
	r.Exit = &task.Exit{}
	h.mu.Unlock()
	look(w, 1)
	if tasks, idle := w.Metrics(); len(tasks) != 1 || idle {
		t.Errorf("after its end: %v, idle %t", tasks, idle)
	}
	if tasks, idle := w.Metrics(); len(tasks) != 0 || !idle || len(w.samples.Targets()) != 0 {
		t.Errorf("long after its end: %v, idle %t, targets %v", tasks, idle, w.samples.Targets())
	}
}

func TestStorageIsTold(t *testing.T) {
	h := newHosts(t)
	w := h.watcher()
	own, blocks := &wire.EphemeralStorage{BytesUtilized: wire.NewLongSet(5, 5, 5, 1)}, []wire.VolumeMetric{{VolumeID: "vol-1", VolumeName: "v"}}
	w.c.Storage = func(t *task.Task) (*wire.EphemeralStorage, []wire.VolumeMetric) {
		if t.ID() == "a" {
			return own, blocks
		}
		return nil, nil
	}
	h.add("a", task.Container{Name: "web"})
	h.add("b", task.Container{Name: "web"})
	look(w, 2)
	tasks, _ := w.Metrics()
	if len(tasks) != 2 || tasks[0].EphemeralStorage != own || len(tasks[0].VolumeMetrics) != 1 || tasks[1].EphemeralStorage != nil || tasks[1].VolumeMetrics != nil {
		t.Errorf("%+v", tasks)
	}
}

func TestRestartsAreTold(t *testing.T) {
	h := newHosts(t)
	w := h.watcher()
	r := h.add("a", task.Container{Name: "web", Restart: &task.Restart{}})
	look(w, 2)
	h.mu.Lock()
	r.Started, r.Restarts = time.Unix(5, 0), 1
	h.mu.Unlock()
	look(w, 2)
	for _, want := range []int64{1, 0} {
		look(w, 1)
		tasks, _ := w.Metrics()
		if diff := cmp.Diff(&wire.Restart{RestartCount: want}, tasks[0].ContainerMetrics[0].Restart); diff != "" {
			t.Error(diff)
		}
	}
	// Another start of the agent tells none again, and its count does not go back.
	w = h.watcher()
	look(w, 2)
	tasks, _ := w.Metrics()
	if diff := cmp.Diff(&wire.Restart{}, tasks[0].ContainerMetrics[0].Restart); diff != "" {
		t.Error(diff)
	}
	total := 0
	w.Each(func(_ *task.Task, _ string, _ *stats.Sample, restarts int) { total = restarts })
	if total != 1 {
		t.Errorf("%d restarts after a restart of the agent", total)
	}
}

func TestHealth(t *testing.T) {
	h := newHosts(t)
	w := h.watcher()
	h.add("plain", task.Container{Name: "web"})
	h.add("new", task.Container{Name: "web", HealthCheckType: "docker"})
	r := h.add("sick", task.Container{Name: "web", HealthCheckType: "docker"})
	since := time.Unix(100, 0)
	r.Health = &task.Health{Status: task.HealthUnhealthy, Since: since}
	got := w.Health()
	if len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	if c := got[0].Containers[0]; c.HealthStatus != "UNKNOWN" || c.StatusSince.IsZero() {
		t.Errorf("%+v", c)
	}
	if c := got[1].Containers[0]; c.HealthStatus != "UNHEALTHY" || !c.StatusSince.Equal(since) {
		t.Errorf("%+v", c)
	}
}

func TestStatusIsToldOnceAfterEachCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHosts(t)
		w := h.watcher()
		if s := w.Status(); len(s) != 1 || s[0].Status != "INITIALIZING" {
			t.Errorf("before the first check: %+v", s)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.check(ctx) }()
		synctest.Wait()
		first := w.Status()
		if len(first) != 1 || first[0].Status != "OK" || first[0].Type != "ContainerRuntime" {
			t.Errorf("%+v", first)
		}
		if again := w.Status(); again != nil {
			t.Errorf("told twice: %+v", again)
		}
		time.Sleep(time.Second) // of the bubble's clock
		h.mu.Lock()
		h.down = errors.New("containerd does not answer")
		h.mu.Unlock()
		w.Check()
		synctest.Wait()
		if s := w.Status(); len(s) != 1 || s[0].Status != "IMPAIRED" || s[0].StatusReason != "containerd does not answer" || !s[0].LastStatusChange.After(first[0].LastStatusChange.Time) {
			t.Errorf("%+v", s)
		}
		cancel()
		<-done
	})
}

func TestPrometheusNamesAreClean(t *testing.T) {
	h := newHosts(t)
	w := h.watcher()
	h.add("a", task.Container{Name: "web"})
	look(w, 2)
	problems, err := testutil.CollectAndLint(w.Collector())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if n := testutil.CollectAndCount(w.Collector(), "berth_container_cpu_usage_seconds_total"); n != 1 {
		t.Errorf("%d series", n)
	}
}

// TestGPUsOfContainers has the metrics of a container show the GPU that it was given, and
// of that what is known.
func TestGPUsOfContainers(t *testing.T) {
	program := filepath.Join(t.TempDir(), "smi")
	const text = "#!/bin/sh\necho 'GPU-a, 25, 5, 1024, 4096, 50, [N/A]'\necho 'GPU-b, 99, 5, 1024, 4096, 50, 10'\nexec sleep 1000\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	h := newHosts(t)
	h.add("a", task.Container{Name: "plain"})
	h.add("b", task.Container{Name: "train", GPUs: []string{"GPU-a", "GPU-lost"}})
	w := h.watcher()
	w.c.GPUs = stats.NewGPUs(program, time.Minute, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	defer func() { cancel(); <-done }()
	wait := func(what string, n int) {
		t.Helper()
		for end := time.Now().Add(time.Minute); testutil.CollectAndCount(w.Collector(), "berth_container_gpu_utilization_ratio") != n; {
			if time.Now().After(end) {
				t.Fatalf("%s: not within a minute", what)
			}
			<-time.After(10 * time.Millisecond)
		}
	}
	wait("the container's GPU is known", 1)
	const labels = `{cluster="lab",container_name="train",gpu="GPU-a",task_definition_family="f",task_id="b"}`
	want := ""
	for _, m := range []struct{ name, help, value string }{
		{"memory_used_bytes", "Memory of the GPU in use.", "1.073741824e+09"},
		{"utilization_ratio", "Part of the time in which the GPU computed.", "0.25"},
	} {
		name := "berth_container_gpu_" + m.name
		want += "# HELP " + name + " " + m.help + "\n# TYPE " + name + " gauge\n" + name + labels + " " + m.value + "\n"
	}
	// What the driver does not tell, the power, is left out.
	if err := testutil.CollectAndCompare(w.Collector(), strings.NewReader(want),
		"berth_container_gpu_memory_used_bytes", "berth_container_gpu_utilization_ratio", "berth_container_gpu_power_watts"); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(w.Collector())
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
	h.mu.Lock()
	h.views = nil
	h.mu.Unlock()
	wait("no GPU is in use", 0)
}
