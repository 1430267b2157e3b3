package cni

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

// chain is a list of Debian's plugins, as an operator may configure it.
type chain struct {
	name         string
	plugins      func(r *rig) []string
	capabilities map[string]any
	address      string                                            // how the container's begins
	works        func(t *testing.T, a *Attachment, address string) // that echoes
	unchecked    bool                                              // the list has CHECK disabled
}

const (
	hostPort = 8090
	// rate is what the chain with a limit lets pass, in bits per second, after a burst.
	rate, burst = 8_000_000, 256_000
)

func chains() []chain {
	ptp := func(subnet string, more ...string) func(r *rig) []string {
		return func(r *rig) []string { return append([]string{`{"type":"ptp",` + r.ipam(subnet) + `}`}, more...) }
	}
	limit := fmt.Sprintf(`{"type":"bandwidth","ingressRate":%d,"ingressBurst":%d,"egressRate":%d,"egressBurst":%d}`, rate, burst, rate, burst)
	portmap := `{"type":"portmap","capabilities":{"portMappings":true}}`
	ports := map[string]any{"portMappings": []map[string]any{{"hostPort": hostPort, "containerPort": 80, "protocol": "tcp"}}}
	return []chain{
		{name: "ptp", plugins: ptp("10.90.1.0/24"), address: "10.90.1.", works: reached},
		{name: "ptp, IPv6", plugins: ptp("fd90:3::/64"), address: "fd90:3::", works: reached},
		{name: "macvlan", plugins: func(r *rig) []string {
			return []string{`{"type":"macvlan","master":"seg0","mode":"bridge",` + r.ipam("10.90.2.0/24") + `}`}
		}, address: "10.90.2."},
		{name: "tuning", plugins: ptp("10.90.4.0/24", `{"type":"tuning","mtu":1300}`), address: "10.90.4.", works: reached},
		{name: "portmap", plugins: ptp("10.90.5.0/24", portmap), capabilities: ports, address: "10.90.5.", works: publishes, unchecked: true},
		{name: "bandwidth", plugins: ptp("10.90.6.0/24", limit), address: "10.90.6.", works: isLimited},
		{name: "portmap and bandwidth", plugins: ptp("10.90.7.0/24", portmap, limit), capabilities: ports, address: "10.90.7.", unchecked: true,
			works: func(t *testing.T, a *Attachment, address string) {
				publishes(t, a, address)
				isLimited(t, a, address)
			}},
	}
}

const patience = time.Minute

// namespace is one whose IPv6 addresses can be used at once: nobody else has them.
func namespace(t *testing.T) string {
	t.Helper()
	ns := enitest.Namespace(t)
	for _, path := range []string{"", ns} {
		if err := enitest.In(path, func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0o644) }); err != nil {
			t.Fatal(err)
		}
	}
	return ns
}

// serve echoes at port 80 of an attachment, whose address it returns.
func serve(t *testing.T, a *Attachment) string {
	t.Helper()
	address := net.JoinHostPort(a.Addresses[0].Addr().String(), "80")
	l := enitest.Listen(t, a.Namespace, address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, err := io.Copy(c, c)
				if err := errors.Join(err, c.Close()); err != nil {
					t.Logf("echo: %v", err)
				}
			}()
		}
	}()
	t.Cleanup(func() { l.Close() }) //nolint:errcheck // the test is over
	return address
}

// echo sends so many bytes and waits until they have come back.
func echo(t *testing.T, address string, size int) {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close() //nolint:errcheck // nothing is owed to the other side
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- err
	}()
	_, err = io.ReadFull(c, make([]byte, size))
	if err := errors.Join(err, <-sent); err != nil {
		t.Errorf("echo from %s: %v", address, err)
	}
}

func reached(t *testing.T, _ *Attachment, address string) {
	t.Helper()
	echo(t, address, 1)
}

// publishes reaches the container at the host's port.
func publishes(t *testing.T, a *Attachment, _ string) {
	t.Helper()
	gateway := a.Addresses[0].Masked().Addr().Next()
	echo(t, netip.AddrPortFrom(gateway, hostPort).String(), 1)
}

// isLimited sends more than the burst in each direction, which takes its time.
func isLimited(t *testing.T, _ *Attachment, address string) {
	t.Helper()
	const size = 512 << 10
	start := time.Now()
	echo(t, address, size)
	if took, least := time.Since(start), time.Duration(size*8-burst)*time.Second/rate/2; took < least {
		t.Errorf("%d bytes took %v with a limit of %d bits per second", size, took, rate)
	}
}

