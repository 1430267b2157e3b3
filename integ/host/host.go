// Package host gives integration tests a host of their own: a network namespace in
// which the whole test program runs, with an uplink to a second namespace from which
// a client can look at it from outside. Nothing of it touches the machine's own
// network, and all of it is gone when the tests end.
package host

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The addresses of the two ends of the uplink.
const (
	Address = "198.51.100.2" // of the host under test (RFC 5737, documentation range)
	Outside = "198.51.100.1" // of the client outside it
)

const marker = "BERTH_TEST_HOST"

// Main runs the tests of a package in a network namespace of their own. Use it as
//
//	func TestMain(m *testing.M) { host.Main(m) }
//
// Without root the tests cannot run at all: they fail where the environment says CI,
// and say why elsewhere.
func Main(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests start containers and need root")
		if os.Getenv("CI") != "" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(marker) != "" {
		os.Exit(m.Run())
	}
	code, err := reexec()
	if err != nil {
		fmt.Fprintln(os.Stderr, "test host:", err)
		os.Exit(1)
	}
	os.Exit(code)
}

// reexec runs this program again inside a new network namespace.
func reexec() (int, error) {
	name := fmt.Sprintf("bt%d", os.Getpid())
	client := name + "c"
	for _, n := range []string{name, client} {
		if out, err := exec.Command("ip", "netns", "add", n).CombinedOutput(); err != nil {
			return 0, fmt.Errorf("ip netns add %s: %w: %s", n, err, out)
		}
		defer func() {
			if out, err := exec.Command("ip", "netns", "delete", n).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "test host: ip netns delete %s: %v: %s\n", n, err, out)
			}
		}()
	}
	if err := uplink(name, client); err != nil {
		return 0, err
	}
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	// nsenter and not "ip netns exec", which would also give a mount namespace in which
	// containerd does not see the network namespaces that the agent makes.
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + name, self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), marker+"="+client)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			cmd.Process.Signal(s) //nolint:errcheck // it may have ended in this moment
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// uplink joins the two namespaces and brings their loopbacks up.
func uplink(name, client string) error {
	ours, err := netns.GetFromName(name)
	if err != nil {
		return err
	}
	defer ours.Close()
	theirs, err := netns.GetFromName(client)
	if err != nil {
		return err
	}
	defer theirs.Close()
	in, err := netlink.NewHandleAt(ours)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := netlink.NewHandleAt(theirs)
	if err != nil {
		return err
	}
	defer out.Close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "uplink0"}, PeerName: "client0", PeerNamespace: netlink.NsFd(theirs),
	}
	if err := in.LinkAdd(veth); err != nil {
		return fmt.Errorf("add uplink: %w", err)
	}
	for _, end := range []struct {
		h                 *netlink.Handle
		link, addr, route string
	}{
		{in, "uplink0", Address + "/24", Outside},
		{out, "client0", Outside + "/24", ""},
	} {
		if err := bringUp(end.h, end.link, end.addr, end.route); err != nil {
			return err
		}
	}
	return nil
}

func bringUp(h *netlink.Handle, name, addr, gateway string) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	if err := errors.Join(h.LinkSetUp(lo), h.LinkSetUp(link), h.AddrAdd(link, a)); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	if gateway == "" {
		return nil
	}
	gw, err := netlink.ParseAddr(gateway + "/32")
	if err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gw.IP})
}

// OutsideNamespace is the network namespace at the other end of the uplink.
func OutsideNamespace() string { return "/run/netns/" + os.Getenv(marker) }

// OutsideCommand is a command that runs outside the host under test, at the other
// end of its uplink.
func OutsideCommand(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=/run/netns/" + os.Getenv(marker), name}, args...)...)
}

// ShortDir makes a directory with a path that is short enough for unix sockets
// (108 bytes, unix(7)) and removes it, with whatever is still mounted below it, when
// the test ends.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unmountBelow(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	return dir
}

// unmountBelow takes away mounts that a test left, and reports them: a mount that is
// left behind is a fault of the product.
func unmountBelow(t testing.TB, dir string) {
	for _, m := range MountsBelow(t, dir) {
		t.Errorf("left mounted: %s", m)
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", m, err)
		}
	}
}

// MountsBelow lists the mount points at or below dir, the deepest first.
func MountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && (fields[1] == dir || strings.HasPrefix(fields[1], dir+"/")) {
			out = append([]string{fields[1]}, out...)
		}
	}
	return out
}

// Program builds one of the programs of this module, or of a module it uses, into
// dir and returns its path. Tags are build tags.
func Program(t testing.TB, dir, pkg string, tags ...string) string {
	t.Helper()
	out := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-tags", strings.Join(append(tags, "no_cri", "no_btrfs", "no_zfs", "no_devmapper", "no_tracing", "grpcnotrace"), ","), "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
	return out
}

// Alive reports whether a process exists and is no zombie.
func Alive(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	rest := string(b)[strings.LastIndexByte(string(b), ')')+1:]
	fields := strings.Fields(rest)
	return len(fields) > 0 && fields[0] != "Z" && fields[0] != "X"
}

// Shipped builds a program the way it is shipped: static, without symbols and paths.
func Shipped(t testing.TB, path, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-tags", "no_cri,no_btrfs,no_zfs,no_devmapper,no_tracing,grpcnotrace", "-o", path, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
}
