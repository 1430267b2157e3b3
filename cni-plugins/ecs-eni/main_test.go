package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/cni-plugins/ecs-eni/elastic"
	"berth.dev/berth/cni-plugins/plugin/plugintest"
	"berth.dev/berth/eni/enitest"
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

// inside is what a namespace has of the network.
func inside(t *testing.T, ns string) string {
	t.Helper()
	var out []byte
	err := enitest.In(ns, func() (err error) {
		out, err = exec.Command("sh", "-c", "ip -o addr show dev eth0 | grep -v fe80 | sed 's/^[0-9]*: //'; ip -o link show dev eth0 | grep -o 'link/ether [0-9a-f:]*'; ip route show table all | grep -v fe80 | sort -u").Output() // ip complains of the other end of a veth pair now and then
		return err
	})
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// TestProgramDoesTheSameAsTheCall attaches once by the program and once by the library.
func TestProgramDoesTheSameAsTheCall(t *testing.T) {
	p := network(t)
	byProgram, byCall := enitest.Namespace(t), enitest.Namespace(t)
	printed := p.Must("ADD", "box", byProgram)
	var after string
	enitest.Eventually(t, "the interface has all of its routes", func() bool {
		after = inside(t, byProgram)
		return strings.Contains(after, "local fd00:8::9") && strings.Contains(after, "multicast ff00::/8 dev eth0")
	})
	p.Must("DEL", "box", byProgram)
	h, err := elastic.Open(filepath.Join(p.Dir, "net"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := h.Add(context.Background(), elastic.Request{
		Key: elastic.Key{ID: "box", IfName: "eth0"}, Namespace: byCall, MAC: mac, BlockMetadata: true,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.8.0.9/24"), netip.MustParsePrefix("fd00:8::9/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("fd00:8::1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	var now string
	alike := func() bool { now = inside(t, byCall); return now == after } // some routes come with the carrier
	if !enitest.Within(alike) {
		t.Errorf("namespace (-program +call):\n%s", cmp.Diff(after, now))
	}
	result, err := json.Marshal(a.Result())
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(printed)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(decode(t, strings.ReplaceAll(string(text), byProgram, byCall)), decode(t, string(result))); diff != "" {
		t.Errorf("result (-program +call):\n%s", diff)
	}
	if err := h.Del(context.Background(), a.Key()); err != nil {
		t.Fatal(err)
	}
}

func decode(t *testing.T, s string) (v map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%v: %s", err, s)
	}
	delete(v, "dns") // the library of CNI prints an empty one
	return v
}
