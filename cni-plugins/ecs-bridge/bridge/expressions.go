package bridge

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers: the 32-bit ones, of which the 128-bit register n is the group 4+4n to 7+4n.
const (
	reg0 = unix.NFT_REG32_00
	reg1 = unix.NFT_REG32_01
)

// Message types of ICMP (RFC 792) and of neighbour discovery (RFC 4861), and where the
// latter's target address is, from the ICMPv6 header on.
const (
	icmpRedirect            = 5
	ndRouterSolicitation    = 133
	ndRouterAdvertisement   = 134
	ndNeighborAdvertisement = 136
	ndRedirect              = 137

	ndTarget = 8
)

// family is how the headers of one version of IP are read.
type family struct {
	number              byte   // NFPROTO_...
	source, destination uint32 // offsets in the header, in bytes
	size                uint32 // of an address, in bytes
}

var (
	ipv4 = family{unix.NFPROTO_IPV4, 12, 16, net.IPv4len}
	ipv6 = family{unix.NFPROTO_IPV6, 8, 24, net.IPv6len}
)

func familyOf(p netip.Prefix) family {
	if p.Addr().Is4() {
		return ipv4
	}
	return ipv6
}

// is matches packets of the family.
func (f family) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{f.number}},
	}
}

// behind is the register after an address that begins in reg0.
func (f family) behind() uint32 { return reg0 + f.size/4 }

// translate looks protocol and destination port up in the map and sends the packet to
// the address and port found.
func (f family) translate(published *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg0, DestRegister: reg0, IsDestRegSet: true, SetName: published.Name, SetID: published.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.number), RegAddrMin: reg0, RegProtoMin: f.behind(), Specified: true},
	}
}

// pairIn matches packets whose source and destination address are an element of set.
func (f family) pairIn(set *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseNetworkHeader, Offset: f.source, Len: f.size},
		&expr.Payload{DestRegister: f.behind(), Base: expr.PayloadBaseNetworkHeader, Offset: f.destination, Len: f.size},
		&expr.Lookup{SourceRegister: reg0, SetName: set.Name, SetID: set.ID},
	}
}

func (f family) sourceIn(p netip.Prefix) []expr.Any      { return f.addressIn(f.source, p) }
func (f family) destinationIn(p netip.Prefix) []expr.Any { return f.addressIn(f.destination, p) }

func (f family) addressIn(offset uint32, p netip.Prefix) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg0, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: f.size, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, f.size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: p.Addr().AsSlice()},
	}
}

func icmpType(kind byte) []expr.Any {
	return payloadIs(expr.PayloadBaseTransportHeader, 0, []byte{kind})
}

func protocolIs(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg0},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: []byte{p}},
	}
}

func nameIs(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: ifname(name)},
	}
}

func payloadIs(base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg0, Base: base, Offset: offset, Len: uint32(len(data))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: data},
	}
}

func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg0, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg0, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// ct matches when any of the bits is set in the given conntrack key.
func ct(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)},
	}
}

func verdict(v expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: v}} }
