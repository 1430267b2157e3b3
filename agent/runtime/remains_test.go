package runtime

import (
	"errors"
	"testing"
)

func TestLeftBundleIsOnlyEverTheContainersOwn(t *testing.T) {
	const dir = "/run/c/io.containerd.runtime.v2.task/berth/abc"
	for _, tt := range []struct{ text, want string }{
		{"failed to start shim: mkdir " + dir + ": file exists", dir},
		{"rpc error: failed to start shim: mkdir " + dir + ": file exists: unknown", dir},
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
