package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
)

// dialEnv names the address that a child of a test connects to.
const dialEnv = "BERTH_NETNS_TEST_DIAL"

// TestDialChild is the child: it ends with 0 if it is let in, and with 3 if it is refused.
func TestDialChild(t *testing.T) {
	at := os.Getenv(dialEnv)
	if at == "" {
		t.Skip("it is part of another test")
	}
	c, err := net.DialTimeout("tcp", at, time.Minute)
	if errors.Is(err, unix.ECONNREFUSED) {
		os.Exit(3)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	c.Close() //nolint:errcheck // it was let in
	os.Exit(0)
}

// groupOf makes a version 2 cgroup.
func groupOf(t *testing.T, name string) *Group {
	t.Helper()
	var st unix.Statfs_t
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if err := unix.Statfs(root, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Rmdir(dir); err != nil {
				t.Error(err)
			}
		})
		return &Group{Dir: dir, Level: 1}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this host has no cgroup version 2")
	}
	t.Skip("this host has no cgroup version 2")
	return nil
}

func TestTasksAreKeptFromTheMetadataOfTheHost(t *testing.T) {
	n := open(t)
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}}
	var at []string
	for _, p := range bridge.HostMetadata() {
		ip := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Bits())}
		addr := &netlink.Addr{IPNet: ip, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netlink.AddrDel(lo, addr); err != nil {
				t.Error(err)
			}
		})
		l, err := net.Listen("tcp", net.JoinHostPort(p.Addr().String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		at = append(at, l.Addr().String())
	}
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	name := fmt.Sprintf("berth-netns-%d", os.Getpid())
	tasks, programs := groupOf(t, name), groupOf(t, name+"-programs")
	// refused connects from a group.
	refused := func(g *Group, at string) bool {
		t.Helper()
		dir, err := os.Open(g.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDialChild$") //nolint:gosec // this test
		cmd.Env = append(os.Environ(), dialEnv+"="+at)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		out, err := cmd.CombinedOutput()
		exit := (*exec.ExitError)(nil)
		if errors.As(err, &exit) && exit.ExitCode() == 3 {
			return true
		}
		if err != nil {
			t.Fatalf("connect to %s: %v: %s", at, err, out)
		}
		return false
	}
	look := func(kept bool) {
		t.Helper()
		for _, a := range at {
			if refused(tasks, a) != kept {
				t.Errorf("a task is refused at %s: %t, want %t", a, !kept, kept)
			}
			if refused(programs, a) {
				t.Errorf("another program of the host is refused at %s", a)
			}
		}
		if refused(tasks, other.Addr().String()) {
			t.Error("a task reaches nothing else")
		}
	}
	look(false)
	for range 2 {
		if err := n.KeepFromMetadata(tasks); err != nil {
			t.Fatal(err)
		}
	}
	look(true)
	// Another group, as after the cgroup of tasks was removed and made again.
	if err := n.KeepFromMetadata(programs); err != nil {
		t.Fatal(err)
	}
	if refused(tasks, at[0]) || !refused(programs, at[0]) {
		t.Error("the rules are not those of the last group")
	}
	for range 2 {
		if err := n.KeepFromMetadata(nil); err != nil {
			t.Fatal(err)
		}
	}
	look(false)
	if err := n.KeepFromMetadata(&Group{Dir: filepath.Join(tasks.Dir, "none"), Level: 2}); err == nil {
		t.Error("a group that is not there")
	}
	if err := n.KeepFromMetadata(tasks); err != nil { // the teardown removes it
		t.Fatal(err)
	}
	if err := n.TeardownHost(context.Background()); err != nil {
		t.Fatal(err)
	}
}
