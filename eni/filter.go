package eni

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	mdnetlink "github.com/mdlayher/netlink"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// FilterTable is the nftables table of the security groups inside a task's namespace.
const FilterTable = "berth_groups"

// A Filter is what the security groups of one interface let pass. Everything else is
// dropped, except replies and what IP itself needs.
type Filter struct {
	Name      string       // of the interface
	Addresses []netip.Addr // its own; it may send from no other
	Ingress   []Pass
	Egress    []Pass
}

// A Pass lets some traffic pass. The zero Pass lets nothing pass.
type Pass struct {
	// Protocol is the number of an IP protocol (IANA), or AnyProtocol.
	Protocol int
	// First and Last are ports of TCP and UDP. For ICMP they are a type and a code, and
	// -1 stands for any. They do not count for other protocols.
	First, Last int
	// Prefix or Group is the other side.
	Prefix netip.Prefix
	Group  string
}

// AnyProtocol lets every protocol pass.
const AnyProtocol = -1

// Groups are the addresses that belong to security groups.
type Groups map[string][]netip.Addr

const (
	elementsPerMessage = 500     // a netlink attribute holds at most 64 KiB
	batchBuffer        = 8 << 20 // bytes of socket buffer for one batch
	maxFilterRules     = 2000    // of one namespace; ECS allows 5 groups of 60 rules on an interface
)

// SetFilters replaces the filters of a namespace as a whole, in one transaction: every
// packet meets the old ones or the new ones. Connections that are established stay, as
// connection tracking is left alone.
func SetFilters(ns *Namespace, filters []Filter, groups Groups) error {
	c, err := nftConn(ns)
	if err != nil {
		return err
	}
	// The kernel waits for all processors when a table goes, 20 ms as a rule, so only one
	// that is there is deleted.
	had, err := HasFilters(ns)
	if err != nil {
		return err
	}
	t := &nftables.Table{Name: FilterTable, Family: nftables.TableFamilyINet}
	if had {
		c.DelTable(t)
	}
	if len(filters) > 0 {
		c.AddTable(t)
		b := filterBuilder{c: c, t: t, groups: groups, sets: map[string]*nftables.Set{}}
		if err := b.build(filters); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("security groups in nftables: %w", err)
	}
	return nil
}

// HasFilters reports whether a namespace has filters.
func HasFilters(ns *Namespace) (bool, error) {
	c, err := nftConn(ns)
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == FilterTable }), nil
}

func nftConn(ns *Namespace) (*nftables.Conn, error) {
	options := []nftables.ConnOption{nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(batchBuffer), c.SetReadBuffer(batchBuffer))
	})}
	if ns != nil {
		options = append(options, nftables.WithNetNSFd(ns.Fd()))
	}
	c, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	return c, nil
}

// filterBuilder adds the rules of a namespace to a batch.
type filterBuilder struct {
	c      *nftables.Conn
	t      *nftables.Table
	groups Groups
	sets   map[string]*nftables.Set // by name
	rules  int
}

