package elastic

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"berth.dev/berth/cni-plugins/plugin"
)

// Names of the plugins in a CNI configuration.
const (
	Type       = "ecs-eni"
	BranchType = "ecs-branch-eni"
)

// NetConf is the network configuration of both plugins. The names of the members are
// those of the configurations that ECS agents make (agent protocol, "CNI chain").
type NetConf struct {
	types.PluginConf
	DataDir string `json:"dataDir,omitempty"`
	MTU     int    `json:"mtu,omitempty"`

	// ecs-eni
	MAC       string   `json:"eniMACAddress,omitempty"`
	Addresses []string `json:"eniIPAddresses,omitempty"` // address/length

	// ecs-branch-eni
	TrunkMAC        string   `json:"trunkMACAddress,omitempty"`
	VLAN            string   `json:"branchVlanID,omitempty"`
	BranchMAC       string   `json:"branchMACAddress,omitempty"`
	BranchAddresses []string `json:"ipAddresses,omitempty"`
	InterfaceType   string   `json:"interfaceType,omitempty"` // vlan

	Gateways      []string `json:"gatewayIPAddresses,omitempty"`
	BlockMetadata bool     `json:"blockInstanceMetadata,omitempty"`
}

// ParseNetConf decodes and validates a network configuration: the directory of records,
// and the request without what CNI says in the environment.
func ParseNetConf(data []byte, branch bool) (*NetConf, string, *Request, error) {
	n := &NetConf{}
	if err := plugin.Decode(data, n, &n.PluginConf); err != nil {
		return nil, "", nil, fail(Invalid, "%w", err)
	}
	dir, err := plugin.DataDir(n.DataDir, n.Name)
	if err != nil {
		return nil, "", nil, fail(Invalid, "%w", err)
	}
	r, err := n.request(branch)
	return n, dir, r, err
}

// request reads the members that say what is asked for.
func (n *NetConf) request(branch bool) (*Request, error) {
	r := &Request{MAC: n.MAC, MTU: n.MTU, BlockMetadata: n.BlockMetadata}
	addresses, member := n.Addresses, "eniIPAddresses"
	if branch {
		r.MAC, r.Trunk, addresses, member = n.BranchMAC, n.TrunkMAC, n.BranchAddresses, "ipAddresses"
		if n.VLAN != "" {
			v, err := strconv.Atoi(n.VLAN)
			if err != nil || v < 1 || v > maxVLAN {
				return nil, fail(Invalid, "branchVlanID %q: must be a number from 1 to %d", n.VLAN, maxVLAN)
			}
			r.VLAN = v
		}
		if n.InterfaceType != "" && n.InterfaceType != "vlan" {
			return nil, fail(Invalid, "interfaceType %q: only vlan is supported", n.InterfaceType)
		}
	}
	for _, s := range addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fail(Invalid, "%s: %w", member, err)
		}
		r.Addresses = append(r.Addresses, p)
	}
	for _, s := range n.Gateways {
		gw, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fail(Invalid, "gatewayIPAddresses: %w", err)
		}
		r.Gateways = append(r.Gateways, gw)
	}
	return r, nil
}

// Result is the attachment as a CNI result.
func (a *Attachment) Result() *current.Result {
	only := 0
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: a.IfName, Mac: a.MAC, Mtu: a.MTU, Sandbox: a.Namespace}},
	}
	for _, p := range a.Addresses {
		c := &current.IPConfig{Interface: &only, Address: net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		for _, gw := range a.Gateways {
			if gw.Is4() == p.Addr().Is4() {
				c.Gateway = gw.AsSlice()
			}
		}
		r.IPs = append(r.IPs, c)
	}
	for _, gw := range a.Gateways {
		everything := net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if gw.Is6() {
			everything = net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		r.Routes = append(r.Routes, &types.Route{Dst: everything, GW: gw.AsSlice()})
	}
	return r
}

// Funcs are the verbs of ecs-eni. ctx bounds them all.
func Funcs(ctx context.Context) skel.CNIFuncs { return funcs(ctx, false) }

// BranchFuncs are the verbs of ecs-branch-eni. ctx bounds them all.
func BranchFuncs(ctx context.Context) skel.CNIFuncs { return funcs(ctx, true) }

func funcs(ctx context.Context, branch bool) skel.CNIFuncs {
	verb := func(fn func(context.Context, *Host, *NetConf, *Request, *skel.CmdArgs) error) func(*skel.CmdArgs) error {
		return func(args *skel.CmdArgs) error {
			n, dir, r, err := ParseNetConf(args.StdinData, branch)
			if err != nil {
				return cniError(err)
			}
			h, err := Open(dir)
			if err != nil {
				return cniError(err)
			}
			r.Key, r.Namespace = Key{args.ContainerID, args.IfName}, args.Netns
			return cniError(fn(ctx, h, n, r, args))
		}
	}
	add := func(ctx context.Context, h *Host, n *NetConf, r *Request, _ *skel.CmdArgs) error {
		if branch && r.VLAN == 0 {
			return fail(Invalid, "branchVlanID: must be set")
		}
		return cmdAdd(ctx, h, n, r)
	}
	return skel.CNIFuncs{Add: verb(add), Del: verb(cmdDel), Check: verb(cmdCheck), GC: verb(cmdGC), Status: verb(cmdStatus)}
}

func cmdAdd(ctx context.Context, h *Host, n *NetConf, r *Request) error {
	a, err := h.Add(ctx, *r)
	if err != nil {
		return err
	}
	if err := plugin.Print(&n.PluginConf, a.Result()); err != nil {
		return errors.Join(err, h.Del(context.WithoutCancel(ctx), a.Key()))
	}
	return nil
}

func cmdDel(ctx context.Context, h *Host, _ *NetConf, r *Request, _ *skel.CmdArgs) error {
	return h.Del(ctx, r.Key)
}

func cmdCheck(ctx context.Context, h *Host, n *NetConf, r *Request, args *skel.CmdArgs) error {
	if n.PrevResult == nil {
		return fail(Invalid, "prevResult: CHECK needs the result of ADD")
	}
	a, err := h.Check(ctx, r.Key, args.Netns)
	if err != nil {
		return err
	}
	prev, err := current.NewResultFromResult(n.PrevResult)
	if err != nil {
		return fail(Invalid, "prevResult: %w", err)
	}
	for _, p := range a.Addresses {
		found := false
		for _, ip := range prev.IPs {
			found = found || ip.Address.IP.Equal(p.Addr().AsSlice())
		}
		if !found {
			return fail(Damaged, "the attachment has address %s, which prevResult does not", p)
		}
	}
	return nil
}

func cmdGC(ctx context.Context, h *Host, n *NetConf, _ *Request, _ *skel.CmdArgs) error {
	keep := map[Key]bool{}
	for _, v := range n.ValidAttachments {
		keep[Key{v.ContainerID, v.IfName}] = true
	}
	return h.Collect(ctx, func(k Key) bool { return keep[k] })
}

func cmdStatus(_ context.Context, h *Host, _ *NetConf, _ *Request, _ *skel.CmdArgs) error {
	if err := h.Status(); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	return nil
}

// Codes of errors that the CNI specification leaves to plugins, from 100 on.
const (
	codeExists   = 100
	codeNoDevice = 101
	codeDamaged  = 102
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
	case NoDevice:
		code = codeNoDevice
	case Damaged:
		code = codeDamaged
	}
	return types.NewError(code, err.Error(), "")
}
