package world

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownNetwork moves the test to a network namespace of its own, which ends with it,
// and returns its loopback interface.
func ownNetwork(t *testing.T) (lo netlink.Link) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root for a network namespace, mounts and cgroups")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test's goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.LinkSetUp(lo))
	return lo
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fakeContainerd holds what the test says.
type fakeContainerd map[string][]string

func (f fakeContainerd) List(context.Context) (map[string][]string, error) { return f, nil }

// cgroupRoot makes a cgroup of the test's own below any hierarchy there is.
func cgroupRoot(t *testing.T) (name, dir string) {
	t.Helper()
	name = "world-test-" + strings.ToLower(strings.ReplaceAll(filepath.Base(t.TempDir()), "/", "-")+t.Name())
	hierarchies, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	must(t, err)
	if len(hierarchies) == 0 {
		t.Fatal("no cgroup hierarchy is mounted")
	}
	return name, filepath.Join(hierarchies[0].Mountpoint, name)
}

func TestEveryKindOfLeakIsSeenAndItsRemovalToo(t *testing.T) {
	lo := ownNetwork(t)
	dir := t.TempDir()
	cgroup, cgroupDir := cgroupRoot(t)
	runtimeNow := fakeContainerd{}
	o := Options{
		Containerds: []Containerd{runtimeNow}, Programs: []string{"leaked-program"}, Mentioning: dir, CgroupRoots: []string{cgroup},
		MountPrefixes: []string{dir}, NetnsDirs: []string{filepath.Join(dir, "netns")},
		Dirs: []string{filepath.Join(dir, "state")}, SocketPrefixes: []string{dir},
	}
	take := func() Snapshot {
		t.Helper()
		s, err := Take(t.Context(), o)
		must(t, err)
		return s
	}
	before := take()

	for _, leak := range []struct {
		set  string // the set that must show it
		item string // part of the line
		make func() (remove func() error)
	}{
		{Containers, "+ containers: abc", func() func() error {
			runtimeNow[Containers] = []string{"abc"}
			return func() error { delete(runtimeNow, Containers); return nil }
		}},
		{Programs, "leaked-program 600", func() func() error {
			b, err := os.ReadFile("/bin/sleep")
			must(t, err)
			path := filepath.Join(dir, "leaked-program")
			must(t, os.WriteFile(path, b, 0o755))
			cmd := exec.Command(path, "600")
			must(t, cmd.Start())
			// The kernel closes what tells Start of the exec a moment before the new
			// program's arguments can be read.
			for limit := time.Now().Add(5 * time.Second); ; {
				line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
				must(t, err)
				if strings.Contains(string(line), "leaked-program") {
					break
				}
				if time.Now().After(limit) {
					t.Fatal("the program has no arguments")
				}
			}
			return func() error {
				if err := cmd.Process.Kill(); err != nil {
					return err
				}
				_ = cmd.Wait() // killed
				return nil
			}
		}},
		{Cgroups, cgroupDir, func() func() error {
			must(t, os.Mkdir(cgroupDir, 0o755))
			return func() error { return os.Remove(cgroupDir) }
		}},
		{Mounts, "tmpfs " + filepath.Join(dir, "mnt"), func() func() error {
			path := filepath.Join(dir, "mnt")
			must(t, os.MkdirAll(path, 0o755))
			must(t, unix.Mount("tmpfs", path, "tmpfs", 0, ""))
			return func() error { return unix.Unmount(path, 0) }
		}},
		{Netns, "netns/one inode", func() func() error {
			path := filepath.Join(dir, "netns", "one")
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			must(t, os.WriteFile(path, nil, 0o644))
			return func() error { return os.Remove(path) }
		}},
		{Links, "leak0 type veth", func() func() error {
			must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "leak0"}, PeerName: "leak1"}))
			return func() error {
				return netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "leak0"}})
			}
		}},
		{Routes, "198.51.100.0/24", func() func() error {
			_, dst, err := net.ParseCIDR("198.51.100.0/24")
			must(t, err)
			route := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst}
			must(t, netlink.RouteAdd(route))
			return func() error { return netlink.RouteDel(route) }
		}},
		{Firewall, "leaked-table", func() func() error {
			must(t, exec.Command("nft", "add", "table", "inet", "leaked-table").Run())
			return func() error { return exec.Command("nft", "delete", "table", "inet", "leaked-table").Run() }
		}},
		{Files, "state/deep/file", func() func() error {
			path := filepath.Join(dir, "state", "deep", "file")
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			must(t, os.WriteFile(path, nil, 0o600))
			return func() error { return os.RemoveAll(filepath.Join(dir, "state")) }
		}},
		{Sockets, "unix " + filepath.Join(dir, "s.sock"), func() func() error {
			l, err := net.Listen("unix", filepath.Join(dir, "s.sock"))
			must(t, err)
			return l.Close
		}},
		{Sockets, "tcp", func() func() error {
			l, err := net.Listen("tcp", "0.0.0.0:0")
			must(t, err)
			return l.Close
		}},
		{Sockets, "udp", func() func() error {
			l, err := net.ListenPacket("udp", "0.0.0.0:0")
			must(t, err)
			return l.Close
		}},
	} {
		remove := leak.make()
		lines := Diff(before, take())
		found := false
		for _, line := range lines {
			found = found || strings.HasPrefix(line, "+ "+leak.set+": ") && strings.Contains(line, leak.item)
		}
		if !found {
			t.Errorf("%s: not seen in %q", leak.item, lines)
		}
		must(t, remove())
		if lines := Diff(before, take()); len(lines) > 0 {
			t.Errorf("%s: removed, and still differs: %q", leak.item, lines)
		}
	}
}

