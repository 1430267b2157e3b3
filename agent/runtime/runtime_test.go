package runtime_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/runtime/containerdtest"
	"berth.dev/berth/agent/runtime/logfile"
	"berth.dev/berth/agent/runtime/runtimetest"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/integ/testimage"
)

func TestMain(m *testing.M) {
	containerdtest.Main()
	os.Exit(m.Run())
}

// Images of the tests, as names.
const (
	probeImage   = "probe"
	busyboxImage = "busybox"
)

// node is a client of a containerd of its own with the test images loaded.
type node struct {
	*runtime.Client
	daemon *containerdtest.Daemon
	cfg    runtime.Config
	set    *runtime.Containers
	parent string // cgroup of all tasks; "" gives each its own
}

func start(t testing.TB, kind containerdtest.Kind, edit func(*runtime.Config)) *node {
	t.Helper()
	d := containerdtest.Start(t, kind)
	containerdtest.Build(t, d.Dir+"/bin/berth-logger", "berth.dev/berth/cmd/berth-logger")
	n := &node{daemon: d, cfg: runtime.Config{
		Address: d.Address, StateDir: d.Dir + "/run", LogDir: d.Dir + "/logs", LoggerPath: d.Dir + "/bin/berth-logger",
		Cluster: "default", Log: slog.New(slog.DiscardHandler),
	}}
	if edit != nil {
		edit(&n.cfg)
	}
	n.reopen(t)
	t.Cleanup(func() { n.Close() })
	load(t, n)
	return n
}

