package bridge

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	mdnetlink "github.com/mdlayher/netlink"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names and numbers of the rule set.
const (
	// rulesVersion is raised whenever the rules below change, so that an older set is replaced.
	rulesVersion = 4

	setPublished = "published"
	setHairpin   = "hairpin"
	setPeers     = "peers"
	setPorts     = "ports"
	setSources   = "sources"
	suffix6      = "6" // of the IPv6 sets

	elementsPerMessage = 500     // a netlink attribute holds at most 64 KiB
	batchBuffer        = 8 << 20 // bytes of socket buffer for one batch

	statusDNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h

	// translatedPriority is the packet priority by which the bridge table knows packets
	// that were translated to a published port; any unusual value. It is 0 on every
	// packet that comes out of a namespace, whatever was set inside.
	translatedPriority = 0x62657274
)

// hostMetadata is where a host finds its own metadata and credentials (EC2 instance
// metadata, ECS and EKS credentials). Namespaces never get there: with the host's identity
// a task could have the credentials of all tasks sent to it.
var hostMetadata = []netip.Prefix{
	netip.MustParsePrefix("169.254.169.254/32"), netip.MustParsePrefix("169.254.170.2/32"), netip.MustParsePrefix("169.254.170.23/32"),
	netip.MustParsePrefix("fd00:ec2::254/128"), netip.MustParsePrefix("fd00:ec2::23/128"),
}

// HostMetadata is where a host finds its own metadata and credentials, for others who keep
// tasks from there.
func HostMetadata() []netip.Prefix { return slices.Clone(hostMetadata) }

// rules are the two tables of ours and their sets.
type rules struct {
	cfg    *Config
	inet   *nftables.Table
	bridge *nftables.Table

	published, hairpin, peers, ports, sources *nftables.Set

	// The same for IPv6. They are there always, and empty on a bridge without it.
	published6, hairpin6, peers6, sources6 *nftables.Set
}

// sets are all sets of both tables.
func (r *rules) sets() []*nftables.Set {
	return []*nftables.Set{
		r.published, r.hairpin, r.peers, r.ports, r.sources, r.published6, r.hairpin6, r.peers6, r.sources6,
	}
}

func newRules(cfg *Config) (*rules, error) {
	r := &rules{
		cfg:    cfg,
		inet:   &nftables.Table{Name: cfg.Table, Family: nftables.TableFamilyINet},
		bridge: &nftables.Table{Name: cfg.Table, Family: nftables.TableFamilyBridge},
	}
	protoPort, err1 := nftables.ConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	addrPort, err2 := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	addrAddr, err3 := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
	source, err4 := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	addrPort6, err5 := nftables.ConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
	addrAddr6, err6 := nftables.ConcatSetType(nftables.TypeIP6Addr, nftables.TypeIP6Addr)
	source6, err7 := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIP6Addr)
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7); err != nil {
		return nil, err
	}
	r.published = &nftables.Set{Table: r.inet, Name: setPublished, ID: 1, IsMap: true, Concatenation: true, KeyType: protoPort, DataType: addrPort}
	r.hairpin = &nftables.Set{Table: r.inet, Name: setHairpin, ID: 2, Concatenation: true, KeyType: addrAddr}
	r.peers = &nftables.Set{Table: r.inet, Name: setPeers, ID: 5, Concatenation: true, KeyType: addrAddr}
	r.ports = &nftables.Set{Table: r.bridge, Name: setPorts, ID: 3, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	r.sources = &nftables.Set{Table: r.bridge, Name: setSources, ID: 4, Concatenation: true, KeyType: source}
	r.published6 = &nftables.Set{Table: r.inet, Name: setPublished + suffix6, ID: 6, IsMap: true, Concatenation: true, KeyType: protoPort, DataType: addrPort6}
	r.hairpin6 = &nftables.Set{Table: r.inet, Name: setHairpin + suffix6, ID: 7, Concatenation: true, KeyType: addrAddr6}
	r.peers6 = &nftables.Set{Table: r.inet, Name: setPeers + suffix6, ID: 8, Concatenation: true, KeyType: addrAddr6}
	r.sources6 = &nftables.Set{Table: r.bridge, Name: setSources + suffix6, ID: 9, Concatenation: true, KeyType: source6}
	return r, nil
}

