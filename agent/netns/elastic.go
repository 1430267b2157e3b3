package netns

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/cni-plugins/ecs-eni/elastic"
	"berth.dev/berth/eni"
)

// ifNameOf is the name of a task's interface inside its namespace.
func ifNameOf(index int) string { return "eth" + strconv.Itoa(index) }

func attachmentKey(id string, index int) elastic.Key {
	return elastic.Key{ID: id, IfName: ifNameOf(index)}
}

// poolDevice is an interface that this agent has to make, as package eni takes it.
func poolDevice(i *task.Interface, owner string) (eni.PoolDevice, error) {
	mac, err := eni.ParseMAC(i.MAC)
	return eni.PoolDevice{
		MAC: mac, Subnet: i.Subnet, Addresses: i.Addresses, Gateways: i.Gateways(), Alias: strings.TrimSpace(i.ID + " " + owner),
	}, err
}

// Prepare makes the device of an interface that nobody plugs in. It keeps the device from
// being swept until Abandon or the removal of its task's network.
func (n *Network) Prepare(ctx context.Context, i *task.Interface) error {
	if !i.Pooled() {
		return nil
	}
	if n.cfg.Pool == nil {
		return faultf(task.Invalid, "interface %s: this agent makes no interfaces; set BERTH_ENI_POOL", i.ID)
	}
	n.expect(i.MAC, true)
	if n.holds(i.MAC) {
		return nil
	}
	d, err := poolDevice(i, "")
	if err != nil {
		return faultf(task.Invalid, "interface %s: %w", i.ID, err)
	}
	return classify(n.cfg.Pool.Ensure(ctx, d))
}

// Await returns when the device of an interface, or the trunk of a branch interface, is on
// this host: as soon as the kernel tells of it, or at once when a task has it. It ends with
// ctx.
func (n *Network) Await(ctx context.Context, i *task.Interface) error {
	if n.holds(i.MAC) {
		return nil
	}
	mac, err := eni.ParseMAC(hardware(i.MAC, i.Trunk))
	if err != nil {
		return faultf(task.Invalid, "interface %s: %w", i.ID, err)
	}
	_, err = eni.Await(ctx, mac)
	return classify(err)
}

// Abandon takes away what Prepare made, unless a task has it.
func (n *Network) Abandon(ctx context.Context, i *task.Interface) error {
	n.expect(i.MAC, false)
	if !i.Pooled() || n.cfg.Pool == nil || n.holds(i.MAC) {
		return nil
	}
	mac, err := eni.ParseMAC(i.MAC)
	if err != nil {
		return nil //nolint:nilerr // nothing was made for it
	}
	return classify(n.cfg.Pool.Remove(ctx, mac, i.Addresses))
}

// Expect keeps the device of an interface from being swept, as Prepare does.
func (n *Network) Expect(i *task.Interface) { n.expect(i.MAC, true) }

func (n *Network) expect(mac string, yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if yes {
		n.expected[mac] = true
	} else {
		delete(n.expected, mac)
	}
}

// holds reports whether a task's namespace has the interface.
func (n *Network) holds(mac string) bool {
	all, err := n.elastic.Attachments()
	return err == nil && slices.ContainsFunc(all, func(a *elastic.Attachment) bool { return a.MAC == mac })
}

// ensureElastic makes the namespace of an awsvpc task, with all its interfaces.
func (n *Network) ensureElastic(ctx context.Context, t *task.Task) error {
	path := n.namespace(t.ID())
	if len(t.Interfaces) == 0 {
		return faultf(task.Invalid, "the task has network mode awsvpc and no network interface")
	}
	for i := range t.Interfaces {
		if t.Interfaces[i].Pooled() && n.cfg.Pool == nil {
			return faultf(task.Invalid, "interface %s: this agent makes no interfaces; set BERTH_ENI_POOL", t.Interfaces[i].ID)
		}
	}
	complete, err := n.checkElastic(ctx, t)
	if err != nil || complete {
		return err
	}
	if err := n.ensureNamespace(path); err != nil {
		return err
	}
	// The rules before the interfaces: nothing passes without them.
	if err := n.applyPolicies(t.ID(), path, filtered(t)); err != nil {
		return err
	}
	for i := range t.Interfaces {
		if err := n.ensureInterface(ctx, t, &t.Interfaces[i], path); err != nil {
			return fmt.Errorf("interface %s: %w", t.Interfaces[i].ID, err)
		}
	}
	return nil
}

