package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Host is the host's side of the bridge network: the network namespace in which Open
// was called. Its methods may be called from many goroutines; calls for the same Key
// must not overlap. All must be called in that namespace.
type Host struct {
	cfg   Config
	log   *slog.Logger
	res   reservations
	rules *rules
	route *netlink.Handle

	mu                  sync.Mutex
	byKey               map[Key]*Attachment
	byAddr              map[netip.Addr]Key
	groups              map[string]map[netip.Addr]*Attachment // published; changed only with nft held, too
	ports               map[portKey]Key
	held                map[Key]sockets
	firstPort, lastPort uint16
	nextPort            uint16
	mtu                 int

	// nft serialises batches: the kernel does so anyway, and a batch that fails on
	// another's change would have to be sent again.
	nft sync.Mutex
	// seen is what the sets held when they were last read, guarded by nft.
	seen *snapshot
}

// Open reads the reservations and opens a netlink socket. It changes nothing on the
// host but making Dir.
func Open(cfg Config) (*Host, error) {
	if err := cfg.normalize(); err != nil {
		return nil, err
	}
	h := &Host{
		cfg: cfg, log: cfg.Log, res: reservations{cfg.Dir}, mtu: cfg.MTU,
		firstPort: cfg.FirstPort, lastPort: cfg.LastPort, held: map[Key]sockets{},
	}
	if h.firstPort == 0 {
		h.firstPort, h.lastPort = kernelPortRange()
	}
	var err error
	if h.rules, err = newRules(&h.cfg); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := h.load(); err != nil {
		return nil, err
	}
	if h.route, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}

// Close closes sockets, those that hold ports too. The network stays as it is.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for k, s := range h.held {
		errs = append(errs, s.close())
		delete(h.held, k)
	}
	h.route.Close()
	return errors.Join(errs...)
}

// Config is the configuration with its defaults filled in.
func (h *Host) Config() Config { return h.cfg }

// load reads the directory of reservations into memory.
func (h *Host) load() error {
	all, _, err := h.res.list()
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.byKey, h.byAddr, h.ports = map[Key]*Attachment{}, map[netip.Addr]Key{}, map[portKey]Key{}
	h.groups = map[string]map[netip.Addr]*Attachment{}
	for _, a := range all {
		h.remember(a)
		h.enter(a)
	}
	return nil
}

// enter adds an attachment to its group; the caller holds h.mu.
func (h *Host) enter(a *Attachment) {
	if a.Group == "" {
		return
	}
	if h.groups[a.Group] == nil {
		h.groups[a.Group] = map[netip.Addr]*Attachment{}
	}
	h.groups[a.Group][a.Address] = a
}

// peers are the others in an attachment's group, as far as published.
func (h *Host) peers(a *Attachment) []*Attachment {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*Attachment
	for addr, p := range h.groups[a.Group] {
		if addr != a.Address {
			out = append(out, p)
		}
	}
	return out
}

// publish and withdraw put an attachment into the tables and take it out again, together
// with its group: of two members that come or go at once, one sees the other.
func (h *Host) publish(a *Attachment) error {
	h.nft.Lock()
	defer h.nft.Unlock()
	if err := h.rules.publish(a, h.peers(a)); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.enter(a)
	return nil
}

func (h *Host) withdraw(a *Attachment) error {
	h.nft.Lock()
	defer h.nft.Unlock()
	if err := h.rules.withdraw(a, h.peers(a)); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.groups[a.Group], a.Address)
	if len(h.groups[a.Group]) == 0 {
		delete(h.groups, a.Group)
	}
	return nil
}

// remember and forget keep the indexes; the caller holds h.mu.
func (h *Host) remember(a *Attachment) {
	h.byKey[a.Key()] = a
	h.byAddr[a.Address] = a.Key()
	for _, p := range a.Ports {
		for _, k := range p.keys() {
			h.ports[k] = a.Key()
		}
	}
}

func (h *Host) forget(a *Attachment) {
	key := a.Key()
	delete(h.byKey, key)
	if h.byAddr[a.Address] == key {
		delete(h.byAddr, a.Address)
	}
	for _, p := range a.Ports {
		for _, k := range p.keys() {
			if h.ports[k] == key {
				delete(h.ports, k)
			}
		}
	}
}

// Setup makes the bridge and the tables, or repairs them: afterwards they are as the
// reservations say, whatever was there. It also removes what interrupted additions
// left in Dir, and with Config.Hold takes all published ports again. It is to be called
// when the agent starts and may be called at any time.
func (h *Host) Setup(ctx context.Context) error {
	unlock, err := h.res.lock(true)
	if err != nil {
		return err
	}
	defer unlock()
	return h.setup(ctx)
}

