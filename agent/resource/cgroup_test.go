package resource

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
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
)

var (
	_ engine.Resource = (*Cgroup)(nil)
	_ engine.Sweeper  = (*Cgroup)(nil)
)

func sample(i int, cpu float64, memory int64, containers ...task.Container) *task.Task {
	return &task.Task{ARN: fmt.Sprintf("arn:aws:ecs:us-east-1:000000000000:task/default/%032x", i), CPU: cpu, Memory: memory, Containers: containers}
}

// onHost uses the machine's own hierarchies, below a name of its own.
func onHost(t testing.TB, change func(*CgroupConfig)) *Cgroup {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: it makes cgroups")
	}
	cfg := CgroupConfig{Name: fmt.Sprintf("berth-resource-test-%d", os.Getpid()), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if change != nil {
		change(&cfg)
	}
	c, err := NewCgroup(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := c.TeardownHost(context.Background()); err != nil {
				t.Error(err)
			}
		}
		for _, m := range c.h.mounts {
			if _, err := os.Stat(m + c.root()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s%s is still there", m, c.root())
			}
		}
	})
	for range 2 {
		if err := c.EnsureHost(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func ensure(t testing.TB, c *Cgroup, tk *task.Task) string {
	t.Helper()
	res, err := c.Ensure(t.Context(), tk, "task", engine.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	var h CgroupHandle
	if err := json.Unmarshal(res.Handle, &h); err != nil {
		t.Fatal(err)
	}
	return h.Parent
}

func control(t *testing.T, dir, file string) string {
	t.Helper()
	v, err := readControl(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestLimitsOnVersion1(t *testing.T) {
	c := onHost(t, func(cfg *CgroupConfig) { cfg.PidsLimit = 77; cfg.CPUPeriod = 50 * time.Millisecond })
	if c.Unified() {
		t.Skip("this host has cgroup version 2 alone")
	}
	at := func(controller, parent, file string) string {
		return control(t, c.h.controllers[controller]+parent, file)
	}
	with := ensure(t, c, sample(1, 0.5, 64))
	if with != c.root()+"/"+sample(1, 0, 0).ID() {
		t.Errorf("parent %q", with)
	}
	without := ensure(t, c, sample(2, 0, 0, task.Container{Name: "a", CPU: 100}, task.Container{Name: "b"}))
	got := []string{
		at("cpu", with, "cpu.cfs_period_us"), at("cpu", with, "cpu.cfs_quota_us"), at("memory", with, "memory.limit_in_bytes"), at("pids", with, "pids.max"),
		at("cpu", without, "cpu.shares"), at("cpu", without, "cpu.cfs_quota_us"), at("memory", without, "memory.use_hierarchy"),
	}
	if diff := cmp.Diff([]string{"50000", "25000", "67108864", "77", "102", "-1", "1"}, got); diff != "" {
		t.Error(diff)
	}
	if c.h.controllers["cpuset"] != "" && at("cpuset", with, "cpuset.cpus") == "" {
		t.Error("the cpuset takes no processes")
	}
	if again := ensure(t, c, sample(1, 0.5, 64)); again != with {
		t.Errorf("ensure again: %q", again)
	}
}

func TestRemoveTakesNestedCgroupsAndKillsNothing(t *testing.T) {
	c := onHost(t, nil)
	tk := sample(1, 0, 32)
	if err := c.Remove(t.Context(), tk, "task", nil); err != nil {
		t.Errorf("before ensure: %v", err)
	}
	parent := ensure(t, c, tk)
	nested := filepath.Join(c.h.mounts[0]+parent, "container", "inner")
	if err := os.MkdirAll(nested, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	procs := c.h.controllers["pids"] + parent
	if c.h.unified {
		procs = c.cfg.Root + parent
	}
	if err := write(procs, "cgroup.procs", fmt.Sprint(cmd.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(t.Context(), tk, "task", nil); task.ClassOf(err) != task.Unavailable {
		t.Errorf("with a process inside: %v, want unavailable", err)
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process was killed: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	for range 2 {
		if err := c.Remove(t.Context(), tk, "task", nil); err != nil {
			t.Fatal(err)
		}
	}
	if o, err := c.Probe(t.Context(), tk, "task", nil); err != nil || o.Exists {
		t.Errorf("after remove: %+v %v", o, err)
	}
}

func TestOwnedAndSweep(t *testing.T) {
	c := onHost(t, nil)
	a, b := sample(1, 0, 0), sample(2, 0, 0)
	ensure(t, c, a)
	ensure(t, c, b)
	owned, err := c.Owned(t.Context())
	if err != nil || len(owned) != 2 || owned[1].TaskID != b.ID() {
		t.Fatalf("%+v %v", owned, err)
	}
	if err := c.Sweep(t.Context(), owned[1]); err != nil {
		t.Fatal(err)
	}
	for tk, want := range map[*task.Task]bool{a: true, b: false} {
		if o, err := c.Probe(t.Context(), tk, "task", nil); err != nil || o.Exists != want {
			t.Errorf("%s: %+v %v, want %t", tk.ID(), o, err, want)
		}
	}
	if err := c.Sweep(t.Context(), task.Owned{TaskID: ".."}); task.ClassOf(err) != task.Invalid {
		t.Errorf("sweep of ..: %v", err)
	}
}

func TestEnsureMakesARemovedParentAgain(t *testing.T) {
	c := onHost(t, nil)
	if err := c.TeardownHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	ensure(t, c, sample(1, 0, 0))
}

func TestContainerMemoryAboveTheTasks(t *testing.T) {
	c := &Cgroup{cfg: CgroupConfig{CPUPeriod: defaultCPUPeriod}}
	tk := sample(1, 0, 512, task.Container{Name: "big", Memory: 513})
	_, err := c.settings(tk)
	if r := task.ReasonOf(err, ""); r.Code != task.ResourceInitialization || !strings.Contains(r.Detail, "container big asks for 513 MiB") {
		t.Errorf("%v", r)
	}
	c.cfg.NoLimits = true
	if s, err := c.settings(tk); err != nil || len(s) != 0 {
		t.Errorf("without limits: %v %v", s, err)
	}
}

// version2 is a directory that behaves like a version 2 hierarchy as far as making and
// removing goes: a cgroup comes with the control files of its parent's enabled
// controllers, and goes although they are there.
func version2(t *testing.T, controllers string) *Cgroup {
	t.Helper()
	root := filepath.Join(t.TempDir(), "cgroup")
	files := func(dir string, names ...string) error {
		var errs []error
		for _, n := range names {
			errs = append(errs, os.WriteFile(filepath.Join(dir, n), nil, 0o644))
		}
		return errors.Join(errs...)
	}
	mkdir := func(dir string) error {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		enabled, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"))
		if err != nil {
			return err
		}
		names := []string{"cgroup.procs", "cgroup.subtree_control"}
		for _, x := range strings.Fields(string(enabled)) {
			switch strings.TrimPrefix(x, "+") {
			case "cpu":
				names = append(names, "cpu.max", "cpu.weight")
			case "memory":
				names = append(names, "memory.max")
			case "pids":
				names = append(names, "pids.max")
			}
		}
		return files(dir, names...)
	}
	rmdir := func(dir string) error {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() {
				return &os.PathError{Op: "rmdir", Path: dir, Err: unix.EBUSY}
			}
		}
		return os.RemoveAll(dir)
	}
	if err := errors.Join(os.Mkdir(root, 0o755), files(root, "cgroup.subtree_control"),
		os.WriteFile(filepath.Join(root, "cgroup.controllers"), []byte(controllers+"\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	mountinfo := filepath.Join(t.TempDir(), "mountinfo")
	line := fmt.Sprintf("30 23 0:26 / %s rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n", root)
	if err := os.WriteFile(mountinfo, []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := NewCgroup(CgroupConfig{Root: root, Mountinfo: mountinfo, PidsLimit: 4096})
	if err != nil {
		t.Fatal(err)
	}
	c.tree = tree{mkdir: mkdir, rmdir: rmdir}
	return c
}

func TestVersion2(t *testing.T) {
	c := version2(t, "cpuset cpu io memory pids")
	if err := c.EnsureHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := control(t, c.cfg.Root, "cgroup.subtree_control"); got != "+cpu +cpuset +io +memory +pids" {
		t.Errorf("enabled %q", got)
	}
	limited, shared := sample(1, 1.5, 100), sample(2, 0, 0, task.Container{CPU: 1024})
	p := ensure(t, c, limited)
	if p != "/ecstasks.slice/ecstasks-"+limited.ID()+".slice" {
		t.Errorf("parent %q", p)
	}
	q := ensure(t, c, shared)
	got := []string{control(t, c.cfg.Root+p, "cpu.max"), control(t, c.cfg.Root+p, "memory.max"), control(t, c.cfg.Root+p, "pids.max"), control(t, c.cfg.Root+q, "cpu.weight")}
	if diff := cmp.Diff([]string{"150000 100000", "104857600", "4096", "39"}, got); diff != "" {
		t.Error(diff)
	}
	if err := c.tree.mkdir(c.cfg.Root + p + "/container"); err != nil {
		t.Fatal(err)
	}
	owned, err := c.Owned(t.Context())
	if err != nil || len(owned) != 2 || owned[0].TaskID != limited.ID() {
		t.Errorf("owned %+v %v", owned, err)
	}
	if err := c.Remove(t.Context(), limited, "task", nil); err != nil {
		t.Fatal(err)
	}
	if o, err := c.Probe(t.Context(), limited, "task", nil); err != nil || o.Exists {
		t.Errorf("after remove: %+v %v", o, err)
	}
	if err := c.TeardownHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.cfg.Root + "/ecstasks.slice"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the parent is still there")
	}
	if err := version2(t, "cpu pids").EnsureHost(t.Context()); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("without the memory controller: %v", err)
	}
}

func TestHierarchiesOfKnownHosts(t *testing.T) {
	for name, c := range map[string]struct {
		mountinfo string
		unified   bool
		memory    string
		err       bool
	}{
		"version 2": {mountinfo: "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n", unified: true},
		"hybrid": {mountinfo: "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n" +
			"32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
			"35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
			"41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", memory: "/sys/fs/cgroup/memory"},
		"none":      {mountinfo: "22 27 0:21 / /proc rw - proc proc rw\n", err: true},
		"elsewhere": {mountinfo: "35 24 0:30 / /mnt/cg rw - cgroup2 cgroup2 rw\n", err: true},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "mountinfo")
			if err := os.WriteFile(file, []byte(c.mountinfo), 0o644); err != nil {
				t.Fatal(err)
			}
			h, err := findHierarchies(file, "/sys/fs/cgroup")
			if (err != nil) != c.err || h.unified != c.unified || h.controllers["memory"] != c.memory {
				t.Errorf("%+v %v", h, err)
			}
		})
	}
}

func BenchmarkEnsureRemove(b *testing.B) {
	c := onHost(b, nil)
	var up, down time.Duration
	for i := 0; b.Loop(); i++ {
		tk := sample(i, 0.5, 64)
		t0 := time.Now()
		ensure(b, c, tk)
		t1 := time.Now()
		if err := c.Remove(b.Context(), tk, "task", nil); err != nil {
			b.Fatal(err)
		}
		up, down = up+t1.Sub(t0), down+time.Since(t1)
	}
	b.ReportMetric(float64(up.Microseconds())/float64(b.N)/1000, "ms/ensure")
	b.ReportMetric(float64(down.Microseconds())/float64(b.N)/1000, "ms/remove")
}
