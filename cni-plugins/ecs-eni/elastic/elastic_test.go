package elastic

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

func TestMain(m *testing.M) { os.Exit(enitest.Main(m)) }

const mac = "02:00:00:00:00:07"

// plug adds a device to the host, as hardware that is plugged in.
func plug(t *testing.T, name, mac string) {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hw}, PeerName: "p" + name}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p, err := netlink.LinkByName("p" + name); err == nil {
			_ = netlink.LinkDel(p)
		}
	})
	peer, err := netlink.LinkByName("p" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(peer); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T) (*Host, string) {
	t.Helper()
	enitest.Root(t)
	dir := filepath.Join(t.TempDir(), "records")
	h, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return h, dir
}

func request(ns string) Request {
	return Request{
		Key: Key{ID: "task", IfName: "eth0"}, Namespace: ns, MAC: mac, BlockMetadata: true,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.0.5/24"), netip.MustParsePrefix("fd00:9::5/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd00:9::1")},
	}
}

func names(t *testing.T) string {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range links {
		out = append(out, l.Attrs().Name)
	}
	return strings.Join(out, " ")
}

func TestAddCheckDel(t *testing.T) {
	h, dir := open(t)
	ctx := context.Background()
	ns := enitest.Namespace(t)
	plug(t, "ens7", mac)
	r := request(ns)
	a, err := h.Add(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Add(ctx, r); KindOf(err) != Exists {
		t.Errorf("second ADD: %v", err)
	}
	if _, err := h.Check(ctx, r.Key, ns); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	for what, damage := range map[string]func(link netlink.Link) error{
		"address": func(l netlink.Link) error {
			return netlink.AddrDel(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 9, 0, 5), Mask: net.CIDRMask(24, 32)}})
		},
		"link down": netlink.LinkSetDown,
	} {
		err := enitest.In(ns, func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return damage(l)
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Check(ctx, r.Key, ns); KindOf(err) != Damaged {
			t.Errorf("CHECK after damage to the %s: %v", what, err)
		}
		if err := h.connect(ctx, a, openNamespace(t, ns)); err != nil {
			t.Fatalf("repair of the %s: %v", what, err)
		}
		if _, err := h.Check(ctx, r.Key, ns); err != nil {
			t.Errorf("CHECK after repair of the %s: %v", what, err)
		}
	}
	for range 2 {
		if err := h.Del(ctx, r.Key); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(names(t), "eni020000000007") {
		t.Errorf("the device was not given back: %s", names(t))
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "[^.]*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func openNamespace(t *testing.T, path string) *eni.Namespace {
	t.Helper()
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func TestFailedAddLeavesNothing(t *testing.T) {
	h, dir := open(t)
	ns := enitest.Namespace(t)
	if _, err := h.Add(context.Background(), request(ns)); KindOf(err) != NoDevice {
		t.Errorf("ADD without the device: %v", err)
	}
	plug(t, "ens7", mac)
	r := request(ns)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := h.Add(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("ADD that was cancelled: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "[^.]*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestDelWithoutNamespaceAndGC(t *testing.T) {
	h, dir := open(t)
	ctx := context.Background()
	for i, id := range []string{"a", "b"} {
		m := net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}.String()
		plug(t, "ens"+id, m)
		path := filepath.Join(t.TempDir(), "ns")
		if err := eni.CreateNamespace(path, nil); err != nil {
			t.Fatal(err)
		}
		r := request(path)
		r.ID, r.MAC, r.Discard = id, m, true
		if _, err := h.Add(ctx, r); err != nil {
			t.Fatal(err)
		}
		if err := eni.RemoveNamespace(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, strings.Repeat("0", 32)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Collect(ctx, func(k Key) bool { return k.ID == "a" }); err != nil {
		t.Fatal(err)
	}
	left, err := h.Attachments()
	if err != nil || len(left) != 1 || left[0].ID != "a" {
		t.Errorf("after GC: %v, %v", left, err)
	}
	if err := h.Del(ctx, Key{ID: "a", IfName: "eth0"}); err != nil {
		t.Error(err)
	}
	if entries, _ := filepath.Glob(filepath.Join(dir, "[^.]*")); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}

// The kernel here may have no VLANs; what would be asked of it is looked at instead.
func TestShapeOfABranch(t *testing.T) {
	trunk := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "ens5", Index: 7}}
	hw, _ := net.ParseMAC(mac)
	got := branchLink(&Attachment{VLAN: 12}, trunk, hw)
	if got.Name != "ens5.12" || got.ParentIndex != 7 || got.VlanId != 12 || got.HardwareAddr.String() != mac || got.VlanProtocol != netlink.VLAN_PROTOCOL_8021Q {
		t.Errorf("got %+v", got)
	}
	trunk.Name = "averylongname15"
	if got := branchLink(&Attachment{VLAN: 4094}, trunk, hw); got.Name != "vlan4094" {
		t.Errorf("long name: %s", got.Name)
	}
}

func TestConfigurations(t *testing.T) {
	for _, tc := range []struct {
		name, conf string
		branch     bool
		want       string
	}{
		{"no name", `{}`, false, "name: must be"},
		{"garbage", `]`, false, "decode"},
		{"bad address", `{"name":"n","eniMACAddress":"02:00:00:00:00:01","eniIPAddresses":["x"]}`, false, "eniIPAddresses"},
		{"bad gateway", `{"name":"n","gatewayIPAddresses":["x"]}`, false, "gatewayIPAddresses"},
		{"bad VLAN", `{"name":"n","branchVlanID":"4095"}`, true, "branchVlanID"},
		{"tap", `{"name":"n","branchVlanID":"1","interfaceType":"tap"}`, true, "interfaceType"},
		{"relative directory", `{"name":"n","dataDir":"x"}`, false, "dataDir"},
	} {
		if _, _, _, err := ParseNetConf([]byte(tc.conf), tc.branch); KindOf(err) != Invalid || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	_, dir, r, err := ParseNetConf([]byte(`{"name":"n","cniVersion":"1.1.0","type":"ecs-branch-eni","trunkMACAddress":"02:00:00:00:00:01","branchVlanID":"7",
		"branchMACAddress":"02:00:00:00:00:02","ipAddresses":["10.0.0.4/20"],"gatewayIPAddresses":["10.0.0.1"],"blockInstanceMetadata":true}`), true)
	if err != nil {
		t.Fatal(err)
	}
	want := &Request{
		MAC: "02:00:00:00:00:02", Trunk: "02:00:00:00:00:01", VLAN: 7, BlockMetadata: true,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.4/20")}, Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
	}
	if diff := cmp.Diff(want, r, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || dir != "/run/berth/cni/n" {
		t.Errorf("%s in %s", diff, dir)
	}
}

func FuzzParseNetConf(f *testing.F) {
	f.Add([]byte(`{"name":"n","eniMACAddress":"02:00:00:00:00:01","eniIPAddresses":["10.0.0.4/20"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, branch := range []bool{false, true} {
			_, _, r, err := ParseNetConf(data, branch)
			if err != nil {
				continue
			}
			r.ID, r.IfName = "id", "eth0"
			if a, err := r.attachment(); err == nil {
				if _, err := json.Marshal(a); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
