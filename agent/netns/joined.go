package netns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"berth.dev/berth/agent/cni"
	"berth.dev/berth/agent/fail"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/cni-plugins/ecs-bridge/bridge"
	"berth.dev/berth/eni"
)

// DefaultPluginDirs is where CNI plugins are by convention and on Debian.
func DefaultPluginDirs() []string {
	return []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}
}

// Joined is an interface in a network of the operator's.
type Joined struct {
	Network   string         `json:"network"`
	IfName    string         `json:"ifName"`
	MAC       string         `json:"mac,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
}

// capabilityPorts is the CNI convention's name for published ports.
const capabilityPorts = "portMappings"

// joinNetworks connects a namespace to the networks that its containers name, after the
// interfaces of the task's own mode, and finds those that it is connected to. What it
// made before it failed is taken away with the whole network.
func (n *Network) joinNetworks(ctx context.Context, t *task.Task, name string, h *Handle, res *task.Result) error {
	for i, network := range t.NetworksOf(name) {
		k := cni.Key{ID: keyOf(t, name), IfName: ifNameOf(ownInterfaces(t) + i)}
		a, err := n.joined(ctx, k, network, h.Path)
		if err == nil && a == nil {
			a, err = n.join(ctx, cni.Request{Key: k, Network: network, Namespace: h.Path, Capabilities: capabilities(t, name)})
		}
		if err != nil {
			return joinError(err)
		}
		h.Networks = append(h.Networks, Joined{Network: network, IfName: k.IfName, MAC: a.MAC, Addresses: a.Addresses})
		h.addDNS(a)
		if t.NetworkMode == task.NetworkNone && slices.Contains(a.Capabilities, capabilityPorts) {
			res.Bindings = published(t.Container(name), res.Bindings)
		}
	}
	if t.NetworkMode == task.NetworkNone {
		h.adoptAddress()
	}
	return nil
}

// ownInterfaces is how many interfaces the mode of a task gives a namespace.
func ownInterfaces(t *task.Task) int {
	switch t.NetworkMode {
	case task.NetworkBridge:
		return 1
	case task.NetworkAWSVPC:
		return len(t.Interfaces)
	default:
		return 0
	}
}

// joined finds an attachment that is complete, and takes away one that is not; nil means
// that there is none now.
func (n *Network) joined(ctx context.Context, k cni.Key, network, namespace string) (*cni.Attachment, error) {
	a, err := n.cni.Get(k)
	if err != nil {
		return nil, err
	}
	if a != nil && a.Network == network && a.Namespace == namespace {
		err := n.cni.Check(ctx, k)
		if err == nil {
			return a, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		n.log.Info("joining a network anew", "task", TaskID(k.ID), "network", network, "err", err)
	}
	return nil, n.cni.Del(ctx, k)
}

func (n *Network) join(ctx context.Context, r cni.Request) (*cni.Attachment, error) {
	if err := fail.Point(fail.CNIBeforeAdd); err != nil {
		return nil, err
	}
	a, err := n.cni.Add(ctx, r)
	if err == nil {
		err = fail.Point(fail.CNIAfterAdd)
	}
	return a, err
}

// joinError gives errors of plugins their class. Only one that says so, or had no time,
// may help to try again.
func joinError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cni.ErrTryAgain), errors.Is(err, context.DeadlineExceeded):
		return fault(task.Unavailable, err)
	case errors.Is(err, context.Canceled):
		return fault(task.Canceled, err)
	}
	return fault(task.Invalid, err)
}

// leaveNetworks takes a namespace out of the operator's networks, while it is there.
func (n *Network) leaveNetworks(ctx context.Context, key string) error {
	keys, err := n.cni.Keys(func(id string) bool { return id == key })
	for _, k := range keys {
		err = errors.Join(err, n.cni.Del(ctx, k))
	}
	return err
}

// hasJoined reports whether the interfaces of all networks are there; whether their
// plugins find all in order is looked at only when the task is made ready.
func (n *Network) hasJoined(t *task.Task, name string) (bool, error) {
	names := t.NetworksOf(name)
	if len(names) == 0 {
		return true, nil
	}
	ns, err := eni.OpenNamespace(n.namespace(keyOf(t, name)))
	if err != nil {
		return false, err
	}
	links := map[string]bool{}
	inside, err := ns.Netlink()
	if err == nil {
		var all []netlink.Link
		all, err = inside.LinkList()
		inside.Close()
		for _, l := range all {
			links[l.Attrs().Name] = true
		}
	}
	if err := errors.Join(err, ns.Close()); err != nil {
		return false, fmt.Errorf("interfaces of the networks: %w", err)
	}
	for i, network := range names {
		if ifname := ifNameOf(ownInterfaces(t) + i); !links[ifname] {
			n.log.Warn("a task has lost a network", "task", t.ID(), "network", network, "interface", ifname)
			return false, nil
		}
	}
	return true, nil
}

// capabilities is what plugins that ask for it are told of a container. Its ports are
// published by a network's plugins only where the mode has nobody else for it.
func capabilities(t *task.Task, name string) map[string]any {
	c := t.Container(name)
	if t.NetworkMode != task.NetworkNone || c == nil {
		return nil
	}
	var list []bridge.PortMapping
	for _, p := range fixedPorts(c) {
		list = append(list, bridge.PortMapping{HostPort: int(p.HostPort), ContainerPort: int(p.ContainerPort), Protocol: p.Protocol})
	}
	if len(list) == 0 {
		return nil
	}
	return map[string]any{capabilityPorts: list}
}

// fixedPorts are the mappings with a host port of their own choice: CNI knows no others.
func fixedPorts(c *task.Container) []task.Port {
	return slices.DeleteFunc(slices.Clone(c.Ports), func(p task.Port) bool { return p.HostPort == 0 })
}

// published are the bindings of ports that plugins publish.
func published(c *task.Container, have map[string][]task.Binding) map[string][]task.Binding {
	if have == nil {
		have = map[string][]task.Binding{}
	}
	for _, p := range fixedPorts(c) {
		b := task.Binding{BindIP: bindIPv4, ContainerPort: p.ContainerPort, HostPort: p.HostPort, Protocol: p.Protocol}
		if !slices.Contains(have[c.Name], b) {
			have[c.Name] = append(have[c.Name], b)
		}
	}
	return have
}

// addDNS takes over what the plugins of a network say of name servers.
func (h *Handle) addDNS(a *cni.Attachment) {
	for _, s := range a.NameServers {
		if _, err := netip.ParseAddr(s); err == nil && !slices.Contains(h.NameServers, s) {
			h.NameServers = append(h.NameServers, s)
		}
	}
	for _, s := range a.Search {
		if !strings.ContainsAny(s, " \t\r\n") {
			h.Search = append(h.Search, s)
		}
	}
}

// adoptAddress makes the first addresses of the operator's networks the container's own,
// where the mode gives it none.
func (h *Handle) adoptAddress() {
	for _, j := range h.Networks {
		for _, p := range j.Addresses {
			switch {
			case p.Addr().Is4() && h.IP == "":
				h.IP, h.MAC = p.Addr().String(), j.MAC
			case p.Addr().Is6() && h.IPv6 == "":
				h.IPv6 = p.Addr().String()
			}
		}
	}
}

// joinedKeys are the keys of namespaces that are in networks of the operator's.
func (n *Network) joinedKeys() (map[string]bool, error) {
	keys, err := n.cni.Keys(func(string) bool { return true })
	out := map[string]bool{}
	for _, k := range keys {
		out[k.ID] = true
	}
	return out, err
}
