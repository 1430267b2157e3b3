package eni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Kinds of a Pool.
const (
	// PoolBridge has a bridge of its own on each host for each subnet. Without an uplink
	// the host is the subnet's router and translates addresses on the way out, and the
	// subnet ends at the host. With an uplink, an interface without addresses that
	// becomes a port of the bridge, the subnet is the network segment behind it, where
	// the gateway is a router.
	PoolBridge = "bridge"
	// PoolMACVLAN makes the interfaces on an uplink, so that they are hosts of the network
	// segment behind it. The host itself cannot reach them.
	PoolMACVLAN = "macvlan"
)

// Names of what a pool makes: prefix and 11 hexadecimal digits of a hash.
const (
	poolBridgePrefix = "brts"
	poolHostPrefix   = "brte" // the host's end of a veth pair
	poolDevicePrefix = "brti" // a task's device before it is in its namespace
)

// maxAlias is the longest interface alias that the kernel takes.
const maxAlias = 255

// Pool makes the network interfaces that the cluster hands out on a host where nobody
// plugs hardware in. What it makes is named after its MAC address and subnet, so that it
// is found again, and goes when it is no longer used: a device with its namespace, a
// bridge with its last port.
type Pool struct {
	Kind   string // PoolBridge or PoolMACVLAN
	Uplink string // interface of the host
	// Owner tells the pools of several agents on a host apart; it is in the alias of
	// everything that the pool makes.
	Owner string

	mu sync.Mutex
}

// PoolDevice is an interface to be made.
type PoolDevice struct {
	MAC       net.HardwareAddr
	Subnet    string         // its id
	Addresses []netip.Addr   // that may be sent from
	Gateways  []netip.Prefix // of the subnet, with the length of its prefix
	Alias     string         // shown by "ip link"
	MTU       int            // bytes; 0 takes the uplink's, or that of the host's default route
}

// ParsePool reads a setting: "bridge", "bridge:UPLINK" or "macvlan:UPLINK".
func ParsePool(s string) (*Pool, error) {
	kind, uplink, _ := strings.Cut(s, ":")
	switch {
	case kind == PoolBridge, kind == PoolMACVLAN && uplink != "":
		return &Pool{Kind: kind, Uplink: uplink}, nil
	}
	return nil, fmt.Errorf("interface pool %q: must be bridge, bridge:UPLINK or macvlan:UPLINK, with the name of an interface of the host", s)
}

func poolName(prefix, of string) string {
	sum := sha256.Sum256([]byte(of))
	return prefix + hex.EncodeToString(sum[:])[:11]
}

// Ensure makes the device in the host's namespace, unless it is there or held says that
// it is inside the namespace of its task.
func (p *Pool) Ensure(ctx context.Context, d PoolDevice) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.Kind == PoolMACVLAN {
		return p.ensureMACVLAN(h, d)
	}
	bridge, err := p.ensureBridge(h, d)
	if err != nil {
		return err
	}
	if err := p.ensureVeth(h, d, bridge); err != nil {
		return errors.Join(err, p.removeIfUnused(h, bridge.Attrs().Name))
	}
	return nil
}

func (p *Pool) ensureMACVLAN(h *netlink.Handle, d PoolDevice) error {
	_, err := FindByMAC(h, d.MAC)
	if !errors.Is(err, ErrNoDevice) {
		return err
	}
	up, err := p.uplink(h)
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(up); err != nil {
		return fmt.Errorf("interface %s of the pool: %w", p.Uplink, err)
	}
	l := &netlink.Macvlan{
		LinkAttrs: netlink.LinkAttrs{
			Name: poolName(poolDevicePrefix, d.MAC.String()), ParentIndex: up.Attrs().Index, HardwareAddr: d.MAC, MTU: d.MTU,
		},
		Mode: netlink.MACVLAN_MODE_BRIDGE,
	}
	if err := h.LinkAdd(l); err != nil {
		return fmt.Errorf("make a macvlan interface on %s: %w", p.Uplink, err)
	}
	return p.setAlias(h, l, d.Alias)
}

func (p *Pool) uplink(h *netlink.Handle) (netlink.Link, error) {
	l, err := h.LinkByName(p.Uplink)
	if err != nil {
		return nil, fmt.Errorf("interface %s of the pool: %w; name one of this host in BERTH_ENI_POOL", p.Uplink, err)
	}
	return l, nil
}

