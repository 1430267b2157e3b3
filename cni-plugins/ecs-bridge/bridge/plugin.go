package bridge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"berth.dev/berth/cni-plugins/plugin"
)

// Type is the plugin's name in a CNI configuration.
const Type = "ecs-bridge"

// NetConf is the network configuration on the plugin's standard input.
type NetConf struct {
	types.PluginConf
	Bridge    string `json:"bridge,omitempty"`
	Table     string `json:"table,omitempty"`
	Subnet    string `json:"subnet,omitempty"`
	Subnet6   string `json:"subnet6,omitempty"` // IPv6; empty is IPv4 only
	MTU       int    `json:"mtu,omitempty"`
	DataDir   string `json:"dataDir,omitempty"`
	PortRange string `json:"portRange,omitempty"` // "first-last", for host ports that are 0

	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings,omitempty"`

		// Group is the capability of that name, this plugin's own: namespaces of one group
		// reach each other directly.
		Group string `json:"group,omitempty"`
	} `json:"runtimeConfig"`
}

// PortMapping is one entry of the portMappings capability (CNI conventions).
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// ParseNetConf decodes and validates a network configuration.
func ParseNetConf(data []byte) (*NetConf, Config, error) {
	n := &NetConf{}
	if err := plugin.Decode(data, n, &n.PluginConf); err != nil {
		return nil, Config{}, fail(Invalid, "%w", err)
	}
	dir, err := plugin.DataDir(n.DataDir, n.Name)
	if err != nil {
		return nil, Config{}, fail(Invalid, "%w", err)
	}
	cfg := Config{Bridge: n.Bridge, Table: n.Table, MTU: n.MTU, Dir: dir}
	for _, s := range []struct {
		name, text string
		to         *netip.Prefix
	}{{"subnet", n.Subnet, &cfg.Subnet}, {"subnet6", n.Subnet6, &cfg.Subnet6}} {
		if s.text == "" {
			continue
		}
		p, err := netip.ParsePrefix(s.text)
		if err != nil {
			return nil, Config{}, fail(Invalid, "%s: %w", s.name, err)
		}
		*s.to = p
	}
	if n.PortRange != "" {
		if c, err := fmt.Sscanf(n.PortRange, "%d-%d", &cfg.FirstPort, &cfg.LastPort); err != nil || c != 2 || cfg.FirstPort == 0 {
			return nil, Config{}, fail(Invalid, "portRange %q: must be FIRST-LAST, for example 49153-65535", n.PortRange)
		}
	}
	if err := cfg.normalize(); err != nil {
		return nil, Config{}, err
	}
	if _, err := n.ports(); err != nil {
		return nil, Config{}, err
	}
	if len(n.RuntimeConfig.Group) > maxGroup {
		return nil, Config{}, fail(Invalid, "runtimeConfig.group: must not be longer than %d bytes", maxGroup)
	}
	return n, cfg, nil
}

func (n *NetConf) ports() ([]Port, error) {
	var out []Port
	for i, m := range n.RuntimeConfig.PortMappings {
		if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
			return nil, fail(Invalid, "runtimeConfig.portMappings[%d]: host port %d or container port %d is out of range", i, m.HostPort, m.ContainerPort)
		}
		if m.HostIP != "" && m.HostIP != "0.0.0.0" && m.HostIP != "::" {
			return nil, fail(Invalid, "runtimeConfig.portMappings[%d].hostIP %q: ports are published on every address; leave it out", i, m.HostIP)
		}
		proto := strings.ToLower(m.Protocol)
		if proto == "" {
			proto = "tcp"
		}
		out = append(out, Port{Protocol: proto, HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort)})
	}
	return out, validatePorts(out)
}

// Result is the attachment as a CNI result.
func (a *Attachment) Result() *current.Result {
	const sandboxed = 2
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: a.Bridge, Mac: macOf(a.Gateway).String(), Mtu: a.MTU},
			{Name: a.HostVeth, Mtu: a.MTU},
			{Name: a.IfName, Mac: a.MAC, Mtu: a.MTU, Sandbox: a.Namespace},
		},
	}
	for i, gw := range a.gateways() {
		at := sandboxed // each its own, because they are moved behind what other plugins made
		r.IPs = append(r.IPs, &current.IPConfig{Interface: &at, Address: *alone(a.addresses()[i]), Gateway: gw.AsSlice()})
		r.Routes = append(r.Routes, &types.Route{Dst: *everything(gw), GW: gw.AsSlice()})
	}
	return r
}

