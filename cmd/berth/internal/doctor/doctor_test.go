package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	mountsV1 = "30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
		"31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n" +
		"32 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n" +
		"33 24 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
	mountsV2 = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
)

// healthy is a host on which every check that does not ask the real one is OK.
func healthy(t *testing.T) Host {
	t.Helper()
	dir := t.TempDir()
	h := Host{
		Proc: filepath.Join(dir, "proc"), Sys: filepath.Join(dir, "sys"), StateDir: dir, Listen: "127.0.0.1:7700",
		SystemSocket: filepath.Join(dir, "none.sock"),
		Containerd:   func(context.Context, string) (string, error) { return "v2.4.2", nil },
		Network:      func() error { return nil },
		Run: func(context.Context, string, ...string) (string, error) {
			return "runc version 1.1.5+ds1\ncommit: x\n", nil
		},
		Shim:      func() (string, error) { return "/usr/bin/containerd-shim-runc-v2", nil },
		Listening: func(string) string { return "" },
		Cluster:   func(context.Context) (time.Time, bool) { return time.Now(), true },
	}
	write(t, h.Proc, "sys/kernel/osrelease", "6.1.0-56-cloud-amd64\n")
	write(t, h.Proc, "filesystems", "nodev\tsysfs\nnodev\toverlay\n\text4\n")
	write(t, h.Proc, "self/mountinfo", mountsV1)
	write(t, h.Proc, "sys/net/ipv4/ip_forward", "1\n")
	write(t, h.Sys, "fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
	return h
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func result(t *testing.T, h Host, check string) Result {
	t.Helper()
	for _, r := range Examine(t.Context(), h) {
		if r.Check == check {
			return r
		}
	}
	t.Fatalf("no check %q", check)
	return Result{}
}

func TestHealthyHostPasses(t *testing.T) {
	for _, r := range Examine(t.Context(), healthy(t)) {
		if r.Check == "clock" || r.Check == "disk" || r.Check == "certificates" { // the real host's
			continue
		}
		if r.Verdict != OK || r.Remedy != "" || r.Found == "" {
			t.Errorf("%+v", r)
		}
	}
}

func TestEveryDefectIsFoundAndHasARemedy(t *testing.T) {
	for _, tt := range []struct {
		check, defect string
		change        func(*testing.T, *Host)
		verdict       Verdict
		found         string
	}{
		{"root", "not root", func(_ *testing.T, h *Host) { h.UID = 1000 }, Failed, "user 1000"},
		{"kernel", "old", func(t *testing.T, h *Host) { write(t, h.Proc, "sys/kernel/osrelease", "4.19.0-8") }, Failed, "4.19"},
		{"kernel", "garbage", func(t *testing.T, h *Host) { write(t, h.Proc, "sys/kernel/osrelease", "?") }, Failed, "?"},
		{"overlayfs", "absent", func(t *testing.T, h *Host) { write(t, h.Proc, "filesystems", "\text4\n") }, Failed, "unknown"},
		{"cgroups", "no mount", func(t *testing.T, h *Host) { write(t, h.Proc, "self/mountinfo", "") }, Failed, "not mounted"},
		{"cgroups", "v2 without memory", func(t *testing.T, h *Host) {
			write(t, h.Proc, "self/mountinfo", mountsV2)
			write(t, h.Sys, "fs/cgroup/cgroup.controllers", "cpu pids")
		}, Failed, "v2 without memory"},
		{"cgroups", "v1 without pids", func(t *testing.T, h *Host) {
			write(t, h.Proc, "self/mountinfo", strings.ReplaceAll(mountsV1, "pids", "freezer"))
		}, Failed, "v1 without pids"},
		{"network", "no nftables", func(_ *testing.T, h *Host) { h.Network = func() error { return errors.New("nftables: no") } }, Failed, "nftables"},
		{"ip_forward", "off", func(t *testing.T, h *Host) { write(t, h.Proc, "sys/net/ipv4/ip_forward", "0\n") }, Warning, "off"},
		{"runc", "absent", func(_ *testing.T, h *Host) {
			h.Run = func(context.Context, string, ...string) (string, error) { return "", errors.New("runc: not found") }
		}, Failed, "not found"},
		{"runc", "old", func(_ *testing.T, h *Host) {
			h.Run = func(context.Context, string, ...string) (string, error) { return "runc version 1.0.3\n", nil }
		}, Failed, "1.0.3"},
		{"shim", "absent", func(_ *testing.T, h *Host) { h.Shim = func() (string, error) { return "", errors.New("no shim") } }, Failed, "no shim"},
		{"containerd", "configured and dead", func(_ *testing.T, h *Host) {
			h.Configured = "/x.sock"
			h.Containerd = func(context.Context, string) (string, error) { return "", errors.New("refused") }
		}, Failed, "refused"},
		{"containerd", "the host's and dead", func(t *testing.T, h *Host) {
			write(t, filepath.Dir(h.SystemSocket), "none.sock", "")
			h.Containerd = func(context.Context, string) (string, error) { return "", errors.New("refused") }
		}, Warning, "refused"},
		{"containerd", "too old", func(_ *testing.T, h *Host) {
			h.Configured = "/x.sock"
			h.Containerd = func(context.Context, string) (string, error) { return "1.4.13~ds1", nil }
		}, Failed, "1.4.13"},
		{"api port", "taken", func(_ *testing.T, h *Host) { h.Listening = func(string) string { return "nginx" } }, Failed, "nginx"},
		{"sample port", "taken", func(_ *testing.T, h *Host) { h.Listening = func(string) string { return "nginx" } }, Warning, "nginx"},
		{"clock skew", "an hour", func(_ *testing.T, h *Host) {
			h.Cluster = func(context.Context) (time.Time, bool) { return time.Now().Add(time.Hour), true }
		}, Failed, "1h0m"},
	} {
		h := healthy(t)
		tt.change(t, &h)
		r := result(t, h, tt.check)
		if r.Verdict != tt.verdict || !strings.Contains(r.Found, tt.found) || r.Remedy == "" {
			t.Errorf("%s, %s: %+v; want %s, found %q and a remedy", tt.check, tt.defect, r, tt.verdict, tt.found)
		}
	}
}

func TestPortsOfOursAreFine(t *testing.T) {
	h := healthy(t)
	h.Listening = func(string) string { return "berth" }
	for _, check := range []string{"api port", "sample port"} {
		if r := result(t, h, check); r.Verdict != OK {
			t.Errorf("%+v", r)
		}
	}
}

func TestVersions(t *testing.T) {
	for text, want := range map[string]string{
		"1.6.20~ds1": "1.6.20", "v2.4.2": "2.4.2", "6.1.0-56-cloud-amd64": "6.1.0", "5.3": "5.3", "1.1.5+ds1": "1.1.5", "2.4.2.1": "2.4.2",
	} {
		v, good := parseVersion(text)
		if !good || v.String() != want {
			t.Errorf("%q: %v %v, want %s", text, v, good, want)
		}
	}
	for _, text := range []string{"", "x", "7", "..", "1.x"} {
		if v, good := parseVersion(text); good {
			t.Errorf("%q was read as %v", text, v)
		}
	}
	if !(version{1, 1}).before(version{1, 1, 5}) || (version{1, 2}).before(version{1, 1, 5}) || (version{1, 1, 5}).before(version{1, 1, 5}) {
		t.Error("order of versions")
	}
}
