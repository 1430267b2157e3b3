package eni_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

// pooled makes a namespace with an interface of a pool.
func pooled(t *testing.T, p *eni.Pool, n byte) (path string, addr netip.Addr) {
	t.Helper()
	addr = netip.AddrFrom4([4]byte{10, 77, 0, n})
	d := eni.PoolDevice{
		MAC: net.HardwareAddr{2, 7, 7, 0, 0, n}, Subnet: "subnet-1", Addresses: []netip.Addr{addr},
		Gateways: []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24")}, Alias: "test",
	}
	ctx := context.Background()
	for range 2 {
		if err := p.Ensure(ctx, d); err != nil {
			t.Fatal(err)
		}
	}
	path = enitest.Namespace(t)
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.Close()
		if err := errors.Join(ns.Close(), p.Remove(ctx, d.MAC, d.Addresses)); err != nil {
			t.Error(err)
		}
	})
	err = errors.Join(eni.Move(h, ns, d.MAC, "eth0"), eni.Configure(ns, eni.Interface{
		MAC: d.MAC, Name: "eth0", Addresses: []netip.Prefix{netip.PrefixFrom(addr, 24)}, Gateways: []netip.Addr{netip.MustParseAddr("10.77.0.1")},
	}))
	if err != nil {
		t.Fatal(err)
	}
	return path, addr
}

func filter(t *testing.T, path string, f eni.Filter, groups eni.Groups) {
	t.Helper()
	f.Name = "eth0"
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(eni.SetFilters(ns, []eni.Filter{f}, groups), ns.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestSecurityGroups(t *testing.T) {
	enitest.Root(t)
	p := &eni.Pool{Kind: eni.PoolBridge, Owner: "test"}
	server, serverAddr := pooled(t, p, 10)
	client, clientAddr := pooled(t, p, 11)
	other, otherAddr := pooled(t, p, 12)
	all := eni.Pass{Protocol: eni.AnyProtocol, Prefix: netip.MustParsePrefix("0.0.0.0/0")}
	filter(t, client, eni.Filter{Addresses: []netip.Addr{clientAddr}, Egress: []eni.Pass{all}}, nil)
	filter(t, other, eni.Filter{Addresses: []netip.Addr{otherAddr}, Egress: []eni.Pass{all}}, nil)
	set := func(groups eni.Groups, in ...eni.Pass) {
		t.Helper()
		filter(t, server, eni.Filter{Addresses: []netip.Addr{serverAddr}, Ingress: in}, groups)
	}
	enitest.Echo(t, server, "0.0.0.0:80")
	enitest.Echo(t, server, "0.0.0.0:81")
	dial := func(from string, port int) error {
		_, err := enitest.Dial(from, fmt.Sprintf("%s:%d", serverAddr, port), 300*time.Millisecond)
		return err
	}
	want := func(what string, from string, port int, open bool) {
		t.Helper()
		if err := dial(from, port); (err == nil) != open {
			t.Errorf("%s: port %d open %v, want %v: %v", what, port, err == nil, open, err)
		}
	}
	set(nil)
	want("nothing allowed", client, 80, false)
	if err := dial(server, 80); err != nil {
		t.Errorf("the server does not reach itself: %v", err)
	}
	web := eni.Pass{Protocol: 6, First: 80, Last: 80, Group: "sg-client"}
	set(eni.Groups{"sg-client": {clientAddr}}, web)
	want("member of the group", client, 80, true)
	want("another port", client, 81, false)
	want("no member", other, 80, false)

	// A connection outlives the rule that let it in.
	var conn net.Conn
	if err := enitest.In(client, func() (err error) {
		conn, err = net.DialTimeout("tcp4", serverAddr.String()+":80", time.Minute)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	set(nil)
	want("rule revoked", client, 80, false)
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(conn, "still here"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	for _, want := range []string{clientAddr.String() + "\n", "still here\n"} {
		if got, err := r.ReadString('\n'); got != want {
			t.Errorf("the established connection: got %q, %v, want %q", got, err, want)
		}
	}
	set(nil, eni.Pass{Protocol: 6, First: 0, Last: 65535, Prefix: netip.PrefixFrom(otherAddr, 32)})
	want("by address", other, 81, true)
	want("another address", client, 81, false)
}

func TestPoolLeavesNothing(t *testing.T) {
	enitest.Root(t)
	p := &eni.Pool{Kind: eni.PoolBridge, Owner: "test"}
	t.Run("in use", func(t *testing.T) {
		pooled(t, p, 20)
		if strays, err := p.Strays(func(net.HardwareAddr) bool { return false }); err != nil || len(strays) != 0 {
			t.Errorf("strays %v, %v", strays, err)
		}
	})
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if eni.OfPool(l.Attrs().Name) {
			t.Errorf("left: %s", l.Attrs().Name)
		}
	}
}

func TestAwaitSeesADeviceThatComes(t *testing.T) {
	enitest.Root(t)
	mac := net.HardwareAddr{2, 7, 7, 7, 7, 7}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	found := make(chan string, 1)
	go func() {
		name, err := eni.Await(ctx, mac)
		if err != nil {
			name = err.Error()
		}
		found <- name
	}()
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ens9", HardwareAddr: mac}, PeerName: "pens9"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(l) //nolint:errcheck // the namespace goes with the test
	if got := <-found; got != "ens9" {
		t.Errorf("got %s", got)
	}
	late, done := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer done()
	if _, err := eni.Await(late, net.HardwareAddr{2, 9, 9, 9, 9, 9}); !errors.Is(err, eni.ErrNoDevice) {
		t.Errorf("got %v", err)
	}
}

func TestParsePool(t *testing.T) {
	for s, ok := range map[string]bool{"bridge": true, "bridge:eth1": true, "macvlan:eth1": true, "macvlan": false, "": false, "ipvlan:eth0": false} {
		if _, err := eni.ParsePool(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}
