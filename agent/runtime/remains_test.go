package runtime

import (
	"errors"
	"testing"

	"berth.dev/berth/agent/task"
)

func TestLeftBundleIsOnlyEverTheContainersOwn(t *testing.T) {
	const dir = "/run/c/io.containerd.runtime.v2.task/berth/abc"
	for _, tt := range []struct{ text, want string }{
		{"failed to start shim: mkdir " + dir + ": file exists", dir},
		{"rpc error: failed to start shim: mkdir " + dir + ": file exists: unknown", dir},
		{"mkdir " + dir + ": file exists", dir}, // containerd 2.x
		{"failed to start shim: mkdir /run/c/io.containerd.runtime.v2.task/berth/other: file exists", ""},
		{"failed to start shim: mkdir /run/c/io.containerd.runtime.v2.task/moby/abc: file exists", ""},
		{"failed to start shim: mkdir /berth/abc: file exists", ""},
		{"failed to start shim: mkdir " + dir + ": no space left on device", ""},
	} {
		if got, ok := leftBundle(errors.New(tt.text), "berth", "abc"); got != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: %q, %v", tt.text, got, ok)
		}
	}
	if _, ok := leftBundle(nil, "berth", "abc"); ok {
		t.Error("no error, and yet something is left")
	}
}

func TestShimOf(t *testing.T) {
	c := &Client{cfg: Config{Namespace: "berth", Address: "/run/c.sock"}}
	args := []string{"/usr/bin/containerd-shim-runc-v2", "-namespace", "berth", "-id", "abc", "-address", "/run/c.sock"}
	if !c.isShimOf(args, "abc") {
		t.Error("not recognized")
	}
	for i, other := range map[int]string{0: "/usr/bin/containerd", 2: "moby", 4: "xyz", 6: "/run/other.sock"} {
		changed := append([]string(nil), args...)
		changed[i] = other
		if c.isShimOf(changed, "abc") {
			t.Errorf("taken for the container's shim: %q", changed)
		}
	}
}

func TestCreationsAfterACrashAreTriedAgain(t *testing.T) {
	c := &Client{known: map[string]*tracked{"made": {}, "found": {}}}
	bad := fail(task.Unclassified, task.CannotStartContainer, errors.New("exec: no such file"))
	c.recorded("made", true)
	if got := task.ClassOf(c.despiteRemains("made", bad)); got != task.Unclassified {
		t.Errorf("a first creation fails with class %q", got)
	}
	c.recorded("found", false)
	for i := range remainsTries {
		c.recorded("found", false) // the second time it is our own
		err := c.despiteRemains("found", bad)
		if task.ClassOf(err) != task.Unavailable || task.ReasonOf(err, "").Code != task.CannotStartContainer {
			t.Errorf("failure %d after a crash: %v with class %q", i, err, task.ClassOf(err))
		}
	}
	if got := task.ClassOf(c.despiteRemains("found", bad)); got != task.Unclassified {
		t.Errorf("failure that does not pass has class %q", got)
	}
	if c.despiteRemains("found", nil) != nil {
		t.Error("success became an error")
	}
}

func TestLeftSnapshot(t *testing.T) {
	for text, want := range map[string]bool{
		"failed to rename: rename /r/snapshots/new-3176925521 /r/snapshots/91: file exists": true,
		"failed to rename: rename /r/snapshots/new-1 /r/snapshots/91: no space left":        false,
		"mkdir /x: file exists": false,
	} {
		if got := leftSnapshot(errors.New(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