// segment is a link that macvlan and others can be made on.
func (r *rig) segment(name string) {
	r.t.Helper()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}); err != nil {
		r.t.Fatal(err)
	}
	for _, n := range []string{name, name + "p"} {
		l, err := netlink.LinkByName(n)
		if err == nil {
			// No link-local address, which would come in its own time.
			err = errors.Join(netlink.LinkSetIP6AddrGenMode(l, 1), netlink.LinkSetUp(l))
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	r.t.Cleanup(func() {
		if l, err := netlink.LinkByName(name); err == nil {
			if err := netlink.LinkDel(l); err != nil {
				r.t.Error(err)
			}
		}
	})
}

// begin makes a rig with a chain. The portmap of Debian 12 looks for rules of IPv6 in a
// CHECK that it has not made for a container without IPv6 (issue 819 of its project), so
// that CHECK has to be disabled for a list with it.
func (c *chain) begin(t *testing.T) (r *rig, before []string) {
	t.Helper()
	r = newRig(t)
	r.segment("seg0")
	r.network("net", c.plugins(r)...)
	if c.unchecked {
		list := filepath.Join(r.conf, "net.conflist")
		text, err := os.ReadFile(list)
		if err == nil {
			err = os.WriteFile(list, append([]byte(`{"disableCheck":true,`), text[1:]...), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return r, r.snapshot()
}

func (c *chain) add(t *testing.T, r *rig, k Key, ns string) *Attachment {
	t.Helper()
	a, err := r.Add(t.Context(), Request{Key: k, Network: "net", Namespace: ns, Capabilities: c.capabilities})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// gone holds that nothing of an attachment is left, rules of iptables included, whose
// chains are named after it. What was in a namespace goes in the kernel's own time.
func (r *rig) gone(before []string, k Key) {
	r.t.Helper()
	var now []string
	if !enitest.Within(func() bool { now = r.snapshot(); return slices.Equal(before, now) }) {
		r.t.Errorf("left behind:\n%s", cmp.Diff(before, now))
	}
	rules, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil || strings.Contains(string(rules), k.ID) || strings.Contains(string(rules), "CNI-DN-") {
		r.t.Errorf("rules that are left, %v:\n%s", err, rules)
	}
}

// TestChains holds the chains that operators may configure to what CNI says of a network.
func TestChains(t *testing.T) {
	for _, c := range chains() {
		t.Run(c.name, func(t *testing.T) {
			for name, test := range map[string]func(*testing.T, *chain){
				"ADD": addChain, "DEL": delChain, "CHECK": checkChain,
			} {
				t.Run(name, func(t *testing.T) { test(t, &c) })
			}
		})
	}
}

func addChain(t *testing.T, c *chain) {
	r, before := c.begin(t)
	ns, k := namespace(t), Key{ID: "task.0123", IfName: "eth1"}
	a := c.add(t, r, k, ns)
	if len(a.Addresses) != 1 || !strings.HasPrefix(a.Addresses[0].String(), c.address) || a.MAC == "" {
		t.Errorf("attachment %+v", a)
	}
	if err := enitest.In(ns, func() error {
		l, err := netlink.LinkByName("eth1")
		if err == nil && l.Attrs().HardwareAddr.String() != a.MAC {
			err = fmt.Errorf("MAC address %s", l.Attrs().HardwareAddr)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	stored, err := r.Get(k)
	if diff := cmp.Diff(a, stored, cmpopts.EquateComparable(netip.Prefix{})); err != nil || diff != "" {
		t.Errorf("stored: %v\n%s", err, diff)
	}
	if c.works != nil {
		c.works(t, a, serve(t, a))
	}
	if _, err := r.add(k, "net", ns); err == nil {
		t.Error("a second ADD succeeded")
	}
	// The operator has changed the list in the meantime.
	r.network("net", `{"type":"nothing"}`)
	if err := r.Check(t.Context(), k); err != nil {
		t.Errorf("check: %v", err)
	}
	for range 2 {
		if err := r.Del(t.Context(), k); err != nil {
			t.Fatal(err)
		}
	}
	r.gone(before, k)
}

// delChain deletes what has lost its namespace, what was never whole, and what never was.
func delChain(t *testing.T, c *chain) {
	r, before := c.begin(t)
	long := Key{ID: strings.Repeat("a", 64) + ".0123456789", IfName: "abcdefghijklmno"}
	ns := namespace(t)
	c.add(t, r, long, ns)
	if err := eni.RemoveNamespace(ns); err != nil {
		t.Fatal(err)
	}
	if err := r.Del(t.Context(), long); err != nil {
		t.Errorf("del without the namespace: %v", err)
	}
	failed := Key{ID: "failed", IfName: "eth1"}
	if _, err := r.add(failed, "net", ns+"-missing"); err == nil {
		t.Error("an ADD without a namespace succeeded")
	}
	r.gone(before, failed)
	// The last of the list fails, after the others have done their part.
	r.network("net", append(c.plugins(r), `{"type":"last"}`)...)
	r.scripted("last", "exit 1")
	if _, err := r.Add(t.Context(), Request{Key: failed, Network: "net", Namespace: namespace(t), Capabilities: c.capabilities}); err == nil {
		t.Error("an ADD succeeded whose last plugin failed")
	}
	for _, k := range []Key{failed, {ID: "never", IfName: "eth1"}} {
		if err := r.Del(t.Context(), k); err != nil {
			t.Error(err)
		}
	}
	r.gone(before, failed)
}

func checkChain(t *testing.T, c *chain) {
	damages := map[string]func(ns string) error{
		"interface": inside(func(l netlink.Link) error { return netlink.LinkDel(l) }),
		"address": inside(func(l netlink.Link) error {
			list, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			for _, a := range list {
				if err == nil && a.IP.IsGlobalUnicast() {
					err = netlink.AddrDel(l, &a)
				}
			}
			return err
		}),
	}
	r, before := c.begin(t)
	for name, damage := range damages {
		ns, k := namespace(t), Key{ID: "checked", IfName: "eth1"}
		c.add(t, r, k, ns)
		if err := r.Check(t.Context(), k); err != nil {
			t.Errorf("check before there is any damage: %v", err)
		}
		if err := damage(ns); err != nil {
			t.Fatal(err)
		}
		if err := r.Check(t.Context(), k); err == nil && !c.unchecked {
			t.Errorf("check does not notice the damage to the %s", name)
		}
		if err := r.Del(t.Context(), k); err != nil {
			t.Errorf("del after the damage to the %s: %v", name, err)
		}
		r.gone(before, k)
	}
}

// inside is a damage to the interface eth1 of a namespace.
func inside(damage func(l netlink.Link) error) func(ns string) error {
	return func(ns string) error {
		return enitest.In(ns, func() error {
			l, err := netlink.LinkByName("eth1")
			if err != nil {
				return err
			}
			return damage(l)
		})
	}
}
