package elastic

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"berth.dev/berth/eni"
)

// Host makes and removes the attachments of a host. It is safe for use by many
// goroutines and by several processes on one directory.
type Host struct{ records records }

// Open opens the directory of records and makes it if need be. Dir must be emptied by a
// reboot, or collected after it.
func Open(dir string) (*Host, error) {
	if !filepath.IsAbs(dir) {
		return nil, fail(Invalid, "data directory %q: must be an absolute path", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	h := &Host{records{dir}}
	unlock, err := h.records.lock(false) // makes the file
	if err != nil {
		return nil, err
	}
	unlock()
	return h, nil
}

// Add brings a device into a namespace. When it fails, everything that it did has been
// undone, except what the returned error says could not be. An attachment that exists
// is an error of kind Exists.
func (h *Host) Add(ctx context.Context, r Request) (_ *Attachment, err error) {
	a, err := r.attachment()
	if err != nil {
		return nil, err
	}
	ns, err := eni.OpenNamespace(r.Namespace)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	unlock, err := h.records.lock(false)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if have, err := h.records.read(a.Key()); err != nil || have != nil {
		if have != nil {
			err = fail(Exists, "%s of %s is attached already, with MAC address %s", a.IfName, a.ID, have.MAC)
		}
		return nil, err
	}
	if err := h.records.create(a); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fail(Exists, "%s of %s is being attached by another process", a.IfName, a.ID)
		}
		return nil, err
	}
	if err := h.connect(ctx, a, ns); err != nil {
		return nil, errors.Join(err, h.del(a))
	}
	return a, nil
}

func (h *Host) connect(ctx context.Context, a *Attachment, ns *eni.Namespace) error {
	inside, err := a.inside()
	if err != nil {
		return err
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	if err := ctx.Err(); err != nil {
		return err
	}
	if a.VLAN != 0 {
		if err := makeBranch(host, ns, a, inside.MAC); err != nil {
			return err
		}
	}
	if err := eni.Move(host, ns, inside.MAC, a.IfName); err != nil {
		return err
	}
	return eni.Configure(ns, inside)
}

// branchLink is the link of a branch interface: a VLAN on the trunk, named
// <trunk>.<vlan> as far as names go (agent protocol, "CNI chain").
func branchLink(a *Attachment, trunk netlink.Link, mac net.HardwareAddr) *netlink.Vlan {
	name := fmt.Sprintf("%s.%d", trunk.Attrs().Name, a.VLAN)
	if len(name) >= unix.IFNAMSIZ {
		name = fmt.Sprintf("vlan%d", a.VLAN)
	}
	return &netlink.Vlan{
		LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: trunk.Attrs().Index, HardwareAddr: mac},
		VlanId:    a.VLAN, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q,
	}
}

// makeBranch makes the device of a branch interface, unless the host or the namespace has it.
func makeBranch(host *netlink.Handle, ns *eni.Namespace, a *Attachment, mac net.HardwareAddr) error {
	if l, err := findBranch(host, mac); err != nil || l != nil {
		return err
	}
	inside, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer inside.Close()
	if l, err := findBranch(inside, mac); err != nil || l != nil {
		return err
	}
	trunkMAC, err := eni.ParseMAC(a.Trunk)
	if err != nil {
		return err
	}
	trunk, err := eni.FindByMAC(host, trunkMAC)
	if err != nil {
		return fmt.Errorf("trunk: %w", err)
	}
	if err := host.LinkSetUp(trunk); err != nil {
		return fmt.Errorf("trunk %s: %w", trunk.Attrs().Name, err)
	}
	l := branchLink(a, trunk, mac)
	if err := host.LinkAdd(l); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			return fail(Invalid, "VLAN %d on %s: this kernel has no VLANs (module 8021q)", a.VLAN, trunk.Attrs().Name)
		}
		return fmt.Errorf("make VLAN %d on %s: %w", a.VLAN, trunk.Attrs().Name, err)
	}
	return nil
}

// findBranch finds the VLAN device with a MAC address, nil when there is none.
func findBranch(h *netlink.Handle, mac net.HardwareAddr) (netlink.Link, error) {
	l, err := eni.FindVLAN(h, mac)
	if errors.Is(err, eni.ErrNoDevice) {
		return nil, nil
	}
	return l, err
}

