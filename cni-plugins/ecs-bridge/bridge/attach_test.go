package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

const patience = 3 * time.Second

func TestAddThenDelLeavesTheHostAsItWas(t *testing.T) {
	h := open(t)
	before := enitest.Snapshot(t, h.cfg.Dir)
	ns := enitest.Namespace(t)
	withNamespace := enitest.Snapshot(t, h.cfg.Dir)
	a, err := h.Add(t.Context(), Request{Key: key(1), Namespace: ns, Ports: []Port{
		{Protocol: "tcp", HostPort: 8080, ContainerPort: 80},
		{Protocol: "udp", ContainerPort: 53},
		{Protocol: "tcp", ContainerPort: 7000, Count: 10},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Check(t.Context(), key(1), ns); err != nil {
		t.Errorf("check after add: %v", err)
	}
	if a.Ports[1].HostPort == 0 || a.Ports[2].HostPort == 0 {
		t.Errorf("dynamic ports were not chosen: %+v", a.Ports)
	}
	if cmp.Equal(withNamespace, enitest.Snapshot(t, h.cfg.Dir)) {
		t.Fatal("the snapshot does not see an attachment")
	}
	for range 2 {
		if err := h.Del(t.Context(), key(1)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(withNamespace, enitest.Snapshot(t, h.cfg.Dir)); diff != "" {
			t.Errorf("del left something (-before +after):\n%s", diff)
		}
	}
	if err := eni.RemoveNamespace(ns); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, enitest.Snapshot(t, h.cfg.Dir)); diff != "" {
		t.Errorf("removing the namespace left something:\n%s", diff)
	}
}

// outside is a neighbour of the host: 192.0.2.2, the host being 192.0.2.1.
func outside(t *testing.T) string {
	t.Helper()
	path := enitest.Namespace(t)
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.Fd())}
	inside, err := ns.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	up := func(h *netlink.Handle, name, addr string) {
		t.Helper()
		link, err := h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(h.AddrAdd(link, a), h.LinkSetUp(link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	host, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	up(host, "uplink", "192.0.2.1/24")
	up(inside, "eth0", "192.0.2.2/24")
	return path
}

// With br_netfilter the kernel translates on the bridge, without it after the bridge.
func TestPublishedPortAnswersFromEverywhere(t *testing.T) {
	withBothNetfilters(t, testPublishedPort)
}

// withBothNetfilters runs a test with br_netfilter active and without.
func withBothNetfilters(t *testing.T, test func(t *testing.T)) {
	for _, netfilter := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+netfilter, func(t *testing.T) {
			enitest.Root(t)
			const key = "/proc/sys/net/bridge/bridge-nf-call-iptables"
			was, err := os.ReadFile(key)
			if errors.Is(err, os.ErrNotExist) && netfilter == "1" {
				t.Skip("this kernel has no br_netfilter, or has not loaded it")
			}
			if err == nil {
				if err := os.WriteFile(key, []byte(netfilter), 0o644); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := os.WriteFile(key, was, 0o644); err != nil {
						t.Error(err)
					}
				})
			}
			test(t)
		})
	}
}