// setup is Setup; the caller holds the exclusive lock.
func (h *Host) setup(ctx context.Context) error {
	all, junk, err := h.res.list()
	if err != nil {
		return err
	}
	for _, name := range junk {
		h.log.Warn("removing a reservation that is nobody's", "file", name)
		if err := h.res.release(name); err != nil {
			return err
		}
	}
	if err := h.load(); err != nil {
		return err
	}
	if err := h.ensureBridge(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var e elements
	for _, a := range all {
		e.add(a, h.peers(a)...)
	}
	h.nft.Lock()
	defer h.nft.Unlock()
	if err := h.rules.replace(&e); err != nil {
		return err
	}
	if h.cfg.Hold {
		h.holdAll(all)
	}
	return nil
}

// ready makes the bridge and the tables if they are not there; a plugin calls it before
// adding, where Setup's rebuild would be waste.
func (h *Host) ready(ctx context.Context) error {
	if link, err := h.route.LinkByName(h.cfg.Bridge); err == nil && link.Attrs().Flags&net.FlagUp != 0 {
		if ok, err := h.rules.current(); err != nil {
			return err
		} else if ok {
			h.mu.Lock()
			h.mtu = link.Attrs().MTU
			h.mu.Unlock()
			return nil
		}
	}
	return h.Setup(ctx)
}

// holdAll binds the published ports that this Host does not hold yet.
func (h *Host) holdAll(all []*Attachment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range all {
		s := h.held[a.Key()]
		if s == nil {
			s = sockets{}
		}
		for _, p := range a.Ports {
			for _, k := range p.keys() {
				if _, ok := s[k]; ok {
					continue
				}
				if err := s.bind(k, h.families()); err != nil {
					h.log.Warn("another process has taken a published port; its traffic still goes to the task",
						"task", a.ID, "port", k.String(), "err", err)
				}
			}
		}
		if len(s) > 0 {
			h.held[a.Key()] = s
		}
	}
}

// ensureBridge makes the bridge interface with its address and the sysctls it needs.
func (h *Host) ensureBridge() error {
	link, err := h.route.LinkByName(h.cfg.Bridge)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		link, err = h.createBridge()
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", h.cfg.Bridge, err)
	}
	if link.Type() != "bridge" {
		return fail(Invalid, "bridge %s: an interface of type %s has this name", h.cfg.Bridge, link.Type())
	}
	if err := h.bridgeSysctls(); err != nil {
		return err
	}
	gw := h.cfg.gateway()
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: gw.AsSlice(), Mask: net.CIDRMask(h.cfg.Subnet.Bits(), 32)}}
	if err := h.route.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("address %s of bridge %s: %w", addr.IPNet, h.cfg.Bridge, err)
	}
	if h.cfg.Subnet6.IsValid() {
		addr = &netlink.Addr{IPNet: &net.IPNet{IP: h.cfg.beside(gw).AsSlice(), Mask: net.CIDRMask(h.cfg.Subnet6.Bits(), 128)}, Flags: unix.IFA_F_NODAD}
		if err := h.route.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("address %s of bridge %s: %w", addr.IPNet, h.cfg.Bridge, err)
		}
	}
	if err := h.route.LinkSetUp(link); err != nil {
		return fmt.Errorf("bridge %s: %w", h.cfg.Bridge, err)
	}
	h.mu.Lock()
	h.mtu = link.Attrs().MTU
	h.mu.Unlock()
	return h.enableForwarding()
}

// bridgeSysctls settles how the bridge interface treats packets.
func (h *Host) bridgeSysctls() error {
	noIPv6 := "1"
	if h.cfg.Subnet6.IsValid() {
		noIPv6 = "0"
	}
	for _, s := range []struct{ key, value string }{
		{"ipv4/conf/" + h.cfg.Bridge + "/route_localnet", "1"}, // published ports on 127.0.0.1
		{"ipv4/conf/" + h.cfg.Bridge + "/rp_filter", "1"},
		{"ipv4/conf/" + h.cfg.Bridge + "/send_redirects", "0"},
		{"ipv6/conf/" + h.cfg.Bridge + "/accept_ra", "0"},
		// Nobody else can have the bridge's addresses, and without a link-local one that may
		// be used the host could forward nothing to a namespace for a second or two.
		{"ipv6/conf/" + h.cfg.Bridge + "/accept_dad", "0"},
		{"ipv6/conf/" + h.cfg.Bridge + "/disable_ipv6", noIPv6},
	} {
		err := writeSysctl(s.key, s.value)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(s.key, "ipv6/") {
			if !h.cfg.Subnet6.IsValid() {
				continue // a kernel without IPv6
			}
			err = fail(Invalid, "IPv6 subnet %s: this host has no IPv6: %w", h.cfg.Subnet6, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) createBridge() (netlink.Link, error) {
	mtu, err := h.checkRoutes()
	if err != nil {
		return nil, err
	}
	if h.cfg.MTU != 0 {
		mtu = h.cfg.MTU
	}
	snooping := false // costs timers and answers nobody's question here
	br := &netlink.Bridge{
		LinkAttrs:         netlink.LinkAttrs{Name: h.cfg.Bridge, MTU: mtu, HardwareAddr: macOf(h.cfg.gateway())},
		MulticastSnooping: &snooping,
	}
	if err := h.route.LinkAdd(br); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	return h.route.LinkByName(h.cfg.Bridge)
}

// checkRoutes refuses a subnet that the host already has a route to, and finds the MTU
// of the link of the default route.
func (h *Host) checkRoutes() (mtu int, err error) {
	routes, err := h.route.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, fmt.Errorf("list routes: %w", err)
	}
	mtu = DefaultMTU
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			if link, err := h.route.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU > 0 && r.Family == netlink.FAMILY_V4 {
				mtu = link.Attrs().MTU
			}
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP)
		if !ok {
			continue
		}
		bits, _ := r.Dst.Mask.Size()
		for _, own := range []netip.Prefix{h.cfg.Subnet, h.cfg.Subnet6} {
			if dst := netip.PrefixFrom(ip.Unmap(), bits); own.IsValid() && dst.Overlaps(own) {
				return 0, fail(Invalid, "subnet %s overlaps the host's route to %s: choose another subnet for the bridge", own, dst)
			}
		}
	}
	if h.cfg.Subnet6.IsValid() {
		mtu = max(mtu, minMTU6)
	}
	return mtu, nil
}