// reopen is what a restarted agent does.
func (n *node) reopen(t testing.TB) {
	t.Helper()
	if n.Client != nil {
		n.Close()
	}
	c, err := runtime.Open(t.Context(), n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Client, n.set = c, c.Containers()
}

func load(t testing.TB, n *node) {
	t.Helper()
	probe, err := testimage.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, img := range map[string]testimage.V1{probeImage: probe, busyboxImage: busybox} {
		file := filepath.Join(dir, name+".tar")
		if err := testimage.WriteArchive(file, name, img); err != nil {
			t.Fatal(err)
		}
		names, err := n.Import(t.Context(), file)
		if err != nil || len(names) != 1 || names[0] != "docker.io/library/"+name+":latest" {
			t.Fatalf("imported %q: %v", names, err)
		}
	}
}

// deps are the records that a container of t builds on: its image and a cgroup.
func (n *node) deps(t testing.TB, tk *task.Task) engine.Deps {
	t.Helper()
	parent := n.parent
	if parent == "" {
		parent = "/berthtest/" + tk.ID()
	}
	records := map[task.ResourceID]task.Record{
		{Kind: task.KindCgroup, Name: "task"}: {Handle: task.Handle(fmt.Sprintf(`{"parent":%q}`, parent))},
	}
	for _, c := range tk.Containers {
		img, err := n.LocalImage(context.Background(), c.Image)
		if err != nil {
			t.Fatal(err)
		}
		h, err := img.Handle()
		if err != nil {
			t.Fatal(err)
		}
		records[task.ResourceID{Kind: task.KindImage, Name: c.Name}] = task.Record{Handle: h, Digest: img.Digest}
	}
	if tk.NetworkMode != task.NetworkHost {
		records[task.ResourceID{Kind: task.KindNetwork, Name: "task"}] = task.Record{
			Handle: task.Handle(fmt.Sprintf(`{"path":%q,"hostname":"probe-host"}`, netns(t)))}
	}
	return engine.Deps{Get: func(id task.ResourceID) (task.Record, bool) { r, ok := records[id]; return r, ok }}
}

// netns is a network namespace for the time of the test.
func netns(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("rt%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return "/run/netns/" + name
}

var taskCount int

// task is one task in host mode; its containers are removed at the end of the test.
func (n *node) task(t testing.TB, cs ...task.Container) *task.Task {
	t.Helper()
	taskCount++
	tk := &task.Task{
		ARN: fmt.Sprintf("arn:aws:ecs:us-east-1:000000000000:task/default/t%d-%d", os.Getpid(), taskCount), Family: "fam", Version: "7",
		NetworkMode: task.NetworkHost, Containers: cs,
	}
	t.Cleanup(func() {
		for i := len(cs) - 1; i >= 0; i-- {
			if err := n.set.Remove(context.Background(), tk, cs[i].Name, nil); err != nil {
				t.Errorf("removing %s: %v", cs[i].Name, err)
			}
		}
		cleanCgroups(t, tk)
	})
	return tk
}

func cleanCgroups(t testing.TB, tk *task.Task) {
	dirs, err := filepath.Glob("/sys/fs/cgroup/*/berthtest/" + tk.ID())
	if err != nil {
		t.Error(err)
	}
	for _, d := range dirs {
		if err := os.Remove(d); err != nil {
			t.Error(err)
		}
		_ = os.Remove(filepath.Dir(d)) // other tests may use it
	}
}

func (n *node) run(t testing.TB, tk *task.Task, name string) task.Handle {
	t.Helper()
	r, err := n.set.Ensure(t.Context(), tk, name, n.deps(t, tk))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.set.Start(t.Context(), tk, name, r.Handle); err != nil {
		t.Fatal(err)
	}
	return r.Handle
}

// ready waits until the probe program says that it handles signals.
func (n *node) ready(t testing.TB, tk *task.Task, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err := logfile.Read(ctx, n.LogPath(tk.ID(), name), logfile.Options{Tail: -1, Follow: true}, func(e logfile.Entry) error {
		if e.Log == "ready\n" {
			return errReady
		}
		return nil
	})
	if !errors.Is(err, errReady) {
		t.Fatalf("container %s does not get ready: %v", name, err)
	}
}

var errReady = errors.New("ready")

// ended waits for the container's end.
func (n *node) ended(t testing.TB, tk *task.Task, name string, h task.Handle) task.Exit {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		o, err := n.set.Probe(t.Context(), tk, name, h)
		if err != nil {
			t.Fatal(err)
		}
		if o.Process == task.ProcessExited {
			return *o.Exit
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Fatalf("container %s does not end", name)
	return task.Exit{}
}

// output is what the container wrote, once it has ended and was retired.
func (n *node) output(t testing.TB, tk *task.Task, name string, h task.Handle) string {
	t.Helper()
	if err := n.set.Retire(t.Context(), tk, name, h); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	err := logfile.Read(t.Context(), n.LogPath(tk.ID(), name), logfile.Options{Tail: -1}, func(e logfile.Entry) error {
		b.WriteString(e.Log)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func kinds(t *testing.T, test func(t *testing.T, kind containerdtest.Kind)) {
	for _, k := range []containerdtest.Kind{containerdtest.Embedded, containerdtest.Installed} {
		t.Run(string(k), func(t *testing.T) { test(t, k) })
	}
}

func TestSuite(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		t.Logf("containerd %s", n.Version())
		t.Cleanup(func() {
			for _, d := range globs("/sys/fs/cgroup/*/berthtest/suite*") {
				if err := os.Remove(d); err != nil {
					t.Error(err)
				}
			}
		})
		runtimetest.Suite(t, func(t *testing.T) runtimetest.Harness {
			return runtimetest.Harness{
				Runtime: n.set, Image: probeImage, Program: "/probe",
				Deps:  func(t *testing.T, tk *task.Task) engine.Deps { return n.deps(t, tk) },
				Ready: func(t *testing.T, tk *task.Task, name string) { n.ready(t, tk, name) },
			}
		})
		// What is left are the layers of the two images.
		if err := n.Collect(t.Context()); err != nil {
			t.Error(err)
		}
		if dirs := globs(n.daemon.Dir + "/root/io.containerd.snapshotter.v1.overlayfs/snapshots/*"); len(dirs) != 2 {
			t.Errorf("snapshots on the disk: %v", dirs)
		}
	})
}

func globs(pattern string) []string {
	m, err := filepath.Glob(pattern)
	if err != nil {
		return nil
	}
	return m
}

func decode[T any](t testing.TB, s string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return v
}
