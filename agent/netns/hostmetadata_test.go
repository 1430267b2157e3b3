package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
	"berth.dev/berth/eni/enitest"
)

// dialEnv names the addresses that a child of a test connects to.
const dialEnv = "BERTH_NETNS_TEST_DIAL"

// TestDialChild is the child: it prints the addresses that refuse it.
func TestDialChild(t *testing.T) {
	list := os.Getenv(dialEnv)
	if list == "" {
		t.Skip("it is part of another test")
	}
	for at := range strings.FieldsSeq(list) {
		c, err := net.DialTimeout("tcp", at, time.Minute)
		if errors.Is(err, unix.ECONNREFUSED) {
			fmt.Println(at)
			continue
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		c.Close() //nolint:errcheck // it was let in
	}
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
		// The kernel makes the route to an IPv6 address a little later.
		enitest.Eventually(t, "the host reaches its own address", func() bool {
			c, err := net.DialTimeout("tcp", l.Addr().String(), time.Minute)
			return err == nil && c.Close() == nil
		})
	}
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	name := fmt.Sprintf("berth-netns-%d", os.Getpid())
	tasks, programs := groupOf(t, name), groupOf(t, name+"-programs")
	// look connects from a group; it is to be refused at these addresses alone.
	all := append(slices.Clone(at), other.Addr().String())
	look := func(g *Group, want []string) {
		t.Helper()
		dir, err := os.Open(g.Dir)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDialChild$") //nolint:gosec // this test
		cmd.Env = append(os.Environ(), dialEnv+"="+strings.Join(all, " "), "GORACE=atexit_sleep_ms=0")
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
		cmd.Stderr = t.Output()
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, strings.Fields(string(out)), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("refused from %s (-want +got):\n%s", g.Dir, diff)
		}
	}
	look(tasks, nil)
	for range 2 {
		if err := n.KeepFromMetadata(tasks); err != nil {
			t.Fatal(err)
		}
	}
	look(tasks, at)
	look(programs, nil)
	// Another group, as after the cgroup of tasks was removed and made again.
	if err := n.KeepFromMetadata(programs); err != nil {
		t.Fatal(err)
	}
	look(tasks, nil)
	look(programs, at)
	for range 2 {
		if err := n.KeepFromMetadata(nil); err != nil {
			t.Fatal(err)
		}
	}
	look(programs, nil)
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