func testPublishedPort(t *testing.T) {
	h := open(t, func(c *Config) { c.Hold = true })
	neighbour := outside(t)
	a, web := attach(t, h, 1, Port{Protocol: "tcp", HostPort: 8080, ContainerPort: 80})
	b, other := attach(t, h, 2)
	enitest.Echo(t, web, ":80")
	gateway := h.cfg.gateway().String()
	for _, c := range []struct{ name, from, to, seen string }{
		{"neighbour to a host address", neighbour, "192.0.2.1", "192.0.2.2"},
		{"host to its own address", "", "192.0.2.1", "192.0.2.1"},
		{"host to loopback", "", "127.0.0.1", gateway},
		{"host to another loopback address", "", "127.1.2.3", gateway},
		{"host to the bridge", "", gateway, gateway},
		{"other task to a host address", other, "192.0.2.1", b.Address.String()},
		{"other task to the bridge", other, gateway, b.Address.String()},
		{"the task itself to a host address", web, "192.0.2.1", gateway},
		{"the task itself to the bridge", web, gateway, gateway},
	} {
		t.Run(c.name, func(t *testing.T) {
			seen, err := enitest.Dial(c.from, c.to+":8080", patience)
			if err != nil {
				t.Fatal(err)
			}
			if seen != c.seen {
				t.Errorf("the server saw %s, want %s", seen, c.seen)
			}
		})
	}
	t.Run("outside from the task, masqueraded", func(t *testing.T) {
		enitest.Echo(t, neighbour, ":9")
		seen, err := enitest.Dial(web, "192.0.2.2:9", patience)
		if err != nil || seen != "192.0.2.1" {
			t.Errorf("the neighbour saw %q, %v; want the host's address", seen, err)
		}
	})
	t.Run("unpublished ports and direct addresses are refused", func(t *testing.T) {
		enitest.Echo(t, web, ":81")
		direct := a.Address.String()
		route := &netlink.Route{Dst: mustNet(t, h.cfg.Subnet.String()), Gw: net.IPv4(192, 0, 2, 1)}
		if err := enitest.In(neighbour, func() error { return netlink.RouteAdd(route) }); err != nil {
			t.Fatal(err)
		}
		for from, ns := range map[string]string{"other task": other, "neighbour": neighbour} {
			for _, port := range []string{"80", "81"} {
				if _, err := enitest.Dial(ns, net.JoinHostPort(direct, port), patience); err == nil {
					t.Errorf("%s reached %s:%s directly", from, direct, port)
				}
			}
		}
		if _, err := enitest.Dial("", net.JoinHostPort(direct, "81"), patience); err != nil {
			t.Errorf("the host itself cannot reach the task: %v", err)
		}
	})
	if err := h.Del(t.Context(), key(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := enitest.Dial("", "127.0.0.1:8080", patience); err == nil {
		t.Error("the port answers after del")
	}
}

func mustNet(t *testing.T, s string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// udpServer answers each datagram with the name it was given.
func udpServer(t *testing.T, ns, address, name string) {
	t.Helper()
	var c net.PacketConn
	if err := enitest.In(ns, func() (err error) { c, err = net.ListenPacket("udp4", address); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if _, err := c.WriteTo([]byte(name), from); err != nil {
				return
			}
		}
	}()
}

func ask(c net.Conn) (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := c.Write([]byte("who")); err != nil {
		return "", err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func TestUDPFlowFollowsThePortToItsNextTask(t *testing.T) {
	h := open(t)
	port := Port{Protocol: "udp", HostPort: 5353, ContainerPort: 53}
	_, first := attach(t, h, 1, port)
	udpServer(t, first, ":53", "first")
	c, err := net.Dial("udp4", "127.0.0.1:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := ask(c); err != nil || got != "first" {
		t.Fatalf("got %q, %v", got, err)
	}
	if err := h.Del(t.Context(), key(1)); err != nil {
		t.Fatal(err)
	}
	_, second := attach(t, h, 2, port)
	udpServer(t, second, ":53", "second")
	// The same socket: the same flow for connection tracking.
	if got, err := ask(c); err != nil || got != "second" {
		t.Errorf("got %q, %v; the flow still goes to the first task", got, err)
	}
}

func TestTaskCannotReachTheHostsLoopback(t *testing.T) {
	h := open(t)
	_, evil := attach(t, h, 1)
	enitest.Echo(t, "", "127.0.0.1:6666")
	// What root with its own namespace can do: send 127.0.0.1 to the gateway.
	if err := enitest.In(evil, func() error {
		for _, key := range []string{"all", "eth0"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+key+"/route_localnet", []byte("1"), 0o644); err != nil {
				return err
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(lo, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := netlink.AddrDel(lo, &a); err != nil {
				return err
			}
		}
		return netlink.RouteAdd(&netlink.Route{Dst: mustNet(t, "127.0.0.0/8"), Gw: h.cfg.gateway().AsSlice(), Table: 254})
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := enitest.Dial(evil, "127.0.0.1:6666", 300*time.Millisecond); err == nil {
		t.Error("a task reached a service on the host's loopback")
	}
	// The attack is real: without the guard it succeeds.
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushChain(&nftables.Chain{Name: "guard", Table: h.rules.inet})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := enitest.Dial(evil, "127.0.0.1:6666", patience); err != nil {
		t.Errorf("the test does not attack: without the guard too, %v", err)
	}
}

func TestTaskCannotUseAnothersAddress(t *testing.T) {
	h := open(t)
	victim, _ := attach(t, h, 1)
	_, evil := attach(t, h, 2)
	seen := make(chan string, 16)
	server, err := net.ListenPacket("udp4", h.cfg.gateway().String()+":7777")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			seen <- fmt.Sprintf("%s from %s", buf[:n], from.(*net.UDPAddr).IP)
		}
	}()
	send := func(source, text string) {
		t.Helper()
		if err := enitest.In(evil, func() error {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)}}
			c, err := d.Dial("udp4", server.LocalAddr().String())
			if err != nil {
				return err
			}
			_, err = c.Write([]byte(text))
			return errors.Join(err, c.Close())
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := enitest.In(evil, func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: alone(victim.Address)})
	}); err != nil {
		t.Fatal(err)
	}
	send(victim.Address.String(), "spoofed")
	send(h.Lookup(key(2)).Address.String(), "honest")
	// Frames of one interface stay in order, so the honest one ends the wait.
	if got := <-seen; !strings.HasPrefix(got, "honest") {
		t.Errorf("the host got %q", got)
	}
}

func TestParallelAddsShareNothing(t *testing.T) {
	h := open(t)
	const n = 50
	got := make([]*Attachment, n)
	var g errgroup.Group
	for i := range n {
		ns := enitest.Namespace(t)
		g.Go(func() (err error) {
			got[i], err = h.Add(t.Context(), Request{Key: key(i), Namespace: ns, Ports: []Port{{Protocol: "tcp", ContainerPort: 80}}})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	addrs, ports := map[netip.Addr]bool{}, map[uint16]bool{}
	for _, a := range got {
		if addrs[a.Address] || ports[a.Ports[0].HostPort] {
			t.Errorf("%s or port %d was given twice", a.Address, a.Ports[0].HostPort)
		}
		addrs[a.Address], ports[a.Ports[0].HostPort] = true, true
	}
	for i := range n {
		g.Go(func() error { return h.Del(context.Background(), key(i)) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

func TestPoolOfFiveAddresses(t *testing.T) {
	h := open(t, subnet("10.99.0.0/29"))
	for i := range 5 {
		attach(t, h, i)
	}
	ns := enitest.Namespace(t)
	if _, err := h.Add(t.Context(), Request{Key: key(9), Namespace: ns}); KindOf(err) != Exhausted {
		t.Errorf("the sixth: %v, want exhausted", err)
	}
	if err := h.Status(); KindOf(err) != Exhausted {
		t.Errorf("status: %v, want exhausted", err)
	}
	for i := range 5 {
		if err := h.Del(t.Context(), key(i)); err != nil {
			t.Fatal(err)
		}
	}
	used := map[netip.Addr]bool{}
	for i := range 40 {
		a, err := h.Add(t.Context(), Request{Key: key(100 + i), Namespace: ns})
		if err != nil {
			t.Fatal(err)
		}
		used[a.Address] = true
		if err := h.Del(t.Context(), key(100+i)); err != nil {
			t.Fatal(err)
		}
	}
	if len(used) != 5 {
		t.Errorf("%d of 5 addresses were used in 40 cycles", len(used))
	}
}

func TestPortConflictsAreNamed(t *testing.T) {
	h := open(t, func(c *Config) { c.Hold = true; c.FirstPort, c.LastPort = 40000, 40003 })
	taken := enitest.Listen(t, "", "127.0.0.1:0").Addr().(*net.TCPAddr).Port
	attach(t, h, 1, Port{Protocol: "tcp", HostPort: 8080, ContainerPort: 80})
	ns := enitest.Namespace(t)
	for _, c := range []struct {
		name  string
		ports []Port
		kind  Kind
		text  string
	}{
		{"other process", []Port{{Protocol: "tcp", HostPort: uint16(taken), ContainerPort: 80}}, PortTaken, fmt.Sprintf("a host port is unavailable: %d/tcp is in use", taken)},
		{"other task", []Port{{Protocol: "tcp", HostPort: 8080, ContainerPort: 81}}, Exhausted, "a host port is unavailable: 8080/tcp is published by"},
		{"twice", []Port{{Protocol: "tcp", HostPort: 8081, ContainerPort: 81}, {Protocol: "tcp", HostPort: 8081, ContainerPort: 82}}, Invalid, "8081/tcp is asked for twice"},
		{"range too long", []Port{{Protocol: "tcp", ContainerPort: 81, Count: 5}}, Exhausted, "5 contiguous host ports are unavailable"},
		{"range used up", []Port{{Protocol: "tcp", ContainerPort: 81, Count: 3}, {Protocol: "tcp", ContainerPort: 90, Count: 2}}, Exhausted, "2 contiguous host ports are unavailable"},
		{"protocol", []Port{{Protocol: "sctp", HostPort: 1, ContainerPort: 1}}, Invalid, "sctp"},
		{"past the end", []Port{{Protocol: "tcp", HostPort: 65530, ContainerPort: 1, Count: 10}}, Invalid, "ends above 65535"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := enitest.Snapshot(t, h.cfg.Dir)
			_, err := h.Add(t.Context(), Request{Key: key(2), Namespace: ns, Ports: c.ports})
			if err == nil || KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got kind %d, %v; want kind %d, %q", KindOf(err), err, c.kind, c.text)
			}
			if diff := cmp.Diff(before, enitest.Snapshot(t, h.cfg.Dir)); diff != "" {
				t.Errorf("a failed add left something:\n%s", diff)
			}
		})
	}
	if l, err := net.Listen("tcp4", ":8080"); err == nil {
		l.Close()
		t.Error("another process could listen on a published port")
	}
	a, _ := attach(t, h, 3, Port{Protocol: "tcp", ContainerPort: 1, Count: 2}, Port{Protocol: "udp", ContainerPort: 1, Count: 4}, Port{Protocol: "tcp", ContainerPort: 9})
	if a.Ports[0].HostPort < 40000 || a.Ports[1].HostPort != 40000 {
		t.Errorf("ports %+v", a.Ports)
	}
}

func TestThousandPortMappings(t *testing.T) {
	h := open(t, func(c *Config) { c.Hold = true })
	before := enitest.Snapshot(t, h.cfg.Dir)
	ns := enitest.Namespace(t)
	var ports []Port
	for i := range 900 {
		ports = append(ports, Port{Protocol: "tcp", HostPort: uint16(20000 + i), ContainerPort: uint16(1000 + i)})
	}
	ports = append(ports, Port{Protocol: "tcp", HostPort: 21000, ContainerPort: 3000, Count: 100})
	start := time.Now()
	if _, err := h.Add(t.Context(), Request{Key: key(1), Namespace: ns, Ports: ports}); err != nil {
		t.Fatal(err)
	}
	t.Logf("1,000 ports added in %v", time.Since(start))
	enitest.Echo(t, ns, ":3099")
	if _, err := enitest.Dial("", "127.0.0.1:21099", patience); err != nil {
		t.Error(err)
	}
	if err := h.Setup(t.Context()); err != nil { // rebuilds all elements
		t.Fatal(err)
	}
	if _, err := h.Check(t.Context(), key(1), ns); err != nil {
		t.Error(err)
	}
	if err := errors.Join(h.Del(t.Context(), key(1)), eni.RemoveNamespace(ns)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, enitest.Snapshot(t, h.cfg.Dir)); diff != "" {
		t.Errorf("left behind:\n%s", diff)
	}
}

func TestPublishedPortOutlivesTheAgent(t *testing.T) {
	h := open(t, func(c *Config) { c.Hold = true })
	_, web := attach(t, h, 1, Port{Protocol: "tcp", HostPort: 8080, ContainerPort: 80})
	enitest.Echo(t, web, ":80")
	if err := h.held[key(1)].close(); err != nil { // what the kernel does when the agent dies
		t.Fatal(err)
	}
	enitest.Echo(t, "", ":8080") // somebody takes the port meanwhile
	seen, err := enitest.Dial("", "127.0.0.1:8080", patience)
	if err != nil || seen != h.cfg.gateway().String() {
		t.Errorf("the other process got the traffic: %q, %v", seen, err)
	}
	again, err := Open(h.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Setup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Check(t.Context(), key(1), web); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if seen, err = enitest.Dial("", "127.0.0.1:8080", patience); err != nil || seen != h.cfg.gateway().String() {
		t.Errorf("after a restart: %q, %v", seen, err)
	}
}

func BenchmarkAddDel(b *testing.B) {
	h := open(b, func(c *Config) { c.Hold = true })
	ns := enitest.Namespace(b)
	var add, del time.Duration
	for i := 0; b.Loop(); i++ {
		t0 := time.Now()
		if _, err := h.Add(b.Context(), Request{Key: key(i), Namespace: ns, Ports: []Port{{Protocol: "tcp", ContainerPort: 80}}}); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if err := h.Del(b.Context(), key(i)); err != nil {
			b.Fatal(err)
		}
		add, del = add+t1.Sub(t0), del+time.Since(t1)
	}
	b.ReportMetric(float64(add.Microseconds())/float64(b.N)/1000, "ms/add")
	b.ReportMetric(float64(del.Microseconds())/float64(b.N)/1000, "ms/del")
}

func TestTaskCannotSendToAnotherOnTheBridge(t *testing.T) {
	h := open(t)
	victim, web := attach(t, h, 1)
	_, evil := attach(t, h, 2)
	enitest.Echo(t, web, ":80")
	// Both sides conspire to talk without the host between them.
	neighbour := func(ns string, other *Attachment) {
		t.Helper()
		if err := enitest.In(ns, func() error {
			link, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return errors.Join(
				netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: alone(other.Address), Scope: netlink.SCOPE_LINK}),
				netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: other.Address.AsSlice(), HardwareAddr: other.hardwareAddr(), State: netlink.NUD_PERMANENT}))
		}); err != nil {
			t.Fatal(err)
		}
	}
	neighbour(evil, victim)
	neighbour(web, h.Lookup(key(2)))
	target := victim.Address.String() + ":80"
	if _, err := enitest.Dial(evil, target, 300*time.Millisecond); err == nil {
		t.Error("a task reached another on the bridge")
	}
	// The attack is real: without the rules it succeeds.
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushChain(&nftables.Chain{Name: "isolation", Table: h.rules.bridge})
	c.FlushChain(&nftables.Chain{Name: "forward", Table: h.rules.inet})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := enitest.Dial(evil, target, patience); err != nil {
		t.Errorf("the test does not attack: without the rules too, %v", err)
	}
}
