package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"berth.dev/berth/eni"
)

// Check reports whether an attachment is complete: reservation, interfaces, address,
// routes and rules. What is missing gives an error of kind Damaged; any other error
// means that it could not be found out. An empty namespace path leaves the inside out.
func (h *Host) Check(ctx context.Context, k Key, namespace string) (*Attachment, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a, err := h.find(k)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, fail(Damaged, "%s of %s is not attached", k.IfName, k.ID)
	}
	stored, err := h.res.read(a.Address.String())
	if err != nil {
		return nil, err
	}
	if stored == nil || stored.Key() != k {
		return nil, fail(Damaged, "the reservation of address %s is gone", a.Address)
	}
	if namespace != "" {
		// Before anything else: when it goes, both ends of the interface go with it.
		live, err := eni.Live(namespace)
		if err != nil {
			return nil, err
		}
		if !live {
			return nil, fail(Damaged, "network namespace %s is gone", namespace)
		}
	}
	if err := h.checkHostSide(a); err != nil {
		return nil, err
	}
	if namespace != "" {
		if err := checkInside(a, namespace); err != nil {
			return nil, err
		}
	}
	if err := h.checkRules(a); err != nil {
		return nil, err
	}
	return a, nil
}

func damagedIfGone(err error, format string, args ...any) error {
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return fail(Damaged, format+" is gone", args...)
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

func (h *Host) checkHostSide(a *Attachment) error {
	br, err := h.route.LinkByName(h.cfg.Bridge)
	if err != nil {
		return damagedIfGone(err, "bridge %s", h.cfg.Bridge)
	}
	link, err := h.route.LinkByName(a.HostVeth)
	if err != nil {
		return damagedIfGone(err, "interface %s", a.HostVeth)
	}
	switch {
	case br.Attrs().Flags&net.FlagUp == 0:
		return fail(Damaged, "bridge %s is down", h.cfg.Bridge)
	case link.Attrs().MasterIndex != br.Attrs().Index:
		return fail(Damaged, "interface %s is not a port of bridge %s", a.HostVeth, h.cfg.Bridge)
	case link.Attrs().Flags&net.FlagUp == 0:
		return fail(Damaged, "interface %s is down", a.HostVeth)
	}
	addrs, err := h.route.AddrList(br, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of bridge %s: %w", h.cfg.Bridge, err)
	}
	for _, gw := range some(h.cfg.gateway(), h.cfg.beside(h.cfg.gateway())) {
		if !hasAddress(addrs, gw) {
			return fail(Damaged, "bridge %s has lost its address %s", h.cfg.Bridge, gw)
		}
	}
	return nil
}

func hasAddress(addrs []netlink.Addr, want netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(x netlink.Addr) bool { return x.IP.Equal(want.AsSlice()) })
}

func checkInside(a *Attachment, namespace string) (err error) {
	ns, err := eni.OpenNamespace(namespace)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	inside, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer inside.Close()
	link, err := inside.LinkByName(a.IfName)
	if err != nil {
		return damagedIfGone(err, "interface %s in %s", a.IfName, namespace)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fail(Damaged, "interface %s in %s is down", a.IfName, namespace)
	}
	if link.Attrs().HardwareAddr.String() != a.MAC {
		return fail(Damaged, "interface %s in %s has MAC address %s instead of %s", a.IfName, namespace, link.Attrs().HardwareAddr, a.MAC)
	}
	addrs, err := inside.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of interface %s: %w", a.IfName, err)
	}
	for _, addr := range a.addresses() {
		if !hasAddress(addrs, addr) {
			return fail(Damaged, "interface %s in %s has lost its address %s", a.IfName, namespace, addr)
		}
	}
	routes, err := inside.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("routes of interface %s: %w", a.IfName, err)
	}
	for _, gw := range a.gateways() {
		if !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			return (r.Dst == nil || r.Dst.IP.IsUnspecified()) && r.Gw.Equal(gw.AsSlice())
		}) {
			return fail(Damaged, "the default route by %s in %s is gone", gw, namespace)
		}
	}
	return nil
}

// checkRules looks for the attachment's elements in the tables, which are read once for
// every change that anybody makes to nftables. Elements of others are not its business.
func (h *Host) checkRules(a *Attachment) error {
	h.nft.Lock()
	defer h.nft.Unlock()
	// Asked before reading: a change while reading is read again next time.
	gen, err := generation()
	if err != nil {
		return err
	}
	if h.seen == nil || h.seen.generation != gen {
		h.seen = nil
		current, err := h.rules.current()
		if err != nil {
			return err
		}
		if !current {
			return fail(Damaged, "nftables table %s or its rules are gone", h.cfg.Table)
		}
		seen, err := h.rules.read()
		if err != nil {
			return err
		}
		seen.generation = gen
		h.seen = seen
	}
	if set := h.seen.lacks(a, h.peers(a)); set != "" {
		return fail(Damaged, "nftables set %s lacks an element of %s", set, a.ID)
	}
	return nil
}

// Repair makes the bridge and the tables again and puts the attachment's host side
// back on the bridge. It cannot make an interface that is gone.
func (h *Host) Repair(ctx context.Context, k Key) error {
	if err := h.Setup(ctx); err != nil {
		return err
	}
	a, err := h.find(k)
	if err != nil || a == nil {
		return err
	}
	br, err := h.route.LinkByName(h.cfg.Bridge)
	if err != nil {
		return damagedIfGone(err, "bridge %s", h.cfg.Bridge)
	}
	link, err := h.route.LinkByName(a.HostVeth)
	if err != nil {
		return damagedIfGone(err, "interface %s", a.HostVeth)
	}
	return errors.Join(
		h.route.LinkSetMaster(link, br),
		h.route.LinkSetHairpin(link, true),
		h.route.LinkSetUp(link),
	)
}

// Collect removes every attachment that keep does not name, every file in Dir that is
// nobody's, and every element of the tables without an attachment. It must not run
// beside Add of the same Dir that keep does not know of (CNI specification, GC).
func (h *Host) Collect(ctx context.Context, keep func(Key) bool) error {
	unlock, err := h.res.lock(true)
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.load(); err != nil {
		return err
	}
	var errs []error
	for _, a := range h.Attachments() {
		if !keep(a.Key()) {
			errs = append(errs, h.del(ctx, a.Key()))
		}
	}
	return errors.Join(append(errs, h.setup(ctx))...)
}

// Strays returns the host ends of veth pairs on the bridge that no attachment has.
func (h *Host) Strays() ([]string, error) {
	br, err := h.route.LinkByName(h.cfg.Bridge)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", h.cfg.Bridge, err)
	}
	links, err := h.route.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	known := map[string]bool{}
	for _, a := range h.Attachments() {
		known[a.HostVeth] = true
	}
	var out []string
	for _, l := range links {
		if l.Attrs().MasterIndex == br.Attrs().Index && l.Type() == "veth" && !known[l.Attrs().Name] {
			out = append(out, l.Attrs().Name)
		}
	}
	return out, nil
}

// RemoveStray deletes an interface that Strays returned.
func (h *Host) RemoveStray(name string) error { return h.removeLink(name) }