// checkElastic reports whether everything is there. What is there in part is taken away,
// to be made anew.
func (n *Network) checkElastic(ctx context.Context, t *task.Task) (bool, error) {
	missing, damaged := 0, error(nil)
	for i := range t.Interfaces {
		_, err := n.elastic.Check(ctx, attachmentKey(t.ID(), i), n.namespace(t.ID()))
		switch {
		case elastic.KindOf(err) == elastic.Damaged:
			missing++
			damaged = err
		case err != nil:
			return false, err
		}
	}
	if missing == 0 {
		return true, nil
	}
	if len(n.recordsOf(t.ID())) == 0 {
		return false, nil
	}
	n.log.Info("making the network of a task anew", "task", t.ID(), "err", damaged)
	return false, n.removeElastic(ctx, t.ID(), toBeMadeAnew)
}

// What becomes of a task's network that is removed. The cluster sends security groups
// once: those of a network that will be made anew stay.
const (
	forGood      = false
	toBeMadeAnew = true
)

// recordsOf are the interfaces that a task has.
func (n *Network) recordsOf(id string) []*elastic.Attachment {
	all, err := n.elastic.Attachments()
	if err != nil {
		n.log.Warn("the interfaces of tasks cannot be listed", "task", id, "err", err)
	}
	return slices.DeleteFunc(all, func(a *elastic.Attachment) bool { return a.ID != id })
}

func (n *Network) ensureInterface(ctx context.Context, t *task.Task, i *task.Interface, path string) error {
	if i.Pooled() {
		d, err := poolDevice(i, t.ID())
		if err != nil {
			return err
		}
		n.expect(i.MAC, true)
		if err := n.cfg.Pool.Ensure(ctx, d); err != nil {
			return err
		}
	}
	if err := fail.Point(fail.CNIBeforeAdd); err != nil {
		return err
	}
	gateways := make([]netip.Addr, 0, 2)
	for _, gw := range i.Gateways() {
		gateways = append(gateways, gw.Addr())
	}
	err := n.addWhenThere(ctx, elastic.Request{
		Key: attachmentKey(t.ID(), i.Index), Namespace: path, MAC: i.MAC, Addresses: i.Prefixes(), Gateways: gateways,
		Index: i.Index, VLAN: i.VLAN, Trunk: i.Trunk, BlockMetadata: n.cfg.BlockMetadata, Discard: i.Pooled(),
	})
	return errors.Join(err, fail.Point(fail.ENIAfterMove), fail.Point(fail.CNIAfterAdd))
}

// hardware is the MAC address of the device that an interface takes: a branch interface is
// none before its task has it, and takes its trunk.
func hardware(mac, trunk string) string { return cmp.Or(trunk, mac) }

// deviceWait is how long a device may be on its way when the task is to have it. It was
// announced and waited for before; then the kernel may still be giving it back from a
// namespace that has ended. It is under the limit of one try of the engine.
const deviceWait = 45 * time.Second

// addWhenThere adds an interface whose device may still be coming. One that the agent
// makes itself is made anew with the next try.
func (n *Network) addWhenThere(ctx context.Context, r elastic.Request) error {
	_, err := n.elastic.Add(ctx, r)
	if elastic.KindOf(err) != elastic.NoDevice {
		return err
	}
	device := hardware(r.MAC, r.Trunk)
	if r.Discard {
		return faultf(task.Unavailable, "no device with MAC address %s is on this host: %w", device, err)
	}
	mac, err := eni.ParseMAC(device)
	if err != nil {
		return faultf(task.Invalid, "%w", err)
	}
	limited, cancel := context.WithTimeout(ctx, n.cfg.DeviceWait)
	defer cancel()
	if _, err := eni.Await(limited, mac); ctx.Err() == nil && errors.Is(err, eni.ErrNoDevice) {
		return faultf(task.NotFound, "no device with MAC address %s is on this host, and none came within %v: attach the network interface to this host", device, n.cfg.DeviceWait)
	} else if err != nil {
		return classify(err)
	}
	_, err = n.elastic.Add(ctx, r)
	return err
}