// ensureVeth makes the pair: the host's end on the bridge, the other with the MAC address.
func (p *Pool) ensureVeth(h *netlink.Handle, d PoolDevice, bridge netlink.Link) error {
	name := poolName(poolHostPrefix, d.MAC.String())
	if l, err := h.LinkByName(name); err == nil {
		if l.Attrs().MasterIndex != bridge.Attrs().Index {
			if err := h.LinkSetMaster(l, bridge); err != nil {
				return fmt.Errorf("interface %s: %w", name, err)
			}
		}
		return errors.Join(p.admit(bridge.Attrs().Name, name, d, true), h.LinkSetUp(l))
	}
	mtu := bridge.Attrs().MTU
	l := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu},
		PeerName:  poolName(poolDevicePrefix, d.MAC.String()), PeerHardwareAddr: d.MAC, PeerMTU: uint32(mtu),
	}
	if err := h.LinkAdd(l); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	err := errors.Join(
		p.setAlias(h, l, d.Alias),
		h.LinkSetMaster(l, bridge),
		ignoreNoIPv6(h.LinkSetIP6AddrGenMode(l, nl6None)),
		p.admit(bridge.Attrs().Name, name, d, true),
	)
	if err == nil {
		err = h.LinkSetUp(l)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("interface %s: %w", name, err), h.LinkDel(l))
	}
	return nil
}

func (p *Pool) setAlias(h *netlink.Handle, l netlink.Link, alias string) error {
	alias = p.Owner + " " + alias
	return h.LinkSetAlias(l, alias[:min(len(alias), maxAlias)])
}

// admit lets what the bridge gets from a port pass if it comes from the addresses of its
// device, or no longer.
func (p *Pool) admit(bridge, port string, d PoolDevice, add bool) error {
	return changeSources(bridge, port, d.MAC, d.Addresses, add)
}

// ensureBridge makes the bridge of a subnet, with all that belongs to it.
func (p *Pool) ensureBridge(h *netlink.Handle, d PoolDevice) (netlink.Link, error) {
	name := poolName(poolBridgePrefix, p.Owner+"\x00"+d.Subnet)
	l, err := h.LinkByName(name)
	if err == nil && l.Type() == "bridge" && l.Attrs().Flags&net.FlagUp != 0 {
		return l, p.repairBridge(h, l, d)
	}
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); err != nil && !gone {
		return nil, fmt.Errorf("bridge %s: %w", name, err)
	}
	if err != nil {
		sum := sha256.Sum256([]byte(name))
		b := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: p.mtu(h, d)}}
		b.HardwareAddr = append(net.HardwareAddr{0x02}, sum[:5]...) // fixed, so that it does not change with the ports
		if err := h.LinkAdd(b); err != nil {
			return nil, fmt.Errorf("make bridge %s: %w", name, err)
		}
		if l, err = h.LinkByName(name); err != nil {
			return nil, fmt.Errorf("bridge %s: %w", name, err)
		}
	}
	if err := p.fillBridge(h, l, d); err != nil {
		return nil, errors.Join(err, p.removeIfUnused(h, name))
	}
	return l, nil
}

