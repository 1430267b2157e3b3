package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/eni/enitest"
)

func dual(c *Config) {
	c.Subnet6 = netip.MustParsePrefix("fd7b:8a31:44::/64")
	c.Hold = true
}

// outside6 is outside with IPv6 addresses on the link between: 2001:db8::1 is the host's.
func outside6(t *testing.T) string {
	t.Helper()
	ns := outside(t)
	add := func(link, addr string) error {
		l, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD
		return netlink.AddrAdd(l, a)
	}
	if err := add("uplink", "2001:db8::1/64"); err != nil {
		t.Fatal(err)
	}
	if err := enitest.In(ns, func() error { return add("eth0", "2001:db8::2/64") }); err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestDualStack(t *testing.T) { withBothNetfilters(t, testDualStack) }

func testDualStack(t *testing.T) {
	h := open(t, dual)
	neighbour := outside6(t)
	a, web := attach(t, h, 1, Port{Protocol: "tcp", HostPort: 8080, ContainerPort: 80})
	b, other := attach(t, h, 2)
	if want := h.cfg.beside(a.Address); a.Address6 != want || !h.cfg.Subnet6.Contains(want) || a.Gateway6.String() != "fd7b:8a31:44::1" {
		t.Fatalf("attachment %+v", a)
	}
	enitest.Echo(t, web, ":80")
	enitest.Echo(t, web, "[::]:80")
	gateway := a.Gateway6.String()
	for _, c := range []struct{ name, from, to, seen string }{
		{"neighbour to a host address", neighbour, "2001:db8::1", "2001:db8::2"},
		{"host to its own address", "", "2001:db8::1", "2001:db8::1"},
		{"host to the bridge", "", gateway, gateway},
		{"other task to a host address", other, "2001:db8::1", b.Address6.String()},
		{"other task to the bridge", other, gateway, b.Address6.String()},
		{"the task itself to a host address", web, "2001:db8::1", gateway},
		{"the task itself to the bridge", web, gateway, gateway},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen, err := enitest.Dial(c.from, net.JoinHostPort(c.to, "8080"), patience)
			if err != nil || seen != c.seen {
				t.Errorf("the server saw %q, %v; want %s", seen, err, c.seen)
			}
		})
	}
	if _, err := enitest.Dial(neighbour, "192.0.2.1:8080", patience); err != nil {
		t.Errorf("IPv4 beside IPv6: %v", err)
	}
	enitest.Echo(t, neighbour, "[::]:9")
	if seen, err := enitest.Dial(web, "[2001:db8::2]:9", patience); err != nil || seen != "2001:db8::1" {
		t.Errorf("the neighbour saw %q, %v; want the host's address", seen, err)
	}
	route := &netlink.Route{Dst: mustNet(t, h.cfg.Subnet6.String()), Gw: net.ParseIP("2001:db8::1")}
	if err := enitest.In(neighbour, func() error { return netlink.RouteAdd(route) }); err != nil {
		t.Fatal(err)
	}
	for from, ns := range map[string]string{"other task": other, "neighbour": neighbour} {
		if _, err := enitest.Dial(ns, net.JoinHostPort(a.Address6.String(), "80"), patience); err == nil {
			t.Errorf("%s reached the task directly", from)
		}
	}
	if _, err := h.Check(t.Context(), key(1), web); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := enitest.In(web, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrDel(l, &netlink.Addr{IPNet: alone(a.Address6)})
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Check(t.Context(), key(1), web); KindOf(err) != Damaged {
		t.Errorf("check without the IPv6 address: %v", err)
	}
}

