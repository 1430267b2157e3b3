package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

// plug adds a device to the host, as hardware that is plugged in. The other end, with the
// gateway's addresses, is in a namespace whose path it returns: the subnet's router.
func plug(t *testing.T, n int, gateways ...string) (mac, router string) {
	t.Helper()
	mac = fmt.Sprintf("02:00:00:00:09:%02x", n)
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	router = enitest.Namespace(t)
	ns, err := eni.OpenNamespace(router)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	name, peer := fmt.Sprintf("ens%d", n), fmt.Sprintf("gw%d", n)
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hw}, PeerName: peer, PeerNamespace: netlink.NsFd(ns.Fd())}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := enitest.In(router, func() error {
			l, err := netlink.LinkByName(peer)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}); err != nil {
			t.Error(err)
		}
	})
	if err := enitest.In(router, func() error {
		l, err := netlink.LinkByName(peer)
		if err != nil {
			return err
		}
		for _, gw := range gateways {
			a, err := netlink.ParseAddr(gw)
			if err != nil {
				return err
			}
			if a.IP.To4() == nil {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(l)
	}); err != nil {
		t.Fatal(err)
	}
	return mac, router
}

// elasticTask is a task with the given interfaces.
func elasticTask(i int, interfaces ...task.Interface) *task.Task {
	tk := someTask(i, task.NetworkAWSVPC, web(), task.Container{Name: "side"})
	tk.Interfaces = interfaces
	return tk
}

// A device that is not on the host is waited for, and one that does not come is named.
func TestDeviceComesLate(t *testing.T) {
	n := open(t, func(c *Config) { c.DeviceWait = time.Minute })
	v4 := netip.MustParsePrefix("10.9.0.1/24")
	tk := elasticTask(1, task.Interface{ID: "eni-1", MAC: "02:00:00:00:09:01", Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.5")}, GatewayV4: v4})
	ensured := make(chan error, 1)
	go func() {
		_, err := n.Ensure(t.Context(), tk, sharedName, engine.Deps{})
		ensured <- err
	}()
	plug(t, 1, "10.9.0.1/24")
	if err := <-ensured; err != nil {
		t.Fatal(err)
	}
	removeOf(t, n, tk, sharedName)

	n.cfg.DeviceWait = 50 * time.Millisecond
	absent := elasticTask(2, task.Interface{
		ID: "eni-2", MAC: "02:00:00:00:09:02", VLAN: 7, Trunk: "02:00:00:00:09:03", Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.6")}, GatewayV4: v4,
	})
	_, err := n.Ensure(t.Context(), absent, sharedName, engine.Deps{})
	if task.ClassOf(err).Retriable() || !strings.Contains(fmt.Sprint(err), "02:00:00:00:09:03") || !strings.Contains(fmt.Sprint(err), "attach the network interface") {
		t.Errorf("a device that does not come: %v", err)
	}
	removeOf(t, n, absent, sharedName)
}

// Tasks with interfaces of one family or both, and with several: each address is reached
// from its own subnet, and answered by its own interface.
func TestElasticInterfaces(t *testing.T) {
	v4, v6 := netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("fd00:9::1/64")
	for _, c := range []struct {
		name      string
		make      func(mac, second string) []task.Interface
		ip        string
		reached   []string // from the first router
		second    string   // from the second
		resolvers string
	}{
		{"IPv4", func(mac, _ string) []task.Interface {
			return []task.Interface{{ID: "eni-1", MAC: mac, Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.5")}, GatewayV4: v4, NameServers: []string{"10.9.0.2"}}}
		}, "10.9.0.5", []string{"10.9.0.5"}, "", "nameserver 10.9.0.2\n"},
		{"dual stack", func(mac, _ string) []task.Interface {
			return []task.Interface{{ID: "eni-1", MAC: mac, Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.5"), netip.MustParseAddr("fd00:9::5")}, GatewayV4: v4, GatewayV6: v6}}
		}, "10.9.0.5", []string{"10.9.0.5", "fd00:9::5"}, "", "nameserver 192.0.2.53\nnameserver 2001:db8::53\n"},
		{"IPv6 only", func(mac, _ string) []task.Interface {
			return []task.Interface{{ID: "eni-1", MAC: mac, Addresses: []netip.Addr{netip.MustParseAddr("fd00:9::5")}, GatewayV6: v6}}
		}, "fd00:9::5", []string{"fd00:9::5"}, "", "nameserver 2001:db8::53\n"},
		{"two interfaces", func(mac, second string) []task.Interface {
			return []task.Interface{
				{ID: "eni-1", MAC: mac, Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.5")}, GatewayV4: v4},
				{ID: "eni-2", Index: 1, MAC: second, Addresses: []netip.Addr{netip.MustParseAddr("10.10.0.5")}, GatewayV4: netip.MustParsePrefix("10.10.0.1/24")},
			}
		}, "10.9.0.5", []string{"10.9.0.5"}, "10.10.0.5", "nameserver 192.0.2.53\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := open(t)
			if err := os.WriteFile(n.cfg.Resolv, []byte("nameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			mac, first := plug(t, 1, "10.9.0.1/24", "fd00:9::1/64")
			other, second := plug(t, 2, "10.10.0.1/24", "203.0.113.1/24")
			tk := elasticTask(1, c.make(mac, other)...)
			h, _ := ensureOf(t, n, tk, sharedName)
			again, _ := ensureOf(t, n, tk, sharedName)
			if diff := cmp.Diff(h, again); diff != "" || h.IP != c.ip || h.MAC != mac {
				t.Errorf("handle %+v\n%s", h, diff)
			}
			if got := read(t, h.Resolv); !strings.HasSuffix(got, c.resolvers) || strings.Count(got, "nameserver") != strings.Count(c.resolvers, "nameserver") {
				t.Errorf("resolv.conf %q, want %q", got, c.resolvers)
			}
			enitest.Echo(t, h.Path, ":80")
			enitest.Echo(t, h.Path, "[::]:80")
			for _, address := range c.reached {
				if _, err := enitest.Dial(first, net.JoinHostPort(address, "80"), 3*time.Second); err != nil {
					t.Errorf("%s from its subnet: %v", address, err)
				}
			}
			if c.second != "" {
				// From an address that only the second interface's table leads back to the right way.
				if err := enitest.In(second, func() error {
					d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(203, 0, 113, 1)}}
					conn, err := d.Dial("tcp4", c.second+":80")
					if err == nil {
						err = conn.Close()
					}
					return err
				}); err != nil {
					t.Errorf("%s by its own router: %v", c.second, err)
				}
			}
			o, err := n.Probe(t.Context(), tk, sharedName, nil)
			if err != nil || !o.Exists {
				t.Errorf("probe: %+v, %v", o, err)
			}
			removeOf(t, n, tk, sharedName)
			// Hardware is given back.
			for _, i := range tk.Interfaces {
				hw, err := net.ParseMAC(i.MAC)
				if err == nil {
					_, err = netlink.LinkByName(eni.HostName(hw))
				}
				if err != nil {
					t.Errorf("interface %s after the task: %v", i.MAC, err)
				}
			}
		})
	}
}

// pooled is an interface that the agent makes.
func pooled(n byte) task.Interface {
	return task.Interface{
		ID: fmt.Sprintf("eni-%d", n), MAC: fmt.Sprintf("02:00:00:00:08:%02x", n), Subnet: "subnet-1",
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 8, 0, n})}, GatewayV4: netip.MustParsePrefix("10.8.0.1/24"),
	}
}

// A network of which a part is missing, as an interrupted start leaves it, is made anew,
// with the security groups that the cluster has sent once.
func TestElasticNetworkIsMadeAnew(t *testing.T) {
	n := open(t, func(c *Config) { c.Pool = &eni.Pool{Kind: eni.PoolBridge, Owner: "test"} })
	before := enitest.Snapshot(t, n.cfg.Dir)
	tk := elasticTask(1, pooled(5))
	_, err := n.Ensure(t.Context(), tk, sharedName, engine.Deps{})
	if task.ClassOf(err) != task.Unavailable || !strings.Contains(err.Error(), "security groups") {
		t.Errorf("before the security groups: %v", err)
	}
	everything := []task.TrafficRule{{Protocol: -1, First: -1, Last: -1, Prefix: netip.MustParsePrefix("0.0.0.0/0")}}
	if err := n.SetPolicies(t.Context(), map[string]task.TrafficPolicy{tk.Interfaces[0].MAC: {Egress: everything}}); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []func(h Handle) error{
		func(Handle) error { return nil },
		func(h Handle) error {
			return enitest.In(h.Path, func() error {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.LinkSetDown(l)
			})
		},
		func(h Handle) error { return eni.RemoveNamespace(h.Path) },
	} {
		h, _ := ensureOf(t, n, tk, sharedName)
		if err := damage(h); err != nil {
			t.Fatal(err)
		}
		h, _ = ensureOf(t, n, tk, sharedName)
		if o, err := n.Probe(t.Context(), tk, sharedName, nil); err != nil || !o.Exists {
			t.Errorf("probe: %+v, %v", o, err)
		}
		enitest.Eventually(t, "the task reaches its router", func() bool {
			err := enitest.In(h.Path, func() error {
				c, err := net.DialTimeout("tcp4", "10.8.0.1:9", time.Second)
				if err == nil {
					return c.Close()
				}
				return err
			})
			return errors.Is(err, unix.ECONNREFUSED)
		})
	}
	if err := os.WriteFile(filepath.Join(n.cfg.Dir, "interfaces", ".new-1"), nil, 0o600); err != nil { // of an agent that was killed
		t.Fatal(err)
	}
	if err := n.EnsureHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	removeOf(t, n, tk, sharedName)
	files := slices.DeleteFunc(enitest.Snapshot(t, n.cfg.Dir), func(s string) bool { return strings.HasSuffix(s, "/net/files") })
	if diff := cmp.Diff(before, files); diff != "" {
		t.Errorf("remove left something:\n%s", diff)
	}
}
