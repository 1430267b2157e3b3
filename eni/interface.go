package eni

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is a network interface of a task as it is to be inside a namespace.
type Interface struct {
	MAC       net.HardwareAddr
	Name      string         // eth0
	Addresses []netip.Prefix // with the length of the subnet's prefix
	Gateways  []netip.Addr   // at most one of a family; their route is the default route
	MTU       int            // bytes; 0 keeps the device's

	// Index is the place among the interfaces of a task. The default routes of the first
	// one serve what has no source address yet; the others' serve what comes from their
	// addresses.
	Index int

	// BlockMetadata makes the instance metadata service unreachable (ECS_AWSVPC_BLOCK_IMDS).
	BlockMetadata bool
}

// metadata are the addresses of the instance metadata service.
var metadata = []netip.Prefix{netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("fd00:ec2::254/128")}

// firstTable is the routing table of the second interface of a namespace; the next one
// has the next, and so on. The first has the main table.
const firstTable = 1000

// nl6None is IN6_ADDR_GEN_MODE_NONE: no address by itself.
const nl6None = 1

// Move brings the device with a MAC address from the host into a namespace and gives it
// its name there. A device that is in the namespace already is only renamed.
func Move(host *netlink.Handle, ns *Namespace, mac net.HardwareAddr, name string) error {
	inside, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer inside.Close()
	l, err := findOwn(inside, mac)
	if errors.Is(err, ErrNoDevice) {
		if l, err = findOwn(host, mac); err != nil {
			return err
		}
		if err := host.LinkSetNsFd(l, ns.Fd()); err != nil {
			return fmt.Errorf("move interface %s into its namespace: %w", l.Attrs().Name, err)
		}
		l, err = findOwn(inside, mac)
	}
	if err != nil {
		return err
	}
	if l.Attrs().Name == name {
		return nil
	}
	if err := inside.LinkSetDown(l); err != nil {
		return fmt.Errorf("interface %s: %w", l.Attrs().Name, err)
	}
	if err := inside.LinkSetName(l, name); err != nil {
		return fmt.Errorf("rename interface %s to %s: %w", l.Attrs().Name, name, err)
	}
	return nil
}

// findOwn is FindByMAC, and finds a branch interface as well, which is a VLAN with a MAC
// address of its own.
func findOwn(h *netlink.Handle, mac net.HardwareAddr) (netlink.Link, error) {
	l, err := FindByMAC(h, mac)
	if errors.Is(err, ErrNoDevice) {
		return FindVLAN(h, mac)
	}
	return l, err
}

// Configure gives a device that is in the namespace its addresses and routes and brings
// it up. What is there already is left.
func Configure(ns *Namespace, i Interface) error {
	inside, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer inside.Close()
	l, err := inside.LinkByName(i.Name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", i.Name, err)
	}
	if err := ns.Do(func() error { return ipv6(i) }); err != nil {
		return err
	}
	if i.MTU != 0 && l.Attrs().MTU != i.MTU {
		if err := inside.LinkSetMTU(l, i.MTU); err != nil {
			return fmt.Errorf("mtu %d of interface %s: %w", i.MTU, i.Name, err)
		}
	}
	if !i.has(true) {
		if err := ignoreNoIPv6(inside.LinkSetIP6AddrGenMode(l, nl6None)); err != nil {
			return fmt.Errorf("interface %s: %w", i.Name, err)
		}
	}
	for _, p := range i.Addresses {
		a := &netlink.Addr{IPNet: ipnet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // the cluster gave it to nobody else; tentative addresses cannot be used
		}
		if err := inside.AddrReplace(l, a); err != nil {
			return fmt.Errorf("address %s of interface %s: %w", p, i.Name, err)
		}
	}
	if err := inside.LinkSetUp(l); err != nil {
		return fmt.Errorf("interface %s: %w", i.Name, err)
	}
	for _, r := range i.routes(l.Attrs().Index) {
		if err := inside.RouteReplace(&r); err != nil {
			return fmt.Errorf("route %s of interface %s: %w", r, i.Name, err)
		}
	}
	return addRules(inside, i.rules())
}

// ipv6 settles IPv6 of an interface. It runs inside the namespace.
func ipv6(i Interface) error {
	if !i.has(true) {
		return nil
	}
	for _, key := range []string{"all", "default", i.Name} {
		err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", key, "disable_ipv6"), []byte("0"), 0o644)
		if err != nil {
			return fmt.Errorf("sysctl net.ipv6.conf.%s.disable_ipv6: %w", key, err)
		}
	}
	if !slices.ContainsFunc(i.Gateways, netip.Addr.Is6) {
		return nil // the default route comes from router advertisements
	}
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", i.Name, "accept_ra"), []byte("0"), 0o644)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sysctl net.ipv6.conf.%s.accept_ra: %w", i.Name, err)
	}
	return nil
}

// has reports whether the interface has an address of a family.
func (i *Interface) has(v6 bool) bool {
	return slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
}

// table is the routing table of the interface.
func (i *Interface) table() int {
	if i.Index == 0 {
		return unix.RT_TABLE_MAIN
	}
	return firstTable + i.Index
}