// Teardown removes every attachment, the bridge, the tables and the reservations, and
// restores forwarding as it was before Setup. Namespaces stay, without an interface.
func (h *Host) Teardown(ctx context.Context) error {
	if _, err := os.Stat(h.cfg.Dir); errors.Is(err, fs.ErrNotExist) {
		return h.removeHostObjects()
	}
	unlock, err := h.res.lock(true)
	if err != nil {
		return err
	}
	defer unlock()
	if err := h.load(); err != nil {
		return err
	}
	for _, a := range h.Attachments() {
		if err := h.del(ctx, a.Key()); err != nil {
			return err
		}
	}
	if err := h.removeHostObjects(); err != nil {
		return err
	}
	if err := h.restoreForwarding(); err != nil {
		return err
	}
	// The directory is ours alone.
	return os.RemoveAll(h.cfg.Dir)
}

func (h *Host) removeHostObjects() error {
	h.nft.Lock()
	defer h.nft.Unlock()
	if err := h.rules.remove(); err != nil {
		return err
	}
	return h.removeLink(h.cfg.Bridge)
}

// removeLink deletes an interface by name; one that is gone is success.
func (h *Host) removeLink(name string) error {
	link, err := h.route.LinkByName(name)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return nil
	}
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	if err := h.route.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// ForwardDrops names the nftables chains of others that drop forwarded packets by
// policy, as "family table chain". Traffic of the bridge passes them only if the
// operator accepts it there. Rules of the old iptables-legacy are not seen.
func ForwardDrops(ours string) ([]string, error) {
	c, err := newConn()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var out []string
	for _, ch := range chains {
		ip := ch.Table.Family == nftables.TableFamilyIPv4 || ch.Table.Family == nftables.TableFamilyINet
		if ip && ch.Table.Name != ours && ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward &&
			ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			family := "inet"
			if ch.Table.Family == nftables.TableFamilyIPv4 {
				family = "ip"
			}
			out = append(out, family+" "+ch.Table.Name+" "+ch.Name)
		}
	}
	return out, nil
}

// generation is the number that the kernel raises with every change of nftables.
func generation() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddRawData([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return 0, fmt.Errorf("nftables generation: %w", err)
	}
	for _, m := range msgs {
		attrs, err := nl.ParseRouteAttr(m[min(len(m), nl.SizeofNfgenmsg):])
		if err != nil {
			return 0, fmt.Errorf("nftables generation: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.NFTA_GEN_ID && len(a.Value) == 4 {
				return binary.BigEndian.Uint32(a.Value), nil
			}
		}
	}
	return 0, errors.New("nftables generation: the kernel did not tell it")
}

const sysctlRoot = "/proc/sys/net"

func writeSysctl(key, value string) error {
	if err := os.WriteFile(filepath.Join(sysctlRoot, key), []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl net.%s: %w", strings.ReplaceAll(key, "/", "."), err)
	}
	return nil
}

// kernelPortRange is net.ipv4.ip_local_port_range, or the default of the protocol.
func kernelPortRange() (first, last uint16) {
	data, err := os.ReadFile(filepath.Join(sysctlRoot, "ipv4/ip_local_port_range"))
	if err == nil {
		if n, err := fmt.Sscan(string(data), &first, &last); err == nil && n == 2 && 0 < first && first <= last {
			return first, last
		}
	}
	return DefaultFirstPort, DefaultLastPort
}
