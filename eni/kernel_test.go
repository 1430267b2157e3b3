package eni_test

import (
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"berth.dev/berth/eni"
	"berth.dev/berth/eni/enitest"
)

// TestKernel holds what is said of the kernel against what it does.
func TestKernel(t *testing.T) {
	enitest.Root(t)
	l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "trunk0"}, PeerName: "port0"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(l) //nolint:errcheck // the host of the tests goes with it
	err := netlink.LinkAdd(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "vlan7", ParentIndex: l.Index}, VlanId: 7, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
	if got := eni.HasVLAN(); got != (err == nil) {
		t.Errorf("VLANs: %t, and making one says %v", got, err)
	}
	_, err = os.Stat("/proc/net/if_inet6")
	if got := eni.HasIPv6(); got != (err == nil) {
		t.Errorf("IPv6: %t, and its addresses: %v", got, err)
	}
}
