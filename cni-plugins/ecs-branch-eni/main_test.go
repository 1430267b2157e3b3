package main

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/cni-plugins/ecs-eni/elastic"
	"berth.dev/berth/cni-plugins/plugin/plugintest"
)

func TestMain(m *testing.M) { os.Exit(plugintest.Main(m, run)) }

const (
	trunk = "02:00:00:00:06:00"
	mac   = "02:00:00:00:06:01"
	vlan  = 101
)

// network is one of the plugin, with the trunk that its interfaces branch from. A kernel
// without VLANs skips the test: package integ/vm runs it on one that has them.
func network(t testing.TB) *plugintest.Network {
	t.Helper()
	p := plugintest.New(t, map[string]any{
		"type": "ecs-branch-eni", "trunkMACAddress": trunk, "branchVlanID": "101", "branchMACAddress": mac, "interfaceType": "vlan",
		"ipAddresses": []string{"10.8.0.9/24", "fd00:8::9/64"}, "gatewayIPAddresses": []string{"10.8.0.1", "fd00:8::1"}, "blockInstanceMetadata": true,
	})
	hw, err := net.ParseMAC(trunk)
	if err != nil {
		t.Fatal(err)
	}
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "trunk0", HardwareAddr: hw}, PeerName: "port0"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(l); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"trunk0", "port0"} {
		end, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(end)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	try := &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "try", ParentIndex: l.Index}, VlanId: vlan, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	if err = netlink.LinkAdd(try); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("this kernel has no VLANs (module 8021q)")
	}
	if err == nil {
		err = netlink.LinkDel(try)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	in := plugintest.Inside
	plugintest.Conformance(t, plugintest.Subject{
		Interfaces: 1, New: network,
		Damages: map[string]func(string) error{
			"down": in(netlink.LinkSetDown), "address": in(plugintest.NoAddress), "route": in(plugintest.NoDefaultRoute), "interface": in(netlink.LinkDel),
		},
	})
}

// TestProgramDoesTheSameAsTheCall attaches once by the program and once by the library.
func TestProgramDoesTheSameAsTheCall(t *testing.T) {
	for name, c := range map[string]struct{ addresses, gateways []string }{
		"IPv4":       {[]string{"10.8.0.9/24"}, []string{"10.8.0.1"}},
		"dual stack": {[]string{"10.8.0.9/24", "fd00:8::9/64"}, []string{"10.8.0.1", "fd00:8::1"}},
		"IPv6 only":  {[]string{"fd00:8::9/64"}, []string{"fd00:8::1"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := network(t).With("ipAddresses", c.addresses).With("gatewayIPAddresses", c.gateways)
			h, err := elastic.Open(filepath.Join(p.Dir, "net"))
			if err != nil {
				t.Fatal(err)
			}
			r := elastic.Request{Key: elastic.Key{ID: "box", IfName: "eth0"}, MAC: mac, Trunk: trunk, VLAN: vlan, BlockMetadata: true}
			for _, a := range c.addresses {
				r.Addresses = append(r.Addresses, netip.MustParsePrefix(a))
			}
			for _, gw := range c.gateways {
				r.Gateways = append(r.Gateways, netip.MustParseAddr(gw))
			}
			plugintest.Same(t, p, plugintest.Call{
				Add: func(ns string) (types.Result, error) {
					r.Namespace = ns
					a, err := h.Add(t.Context(), r)
					if err != nil {
						return nil, err
					}
					return a.Result(), nil
				},
				Del: func() error { return h.Del(t.Context(), r.Key) },
			})
		})
	}
}