// Del removes an attachment, or what is left of one. It needs neither the namespace nor
// a completed Add, and succeeds when there is nothing.
func (h *Host) Del(ctx context.Context, k Key) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	unlock, err := h.records.lock(false)
	if err != nil {
		return err
	}
	defer unlock()
	a, err := h.records.read(k)
	if err != nil || a == nil {
		return err
	}
	return h.del(a)
}

// del takes the device out of the namespace and then removes the record.
func (h *Host) del(a *Attachment) error {
	if err := h.disconnect(a); err != nil {
		return err
	}
	return h.records.remove(recordName(a.Key()))
}

func (h *Host) disconnect(a *Attachment) (err error) {
	mac, err := a.mac()
	if err != nil {
		return nil //nolint:nilerr // a record of nothing that could exist
	}
	live, err := eni.Live(a.Namespace)
	if err == nil && !live {
		// A path into /proc is none of a mount but may be a namespace all the same.
		_, err = os.Stat(a.Namespace)
		live = err == nil
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return err
	}
	if live {
		if err := leave(a, mac); err != nil {
			return err
		}
	}
	if !a.Discard {
		return nil
	}
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer host.Close()
	return remove(host, a, mac)
}

// leave takes the device out of its namespace.
func leave(a *Attachment, mac net.HardwareAddr) (err error) {
	ns, err := eni.OpenNamespace(a.Namespace)
	if err != nil {
		return nil //nolint:nilerr // whatever is there is no network namespace, so the device is not in it
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	if a.Discard {
		inside, err := ns.Netlink()
		if err != nil {
			return err
		}
		defer inside.Close()
		return remove(inside, a, mac)
	}
	home, err := eni.OpenNamespace("/proc/self/ns/net")
	if err != nil {
		return err
	}
	return errors.Join(eni.GiveBack(home, ns, mac), home.Close())
}

// remove deletes a device.
func remove(h *netlink.Handle, a *Attachment, mac net.HardwareAddr) error {
	find := eni.FindByMAC
	if a.VLAN != 0 {
		find = eni.FindVLAN
	}
	l, err := find(h, mac)
	if errors.Is(err, eni.ErrNoDevice) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface with MAC address %s: %w", mac, err)
	}
	return nil
}

// Check compares an attachment with what is in the namespace. An error of kind Damaged
// says what is missing.
func (h *Host) Check(ctx context.Context, k Key, namespace string) (_ *Attachment, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	a, err := h.records.read(k)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, fail(Damaged, "%s of %s is not attached", k.IfName, k.ID)
	}
	if a.Namespace != namespace {
		return nil, fail(Damaged, "%s of %s is attached to %s and not to %s", k.IfName, k.ID, a.Namespace, namespace)
	}
	inside, err := a.inside()
	if err != nil {
		return nil, fail(Damaged, "%w", err)
	}
	ns, err := eni.OpenNamespace(namespace)
	if err != nil {
		return nil, fail(Damaged, "%w", err)
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	if err := eni.Verify(ns, inside); err != nil {
		return nil, fail(Damaged, "%w", err)
	}
	return a, nil
}

// Attachments lists all attachments.
func (h *Host) Attachments() ([]*Attachment, error) {
	all, _, err := h.records.list()
	return all, err
}

// Collect removes every attachment that keep does not want, and records that are
// nobody's.
func (h *Host) Collect(ctx context.Context, keep func(Key) bool) error {
	unlock, err := h.records.lock(true)
	if err != nil {
		return err
	}
	defer unlock()
	all, junk, err := h.records.list()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range all {
		if keep(a.Key()) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, h.del(a))
	}
	for _, name := range junk {
		errs = append(errs, h.records.remove(name))
	}
	return errors.Join(errs...)
}

// Status reports why Add could not succeed now.
func (h *Host) Status() error {
	if err := unix.Access(h.records.dir, unix.W_OK); err != nil {
		return fmt.Errorf("data directory %s: %w", h.records.dir, err)
	}
	l, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	l.Close()
	return nil
}
