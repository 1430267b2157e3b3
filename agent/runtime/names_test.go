package runtime

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth.dev/berth/agent/spec"
	"berth.dev/berth/agent/task"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func FuzzLabels(f *testing.F) {
	f.Add("containerd.io/restart.status", "running", "arn:x/y")
	f.Add(" Containerd.IO/restart.status", "running", "arn:x/y")
	f.Add("berth/task-arn", "other", "arn:x/y")
	f.Add("com.amazonaws.ecs.task-arn", "other", "arn:x/y")
	f.Fuzz(func(t *testing.T, key, value, arn string) {
		tk := &task.Task{ARN: arn, Containers: []task.Container{{Name: "c"}}}
		tk.Containers[0].Config.Labels = map[string]string{key: value}
		c := &Client{}
		own := c.ownLabels(tk, "c")
		p := &planned{t: tk, name: "c", in: spec.Input{Container: &tk.Containers[0]}}
		p.image.config.Labels = map[string]string{key: value, "also " + key: value}
		for k, v := range c.containerLabels(p) {
			_, mine := own[k]
			if mine && own[k] != v {
				t.Fatalf("label %s was overwritten with %q", k, v)
			}
			if mine || strings.HasPrefix(k, ecsPrefix) {
				continue
			}
			folded := strings.ToLower(strings.TrimSpace(k))
			for _, r := range []string{"containerd.io/", "io.containerd", "io.cri-containerd", "nerdctl/", "berth/"} {
				if strings.HasPrefix(folded, r) {
					t.Fatalf("reserved label %q", k)
				}
			}
			if len(k)+len(v) > maxLabel {
				t.Fatalf("label %q is too long for containerd", k)
			}
		}
	})
}

func FuzzUser(f *testing.F) {
	f.Add("app:extra", "app:x:1000:1001::/:\n", "extra:x:2000:app\n")
	f.Add("4294967296", "", "")
	f.Add("-1:0 ", "a:x:99999999999999999999:0::/:\n", "g:x:-5:\n")
	f.Fuzz(func(t *testing.T, name, passwd, group string) {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "etc"), 0o700); err != nil {
			t.Fatal(err)
		}
		for file, data := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(root, "etc", file), []byte(data), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		u, err := resolveUser(root, name)
		if err != nil {
			return
		}
		// Root only by being asked for, by name or number.
		if u.UID == 0 && name != "" && strings.Trim(strings.Split(name, ":")[0], "0") != "" && !strings.Contains(passwd, strings.Split(name, ":")[0]) {
			t.Fatalf("%q became root", name)
		}
		if u.UID > maxID || u.GID > maxID {
			t.Fatalf("%q became %d:%d", name, u.UID, u.GID)
		}
	})
}

func TestContainerID(t *testing.T) {
	a := ContainerID("arn", "web", 0)
	if len(a) != 32 || a != ContainerID("arn", "web", 0) {
		t.Errorf("id %q is not stable", a)
	}
	if a == ContainerID("arn", "web", 1) || a == ContainerID("arn", "we", 0) || ContainerID("a", "b", 11) == ContainerID("a", "b1", 1) {
		t.Error("ids of different containers are equal")
	}
}

func TestSafeName(t *testing.T) {
	for _, n := range []string{"web", "a_b-c.d", "0123456789abcdef"} {
		if safeName(n) != n {
			t.Errorf("%q became %q", n, safeName(n))
		}
	}
	for _, n := range []string{"", ".", "..", "a/b", "../x", strings.Repeat("a", 300), "a\x00"} {
		if s := safeName(n); strings.ContainsAny(s, "/\x00") || strings.HasPrefix(s, ".") || len(s) > 255 || s == "" {
			t.Errorf("%q became %q", n, s)
		}
	}
}

func TestClasses(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want task.Class
	}{
		{fmt.Errorf("x: %w", errdefs.ErrNotFound), task.NotFound},
		{status.Error(codes.NotFound, "x"), task.NotFound},
		{status.Error(codes.Unavailable, "transport is closing"), task.Unavailable},
		{status.Error(codes.Unknown, "ttrpc: closed"), task.Unavailable},
		{status.Error(codes.Unknown, "mkdir /x: no space left on device"), task.Exhausted},
		{status.Error(codes.Unknown, "exec: \"x\": not found"), task.Unclassified},
		{status.Error(codes.Canceled, "x"), task.Canceled},
		{errors.New("x"), task.Unclassified},
		{task.Failf(task.Invalid, "", "x"), task.Invalid},
	} {
		if got := task.ClassOf(classify(tc.err, "")); got != tc.want {
			t.Errorf("%v: class %q, want %q", tc.err, got, tc.want)
		}
	}
}

func TestCgroupGuards(t *testing.T) {
	cgs, err := findCgroups("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{"", "/", ".", "/x/..", "/.."} {
		if p, err := cgs.procs(root); err != nil || len(p) > 0 {
			t.Errorf("%q lists %d processes of the host, %v", root, len(p), err)
		}
		if d := cgs.dirs(root); len(d) > 0 {
			t.Errorf("%q: %v", root, d)
		}
	}
}

func TestNormalizeRef(t *testing.T) {
	for in, want := range map[string]string{
		"my-image": "docker.io/library/my-image:latest", "a/b:1": "docker.io/a/b:1", "127.0.0.1:5000/x": "127.0.0.1:5000/x:latest",
		"Bad Name": "", "": "", "x@sha256:12": "",
	} {
		if got, err := NormalizeRef(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}
