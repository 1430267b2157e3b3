package bridge

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/eni"
)

// Request asks for one attachment.
type Request struct {
	Key
	Namespace string // path of the network namespace
	Ports     []Port

	// Group names the attachments that may reach one another directly, at every port; ones
	// without a group are reached through published ports only.
	Group string
}

// maxGroup bounds the name of a group, in bytes: it is part of the reservation.
const maxGroup = 255

// maxAlias is the longest interface alias that the kernel takes.
const maxAlias = 255

// Add connects a namespace to the bridge. When it fails, everything that it made has
// been removed again, except what the returned error says could not be.
func (h *Host) Add(ctx context.Context, r Request) (*Attachment, error) {
	a, err := h.add(ctx, r)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) {
		// Somebody removed the bridge or a table. Repair once.
		if live, liveErr := eni.Live(r.Namespace); liveErr != nil || !live {
			return nil, err
		}
		h.log.Warn("the bridge or its rules were removed by somebody; making them again", "task", r.ID, "err", err)
		if setupErr := h.Setup(ctx); setupErr != nil {
			return nil, errors.Join(err, setupErr)
		}
		a, err = h.add(ctx, r)
	}
	return a, err
}

func (h *Host) add(ctx context.Context, r Request) (a *Attachment, err error) {
	if err := validatePorts(r.Ports); err != nil {
		return nil, err
	}
	if !linkName.MatchString(r.IfName) {
		return nil, fail(Invalid, "interface name %q is not 1 to 15 letters, digits, dots, dashes and underscores", r.IfName)
	}
	if len(r.Group) > maxGroup {
		return nil, fail(Invalid, "group of %d bytes: must not be longer than %d", len(r.Group), maxGroup)
	}
	ns, err := eni.OpenNamespace(r.Namespace)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	unlock, err := h.res.lock(false)
	if err != nil {
		return nil, err
	}
	defer unlock()

	a, bound, err := h.reserve(r)
	if err != nil {
		return nil, err
	}
	err = h.connect(ctx, a, ns)
	if err == nil && h.cfg.Hold && len(bound) > 0 {
		h.mu.Lock()
		h.held[a.Key()] = bound
		h.mu.Unlock()
	} else {
		err = errors.Join(err, bound.close())
	}
	if err != nil {
		return nil, errors.Join(err, h.del(context.WithoutCancel(ctx), a.Key()))
	}
	return a, nil
}

// reserve chooses address and ports and writes the reservation.
func (h *Host) reserve(r Request) (*Attachment, sockets, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if have, ok := h.byKey[r.Key]; ok {
		return nil, nil, fail(Exists, "%s of %s is attached already, with address %s", r.IfName, r.ID, have.Address)
	}
	ports, bound, err := h.choosePorts(r.Ports)
	if err != nil {
		return nil, nil, err
	}
	a := &Attachment{
		ID: r.ID, IfName: r.IfName, Group: r.Group, Namespace: r.Namespace,
		Bridge: h.cfg.Bridge, HostVeth: vethName(h.cfg.Bridge, r.Key),
		Gateway: h.cfg.gateway(), Gateway6: h.cfg.beside(h.cfg.gateway()), MTU: h.mtu, Ports: ports,
	}
	if err := h.claimAddress(a); err != nil {
		return nil, nil, errors.Join(err, bound.close())
	}
	h.remember(a)
	return a, bound, nil
}

// claimAddress gives a the first free address after the one that its key hashes to, so
// that addresses are not given again at once. The caller holds h.mu.
func (h *Host) claimAddress(a *Attachment) error {
	base := h.cfg.Subnet.Addr().As4()
	first := uint32(base[0])<<24 | uint32(base[1])<<16 | uint32(base[2])<<8 | uint32(base[3])
	// Not the network's own address, the bridge's, and the broadcast address.
	usable := uint32(1)<<(32-h.cfg.Subnet.Bits()) - 3
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(a.ID + "\x00" + a.IfName)) // never fails
	start := hash.Sum32() % usable
	for i := range usable {
		n := first + 2 + (start+i)%usable
		addr := netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
		if _, taken := h.byAddr[addr]; taken {
			continue
		}
		a.Address, a.Address6, a.MAC = addr, h.cfg.beside(addr), macOf(addr).String()
		err := h.res.claim(a)
		if errors.Is(err, fs.ErrExist) {
			// Another process took it, or the file is nobody's and waits for a sweep.
			if other, err := h.res.read(addr.String()); err == nil && other != nil {
				if other.Key() == a.Key() {
					return fail(Exists, "%s of %s is attached already, with address %s", a.IfName, a.ID, addr)
				}
				h.remember(other)
			}
			continue
		}
		return err
	}
	return fail(Exhausted, "no free address in subnet %s: all %d are in use", h.cfg.Subnet, usable)
}