// removeElastic takes the interfaces of a task and its namespace away. Hardware is given
// back first; what the agent made goes with the namespace.
func (n *Network) removeElastic(ctx context.Context, id string, again bool) error {
	list := n.recordsOf(id)
	if len(list) == 0 {
		return nil
	}
	for _, a := range list {
		if !a.Discard {
			if err := n.elastic.Del(ctx, a.Key()); err != nil {
				return err
			}
		}
	}
	if err := eni.RemoveNamespace(n.namespace(id)); err != nil {
		return err
	}
	if err := fail.Point(fail.CNIBeforeDel); err != nil {
		return err
	}
	for _, a := range list {
		if err := n.removeInterface(ctx, a); err != nil {
			return err
		}
		if again {
			continue
		}
		n.expect(a.MAC, false)
		if err := n.dropPolicy(a.MAC); err != nil {
			return err
		}
	}
	return fail.Point(fail.CNIAfterDel)
}

func (n *Network) removeInterface(ctx context.Context, a *elastic.Attachment) error {
	if a.Discard && a.VLAN == 0 && n.cfg.Pool != nil {
		mac, err := eni.ParseMAC(a.MAC)
		if err != nil {
			return err
		}
		n.awaitNoLink(ctx, eni.PoolPort(mac))
		addresses := make([]netip.Addr, 0, len(a.Addresses))
		for _, p := range a.Addresses {
			addresses = append(addresses, p.Addr())
		}
		if err := n.cfg.Pool.Remove(ctx, mac, addresses); err != nil {
			return err
		}
	}
	return n.elastic.Del(ctx, a.Key())
}

// probeElastic says whether the interfaces of a task are there. Lost security groups are
// put back.
func (n *Network) probeElastic(ctx context.Context, t *task.Task) (task.Observed, error) {
	path := n.namespace(t.ID())
	for i := range t.Interfaces {
		_, err := n.elastic.Check(ctx, attachmentKey(t.ID(), i), path)
		if elastic.KindOf(err) == elastic.Damaged {
			n.log.Warn("the network of a task is damaged", "task", t.ID(), "err", err)
			return task.Observed{}, nil
		}
		if err != nil {
			return task.Observed{}, classify(err)
		}
	}
	if err := n.applyPolicies(t.ID(), path, filtered(t)); err != nil {
		return task.Observed{}, classify(err)
	}
	return task.Observed{Exists: true}, nil
}

// member is an interface whose security groups this agent keeps.
type member struct {
	mac       string
	name      string
	addresses []netip.Addr
}

func filtered(t *task.Task) []member {
	var out []member
	for i := range t.Interfaces {
		if e := &t.Interfaces[i]; e.Pooled() {
			out = append(out, member{mac: e.MAC, name: ifNameOf(e.Index), addresses: e.Addresses})
		}
	}
	return out
}

