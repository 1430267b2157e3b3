// Package enitest runs tests that change a host's network inside a network and mount
// namespace of their own, and shows what they left behind.
package enitest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/eni"
)

const marker = "BERTH_ENITEST_HOST"

// Main runs a package's tests. As root it runs the test program again, as a host of its
// own: new network and mount namespaces in which only the loopback device exists.
func Main(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run()
	}
	if os.Getenv(marker) != "" {
		lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}}
		if err := netlink.LinkSetUp(lo); err != nil {
			fmt.Fprintln(os.Stderr, "loopback of the test's host:", err)
			return 1
		}
		return m.Run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	signal.Ignore(os.Interrupt) // the program below gets it too, and decides
	if err := cmd.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return exit.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "run the tests in their own namespaces:", err)
		return 1
	}
	return 0
}

// Root skips a test that needs root; where CI is set it fails instead.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: it makes network namespaces")
}

// Namespace makes a network namespace that goes with the test.
func Namespace(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	if err := eni.CreateNamespace(path, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := eni.RemoveNamespace(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// In runs fn inside the namespace at path; "" is the host.
func In(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		return err
	}
	return errors.Join(ns.Do(fn), ns.Close())
}

// Listen listens inside a namespace.
func Listen(t testing.TB, path, address string) net.Listener {
	t.Helper()
	var l net.Listener
	if err := In(path, func() (err error) { l, err = net.Listen(network(address), address); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// network is IPv4 unless the address is written as one of IPv6.
func network(address string) string {
	if strings.HasPrefix(address, "[") {
		return "tcp6"
	}
	return "tcp4"
}

// Echo serves TCP inside a namespace: each connection gets a line with its own remote
// address and then back what it sends.
func Echo(t testing.TB, path, address string) {
	t.Helper()
	l := Listen(t, path, address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				if _, err := fmt.Fprintln(c, host); err == nil {
					_, _ = io.Copy(c, c)
				}
			}()
		}
	}()
}

// Dial connects to an Echo from inside a namespace, checks that it echoes, and returns
// the address that the server saw.
func Dial(path, address string, timeout time.Duration) (seen string, err error) {
	err = In(path, func() error {
		c, err := net.DialTimeout(network(address), address, timeout)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		r := bufio.NewReader(c)
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		seen = strings.TrimSpace(line)
		if _, err := fmt.Fprintln(c, "berth"); err != nil {
			return err
		}
		if line, err = r.ReadString('\n'); err == nil && line != "berth\n" {
			err = fmt.Errorf("echoed %q", line)
		}
		return err
	})
	return seen, err
}

// Eventually waits until cond is true, at most for a minute.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	if !Within(cond) {
		t.Fatalf("not within %v: %s", limit, what)
	}
}

// limit is how long Within waits for what takes milliseconds, on a host that has much else
// to do as well.
const limit = time.Minute

// Within waits until cond is true, at most for a minute, and reports whether it came true.
func Within(cond func() bool) bool {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			return false
		}
	}
	return true
}

// Snapshot lists what the host's network consists of: interfaces, addresses, routes,
// nftables with their elements, forwarding, and the mounts and files below dirs.
func Snapshot(t testing.TB, dirs ...string) []string {
	t.Helper()
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	links, err := netlink.LinkList()
	must(err)
	for _, l := range links {
		add("link %s %s up=%t", l.Attrs().Name, l.Type(), l.Attrs().Flags&net.FlagUp != 0)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	must(err)
	for _, a := range addrs {
		add("address %s", a.IPNet)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	must(err)
	for _, r := range routes {
		if r.Dst != nil && r.Dst.IP.IsMulticast() {
			continue // the kernel makes them for every interface, in its own time
		}
		add("route %s", r)
	}
	out = append(out, ruleset(t)...)
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(err)
	for line := range strings.Lines(string(mounts)) {
		// Namespaces that others pin elsewhere on this machine are not ours to look at.
		if f := strings.Fields(line); underAny(f[4], dirs) {
			add("mount %s", f[4])
		}
	}
	for _, key := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/default/accept_ra"} {
		value, err := os.ReadFile(filepath.Join("/proc/sys/net", key))
		if !errors.Is(err, os.ErrNotExist) {
			must(err)
			add("%s %s", key, strings.TrimSpace(string(value)))
		}
	}
	for _, dir := range dirs {
		must(filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil || !errors.Is(err, os.ErrNotExist) {
				add("file %s", path)
				return err
			}
			return nil
		}))
	}
	slices.Sort(out)
	return out
}

func underAny(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(path, d) })
}

func ruleset(t testing.TB) []string {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	chains, err := c.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("chain %d %s %s with %d rules", ch.Table.Family, ch.Table.Name, ch.Name, len(rules)))
	}
	for _, table := range tables {
		out = append(out, fmt.Sprintf("table %d %s", table.Family, table.Name))
		sets, err := c.GetSets(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sets {
			elements, err := c.GetSetElements(s)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range elements {
				out = append(out, fmt.Sprintf("element %s %s %x %x", table.Name, s.Name, e.Key, e.Val))
			}
		}
	}
	return out
}
