package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/plan"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/agent/telemetry"
	"berth.dev/berth/integ/system"
	"berth.dev/berth/stats"
	"berth.dev/berth/wire/tcs"
)

// What watching 500 containers may cost.
const (
	watched        = 500
	watchedFor     = 30 * time.Second
	watchedPercent = 2.0 // of one processor
	watchedMiB     = 10.0
)

// BenchmarkFiveHundredContainers is what it costs to sample 500 containers each second and
// to publish every 20 s what they used: processor time and memory of this process over
// those of one that watches nothing. Each container is a process in a cgroup and a network
// namespace of its own; active ones do something each second, and idle ones never.
func BenchmarkFiveHundredContainers(b *testing.B) {
	for _, kind := range []struct{ name, script string }{
		{"active", "while :; do read -t 1 x <>wait; done"},
		{"idle", "read x <>wait"},
	} {
		b.Run(kind.name, func(b *testing.B) { watch(b, kind.script) })
	}
}

func watch(b *testing.B, script string) {
	h, err := stats.FindHierarchies("/proc/self/mountinfo")
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "wait"), 0o600); err != nil {
		b.Fatal(err)
	}
	views := make([]engine.View, watched)
	for i := range views {
		views[i] = container(b, h, dir, script, i)
	}
	var mu sync.Mutex
	var shown []engine.View
	w := telemetry.New(telemetry.Config{
		Views:       func() []engine.View { mu.Lock(); defer mu.Unlock(); return shown },
		Hierarchies: h, Interval: time.Second, Log: slog.New(slog.DiscardHandler),
		CheckRuntime: func(context.Context) error { return nil },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { w.Run(ctx) })
	defer run.Wait()
	defer cancel()
	pid := os.Getpid()
	resident := func() float64 {
		debug.FreeOSMemory()
		return float64(rss(b, pid)) / (1 << 20)
	}
	pause(2 * time.Second)
	memory, idle := resident(), spent(b)
	pause(5 * time.Second)
	idle = (spent(b) - idle) / 5

	mu.Lock()
	shown = views
	mu.Unlock()
	pause(3 * time.Second) // for what is opened once
	begin, used, published := time.Now(), spent(b), 0
	for b.Loop() {
		for end := begin.Add(watchedFor); time.Now().Before(end); {
			pause(10 * time.Second)
			if tasks, _ := w.Metrics(); len(tasks) > 0 {
				published = max(published, len(tasks))
				if _, err := json.Marshal(tcs.PublishMetricsRequest{TaskMetrics: tasks}); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	used = spent(b) - used
	percent := 100 * (used.Seconds()/time.Since(begin).Seconds() - idle.Seconds())
	more := resident() - memory
	if published != watched {
		b.Fatalf("%d containers were published", published)
	}
	b.ReportMetric(0, "ns/op") // its length is chosen
	b.ReportMetric(percent, "%core")
	b.ReportMetric(percent/watchedPercent, "of-limit")
	b.ReportMetric(more, "MiB")
	if percent > watchedPercent || more > watchedMiB {
		b.Errorf("%.2f %% of a processor and %.1f MiB, more than %v %% and %v MiB", percent, more, watchedPercent, watchedMiB)
	}
}

// spent is the processor time of this process.
func spent(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// container starts a process in a cgroup and a network namespace of its own, and shows it
// as a container of a task.
func container(b *testing.B, h stats.Hierarchies, dir, script string, i int) engine.View {
	b.Helper()
	cmd := exec.Command("busybox", "sh", "-c", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	mounts := []string{h.Unified}
	if h.Unified == "" {
		mounts = nil
		for _, c := range []string{"cpuacct", "cpu", "memory", "pids", "blkio"} {
			mounts = append(mounts, h.Mounts[c])
		}
	}
	group := fmt.Sprintf("/berth-bench-%d-%d", os.Getpid(), i)
	for _, m := range mounts {
		at := filepath.Join(m, group)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			system.Until(b, 10*time.Second, "the group of a container is empty", func() error {
				if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				return nil
			})
		})
	}
	b.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may have ended
		cmd.Wait()         //nolint:errcheck // it was killed
	})
	name := task.Container{Name: "main"}
	t := &task.Task{
		ARN: fmt.Sprintf("arn:aws:ecs:us-east-1:000000000000:task/default/%032x", i), ClusterARN: "arn:aws:ecs:us-east-1:000000000000:cluster/default",
		Family: "bench", Version: "1", NetworkMode: task.NetworkBridge, Containers: []task.Container{name},
	}
	r := func(handle string) *task.Record {
		return &task.Record{Phase: task.Present, Started: time.Now(), RuntimeID: strconv.Itoa(i), Handle: task.Handle(handle)}
	}
	return engine.View{Task: t, Known: task.Known{Resources: map[task.ResourceID]*task.Record{
		plan.Container(name.Name):  r(fmt.Sprintf(`{"cgroup":%q}`, group)),
		plan.Network(t, name.Name): r(fmt.Sprintf(`{"path":"/proc/%d/ns/net"}`, cmd.Process.Pid)),
	}}}
}