// SetPolicies replaces what the security groups of all interfaces let pass, by MAC
// address, and brings it into force. Connections that are established stay.
func (n *Network) SetPolicies(ctx context.Context, policies map[string]task.TrafficPolicy) error {
	n.policyMu.Lock()
	defer n.policyMu.Unlock()
	all, err := n.elastic.Attachments()
	if err != nil {
		return classify(err)
	}
	var errs []error
	changed := map[string]bool{}
	for mac, p := range policies {
		differs, err := n.storePolicy(mac, p)
		changed[mac] = differs
		errs = append(errs, err)
	}
	errs = append(errs, n.forgetPolicies(policies, all))
	tasks := map[string][]member{}
	for _, a := range all {
		if !a.Discard || a.VLAN != 0 {
			continue
		}
		m := member{mac: a.MAC, name: a.IfName}
		for _, p := range a.Addresses {
			m.addresses = append(m.addresses, p.Addr())
		}
		tasks[a.ID] = append(tasks[a.ID], m)
	}
	for id, members := range tasks {
		if !slices.ContainsFunc(members, func(m member) bool { return changed[m.mac] }) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := n.setFilters(n.namespace(id), members); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("task %s: %w", id, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return classify(fmt.Errorf("security groups: %w", err))
	}
	return nil
}

// applyPolicies brings the policies of a task's interfaces into force. One that is not
// known yet is an error: the cluster sends it before the task.
func (n *Network) applyPolicies(id, path string, members []member) error {
	if len(members) == 0 {
		return nil
	}
	n.policyMu.Lock()
	defer n.policyMu.Unlock()
	if err := n.setFilters(path, members); err != nil {
		return fmt.Errorf("task %s: %w", id, err)
	}
	return nil
}

// setFilters is called with policyMu held.
func (n *Network) setFilters(path string, members []member) (err error) {
	filters := make([]eni.Filter, 0, len(members))
	groups := eni.Groups{}
	for _, m := range members {
		p, err := n.loadPolicy(m.mac)
		if err != nil {
			return err
		}
		filters = append(filters, eni.Filter{Name: m.name, Addresses: m.addresses, Ingress: passes(p.Ingress), Egress: passes(p.Egress)})
		for name, list := range p.Groups {
			groups[name] = list
		}
	}
	ns, err := eni.OpenNamespace(path)
	if err != nil {
		return err
	}
	return errors.Join(eni.SetFilters(ns, filters, groups), ns.Close())
}

func passes(rules []task.TrafficRule) []eni.Pass {
	out := make([]eni.Pass, 0, len(rules))
	for _, r := range rules {
		out = append(out, eni.Pass{Protocol: r.Protocol, First: r.First, Last: r.Last, Prefix: r.Prefix, Group: r.Group})
	}
	return out
}

func (n *Network) policies() string { return filepath.Join(n.cfg.Dir, "policies") }

func (n *Network) policyFile(mac string) (string, error) {
	parsed, err := net.ParseMAC(mac)
	if err != nil {
		return "", err
	}
	return filepath.Join(n.policies(), strings.ReplaceAll(parsed.String(), ":", "")), nil
}

// storePolicy writes a policy and reports whether it is another than before.
func (n *Network) storePolicy(mac string, p task.TrafficPolicy) (bool, error) {
	path, err := n.policyFile(mac)
	if err != nil {
		return false, err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return false, err
	}
	if have, err := os.ReadFile(path); err == nil && string(have) == string(data) {
		return false, nil
	}
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return false, err
	}
	return true, os.Rename(path+".new", path)
}

func (n *Network) loadPolicy(mac string) (task.TrafficPolicy, error) {
	var p task.TrafficPolicy
	path, err := n.policyFile(mac)
	if err != nil {
		return p, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, faultf(task.Unavailable, "the security groups of interface %s are not known yet: the cluster has to send them first", mac)
	}
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err != nil {
		return p, fmt.Errorf("security groups of interface %s: %w", mac, err)
	}
	return p, nil
}

// forgetPolicies removes the files of interfaces that the cluster does not name and no
// task has.
func (n *Network) forgetPolicies(keep map[string]task.TrafficPolicy, attached []*elastic.Attachment) error {
	entries, err := os.ReadDir(n.policies())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for mac := range keep {
		known[strings.ReplaceAll(mac, ":", "")] = true
	}
	for _, a := range attached {
		known[strings.ReplaceAll(a.MAC, ":", "")] = true
	}
	for _, e := range entries {
		if !known[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(n.policies(), e.Name())))
		}
	}
	return err
}

func (n *Network) dropPolicy(mac string) error {
	path, err := n.policyFile(mac)
	if err != nil {
		return nil //nolint:nilerr // there is no file of this name
	}
	n.policyMu.Lock()
	defer n.policyMu.Unlock()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