func (b *filterBuilder) build(filters []Filter) error {
	drop := nftables.ChainPolicyDrop
	in := b.c.AddChain(&nftables.Chain{
		Name: "input", Table: b.t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput,
		Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	out := b.c.AddChain(&nftables.Chain{
		Name: "output", Table: b.t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput,
		Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	b.add(in, matchName(expr.MetaKeyIIFNAME, "lo"), accept())
	b.add(out, matchName(expr.MetaKeyOIFNAME, "lo"), accept())
	for i := range filters {
		if err := b.interfaceRules(&filters[i], in, out); err != nil {
			return fmt.Errorf("interface %s: %w", filters[i].Name, err)
		}
	}
	if b.rules > maxFilterRules {
		return fmt.Errorf("%d rules, more than %d: use fewer rules or groups", b.rules, maxFilterRules)
	}
	return nil
}

// interfaceRules makes the two chains of an interface and sends its packets there.
func (b *filterBuilder) interfaceRules(f *Filter, in, out *nftables.Chain) error {
	inbound := b.c.AddChain(&nftables.Chain{Name: "in_" + f.Name, Table: b.t})
	outbound := b.c.AddChain(&nftables.Chain{Name: "out_" + f.Name, Table: b.t})
	b.add(in, matchName(expr.MetaKeyIIFNAME, f.Name), jump(inbound.Name))
	b.add(out, matchName(expr.MetaKeyOIFNAME, f.Name), jump(outbound.Name))
	// Another's address is not answered to, and opens nothing.
	for _, v6 := range []bool{false, true} {
		own, err := b.addressSet("own_"+f.Name, f.Addresses, v6)
		if err != nil {
			return err
		}
		src := matchAddress(own, true, v6)
		src[len(src)-1].(*expr.Lookup).Invert = true
		b.add(outbound, matchFamily(v6), linkLocalAside(v6), src, verdict(expr.VerdictDrop))
	}
	for _, c := range []*nftables.Chain{inbound, outbound} {
		b.add(c, matchState(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
		// Neighbours and routers are found by ICMPv6 types 133 to 137 (RFC 4861).
		b.add(c, matchProtocol(unix.IPPROTO_ICMPV6), matchRange(0, 1, 133, 137), accept())
	}
	for _, side := range []struct {
		chain  *nftables.Chain
		passes []Pass
		source bool
	}{{inbound, f.Ingress, true}, {outbound, f.Egress, false}} {
		for _, p := range side.passes {
			if err := b.pass(side.chain, p, side.source); err != nil {
				return err
			}
		}
	}
	return nil
}

// pass adds one rule, or for a group one of each family.
func (b *filterBuilder) pass(chain *nftables.Chain, p Pass, source bool) error {
	what, err := p.match()
	if err != nil {
		return err
	}
	if p.Group == "" {
		if !p.Prefix.IsValid() {
			return errors.New("a rule has neither a network nor a group")
		}
		v6 := p.Prefix.Addr().Is6()
		b.add(chain, matchFamily(v6), matchPrefix(p.Prefix.Masked(), source), what, accept())
		return nil
	}
	for _, v6 := range []bool{false, true} {
		set, err := b.addressSet("group_"+p.Group, b.groups[p.Group], v6)
		if err != nil {
			return err
		}
		b.add(chain, matchFamily(v6), matchAddress(set, source, v6), what, accept())
	}
	return nil
}

func (b *filterBuilder) add(chain *nftables.Chain, parts ...[]expr.Any) {
	b.rules++
	b.c.AddRule(&nftables.Rule{Table: b.t, Chain: chain, Exprs: slices.Concat(parts...)})
}

// addressSet makes the set of the addresses of a family, once.
func (b *filterBuilder) addressSet(name string, addresses []netip.Addr, v6 bool) (*nftables.Set, error) {
	kind, suffix := nftables.TypeIPAddr, "_4"
	if v6 {
		kind, suffix = nftables.TypeIP6Addr, "_6"
	}
	name += suffix
	if s := b.sets[name]; s != nil {
		return s, nil
	}
	s := &nftables.Set{Table: b.t, Name: name, KeyType: kind, ID: uint32(len(b.sets) + 1)}
	b.sets[name] = s
	if err := b.c.AddSet(s, nil); err != nil {
		return nil, fmt.Errorf("nftables set %s: %w", name, err)
	}
	unique := map[netip.Addr]bool{}
	for _, a := range addresses {
		if a = a.Unmap(); a.Is6() == v6 {
			unique[a] = true
		}
	}
	var elements []nftables.SetElement
	for _, a := range slices.SortedFunc(maps.Keys(unique), netip.Addr.Compare) {
		elements = append(elements, nftables.SetElement{Key: a.AsSlice()})
	}
	for chunk := range slices.Chunk(elements, elementsPerMessage) {
		if err := b.c.SetAddElements(s, chunk); err != nil {
			return nil, fmt.Errorf("nftables set %s: %w", name, err)
		}
	}
	return s, nil
}

// match is the protocol and the ports.
func (p Pass) match() ([]expr.Any, error) {
	if p.Protocol == AnyProtocol {
		return nil, nil
	}
	if p.Protocol < 0 || p.Protocol > 255 {
		return nil, fmt.Errorf("protocol %d: must be a number from 0 to 255, or -1 for all", p.Protocol)
	}
	out := matchProtocol(byte(p.Protocol))
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		if p.First < 0 || p.First > p.Last || p.Last > 65535 {
			return nil, fmt.Errorf("ports %d to %d: must be from 0 to 65535, the first not above the last", p.First, p.Last)
		}
		if p.First > 0 || p.Last < 65535 {
			out = append(out, matchRange(2, 2, p.First, p.Last)...)
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if p.First > 255 || p.Last > 255 {
			return nil, fmt.Errorf("ICMP type %d, code %d: must be from 0 to 255, or -1 for any", p.First, p.Last)
		}
		if p.First >= 0 {
			out = append(out, matchRange(0, 1, p.First, p.First)...)
		}
		if p.First >= 0 && p.Last >= 0 {
			out = append(out, matchRange(1, 1, p.Last, p.Last)...)
		}
	}
	return out, nil
}

func matchName(key expr.MetaKey, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

func matchFamily(v6 bool) []expr.Any {
	family := byte(unix.NFPROTO_IPV4)
	if v6 {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}}}
}

func matchProtocol(number byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}}}
}

func matchState(bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// matchRange compares one or two bytes of the transport header.
func matchRange(offset, size uint32, first, last int) []expr.Any {
	from, to := binary.BigEndian.AppendUint16(nil, uint16(first)), binary.BigEndian.AppendUint16(nil, uint16(last))
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}
	from, to = from[2-size:], to[2-size:]
	if bytes.Equal(from, to) {
		return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from}}
	}
	return []expr.Any{load, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: from, ToData: to}}
}

// loadAddress loads the source or the destination address (RFC 791, RFC 8200).
func loadAddress(source, v6 bool) *expr.Payload {
	at, size := uint32(16), uint32(4)
	switch {
	case v6 && source:
		at, size = 8, 16
	case v6:
		at, size = 24, 16
	case source:
		at = 12
	}
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: size}
}

func matchPrefix(p netip.Prefix, source bool) []expr.Any {
	if p.Bits() == 0 {
		return nil
	}
	size := uint32(p.Addr().BitLen() / 8)
	return []expr.Any{
		loadAddress(source, p.Addr().Is6()),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: ipnet(p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
	}
}

func matchAddress(set *nftables.Set, source, v6 bool) []expr.Any {
	return []expr.Any{loadAddress(source, v6), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}

// linkLocalAside excepts IPv6 sources that every interface has, fe80::/10 and ::.
func linkLocalAside(v6 bool) []expr.Any {
	if !v6 {
		return nil
	}
	mask := make([]byte, 16)
	mask[0], mask[1] = 0xff, 0xc0
	local := make([]byte, 16)
	local[0], local[1] = 0xfe, 0x80
	return []expr.Any{
		loadAddress(true, true), &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 16)},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: mask, Xor: make([]byte, 16)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: local},
	}
}

func accept() []expr.Any { return verdict(expr.VerdictAccept) }

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}
