package runtime_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth.dev/berth/agent/runtime/containerdtest"
	"berth.dev/berth/agent/task"
)

// eventually waits for something that must happen soon.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		if ok() {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Fatalf("does not happen: %s", what)
}

// exits observes the ends of containers until the test ends.
type exits struct {
	seen chan string
	lost chan struct{}
}

func (n *node) observe(t *testing.T) exits {
	t.Helper()
	e := exits{make(chan string, 100), make(chan struct{}, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = n.set.Observe(ctx, func(_, name string, o task.Observed) {
			e.seen <- name + " " + strconv.Itoa(o.Exit.Code)
		}, func() { e.lost <- struct{}{} }) // the error says that ctx ended
	}()
	t.Cleanup(func() { cancel(); <-ended })
	e.await(t, e.lost)
	return e
}

func (exits) await(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(2 * time.Minute):
		t.Fatal("the observer does not connect")
	}
}

func (e exits) next(t *testing.T) string {
	t.Helper()
	select {
	case s := <-e.seen:
		return s
	case <-time.After(2 * time.Minute):
		t.Fatal("no end was observed")
		return ""
	}
}

func pids(t *testing.T, tk *task.Task) []int {
	t.Helper()
	var out []int
	for _, f := range globs("/sys/fs/cgroup/pids/berthtest/" + tk.ID() + "/*/cgroup.procs") {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for f := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, pid)
		}
	}
	return out
}

func container(name string, command ...string) task.Container {
	return task.Container{Name: name, Image: probeImage, Command: command}
}

// A killed containerd and a restarted agent find every process and every exit.
func TestContainerdKilled(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		tk := n.task(t, container("a", "sleep"), container("b", "sleep"), container("c", "ignore-term"))
		ha, hb, hc := n.run(t, tk, "a"), n.run(t, tk, "b"), n.run(t, tk, "c")
		e := n.observe(t)
		before := pids(t, tk)
		if len(before) != 3 {
			t.Fatalf("processes %v", before)
		}
		n.daemon.Kill()
		if _, err := n.set.Probe(t.Context(), tk, "a", ha); task.ClassOf(err) != task.Unavailable {
			t.Errorf("probe while containerd is dead: %v (class %q)", err, task.ClassOf(err))
		}
		b := containerPID(t, tk, hb)
		if err := syscall.Kill(b, syscall.SIGKILL); err != nil { // ends while nobody looks
			t.Fatal(err)
		}
		n.daemon.Up()
		e.await(t, e.lost)
		n.reopen(t) // with its memory lost
		if x := n.ended(t, tk, "b", hb); x.Code != 137 || x.Signal != 9 {
			t.Errorf("b ended with %+v", x)
		}
		for name, h := range map[string]task.Handle{"a": ha, "c": hc} {
			if o, err := n.set.Probe(t.Context(), tk, name, h); err != nil || o.Process != task.ProcessRunning {
				t.Errorf("%s: %+v, %v", name, o, err)
			}
		}
		// The task's shim still takes new containers, and the leader may be retired first.
		tk.Containers = append(tk.Containers, container("d", "exit", "4"))
		hd := n.run(t, tk, "d")
		if x := n.ended(t, tk, "d", hd); x.Code != 4 {
			t.Errorf("d ended with %+v", x)
		}
		if err := n.set.Kill(t.Context(), tk, "a", ha); err != nil {
			t.Fatal(err)
		}
		n.ended(t, tk, "a", ha)
		for name, h := range map[string]task.Handle{"a": ha, "b": hb, "d": hd} {
			if err := n.set.Retire(t.Context(), tk, name, h); err != nil {
				t.Errorf("retire %s: %v", name, err)
			}
		}
		if o, err := n.set.Probe(t.Context(), tk, "c", hc); err != nil || o.Process != task.ProcessRunning {
			t.Errorf("c after its neighbours were retired: %+v, %v", o, err)
		}
		if err := n.set.Kill(t.Context(), tk, "c", hc); err != nil {
			t.Fatal(err)
		}
		if x := n.ended(t, tk, "c", hc); x.Code != 137 {
			t.Errorf("c ended with %+v", x)
		}
		for _, c := range []string{"d", "c", "b", "a"} {
			if err := n.set.Remove(t.Context(), tk, c, nil); err != nil {
				t.Errorf("remove %s: %v", c, err)
			}
		}
		if s := n.daemon.Shims(); len(s) > 0 {
			t.Errorf("shims left: %v", s)
		}
	})
}

func containerPID(t *testing.T, tk *task.Task, h task.Handle) int {
	t.Helper()
	id := decode[struct{ ID string }](t, string(h)).ID
	b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/pids/berthtest", tk.ID(), id, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// A killed shim takes its container with it; nothing says that it ended before the last
// process is gone, even where no record of a process is left.
func TestShimKilled(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		e := n.observe(t)
		tk := n.task(t, container("a", "ignore-term"))
		h := n.run(t, tk, "a")
		kill(t, n.daemon.Shims())
		if got := e.next(t); got != "a 137" {
			t.Errorf("observed %q", got)
		}
		if p := pids(t, tk); len(p) > 0 {
			t.Errorf("told as ended while %v live", p)
		}
		if o, err := n.set.Probe(t.Context(), tk, "a", h); err != nil || !o.Exists || o.Process == task.ProcessRunning {
			t.Errorf("%+v, %v", o, err)
		}

		tk = n.task(t, container("a", "ignore-term"))
		h = n.run(t, tk, "a")
		kill(t, n.daemon.Shims())
		n.daemon.Kill()
		n.daemon.Up()
		eventually(t, "containerd knows the container's end", func() bool {
			o, err := n.set.Probe(t.Context(), tk, "a", h)
			if err != nil {
				if task.ClassOf(err) != task.Unavailable {
					t.Fatal(err)
				}
				return false
			}
			if left := pids(t, tk); o.Process != task.ProcessRunning && len(left) > 0 {
				t.Fatalf("process %q while %v live", o.Process, left)
			}
			return o.Process != task.ProcessRunning
		})
	})
}