// mark is the name of an empty chain that tells which rules a table was made with.
func (r *rules) mark() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %s %s %s", rulesVersion, r.cfg.Bridge, r.cfg.Subnet, r.cfg.Subnet6))
	return "rules_" + hex.EncodeToString(sum[:6])
}

func newConn() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(batchBuffer), c.SetReadBuffer(batchBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return c, nil
}

// elements is what the attachments contribute to the sets.
type elements struct {
	published, hairpin, peers, ports, sources []nftables.SetElement
	published6, hairpin6, peers6, sources6    []nftables.SetElement
}

// in returns the elements of one set, by its name.
func (e *elements) in(set string) []nftables.SetElement {
	switch set {
	case setPublished:
		return e.published
	case setHairpin:
		return e.hairpin
	case setPeers:
		return e.peers
	case setPorts:
		return e.ports
	case setSources:
		return e.sources
	case setPublished + suffix6:
		return e.published6
	case setHairpin + suffix6:
		return e.hairpin6
	case setPeers + suffix6:
		return e.peers6
	default:
		return e.sources6
	}
}

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// add adds what an attachment contributes, and both directions between it and each peer.
func (e *elements) add(a *Attachment, peers ...*Attachment) {
	e.ports = append(e.ports, nftables.SetElement{Key: ifname(a.HostVeth)})
	addFamily(a, a.Address, &e.published, &e.hairpin, &e.sources)
	for _, p := range peers {
		addPair(&e.peers, a.Address, p.Address)
	}
	if !a.Address6.IsValid() {
		return
	}
	addFamily(a, a.Address6, &e.published6, &e.hairpin6, &e.sources6)
	for _, p := range peers {
		if p.Address6.IsValid() {
			addPair(&e.peers6, a.Address6, p.Address6)
		}
	}
}

// addFamily adds what one address of an attachment contributes to the sets of its family.
func addFamily(a *Attachment, addr netip.Addr, published, hairpin, sources *[]nftables.SetElement) {
	ip := addr.AsSlice()
	*hairpin = append(*hairpin, nftables.SetElement{Key: slices.Concat(ip, ip)})
	*sources = append(*sources, nftables.SetElement{Key: slices.Concat(ifname(a.HostVeth), a.hardwareAddr(), []byte{0, 0}, ip)})
	for _, p := range a.Ports {
		for i, k := range p.keys() {
			*published = append(*published, nftables.SetElement{
				Key: publishedKey(k),
				Val: slices.Concat(ip, portBytes(p.ContainerPort+uint16(i))),
			})
		}
	}
}

func addPair(set *[]nftables.SetElement, a, b netip.Addr) {
	*set = append(*set, nftables.SetElement{Key: slices.Concat(a.AsSlice(), b.AsSlice())}, nftables.SetElement{Key: slices.Concat(b.AsSlice(), a.AsSlice())})
}

// Members of a concatenation are padded to 4 bytes each.
func portBytes(p uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, p), 0, 0) }

func publishedKey(k portKey) []byte {
	return slices.Concat([]byte{k.proto, 0, 0, 0}, portBytes(k.port))
}

// each calls fn for every set with its elements, in chunks that fit a message.
func (r *rules) each(e *elements, fn func(*nftables.Set, []nftables.SetElement) error) error {
	for _, s := range r.sets() {
		for chunk := range slices.Chunk(e.in(s.Name), elementsPerMessage) {
			if err := fn(s, chunk); err != nil {
				return fmt.Errorf("nftables set %s: %w", s.Name, err)
			}
		}
	}
	return nil
}

