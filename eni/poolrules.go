package eni

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers: the 32-bit ones.
const reg0 = unix.NFT_REG32_00

// poolTables are the two nftables tables of a pool's bridge, both named like it: one of
// the family bridge, which drops what does not come from the addresses of its port, and
// one of the family inet, which translates addresses where the host is the router.
type poolTables struct {
	bridge, inet *nftables.Table
	sources      [2]*nftables.Set // port . MAC . address, for IPv4 and IPv6
	macs         *nftables.Set    // port . MAC
}

func tablesOf(name string) (*poolTables, error) {
	t := &poolTables{
		bridge: &nftables.Table{Name: name, Family: nftables.TableFamilyBridge},
		inet:   &nftables.Table{Name: name, Family: nftables.TableFamilyINet},
	}
	v4, err1 := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIPAddr)
	v6, err2 := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr, nftables.TypeIP6Addr)
	mac, err3 := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	t.sources[0] = &nftables.Set{Table: t.bridge, Name: "sources4", ID: 1, Concatenation: true, KeyType: v4}
	t.sources[1] = &nftables.Set{Table: t.bridge, Name: "sources6", ID: 2, Concatenation: true, KeyType: v6}
	t.macs = &nftables.Set{Table: t.bridge, Name: "macs", ID: 3, Concatenation: true, KeyType: mac}
	return t, nil
}

// newBridgeTables makes both tables anew, without sources. Routed says that the host is
// the router.
func newBridgeTables(name string, routed bool, gateways []netip.Prefix) error {
	t, err := tablesOf(name)
	if err != nil {
		return err
	}
	c, err := nftConn(nil)
	if err != nil {
		return err
	}
	for _, table := range []*nftables.Table{t.bridge, t.inet} {
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
	}
	for _, s := range []*nftables.Set{t.sources[0], t.sources[1], t.macs} {
		if err := c.AddSet(s, nil); err != nil {
			return fmt.Errorf("nftables set %s: %w", s.Name, err)
		}
	}
	t.addSourceRules(c)
	if routed {
		t.addMasquerade(c, gateways)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables tables of bridge %s: %w", name, err)
	}
	return nil
}

// addSourceRules lets from a device's port pass what comes from its addresses: IPv4 and
// ARP with one of them as sender, IPv6 with one of them or a link-local address.
func (t *poolTables) addSourceRules(c *nftables.Conn) {
	chain := c.AddChain(&nftables.Chain{
		Name: "sources", Table: t.bridge, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityRef(-300), // NF_BR_PRI_NAT_DST_BRIDGED
	})
	rule := func(parts ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: t.bridge, Chain: chain, Exprs: slices.Concat(parts...)})
	}
	port := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(poolHostPrefix)},
	}
	rule(port, accept())
	sender := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg0},
		&expr.Payload{DestRegister: reg0 + 4, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
	}
	lookup := func(s *nftables.Set) []expr.Any {
		return []expr.Any{&expr.Lookup{SourceRegister: reg0, SetName: s.Name, SetID: s.ID}}
	}
	// Offsets: of the sender in ARP (RFC 826), of the source in IPv4 and IPv6.
	for _, p := range []struct {
		ether        uint16
		offset, size uint32
		set          *nftables.Set
	}{{unix.ETH_P_ARP, 14, 4, t.sources[0]}, {unix.ETH_P_IP, 12, 4, t.sources[0]}, {unix.ETH_P_IPV6, 8, 16, t.sources[1]}} {
		address := []expr.Any{&expr.Payload{DestRegister: reg0 + 6, Base: expr.PayloadBaseNetworkHeader, Offset: p.offset, Len: p.size}}
		rule(matchEther(p.ether), sender, address, lookup(p.set), accept())
	}
	mask, local := make([]byte, 16), make([]byte, 16)
	mask[0], mask[1], local[0], local[1] = 0xff, 0xc0, 0xfe, 0x80
	rule(matchEther(unix.ETH_P_IPV6), []expr.Any{
		loadAddress(true, true),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: mask, Xor: make([]byte, 16)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: local},
	}, sender, lookup(t.macs), accept())
	rule(verdict(expr.VerdictDrop))
}

// addMasquerade translates what leaves the subnet for other places than the subnets of
// pools on this host.
func (t *poolTables) addMasquerade(c *nftables.Conn, gateways []netip.Prefix) {
	chain := c.AddChain(&nftables.Chain{
		Name: "leave", Table: t.inet, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource,
	})
	for _, gw := range gateways {
		c.AddRule(&nftables.Rule{Table: t.inet, Chain: chain, Exprs: slices.Concat(
			matchFamily(gw.Addr().Is6()), matchPrefix(gw.Masked(), true),
			[]expr.Any{
				&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(poolBridgePrefix)},
				&expr.Masq{},
			},
		)})
	}
}

func matchEther(protocol uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, protocol)},
	}
}

func hasBridgeTables(name string) (bool, error) {
	c, err := nftConn(nil)
	if err != nil {
		return false, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	n := 0
	for _, t := range tables {
		if t.Name == name && (t.Family == nftables.TableFamilyBridge || t.Family == nftables.TableFamilyINet) {
			n++
		}
	}
	return n == 2, nil
}

func removeBridgeTables(name string) error {
	c, err := nftConn(nil)
	if err != nil {
		return err
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyBridge, nftables.TableFamilyINet} {
		t := &nftables.Table{Name: name, Family: family}
		c.AddTable(t) // so that deleting cannot fail when it is not there
		c.DelTable(t)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove the nftables tables of bridge %s: %w", name, err)
	}
	return nil
}

// changeSources adds or removes what a port may send from. What is there, or gone, is
// success.
func changeSources(bridge, port string, mac net.HardwareAddr, addresses []netip.Addr, add bool) error {
	t, err := tablesOf(bridge)
	if err != nil {
		return err
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, port)
	sender := slices.Concat(name, mac, []byte{0, 0})
	change := func(s *nftables.Set, key []byte) error {
		c, err := nftConn(nil)
		if err != nil {
			return err
		}
		element := []nftables.SetElement{{Key: key}}
		if add {
			err = c.SetAddElements(s, element)
		} else {
			err = c.SetDeleteElements(s, element)
		}
		if err == nil {
			err = c.Flush()
		}
		if !add && (errors.Is(err, unix.ENOENT) || err != nil && strings.HasSuffix(err.Error(), unix.ENOENT.Error())) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("nftables set %s of bridge %s: %w", s.Name, bridge, err)
		}
		return nil
	}
	errs := []error{change(t.macs, sender)}
	for _, a := range addresses {
		family := 0
		if a = a.Unmap(); a.Is6() {
			family = 1
		}
		errs = append(errs, change(t.sources[family], slices.Concat(sender, a.AsSlice())))
	}
	return errors.Join(errs...)
}