// A port is published for both families or for none.
func TestPortIsTakenInBothFamilies(t *testing.T) {
	h := open(t, dual)
	for _, address := range []string{"[::1]:8081", "127.0.0.1:8081"} {
		l := enitest.Listen(t, "", address)
		_, err := h.Add(t.Context(), Request{Key: key(1), Namespace: enitest.Namespace(t), Ports: []Port{{Protocol: "tcp", HostPort: 8081, ContainerPort: 80}}})
		if KindOf(err) != PortTaken {
			t.Errorf("beside a listener on %s: %v", address, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	attach(t, h, 2, Port{Protocol: "tcp", HostPort: 8081, ContainerPort: 80})
	if l, err := net.Listen("tcp6", "[::1]:8081"); err == nil {
		t.Errorf("a published port can be bound: %v", l.Close())
	}
}

// Members of a group reach each other by IPv6, too, and a namespace cannot take over an
// address by neighbour discovery or by using it.
func TestIPv6Isolation(t *testing.T) {
	h := open(t, dual)
	var spaces []string
	var members []*Attachment
	for i := range 3 {
		ns := enitest.Namespace(t)
		group := "one"
		if i == 2 {
			group = "two"
		}
		a, err := h.Add(t.Context(), Request{Key: key(i), Namespace: ns, Group: group})
		if err != nil {
			t.Fatal(err)
		}
		spaces, members = append(spaces, ns), append(members, a)
		enitest.Echo(t, ns, "[::]:80")
	}
	victim := net.JoinHostPort(members[0].Address6.String(), "80")
	if seen, err := enitest.Dial(spaces[1], victim, patience); err != nil || seen != members[1].Address6.String() {
		t.Errorf("member saw %q, %v", seen, err)
	}
	if _, err := enitest.Dial(spaces[2], victim, patience); err == nil {
		t.Error("a stranger reaches a member")
	}
	if _, err := enitest.Dial("", victim, patience); err != nil {
		t.Errorf("the host: %v", err)
	}
	// The stranger says on the link that it has the victim's address, then uses it.
	if err := enitest.In(spaces[2], func() error { return claim(members[0].Address6) }); err != nil {
		t.Fatal(err)
	}
	br, err := netlink.LinkByName(h.cfg.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	neighbours, err := netlink.NeighList(br.Attrs().Index, netlink.FAMILY_V6)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range neighbours {
		if n.IP.Equal(members[0].Address6.AsSlice()) && n.HardwareAddr.String() != members[0].MAC {
			t.Errorf("the host takes %s for the victim", n.HardwareAddr)
		}
	}
	if _, err := enitest.Dial("", victim, patience); err != nil {
		t.Errorf("the host after the claim: %v", err)
	}
	if err := enitest.In(spaces[2], func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: alone(members[0].Address6), Flags: unix.IFA_F_NODAD})
	}); err != nil {
		t.Fatal(err)
	}
	enitest.Echo(t, "", fmt.Sprintf("[%s]:7", members[0].Gateway6))
	if err := enitest.In(spaces[2], func() error {
		d := net.Dialer{Timeout: 500 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: members[0].Address6.AsSlice()}}
		c, err := d.Dial("tcp6", fmt.Sprintf("[%s]:7", members[0].Gateway6))
		if err == nil {
			return fmt.Errorf("connected with the victim's address: %w", c.Close())
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// claim sends an unsolicited neighbour advertisement for an address to all nodes.
func claim(address netip.Addr) (err error) {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	for _, o := range []struct{ name, value int }{{unix.IPV6_MULTICAST_HOPS, 255}, {unix.IPV6_MULTICAST_IF, l.Attrs().Index}} {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, o.name, o.value); err != nil {
			return err
		}
	}
	message := append([]byte{ndNeighborAdvertisement, 0, 0, 0, 0x20, 0, 0, 0}, address.AsSlice()...) // 0x20: override
	message = append(append(message, 2, 1), l.Attrs().HardwareAddr...)                               // target link-layer address
	return unix.Sendto(fd, message, 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(l.Attrs().Index)})
}

func TestAddressBeside(t *testing.T) {
	for _, c := range []struct{ subnet, subnet6, addr, want string }{
		{"10.213.64.0/20", "fd00:1::/64", "10.213.64.1", "fd00:1::1"},
		{"10.213.64.0/20", "fd00:1::/64", "10.213.79.254", "fd00:1::ffe"},
		{"10.0.0.0/8", "fd00:1::f000:0/104", "10.255.255.254", "fd00:1::f0ff:fffe"},
		{"172.31.77.0/24", "fd00:1::a00/120", "172.31.77.7", "fd00:1::a07"},
	} {
		cfg := Config{Dir: "/x", Subnet: netip.MustParsePrefix(c.subnet), Subnet6: netip.MustParsePrefix(c.subnet6)}
		if err := cfg.normalize(); err != nil {
			t.Errorf("%s: %v", c.subnet6, err)
			continue
		}
		if got := cfg.beside(netip.MustParseAddr(c.addr)); got.String() != c.want {
			t.Errorf("beside %s in %s: %s, want %s", c.addr, c.subnet6, got, c.want)
		}
	}
	for _, bad := range []string{"10.0.0.0/24", "fe80::/64", "ff00::/64", "fd00::/120", "::ffff:10.0.0.0/112"} {
		cfg := Config{Dir: "/x", Subnet6: netip.MustParsePrefix(bad)}
		if err := cfg.normalize(); KindOf(err) != Invalid {
			t.Errorf("subnet %s: %v", bad, err)
		}
	}
}

// A host that gets its routes from routers goes on listening to them, and is afterwards
// what it was.
func TestIPv6ForwardingKeepsRoutesOfRouters(t *testing.T) {
	enitest.Root(t)
	read := func(key string) string {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(sysctlRoot, key))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	t.Run("system", func(t *testing.T) {
		uplink := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "router"} // down, so without addresses of its own
		if err := netlink.LinkAdd(uplink); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netlink.LinkDel(uplink); err != nil {
				t.Error(err)
			}
		})
		if err := writeSysctl("ipv6/conf/uplink/accept_ra", "1"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if got := read("ipv6/conf/uplink/accept_ra"); got != "1" {
				t.Errorf("accept_ra of the uplink is %s after teardown", got)
			}
		})
		h := open(t, dual)
		for range 2 {
			if err := h.Setup(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := read("ipv6/conf/uplink/accept_ra"); got != "2" || read(forwarding6) != "1" {
			t.Errorf("accept_ra of the uplink is %s, forwarding %s", got, read(forwarding6))
		}
	})
	if got := read(forwarding6); got != "0" {
		t.Errorf("forwarding is %s after teardown", got)
	}
}