// connect makes the veth pair, the rules, and the namespace's address and routes, in
// this order: no frame can pass before the rules about its source are there.
func (h *Host) connect(ctx context.Context, a *Attachment, ns *eni.Namespace) error {
	inside, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer inside.Close()
	host, err := h.makeVeth(a, ns)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := h.publish(a); err != nil {
		return err
	}
	if err := h.route.LinkSetUp(host); err != nil {
		return fmt.Errorf("interface %s: %w", a.HostVeth, err)
	}
	if a.Address6.IsValid() {
		if err := ns.Do(func() error { return enableIPv6(a.IfName) }); err != nil {
			return err
		}
	}
	if err := configure(inside, a); err != nil {
		return err
	}
	if hasUDP(a.Ports) {
		// Flows from before the port was published would not be translated.
		return flushUDP(a)
	}
	return nil
}

func (h *Host) makeVeth(a *Attachment, ns *eni.Namespace) (netlink.Link, error) {
	br, err := h.route.LinkByName(h.cfg.Bridge)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil, fmt.Errorf("bridge %s: %w", h.cfg.Bridge, unix.ENODEV)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", h.cfg.Bridge, err)
	}
	veth := &netlink.Veth{
		LinkAttrs:        netlink.LinkAttrs{Name: a.HostVeth, MTU: a.MTU},
		PeerName:         a.IfName,
		PeerHardwareAddr: a.hardwareAddr(),
		PeerNamespace:    netlink.NsFd(ns.Fd()),
	}
	err = h.route.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		// The name is derived from a key that has no other attachment: a remnant.
		if err := h.removeLink(a.HostVeth); err != nil {
			return nil, err
		}
		if err = h.route.LinkAdd(veth); errors.Is(err, unix.EEXIST) {
			return nil, fail(Exists, "interface %s exists in %s already", a.IfName, a.Namespace)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("create veth pair: %w", err)
	}
	alias := fmt.Sprintf("%s %s", a.ID, a.IfName)
	for what, err := range map[string]error{
		"alias":        h.route.LinkSetAlias(veth, alias[:min(len(alias), maxAlias)]),
		"master":       h.route.LinkSetMaster(veth, br),
		"hairpin mode": h.route.LinkSetHairpin(veth, true), // see doc.go, "Isolation"
		"ipv6":         noIPv6(h.route.LinkSetIP6AddrGenMode(veth, nl6None)),
	} {
		if err != nil {
			return nil, fmt.Errorf("%s of interface %s: %w", what, a.HostVeth, err)
		}
	}
	return veth, nil
}

// nl6None is IN6_ADDR_GEN_MODE_NONE: no link-local address, and with it no router
// solicitations and multicast reports, on a network that has IPv4 only.
const nl6None = 1