func kill(t *testing.T, pids []int) {
	t.Helper()
	if len(pids) == 0 {
		t.Fatal("no shim")
	}
	for _, p := range pids {
		if err := syscall.Kill(p, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
}

// A shim that does not answer is unknown, and its container can be killed all the same.
func TestShimStopped(t *testing.T) {
	n := start(t, containerdtest.Embedded, nil)
	tk := n.task(t, container("a", "ignore-term"))
	h := n.run(t, tk, "a")
	shims := n.daemon.Shims()
	for _, p := range shims {
		if err := syscall.Kill(p, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		// A thread that runs on another processor goes on for a moment.
		eventually(t, "the shim has stopped", func() bool { return allStopped(t, p) })
	}
	if _, err := n.set.Probe(t.Context(), tk, "a", h); task.ClassOf(err) != task.Unavailable {
		t.Errorf("probe: %v (class %q)", err, task.ClassOf(err))
	}
	if err := n.set.Kill(t.Context(), tk, "a", h); err != nil {
		t.Errorf("kill: %v", err)
	}
	eventually(t, "the process is gone", func() bool { return len(pids(t, tk)) == 0 })
	for _, p := range shims {
		if err := syscall.Kill(p, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	if x := n.ended(t, tk, "a", h); x.Code != 137 {
		t.Errorf("ended with %+v", x)
	}
}

// allStopped reports whether every thread of a process is stopped (proc(5), state T).
func allStopped(t *testing.T, pid int) bool {
	t.Helper()
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil || len(stats) == 0 {
		t.Fatalf("threads of %d: %v", pid, err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, state, _ := strings.Cut(string(b), ") "); !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return true
}

// A killed agent leaves anything between nothing and a created process; Ensure goes on
// from there.
func TestEnsureAfterLosingEverythingInMemory(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		tk := n.task(t, container("a", "sleep"), container("b", "sleep"))
		for range 3 {
			for _, name := range []string{"a", "b"} {
				if _, err := n.set.Ensure(t.Context(), tk, name, n.deps(t, tk)); err != nil {
					t.Fatal(err)
				}
				n.reopen(t)
			}
		}
		h := n.run(t, tk, "b")
		if o, err := n.set.Probe(t.Context(), tk, "b", h); err != nil || o.Process != task.ProcessRunning {
			t.Errorf("%+v, %v", o, err)
		}
		want := 2
		if kind == containerdtest.Embedded {
			want = 1
		}
		if s := n.daemon.Shims(); len(s) != want {
			t.Errorf("%d shims, want %d", len(s), want)
		}
	})
}

// TestProcessThatEndedBeforeItsStart: a process that was made, and never came to run the
// container's program, is told from one that ran.
func TestProcessThatEndedBeforeItsStart(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		ctx := context.Background()
		tk := n.task(t, container("c", "exit", "7"))
		res, err := n.set.Ensure(ctx, tk, "c", n.deps(t, tk))
		if err != nil {
			t.Fatal(err)
		}
		probe := func(unstarted bool) {
			t.Helper()
			eventually(t, "the process has ended", func() bool {
				o, err := n.set.Probe(ctx, tk, "c", res.Handle)
				if err != nil || o.Process != task.ProcessExited {
					return false
				}
				if o.Unstarted != unstarted {
					t.Fatalf("observed %+v, want unstarted %t", o, unstarted)
				}
				return true
			})
		}
		kill(t, pids(t, tk))
		probe(true)
		if err := n.set.Start(ctx, tk, "c", res.Handle); task.ClassOf(err) != task.Unavailable {
			t.Fatalf("start of a process that has ended before it: %v", err)
		}
		eventually(t, "the process is made again", func() bool {
			res, err = n.set.Ensure(ctx, tk, "c", n.deps(t, tk))
			if err != nil && task.ClassOf(err) != task.Unavailable {
				t.Fatal(err)
			}
			return err == nil
		})
		if err := n.set.Start(ctx, tk, "c", res.Handle); err != nil {
			t.Fatal(err)
		}
		probe(false)
	})
}

// TestProcessWhoseStartWasNotHeardOf: containerd was killed when the runtime had started
// the process and before the shim was told. The shim calls it created for ever.
func TestProcessWhoseStartWasNotHeardOf(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		ctx := context.Background()
		tk := n.task(t, container("c", "sleep", "1000"))
		res, err := n.set.Ensure(ctx, tk, "c", n.deps(t, tk))
		if err != nil {
			t.Fatal(err)
		}
		observed := func(want task.ProcessState) {
			t.Helper()
			if o, err := n.set.Probe(ctx, tk, "c", res.Handle); err != nil || o.Process != want {
				t.Fatalf("observed %+v, %v; want %v", o, err, want)
			}
		}
		observed(task.ProcessCreated)
		if out, err := exec.Command("runc", "--root", filepath.Join(n.cfg.StateDir, "runc", "berth"), "start", res.RuntimeID).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		observed(task.ProcessRunning)
		if err := n.set.Start(ctx, tk, "c", res.Handle); err != nil {
			t.Fatalf("a start that is repeated: %v", err)
		}
		observed(task.ProcessRunning)
		kill(t, pids(t, tk))
		eventually(t, "the process has ended", func() bool {
			o, err := n.set.Probe(ctx, tk, "c", res.Handle)
			return err == nil && o.Process == task.ProcessExited && !o.Unstarted && o.Exit.Code == 137
		})
	})
}
