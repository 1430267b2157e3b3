package runtime_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"berth.dev/berth/agent/runtime/containerdtest"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/integ/testimage"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/google/go-cmp/cmp"
)

// view is what the probe program prints.
type view struct {
	Args, Env, FDs []string
	Dir, Hostname  string
	UID, GID       int
	Groups         []int
	Status         map[string]string
	Cgroup         string
	Files          map[string]string
}

// What a default container sees of itself.
func TestDefaultContainer(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		c := container("web")
		c.Environment = map[string]string{"A": "1"}
		tk := n.task(t, c)
		tk.NetworkMode = task.NetworkBridge
		h := n.run(t, tk, "web")
		if x := n.ended(t, tk, "web", h); x.Code != 0 {
			t.Fatalf("ended with %+v", x)
		}
		v := decode[view](t, n.output(t, tk, "web", h))
		const defaults = "00000000a80425fb" // the 14 capabilities
		want := map[string]string{
			"CapBnd": defaults, "CapEff": defaults, "CapPrm": defaults,
			"CapInh": "0000000000000000", "CapAmb": "0000000000000000", "Seccomp": "2", "NoNewPrivs": "0",
		}
		delete(v.Status, "Seccomp_filters")
		if diff := cmp.Diff(want, v.Status); diff != "" {
			t.Error(diff)
		}
		if want := []string{"A=1", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=probe-host", "HOME=/"}; !slices.Equal(v.Env, want) {
			t.Errorf("environment %q", v.Env)
		}
		// 0 to 2 are given; the others are the Go runtime's own.
		for _, fd := range v.FDs {
			if !strings.Contains(fd, "pipe:") && !strings.Contains(fd, "/dev/null") && !strings.Contains(fd, "anon_inode") && !strings.Contains(fd, "/proc/") && !strings.Contains(fd, "/cpu.cfs_") {
				t.Errorf("descriptor %s", fd)
			}
		}
		if v.Hostname != "probe-host" || v.UID != 0 || v.Dir != "/" {
			t.Errorf("%+v", v)
		}
		if got := v.Files["/proc/kcore"]; got != "" && !strings.HasPrefix(got, "error:") {
			t.Errorf("/proc/kcore is readable: %q", got)
		}
	})
}