// noIPv6 makes success of the errors of a kernel without IPv6.
func noIPv6(err error) error {
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// configure gives the interface inside the namespace its address and routes.
func configure(inside *netlink.Handle, a *Attachment) error {
	link, err := inside.LinkByName(a.IfName)
	if err != nil {
		return fmt.Errorf("interface %s in %s: %w", a.IfName, a.Namespace, err)
	}
	index := link.Attrs().Index
	if err := noIPv6(inside.LinkSetIP6AddrGenMode(link, nl6None)); err != nil {
		return fmt.Errorf("interface %s: %w", a.IfName, err)
	}
	if err := inside.LinkSetMTU(link, a.MTU); err != nil {
		return fmt.Errorf("mtu %d of interface %s: %w", a.MTU, a.IfName, err)
	}
	for _, addr := range a.addresses() {
		x := &netlink.Addr{IPNet: alone(addr)}
		if addr.Is6() {
			x.Flags = unix.IFA_F_NODAD // it is reserved; a tentative address cannot be used
		}
		if err := inside.AddrAdd(link, x); err != nil {
			return fmt.Errorf("address %s of interface %s: %w", addr, a.IfName, err)
		}
	}
	if err := inside.LinkSetUp(link); err != nil {
		return fmt.Errorf("interface %s: %w", a.IfName, err)
	}
	for i, gw := range a.gateways() {
		from := a.addresses()[i].AsSlice()
		toGateway := &netlink.Route{LinkIndex: index, Dst: alone(gw), Scope: netlink.SCOPE_LINK, Src: from}
		if err := inside.RouteAdd(toGateway); err != nil {
			return fmt.Errorf("route to %s: %w", gw, err)
		}
		if err := inside.RouteAdd(&netlink.Route{LinkIndex: index, Dst: everything(gw), Gw: gw.AsSlice(), Src: from}); err != nil {
			return fmt.Errorf("default route by %s: %w", gw, err)
		}
	}
	return nil
}

// enableIPv6 lets an interface have IPv6 addresses, whatever the host's default is. It
// runs inside the namespace, whose only other interface is the loopback device.
func enableIPv6(ifname string) error {
	for _, name := range []string{"lo", ifname} {
		if err := writeSysctl("ipv6/conf/"+name+"/disable_ipv6", "0"); err != nil {
			return err
		}
	}
	return writeSysctl("ipv6/conf/"+ifname+"/accept_ra", "0")
}

// alone is the network of one address.
func alone(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// everything is the destination of a default route of an address's family.
func everything(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}

// Del removes an attachment, or what is left of one. It needs neither the namespace
// nor a completed Add, and succeeds when there is nothing.
func (h *Host) Del(ctx context.Context, k Key) error {
	unlock, err := h.res.lock(false)
	if err != nil {
		return err
	}
	defer unlock()
	return h.del(ctx, k)
}

// del is Del; the caller holds the lock. It goes through to the end once begun: the
// context is looked at only before.
func (h *Host) del(ctx context.Context, k Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a, err := h.find(k)
	if err != nil {
		return err
	}
	if a == nil {
		return h.removeLink(vethName(h.cfg.Bridge, k))
	}
	// The interface first: the rules about its source hold as long as it is there.
	if err := h.removeLink(a.HostVeth); err != nil {
		return err
	}
	if err := h.withdraw(a); err != nil {
		return err
	}
	if hasUDP(a.Ports) {
		if err := flushUDP(a); err != nil {
			return err
		}
	}
	if err := h.res.release(a.Address.String()); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(a)
	held := h.held[k]
	delete(h.held, k)
	return held.close()
}

// HasLink reports whether an interface of this name is on the host. One that cannot be
// asked for counts as there.
func (h *Host) HasLink(name string) bool {
	_, err := h.route.LinkByName(name)
	_, gone := errors.AsType[netlink.LinkNotFoundError](err)
	return !gone
}

// find returns the attachment of a key, from memory or, when another process may have
// made it, from the directory; nil when there is none.
func (h *Host) find(k Key) (*Attachment, error) {
	h.mu.Lock()
	a := h.byKey[k]
	h.mu.Unlock()
	if a != nil {
		return a, nil
	}
	all, _, err := h.res.list()
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(all, func(a *Attachment) bool { return a.Key() == k }); i >= 0 {
		return all[i], nil
	}
	return nil, nil
}

// Lookup returns the attachment of a key as far as this Host knows; nil when it knows
// of none. The caller must not modify it.
func (h *Host) Lookup(k Key) *Attachment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byKey[k]
}

// Attachments returns all attachments that this Host knows of.
func (h *Host) Attachments() []*Attachment {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]*Attachment, 0, len(h.byKey))
	for _, a := range h.byKey {
		out = append(out, a)
	}
	return out
}

func hasUDP(ports []Port) bool {
	return slices.ContainsFunc(ports, func(p Port) bool { return p.Protocol == "udp" })
}

// udpFlows matches UDP flows to the host ports or the address of an attachment. UDP has
// no end that connection tracking could see, so a busy client's flow would otherwise
// be sent to where it went before for ever.
type udpFlows struct {
	addresses []netip.Addr
	ports     map[uint16]bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f udpFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return f.ports[flow.Forward.DstPort] || slices.Contains(f.addresses, from.Unmap())
}

func flushUDP(a *Attachment) error {
	f := udpFlows{addresses: a.addresses(), ports: map[uint16]bool{}}
	for _, p := range a.Ports {
		if p.Protocol == "udp" {
			for _, k := range p.keys() {
				f.ports[k.port] = true
			}
		}
	}
	for _, addr := range a.addresses() {
		family := netlink.InetFamily(netlink.FAMILY_V4)
		if addr.Is6() {
			family = netlink.FAMILY_V6
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); err != nil {
			return fmt.Errorf("flush udp flows of %s: %w", addr, err)
		}
	}
	return nil
}
