package eni

import (
	"errors"
	"math"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// HasIPv6 reports whether the kernel speaks IPv6. Interfaces of tasks do so wherever it
// does, also where it is turned off for the host's own.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// HasVLAN reports whether the kernel can make branch interfaces. It is asked for one on an
// interface that no host has: that this is what it finds wrong says that it could. Where
// VLANs are a module this loads it.
func HasVLAN() bool {
	err := netlink.LinkAdd(&netlink.Vlan{
		LinkAttrs: netlink.LinkAttrs{Name: "berthvlan", ParentIndex: math.MaxInt32}, VlanId: 1, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q,
	})
	return errors.Is(err, unix.ENODEV)
}