func TestDiff(t *testing.T) {
	before := Snapshot{Links: {"a", "b"}, Programs: {"shim", "shim"}, Files: {"x"}}
	after := Snapshot{Links: {"b", "c"}, Programs: {"shim"}, Sockets: {"s"}}
	want := []string{"+ links: c", "+ sockets: s", "- files: x", "- links: a", "- programs: shim"}
	if diff := cmp.Diff(want, Diff(before, after)); diff != "" {
		t.Error(diff)
	}
	allowed := Residue{Set: Links, Match: regexp.MustCompile(`^[ac]$`), Reason: "made by the test"}
	want = []string{"+ sockets: s", "- files: x", "- programs: shim"}
	if diff := cmp.Diff(want, Diff(before, after, allowed)); diff != "" {
		t.Error(diff)
	}
	if lines := Diff(before, before); len(lines) > 0 {
		t.Errorf("a snapshot differs from itself: %q", lines)
	}
}

func TestRulesetWithoutWhatCounts(t *testing.T) {
	const one = `{"nftables":[{"metainfo":{"version":"1.0.6"}},{"table":{"family":"inet","name":"t","handle":3}},
	{"rule":{"family":"inet","table":"t","chain":"c","handle":9,"expr":[{"counter":{"packets":1,"bytes":60}},{"accept":null}]}}]}`
	const later = `{"nftables":[{"metainfo":{"version":"1.0.6"}},{"table":{"family":"inet","name":"t","handle":5}},
	{"rule":{"family":"inet","table":"t","chain":"c","handle":12,"expr":[{"counter":{"packets":7,"bytes":900}},{"accept":null}]}}]}`
	a, err := ruleset([]byte(one))
	must(t, err)
	b, err := ruleset([]byte(later))
	must(t, err)
	if diff := cmp.Diff(a, b); diff != "" || len(a) != 2 {
		t.Errorf("%d items; %s", len(a), diff)
	}
	if _, err := ruleset([]byte("oops")); err == nil {
		t.Error("garbage was read")
	}
	if items, err := ruleset(nil); err != nil || items != nil {
		t.Errorf("an empty ruleset: %v, %v", items, err)
	}
}

func TestSnapshotIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.json")
	want := Snapshot{Links: {"lo"}, Mounts: {"tmpfs /x"}}
	must(t, want.Save(path))
	got, err := Load(path)
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestContainerdThatCannotBeAskedIsNoSnapshot(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := Options{Containerds: []Containerd{Namespace{Address: filepath.Join(t.TempDir(), "none.sock"), Name: "berth"}}}
	if s, err := Take(ctx, o); err == nil {
		t.Errorf("took %v", s)
	}
}

func TestBelowMovesEverythingButSharedNetns(t *testing.T) {
	o := Host().Below("/two")
	if diff := cmp.Diff([]string{"/two/run/berth", "/two/var/lib/berth", "/run/netns"}, o.MountPrefixes); diff != "" {
		t.Error(diff)
	}
}