// publish adds the elements of one attachment, all or none.
func (r *rules) publish(a *Attachment, peers []*Attachment) error {
	var e elements
	e.add(a, peers...)
	c, err := newConn()
	if err != nil {
		return err
	}
	if err := r.each(&e, c.SetAddElements); err != nil {
		return err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("publish in nftables table %s: %w", r.cfg.Table, err)
	}
	return nil
}

// withdraw removes the elements of one attachment. Ones that are gone are success.
func (r *rules) withdraw(a *Attachment, peers []*Attachment) error {
	var e elements
	e.add(a, peers...)
	c, err := newConn()
	if err != nil {
		return err
	}
	if err := r.each(&e, c.SetDeleteElements); err != nil {
		return err
	}
	err = c.Flush()
	if !errors.Is(err, unix.ENOENT) {
		return wrapFlush(err, "withdraw from", r.cfg.Table)
	}
	// Something is missing, so that nothing was removed. Remove what there is.
	if err := r.each(&e, func(s *nftables.Set, list []nftables.SetElement) error {
		have, err := c.GetSetElements(s)
		if isGone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(slices.Clone(list), func(x nftables.SetElement) bool { return !contains(have, x) })
		if len(list) == 0 {
			return nil
		}
		return c.SetDeleteElements(s, list)
	}); err != nil {
		return err
	}
	return wrapFlush(c.Flush(), "withdraw from", r.cfg.Table)
}

func wrapFlush(err error, what, table string) error {
	if err != nil {
		return fmt.Errorf("%s nftables table %s: %w", what, table, err)
	}
	return nil
}

// isGone reports whether a table or set that was asked for is not there. The library
// keeps the kernel's error only as text when it lists.
func isGone(err error) bool {
	return err != nil && (errors.Is(err, unix.ENOENT) || strings.HasSuffix(err.Error(), unix.ENOENT.Error()))
}

// contains reports whether x is in have, with the same value where it has one.
func contains(have []nftables.SetElement, x nftables.SetElement) bool {
	return slices.ContainsFunc(have, func(y nftables.SetElement) bool {
		return slices.Equal(x.Key, y.Key) && slices.Equal(x.Val, y.Val)
	})
}

// current reports whether both tables are there with the rules of this version.
func (r *rules) current() (bool, error) {
	c, err := newConn()
	if err != nil {
		return false, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return false, fmt.Errorf("list nftables chains: %w", err)
	}
	found := 0
	for _, ch := range chains {
		if ch.Table.Name == r.cfg.Table && ch.Name == r.mark() {
			found++
		}
	}
	return found == 2, nil
}

// snapshot is what the sets held in one generation of nftables: value by key, by set.
type snapshot struct {
	generation uint32
	sets       map[string]map[string]string
}

// read takes a snapshot. A set that is gone is an empty one.
func (r *rules) read() (*snapshot, error) {
	c, err := newConn()
	if err != nil {
		return nil, err
	}
	snap := &snapshot{sets: map[string]map[string]string{}}
	for _, s := range r.sets() {
		have, err := c.GetSetElements(s)
		if err != nil && !isGone(err) {
			return nil, fmt.Errorf("list nftables set %s: %w", s.Name, err)
		}
		index := make(map[string]string, len(have))
		for _, x := range have {
			index[string(x.Key)] = string(x.Val)
		}
		snap.sets[s.Name] = index
	}
	return snap, nil
}

// lacks names a set that does not hold what a contributes to it; "" when none.
func (s *snapshot) lacks(a *Attachment, peers []*Attachment) string {
	var e elements
	e.add(a, peers...)
	for name, have := range s.sets {
		for _, x := range e.in(name) {
			if val, ok := have[string(x.Key)]; !ok || val != string(x.Val) {
				return name
			}
		}
	}
	return ""
}

// remove deletes both tables.
func (r *rules) remove() error {
	c, err := newConn()
	if err != nil {
		return err
	}
	for _, t := range []*nftables.Table{r.inet, r.bridge} {
		c.AddTable(t) // so that deleting cannot fail when it is not there
		c.DelTable(t)
	}
	return wrapFlush(c.Flush(), "remove", r.cfg.Table)
}