// Funcs are the plugin's verbs. ctx bounds them all.
func Funcs(ctx context.Context) skel.CNIFuncs {
	verb := func(fn func(context.Context, *Host, *NetConf, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error {
			n, cfg, err := ParseNetConf(args.StdinData)
			if err != nil {
				return cniError(err)
			}
			h, err := Open(cfg)
			if err != nil {
				return cniError(err)
			}
			return cniError(errors.Join(fn(ctx, h, n, args), h.Close()))
		}
	}
	return skel.CNIFuncs{Add: verb(cmdAdd), Del: verb(cmdDel), Check: verb(cmdCheck), GC: verb(cmdGC), Status: verb(cmdStatus)}
}

func cmdAdd(ctx context.Context, h *Host, n *NetConf, args *skel.CmdArgs) error {
	ports, err := n.ports()
	if err != nil {
		return err
	}
	if err := h.ready(ctx); err != nil {
		return err
	}
	a, err := h.Add(ctx, Request{
		Key: Key{args.ContainerID, args.IfName}, Namespace: args.Netns, Ports: ports, Group: n.RuntimeConfig.Group,
	})
	if err != nil {
		return err
	}
	if err := plugin.Print(&n.PluginConf, a.Result()); err != nil {
		return errors.Join(err, h.Del(context.WithoutCancel(ctx), a.Key()))
	}
	return nil
}

func cmdDel(ctx context.Context, h *Host, _ *NetConf, args *skel.CmdArgs) error {
	return h.Del(ctx, Key{args.ContainerID, args.IfName})
}

func cmdCheck(ctx context.Context, h *Host, n *NetConf, args *skel.CmdArgs) error {
	if n.PrevResult == nil {
		return fail(Invalid, "prevResult: CHECK needs the result of ADD")
	}
	a, err := h.Check(ctx, Key{args.ContainerID, args.IfName}, args.Netns)
	if err != nil {
		return err
	}
	prev, err := current.NewResultFromResult(n.PrevResult)
	if err != nil {
		return fail(Invalid, "prevResult: %w", err)
	}
	for _, addr := range a.addresses() {
		if !slices.ContainsFunc(prev.IPs, func(ip *current.IPConfig) bool { return ip.Address.IP.Equal(addr.AsSlice()) }) {
			return fail(Damaged, "the attachment has address %s, which prevResult does not", addr)
		}
	}
	return nil
}

func cmdGC(ctx context.Context, h *Host, n *NetConf, _ *skel.CmdArgs) error {
	keep := map[Key]bool{}
	for _, v := range n.ValidAttachments {
		keep[Key{v.ContainerID, v.IfName}] = true
	}
	return h.Collect(ctx, func(k Key) bool { return keep[k] })
}

func cmdStatus(_ context.Context, h *Host, _ *NetConf, _ *skel.CmdArgs) error {
	if err := h.Status(); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	return nil
}

// Status reports why Add could not succeed now.
func (h *Host) Status() error {
	link, err := h.route.LinkByName(h.cfg.Bridge)
	switch _, gone := errors.AsType[netlink.LinkNotFoundError](err); {
	case gone:
		if _, err := h.checkRoutes(); err != nil {
			return err
		}
	case err != nil:
		return err
	case link.Type() != "bridge":
		return fail(Invalid, "bridge %s: an interface of type %s has this name", h.cfg.Bridge, link.Type())
	}
	if _, err := h.rules.current(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if usable := 1<<(32-h.cfg.Subnet.Bits()) - 3; len(h.byAddr) >= usable {
		return fail(Exhausted, "no free address in subnet %s: all %d are in use", h.cfg.Subnet, usable)
	}
	return nil
}

// Codes of errors that the CNI specification leaves to plugins, from 100 on.
const (
	codeExists  = 100
	codePort    = 101
	codeDamaged = 102
)

// cniError gives an error the code by which a runtime knows what to do.
func cniError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*types.Error](err); ok {
		return err
	}
	code := uint(types.ErrInternal)
	switch KindOf(err) {
	case Invalid:
		code = types.ErrInvalidNetworkConfig
	case Exists:
		code = codeExists
	case Exhausted:
		code = types.ErrTryAgainLater
	case PortTaken:
		code = codePort
	case Damaged:
		code = codeDamaged
	}
	return types.NewError(code, err.Error(), "")
}