// routes are the default routes, the routes to gateways outside the subnet, and those
// that lead nowhere on purpose.
func (i *Interface) routes(index int) []netlink.Route {
	var out []netlink.Route
	for _, gw := range i.Gateways {
		if !slices.ContainsFunc(i.Addresses, func(p netip.Prefix) bool { return p.Masked().Contains(gw) }) {
			out = append(out, netlink.Route{LinkIndex: index, Dst: ipnet(netip.PrefixFrom(gw, gw.BitLen())), Scope: netlink.SCOPE_LINK, Table: i.table()})
		}
		everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if gw.Is6() {
			everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		out = append(out, netlink.Route{LinkIndex: index, Dst: ipnet(everything), Gw: gw.AsSlice(), Table: i.table()})
		if i.Index > 0 {
			// In case that the first interface has none of this family.
			out = append(out, netlink.Route{LinkIndex: index, Dst: ipnet(everything), Gw: gw.AsSlice(), Priority: firstTable + i.Index})
		}
	}
	if i.BlockMetadata {
		for _, p := range metadata {
			if p.Addr().Is4() || i.has(true) {
				out = append(out, netlink.Route{Dst: ipnet(p), Type: unix.RTN_BLACKHOLE, Table: unix.RT_TABLE_MAIN})
			}
		}
	}
	return out
}

// rules send what comes from the addresses of a further interface out by it.
func (i *Interface) rules() []netlink.Rule {
	if i.Index == 0 {
		return nil
	}
	var out []netlink.Rule
	for _, p := range i.Addresses {
		r := netlink.NewRule()
		r.Src, r.Table, r.Priority = ipnet(netip.PrefixFrom(p.Addr(), p.Addr().BitLen())), i.table(), firstTable
		r.Family = unix.AF_INET
		if p.Addr().Is6() {
			r.Family = unix.AF_INET6
		}
		out = append(out, *r)
	}
	return out
}

func addRules(inside *netlink.Handle, rules []netlink.Rule) error {
	for i := range rules {
		if err := inside.RuleAdd(&rules[i]); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("routing rule %s: %w", rules[i], err)
		}
	}
	return nil
}

// Verify says what of an interface is missing or different inside a namespace; nil when
// all is as Configure made it.
func Verify(ns *Namespace, i Interface) error {
	inside, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer inside.Close()
	l, err := inside.LinkByName(i.Name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", i.Name, err)
	}
	switch a := l.Attrs(); {
	case a.HardwareAddr.String() != i.MAC.String():
		return fmt.Errorf("interface %s has the MAC address %s and not %s", i.Name, a.HardwareAddr, i.MAC)
	case a.Flags&net.FlagUp == 0:
		return fmt.Errorf("interface %s is down", i.Name)
	case i.MTU != 0 && a.MTU != i.MTU:
		return fmt.Errorf("interface %s has an MTU of %d and not %d", i.Name, a.MTU, i.MTU)
	}
	addrs, err := inside.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of interface %s: %w", i.Name, err)
	}
	for _, p := range i.Addresses {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return sameNet(a.IPNet, p) }) {
			return fmt.Errorf("interface %s has no address %s", i.Name, p)
		}
	}
	for _, want := range i.routes(l.Attrs().Index) {
		if want.Type == unix.RTN_UNSPEC {
			want.Type = unix.RTN_UNICAST
		}
		have, err := inside.RouteListFiltered(familyOf(want.Dst), &want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST|netlink.RT_FILTER_TYPE)
		if err != nil {
			return fmt.Errorf("routes of interface %s: %w", i.Name, err)
		}
		if !slices.ContainsFunc(have, func(r netlink.Route) bool { return want.Gw == nil || r.Gw.Equal(want.Gw) }) {
			return fmt.Errorf("interface %s has no route %s", i.Name, want)
		}
	}
	return nil
}

// GiveBack brings a device from a namespace back to the host, down and with a name that
// says which it is. One that is not in the namespace is success.
func GiveBack(host *Namespace, ns *Namespace, mac net.HardwareAddr) error {
	inside, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer inside.Close()
	l, err := FindByMAC(inside, mac)
	if errors.Is(err, ErrNoDevice) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := inside.LinkSetDown(l); err != nil {
		return fmt.Errorf("interface %s: %w", l.Attrs().Name, err)
	}
	if err := inside.LinkSetName(l, HostName(mac)); err != nil {
		return fmt.Errorf("rename interface %s: %w", l.Attrs().Name, err)
	}
	if err := inside.LinkSetNsFd(l, host.Fd()); err != nil {
		return fmt.Errorf("give interface %s back to the host: %w", HostName(mac), err)
	}
	return nil
}

// HostName is the name of a device that was given back: 15 bytes, the longest name that
// the kernel takes.
func HostName(mac net.HardwareAddr) string { return "eni" + hex.EncodeToString(mac) }

func ignoreNoIPv6(err error) error {
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func sameNet(n *net.IPNet, p netip.Prefix) bool {
	ones, _ := n.Mask.Size()
	return n.IP.Equal(p.Addr().AsSlice()) && ones == p.Bits()
}

func familyOf(n *net.IPNet) int {
	if n.IP.To4() != nil {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}