// replace makes both tables with the rules and the elements e, in place of whatever
// they held, in one transaction: no packet sees anything in between.
func (r *rules) replace(e *elements) error {
	c, err := newConn()
	if err != nil {
		return err
	}
	for _, t := range []*nftables.Table{r.inet, r.bridge} {
		c.AddTable(t)
		c.DelTable(t)
		c.AddTable(t)
		c.AddChain(&nftables.Chain{Name: r.mark(), Table: t})
	}
	for _, s := range r.sets() {
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", s.Name, err)
		}
	}
	r.addInet(c)
	r.addBridge(c)
	if err := r.each(e, c.SetAddElements); err != nil {
		return err
	}
	return wrapFlush(c.Flush(), "make", r.cfg.Table)
}

func (r *rules) addInet(c *nftables.Conn) {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: r.inet, Type: kind, Hooknum: hook, Priority: prio})
	}
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: r.inet, Chain: ch, Exprs: slices.Concat(parts...)})
	}
	in, out := nameIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, r.cfg.Bridge), nameIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, r.cfg.Bridge)
	loopback := netip.MustParsePrefix("127.0.0.0/8")

	// route_localnet on the bridge must not let namespaces reach the host's loopback.
	guard := chain("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	rule(guard, in, ipv4.is(), ipv4.destinationIn(loopback), verdict(expr.VerdictDrop))

	for _, a := range hostMetadata {
		f := familyOf(a)
		rule(guard, in, f.is(), f.destinationIn(a), toLocal(), verdict(expr.VerdictDrop))
	}

	dnatIn := chain("published_in", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	dnatOut := chain("published_local", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	for _, ch := range []*nftables.Chain{dnatIn, dnatOut} {
		rule(ch, ipv4.is(), toLocal(), ipv4.translate(r.published))
		rule(ch, ipv6.is(), toLocal(), ipv6.translate(r.published6))
	}

	// With br_netfilter active for bridges, the kernel translates while the frame is still
	// on the bridge, and sends it from port to port when it goes to another namespace.
	// Tell such frames from those that try to reach a namespace directly.
	translated := chain("translated", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest+1))
	rule(translated, in, ct(expr.CtKeySTATUS, statusDNAT), []expr.Any{
		&expr.Immediate{Register: reg0, Data: binaryutil.NativeEndian.PutUint32(translatedPriority)},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg0},
	})

	masq := []expr.Any{&expr.Masq{}}
	snat := chain("masquerade", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	elsewhere := nameIs(expr.MetaKeyOIFNAME, expr.CmpOpNeq, r.cfg.Bridge)
	rule(snat, ipv4.is(), out, ipv4.sourceIn(loopback), masq)
	rule(snat, ipv4.is(), out, ipv4.pairIn(r.hairpin), masq)
	rule(snat, ipv4.is(), ipv4.sourceIn(r.cfg.Subnet), elsewhere, masq)
	rule(snat, ipv6.is(), out, ipv6.pairIn(r.hairpin6), masq)
	if r.cfg.Subnet6.IsValid() {
		rule(snat, ipv6.is(), out, ipv6.sourceIn(netip.PrefixFrom(netip.IPv6Loopback(), 128)), masq)
		rule(snat, ipv6.is(), ipv6.sourceIn(r.cfg.Subnet6), elsewhere, masq)
	}

	forward := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	for _, a := range hostMetadata {
		f := familyOf(a)
		rule(forward, in, f.is(), f.destinationIn(a), protocolIs(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
		rule(forward, in, f.is(), f.destinationIn(a), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
	}
	rule(forward, out, ct(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	rule(forward, out, ct(expr.CtKeySTATUS, statusDNAT), verdict(expr.VerdictAccept))
	rule(forward, in, out, ipv4.is(), ipv4.pairIn(r.peers), verdict(expr.VerdictAccept))
	rule(forward, in, out, ipv6.is(), ipv6.pairIn(r.peers6), verdict(expr.VerdictAccept))
	// A reset, because the kernel limits the rate of ICMP errors to one a second and peer.
	rule(forward, out, protocolIs(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	rule(forward, out, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}})
	rule(forward, in, verdict(expr.VerdictAccept))

	// Two namespaces on the same bridge must go on talking through the host, whatever
	// the kernel thinks of the detour.
	redirects := chain("redirects", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter)
	rule(redirects, out, ipv4.is(), protocolIs(unix.IPPROTO_ICMP), icmpType(icmpRedirect), verdict(expr.VerdictDrop))
	rule(redirects, out, ipv6.is(), protocolIs(unix.IPPROTO_ICMPV6), icmpType(ndRedirect), verdict(expr.VerdictDrop))
}

// addBridge adds the rules against spoofing: a frame that enters through one of our
// ports passes if port, MAC and IP or ARP sender address belong together, and if it
// claims by neighbour discovery no address but its own and no router. And it isolates
// the ports from one another.
func (r *rules) addBridge(c *nftables.Conn) {
	ch := c.AddChain(&nftables.Chain{
		Name: "sources_only", Table: r.bridge, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-300),
	})
	isolation := c.AddChain(&nftables.Chain{
		Name: "isolation", Table: r.bridge, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(-200),
	})
	isPort := func(key expr.MetaKey) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: unix.NFT_REG_1},
			&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: r.ports.Name, SetID: r.ports.ID},
		}
	}
	c.AddRule(&nftables.Rule{Table: r.bridge, Chain: isolation, Exprs: slices.Concat(
		isPort(expr.MetaKeyIIFNAME), isPort(expr.MetaKeyOIFNAME),
		[]expr.Any{
			&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg0},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(translatedPriority)},
		}, verdict(expr.VerdictDrop))})
	// The interface's name takes registers 0 to 3, the MAC 4 and 5, the address 6.
	const regMAC, regAddr = unix.NFT_REG32_04, unix.NFT_REG32_06
	sender := func(macBase expr.PayloadBase, mac uint32, base expr.PayloadBase, addr uint32) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
			&expr.Payload{DestRegister: regMAC, Base: macBase, Offset: mac, Len: 6},
			&expr.Payload{DestRegister: regAddr, Base: base, Offset: addr, Len: 4},
			&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: r.sources.Name, SetID: r.sources.ID},
		}
	}
	sender6 := func(base expr.PayloadBase, addr uint32, invert bool) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
			&expr.Payload{DestRegister: regMAC, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
			&expr.Payload{DestRegister: regAddr, Base: base, Offset: addr, Len: ipv6.size},
			&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: r.sources6.Name, SetID: r.sources6.ID, Invert: invert},
		}
	}
	etherType := func(t uint16) []expr.Any {
		return payloadIs(expr.PayloadBaseLLHeader, 12, binary.BigEndian.AppendUint16(nil, t))
	}
	rule := func(parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: r.bridge, Chain: ch, Exprs: slices.Concat(parts...)})
	}
	const network, transport = expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
	rule(etherType(unix.ETH_P_IP), sender(expr.PayloadBaseLLHeader, 6, network, ipv4.source), verdict(expr.VerdictAccept))
	rule(etherType(unix.ETH_P_ARP), sender(network, 8, network, 14), verdict(expr.VerdictAccept))
	ours := isPort(expr.MetaKeyIIFNAME)
	discovery := func(kind byte) []expr.Any {
		return slices.Concat(etherType(unix.ETH_P_IPV6), ours, protocolIs(unix.IPPROTO_ICMPV6), icmpType(kind))
	}
	for _, kind := range []byte{ndRouterSolicitation, ndRouterAdvertisement, ndRedirect} {
		rule(discovery(kind), verdict(expr.VerdictDrop))
	}
	rule(discovery(ndNeighborAdvertisement), sender6(transport, ndTarget, true), verdict(expr.VerdictDrop))
	rule(etherType(unix.ETH_P_IPV6), sender6(network, ipv6.source, false), verdict(expr.VerdictAccept))
	rule(isPort(expr.MetaKeyIIFNAME), verdict(expr.VerdictDrop))
}