func TestUsersAndDirectories(t *testing.T) {
	n := start(t, containerdtest.Embedded, nil)
	evil, err := testimage.Layer(map[string]testimage.File{"work": {Link: "/proc/self/fd"}, "etc/passwd": {Data: []byte("big:x:4294967296:0::/:\nneg:x:-1:0::/:\n")}})
	if err != nil {
		t.Fatal(err)
	}
	base, err := testimage.BusyboxLayer()
	if err != nil {
		t.Fatal(err)
	}
	img, err := testimage.Image(testimage.Config{}, base, evil)
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/evil.tar"
	if err := testimage.WriteArchive(file, "evil", img); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Import(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ image, user, dir, want, refused string }{
		{busyboxImage, "", "", "uid=0(root) gid=0(root) groups=0(root),10(wheel)", ""},
		{busyboxImage, "app", "", "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)", ""},
		{busyboxImage, "app:extra", "/tmp", "uid=1000(app) gid=2000(extra) groups=2000(extra)", ""},
		{busyboxImage, "4000:5000", "/new/dir", "uid=4000 gid=5000 groups=5000", ""},
		{busyboxImage, "nobody", "", "", "unable to find user nobody"},
		{busyboxImage, "4294967296", "", "", "unable to find user 4294967296"},
		{busyboxImage, "-1", "", "", "unable to find user -1"},
		{busyboxImage, "0:0 ", "", "", "unable to find user"},
		{busyboxImage, "2147483648", "", "", "unable to find user"},
		{busyboxImage, "", "/proc/self/fd/7", "", "workingDirectory"},
		{"evil", "big", "", "", "unable to find user big"},
		{"evil", "neg", "", "", "unable to find user neg"},
		{"evil", "", "/work", "", "workingDirectory"},
	} {
		t.Run(tc.image+" "+tc.user+" "+tc.dir, func(t *testing.T) {
			c := task.Container{Name: "c", Image: tc.image, Command: []string{"id"}}
			c.Config.User, c.Config.WorkingDir = tc.user, tc.dir
			tk := n.task(t, c)
			if tc.refused != "" {
				_, err := n.set.Ensure(t.Context(), tk, "c", n.deps(t, tk))
				if err == nil || !strings.Contains(err.Error(), tc.refused) || task.ClassOf(err).Retriable() {
					t.Fatalf("got %v (class %q)", err, task.ClassOf(err))
				}
				return
			}
			h := n.run(t, tk, "c")
			n.ended(t, tk, "c", h)
			if got := strings.TrimSpace(n.output(t, tk, "c", h)); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// Lack of memory is told as the kernel tells it, and only for the container that it hit.
func TestOutOfMemory(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		hog := container("hog", "alloc", "256")
		hog.Memory = 16
		tk := n.task(t, hog, container("fine", "exit", "137"))
		h, f := n.run(t, tk, "hog"), n.run(t, tk, "fine")
		if x := n.ended(t, tk, "hog", h); x.Code != 137 || !x.OOMKilled {
			t.Errorf("hog ended with %+v", x)
		}
		if x := n.ended(t, tk, "fine", f); x.Code != 137 || x.OOMKilled {
			t.Errorf("fine ended with %+v", x)
		}
	})
}

// Labels of definitions never reach containerd's reserved keys: a container that asks
// to be restarted by containerd stays dead.
func TestReservedLabels(t *testing.T) {
	n := start(t, containerdtest.Installed, nil) // has the restart plugin
	c := container("a", "ignore-term")
	c.Config.Labels = map[string]string{
		"containerd.io/restart.status": "running", "containerd.io/restart.policy": "always", "nerdctl/name": "x",
		"berth/task-id": "other", "com.amazonaws.ecs.cluster": "other", "mine": "kept", "io.containerd.x": "y",
	}
	tk := n.task(t, c)
	h := n.run(t, tk, "a")
	cd, err := containerd.New(n.cfg.Address, containerd.WithDefaultNamespace("berth"))
	if err != nil {
		t.Fatal(err)
	}
	defer cd.Close()
	list, err := cd.Containers(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("%d containers, %v", len(list), err)
	}
	labels, err := list[0].Labels(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for k := range labels {
		if strings.HasPrefix(k, "containerd.io/") || strings.HasPrefix(k, "nerdctl/") || strings.HasPrefix(k, "io.containerd") {
			t.Errorf("label %s", k)
		}
	}
	if labels["berth/task-id"] != tk.ID() || labels["mine"] != "kept" || labels["com.amazonaws.ecs.cluster"] != "default" {
		t.Errorf("labels %v", labels)
	}
	if err := n.set.Kill(t.Context(), tk, "a", h); err != nil {
		t.Fatal(err)
	}
	n.ended(t, tk, "a", h)
	if err := n.set.Retire(t.Context(), tk, "a", h); err != nil {
		t.Fatal(err)
	}
	if testing.Short() {
		return
	}
	for deadline := time.Now().Add(11 * time.Second); time.Now().Before(deadline); <-time.After(250 * time.Millisecond) {
		if o, err := n.set.Probe(t.Context(), tk, "a", h); err != nil || o.Process != task.ProcessNone {
			t.Fatalf("%+v, %v", o, err)
		}
	}
}

// Output reaches the log whole and in order, also from a container that ends at once.
func TestOutput(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		tk := n.task(t, container("a", "print", "20000"))
		h := n.run(t, tk, "a")
		n.ended(t, tk, "a", h)
		got := n.output(t, tk, "a", h)
		if lines := strings.Count(got, "\n"); lines != 20000 || !strings.HasPrefix(got, "line 0\n") || !strings.HasSuffix(got, "line 19999\n") {
			t.Errorf("%d lines", lines)
		}
		if err := n.set.Remove(t.Context(), tk, "a", h); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(n.LogPath(tk.ID(), "a")); !os.IsNotExist(err) {
			t.Errorf("log after Remove: %v", err)
		}
	})
}

func TestPrivileged(t *testing.T) {
	n := start(t, containerdtest.Embedded, nil)
	c := container("a")
	c.HostConfig.Privileged = true
	tk := n.task(t, c)
	h := n.run(t, tk, "a")
	n.ended(t, tk, "a", h)
	v := decode[view](t, n.output(t, tk, "a", h))
	if v.Status["Seccomp"] != "0" || v.Status["CapEff"] == "00000000a80425fb" {
		t.Errorf("%v", v.Status)
	}
}

// A killed process that its cgroup hardly lets run takes its time to die, and meanwhile
// containerd is not asked again and again to delete it.
func TestThrottledProcessIsRemoved(t *testing.T) {
	kinds(t, func(t *testing.T, kind containerdtest.Kind) {
		n := start(t, kind, nil)
		tk := n.task(t, task.Container{Name: "busy", Image: busyboxImage, Command: []string{"sh", "-c", "while :; do :; done"}})
		h := n.run(t, tk, "busy")
		throttled := 0
		for file, least := range map[string]string{"cpu/berthtest/%s/cpu.cfs_quota_us": "1000", "berthtest/%s/cpu.max": "1000 100000"} {
			file = filepath.Join("/sys/fs/cgroup", fmt.Sprintf(file, tk.ID()))
			if _, err := os.Stat(file); err != nil {
				continue // the other version of cgroups
			}
			if err := os.WriteFile(file, []byte(least), 0o600); err != nil {
				t.Fatal(err)
			}
			throttled++
		}
		if throttled != 1 {
			t.Fatalf("%d cgroups of the task were found", throttled)
		}
		if err := n.set.Remove(t.Context(), tk, "busy", h); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(n.daemon.Dir, "daemon.log"))
		if err != nil {
			t.Fatal(err)
		}
		if refused := strings.Count(string(b), "failed to delete task"); refused > 2 {
			t.Errorf("containerd refused %d times to delete the process:\n%s", refused, b)
		}
	})
}
