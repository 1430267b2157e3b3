package main

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/cni-plugins/ecs-eni/elastic"
	"berth.dev/berth/cni-plugins/plugin/plugintest"
)

func TestMain(m *testing.M) { os.Exit(plugintest.Main(m, run)) }

const mac = "02:00:00:00:05:01"

// plug adds the device to the host.
func plug(t testing.TB) {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ens8", HardwareAddr: hw}, PeerName: "gw8"}); err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.LinkByName("gw8")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(peer) })
	if err := netlink.LinkSetUp(peer); err != nil {
		t.Fatal(err)
	}
}

// network is one of the plugin, with the device that it is for.
func network(t testing.TB) *plugintest.Network {
	p := plugintest.New(t, map[string]any{
		"type": "ecs-eni", "eniMACAddress": mac, "eniIPAddresses": []string{"10.8.0.9/24", "fd00:8::9/64"},
		"gatewayIPAddresses": []string{"10.8.0.1", "fd00:8::1"}, "blockInstanceMetadata": true,
	})
	plug(t)
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
		"IPv6 only":  {[]string{"fd00:8::9/64", "fd00:8::a/64"}, []string{"fd00:8::1"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := network(t).With("eniIPAddresses", c.addresses).With("gatewayIPAddresses", c.gateways)
			h, err := elastic.Open(filepath.Join(p.Dir, "net"))
			if err != nil {
				t.Fatal(err)
			}
			r := elastic.Request{Key: elastic.Key{ID: "box", IfName: "eth0"}, MAC: mac, BlockMetadata: true}
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