func (p *Pool) fillBridge(h *netlink.Handle, l netlink.Link, d PoolDevice) error {
	name := l.Attrs().Name
	err := errors.Join(
		p.setAlias(h, l, d.Subnet),
		setBridge(name, "accept_ra", "0"),
		newBridgeTables(name, p.Uplink == "", d.Gateways),
	)
	if err == nil {
		err = p.connectBridge(h, l, d)
	}
	if err == nil {
		err = h.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	return nil
}

// connectBridge gives the bridge the gateway's addresses, or its uplink.
func (p *Pool) connectBridge(h *netlink.Handle, l netlink.Link, d PoolDevice) error {
	if p.Uplink == "" {
		for _, gw := range d.Gateways {
			a := &netlink.Addr{IPNet: ipnet(gw)}
			if gw.Addr().Is6() {
				a.Flags = unix.IFA_F_NODAD
			}
			if err := h.AddrReplace(l, a); err != nil {
				return fmt.Errorf("address %s: %w", gw, err)
			}
		}
		return nil
	}
	up, err := p.uplink(h)
	if err != nil {
		return err
	}
	if up.Attrs().MasterIndex == l.Attrs().Index {
		return nil
	}
	addrs, err := h.AddrList(up, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	if len(addrs) > 0 {
		return fmt.Errorf("interface %s of the pool has the address %s, which the host would lose: use an interface without addresses, or macvlan:%s in BERTH_ENI_POOL",
			p.Uplink, addrs[0].IPNet, p.Uplink)
	}
	if up.Attrs().MasterIndex != 0 {
		return fmt.Errorf("interface %s of the pool is a port of another bridge: one uplink serves one subnet", p.Uplink)
	}
	return errors.Join(h.LinkSetMaster(up, l), h.LinkSetUp(up))
}

// repairBridge makes anew what somebody removed of a bridge.
func (p *Pool) repairBridge(h *netlink.Handle, l netlink.Link, d PoolDevice) error {
	ok, err := hasBridgeTables(l.Attrs().Name)
	if err != nil {
		return err
	}
	if ok {
		return p.connectBridge(h, l, d)
	}
	return p.fillBridge(h, l, d)
}

// mtu is the one asked for, the uplink's, or that of the host's default route.
func (p *Pool) mtu(h *netlink.Handle, d PoolDevice) int {
	if d.MTU != 0 {
		return d.MTU
	}
	if p.Uplink != "" {
		if l, err := h.LinkByName(p.Uplink); err == nil {
			return l.Attrs().MTU
		}
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, netlink.RT_FILTER_DST)
	if err == nil && len(routes) > 0 && routes[0].LinkIndex != 0 {
		if l, err := h.LinkByIndex(routes[0].LinkIndex); err == nil {
			return l.Attrs().MTU
		}
	}
	return 1500
}

// PoolPort is the name of the host's end of a device of a pool of bridges.
func PoolPort(mac net.HardwareAddr) string { return poolName(poolHostPrefix, mac.String()) }

// Remove takes away what is left of a device on the host, and bridges that no device is
// on any more. A device inside a namespace goes with that.
func (p *Pool) Remove(ctx context.Context, mac net.HardwareAddr, addresses []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	port := PoolPort(mac)
	for _, name := range []string{port, poolName(poolDevicePrefix, mac.String())} {
		if err := removeLink(h, name); err != nil {
			return err
		}
	}
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Type() != "bridge" || !strings.HasPrefix(l.Attrs().Name, poolBridgePrefix) {
			continue
		}
		err := errors.Join(changeSources(l.Attrs().Name, port, mac, addresses, false), removeUnused(h, l, links))
		if err != nil {
			return err
		}
	}
	return nil
}

func removeLink(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil
	}
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

// removeIfUnused removes the bridge of a name if no device is on it any more.
func (p *Pool) removeIfUnused(h *netlink.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return removeBridgeTables(name)
	}
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	return removeUnused(h, l, links)
}

func removeUnused(h *netlink.Handle, l netlink.Link, links []netlink.Link) error {
	for _, port := range links {
		if a := port.Attrs(); a.MasterIndex == l.Attrs().Index && strings.HasPrefix(a.Name, poolHostPrefix) {
			return nil
		}
	}
	return errors.Join(removeLink(h, l.Attrs().Name), removeBridgeTables(l.Attrs().Name))
}

// OfPool reports whether an interface has a name that pools give.
func OfPool(name string) bool {
	for _, prefix := range []string{poolBridgePrefix, poolHostPrefix, poolDevicePrefix} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// Strays names the interfaces and bridges of pools on this host whose MAC address or
// subnet is not in use, as far as they are of this pool's owner.
func (p *Pool) Strays(used func(mac net.HardwareAddr) bool) ([]string, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	ports := map[int]bool{} // indexes of bridges with ports
	var out []string
	for _, l := range links {
		a := l.Attrs()
		switch {
		case !strings.HasPrefix(a.Alias, p.Owner+" "):
		case strings.HasPrefix(a.Name, poolHostPrefix) && len(a.Name) == unix.IFNAMSIZ-1:
			ports[a.MasterIndex] = true
		case strings.HasPrefix(a.Name, poolDevicePrefix) && len(a.Name) == unix.IFNAMSIZ-1 && !used(a.HardwareAddr):
			out = append(out, a.Name)
		}
	}
	for _, l := range links {
		if a := l.Attrs(); strings.HasPrefix(a.Name, poolBridgePrefix) && l.Type() == "bridge" && !ports[a.Index] && strings.HasPrefix(a.Alias, p.Owner+" ") {
			out = append(out, a.Name)
		}
	}
	return out, nil
}

// RemoveStray removes an interface that Strays named.
func (p *Pool) RemoveStray(name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	if strings.HasPrefix(name, poolBridgePrefix) {
		return p.removeIfUnused(h, name)
	}
	return removeLink(h, name)
}

func setBridge(bridge, key, value string) error {
	path := filepath.Join("/proc/sys/net/ipv6/conf", bridge, key)
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("sysctl net.ipv6.conf.%s.%s: %w", bridge, key, err)
	}
	return nil
}
