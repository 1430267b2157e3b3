package vpc

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"

	"berth.dev/berth/cluster/store"
)

// The default VPC, in a part of 10.0.0.0/8 that neither cloud providers' default
// networks nor other container tools use by default.
const (
	defaultVPC    = "10.214.0.0/16"
	defaultSubnet = "10.214.0.0/20"
	metaDefault   = "default-vpc"
)

// DefaultGroup is the name of the group that every VPC has.
const DefaultGroup = "default"

// Region names the zone of default subnets: the region and "a", as for instances that
// do not say where they are.
func zoneOf(region string) string { return region + "a" }

// NewID makes an id as EC2 does: a prefix and 17 hexadecimal digits.
func NewID(prefix string) string {
	var b [9]byte
	rand.Read(b[:]) // never fails: the program ends instead
	return prefix + "-" + hex.EncodeToString(b[:])[:17]
}

// Default is the id of the default VPC; empty when it was deleted or not made yet.
func Default(r store.Reader) string {
	v, ok := store.Get(r, store.Meta, metaDefault)
	if !ok {
		return ""
	}
	if _, ok := store.Get(r, store.VPCs, v.Text); !ok {
		return ""
	}
	return v.Text
}

// HasDefaults reports whether the defaults were made once; what was deleted since stays
// deleted.
func HasDefaults(r store.Reader) bool {
	_, ok := store.Get(r, store.Meta, metaDefault)
	return ok
}

// EnsureDefaults makes the default VPC, its subnet and its group, once.
func EnsureDefaults(tx *store.Tx, region string) error {
	if HasDefaults(tx) {
		return nil
	}
	v := &store.VPC{ID: NewID("vpc"), CIDR: defaultVPC, Default: true, DNSSupport: true, DNSHostnames: true}
	AddVPC(tx, v)
	store.Put(tx, store.Meta, metaDefault, &store.Value{Text: v.ID})
	s := &store.Subnet{ID: NewID("subnet"), VPCID: v.ID, CIDR: defaultSubnet, Zone: zoneOf(region), Default: true}
	store.Put(tx, store.Subnets, s.ID, s)
	return nil
}

// AddVPC writes a VPC and its default group.
func AddVPC(tx *store.Tx, v *store.VPC) {
	store.Put(tx, store.VPCs, v.ID, v)
	g := &store.SecurityGroup{ID: NewID("sg"), VPCID: v.ID, Name: DefaultGroup, Description: "default VPC security group"}
	AddGroup(tx, g, v.IPv6CIDR != "")
	AddRule(tx, &store.SecurityGroupRule{GroupID: g.ID, Protocol: "-1", From: -1, To: -1, PeerGroup: g.ID})
}

// AddGroup writes a security group, which lets everything out until somebody changes it.
func AddGroup(tx *store.Tx, g *store.SecurityGroup, v6 bool) {
	store.Put(tx, store.SecurityGroups, g.ID, g)
	AddRule(tx, &store.SecurityGroupRule{GroupID: g.ID, Egress: true, Protocol: "-1", From: -1, To: -1, IPv4: "0.0.0.0/0"})
	if v6 {
		AddRule(tx, &store.SecurityGroupRule{GroupID: g.ID, Egress: true, Protocol: "-1", From: -1, To: -1, IPv6: "::/0"})
	}
}

// AddRule writes a rule and gives it an id.
func AddRule(tx *store.Tx, r *store.SecurityGroupRule) {
	r.ID = NewID("sgr")
	store.Put(tx, store.SecurityGroupRules, store.Key(r.GroupID, r.ID), r)
}

// GroupByName finds the group of a name in a VPC.
func GroupByName(r store.Reader, vpcID, name string) *store.SecurityGroup {
	var found *store.SecurityGroup
	store.Scan(r, store.SecurityGroups, "", func(_ string, g *store.SecurityGroup) bool {
		if g.VPCID == vpcID && g.Name == name {
			found = g
		}
		return found == nil
	})
	return found
}

// Errors of Allocate; the texts are for people.
var (
	ErrNoSubnet  = errors.New("subnet not found")
	ErrNoGroup   = errors.New("security group not found")
	ErrExhausted = errors.New("no free address")
)

// Request is one interface to be made.
type Request struct {
	Subnets []string // one of them is taken
	Groups  []string // none means the default group of the subnet's VPC
	Zone    string   // of the instance; subnets there are preferred

	ClusterName, TaskID, InstanceID string
	Interface                       store.Interface // ids and time, given by the caller
}

// Allocate makes an interface and leases its addresses. The error is one of this
// package's.
func Allocate(tx *store.Tx, req Request) (*store.Interface, error) {
	subnets, err := subnetsOf(tx, req)
	if err != nil {
		return nil, err
	}
	i := req.Interface
	i.ClusterName, i.TaskID, i.InstanceID = req.ClusterName, req.TaskID, req.InstanceID
	if i.Groups, err = GroupsOf(tx, subnets[0].VPCID, req.Groups); err != nil {
		return nil, err
	}
	for _, s := range subnets {
		i.SubnetID, i.VPCID = s.ID, s.VPCID
		if err = lease(tx, s, &i); err == nil {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	store.Put(tx, store.Interfaces, i.ID, &i)
	return &i, nil
}

// subnetsOf are the subnets to try, those of the zone first. All are of one VPC.
func subnetsOf(r store.Reader, req Request) ([]*store.Subnet, error) {
	var near, far []*store.Subnet
	for _, id := range req.Subnets {
		s, ok := store.Get(r, store.Subnets, id)
		if !ok {
			return nil, fmt.Errorf("%w: %s", ErrNoSubnet, id)
		}
		if s.Zone == req.Zone {
			near = append(near, s)
		} else {
			far = append(far, s)
		}
	}
	all := append(near, far...)
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: none is named", ErrNoSubnet)
	}
	for _, s := range all {
		if s.VPCID != all[0].VPCID {
			return nil, fmt.Errorf("%w: subnets %s and %s are of different VPCs", ErrNoSubnet, all[0].ID, s.ID)
		}
	}
	return all, nil
}

// GroupsOf checks the security groups of an interface and fills in the default.
func GroupsOf(r store.Reader, vpcID string, ids []string) ([]string, error) {
	if len(ids) == 0 {
		g := GroupByName(r, vpcID, DefaultGroup)
		if g == nil {
			return nil, fmt.Errorf("%w: VPC %s has no default group", ErrNoGroup, vpcID)
		}
		return []string{g.ID}, nil
	}
	for _, id := range ids {
		g, ok := store.Get(r, store.SecurityGroups, id)
		if !ok {
			return nil, fmt.Errorf("%w: %s", ErrNoGroup, id)
		}
		if g.VPCID != vpcID {
			return nil, fmt.Errorf("%w: %s is of VPC %s and the subnet of %s", ErrNoGroup, id, g.VPCID, vpcID)
		}
	}
	return ids, nil
}

// lease finds a free address in a subnet and takes it.
func lease(tx *store.Tx, s *store.Subnet, i *store.Interface) error {
	if s.CIDR == "" {
		return lease6(tx, s, i)
	}
	p, err := netip.ParsePrefix(s.CIDR)
	if err != nil || !p.Addr().Is4() {
		return fmt.Errorf("subnet %s has the range %q, which is none of IPv4", s.ID, s.CIDR)
	}
	usable := Usable(p)
	first := toInt(p.Masked().Addr()) + reserved
	start := hash(i.ID)
	taken := store.Peek(tx)
	for n := range usable {
		at := fromInt(first + (start+n)%usable)
		key := store.Key(s.ID, at.String())
		if _, ok := store.Get(taken, store.Addresses, key); ok {
			continue
		}
		if _, ok := store.Get(tx, store.Addresses, key); ok { // by this transaction
			continue
		}
		store.Put(tx, store.Addresses, key, &store.Address{InterfaceID: i.ID})
		i.IPv4 = at.String()
		i.IPv6 = v6Of(s, at)
		i.DNSName = dnsName(at)
		return nil
	}
	return fmt.Errorf("%w in subnet %s: all %d of %s are in use", ErrExhausted, s.ID, usable, s.CIDR)
}

// lease6 is lease in a subnet without IPv4.
func lease6(tx *store.Tx, s *store.Subnet, i *store.Interface) error {
	p, err := netip.ParsePrefix(s.IPv6CIDR)
	if err != nil || !p.Addr().Is6() {
		return fmt.Errorf("subnet %s has the range %q, which is none of IPv6", s.ID, s.IPv6CIDR)
	}
	base := p.Masked().Addr().As16()
	for n := range uint32(attempts6) {
		binary.BigEndian.PutUint32(base[12:], max(hash(i.ID)+n, reserved))
		at := netip.AddrFrom16(base)
		key := store.Key(s.ID, at.String())
		if _, taken := store.Get(tx, store.Addresses, key); taken {
			continue
		}
		store.Put(tx, store.Addresses, key, &store.Address{InterfaceID: i.ID})
		i.IPv6, i.DNSName = at.String(), i.ID+".internal"
		return nil
	}
	return fmt.Errorf("%w in subnet %s, of %d that were tried", ErrExhausted, s.ID, attempts6)
}

// attempts6 is how many addresses in a row are tried of 2^31, of which few are in use.
const attempts6 = 1000

// Addresses at the beginning of a subnet that are not given out, and at its end.
const (
	reserved     = 4
	reservedLast = 1
)

// Usable is how many addresses of a subnet are given out.
func Usable(p netip.Prefix) uint32 {
	size := uint64(1) << (32 - p.Bits())
	if size <= reserved+reservedLast {
		return 0
	}
	return uint32(size - reserved - reservedLast)
}

// Free is how many addresses of a subnet are free.
// EC2 shows 0 for a subnet without IPv4.
func Free(r store.Reader, s *store.Subnet) int {
	p, err := netip.ParsePrefix(s.CIDR)
	if err != nil {
		return 0
	}
	n := int(Usable(p))
	store.Scan(r, store.Addresses, store.Prefix(s.ID), func(string, *store.Address) bool {
		n--
		return true
	})
	return n
}

// v6Of is the IPv6 address that goes with an IPv4 address: the same number in the
// subnet's /64, so that one lease is for both.
func v6Of(s *store.Subnet, at netip.Addr) string {
	p, err := netip.ParsePrefix(s.IPv6CIDR)
	if err != nil || !p.Addr().Is6() {
		return ""
	}
	b := p.Masked().Addr().As16()
	v4 := at.As4()
	copy(b[12:], v4[:])
	return netip.AddrFrom16(b).String()
}

func dnsName(at netip.Addr) string {
	b := at.As4()
	return fmt.Sprintf("ip-%d-%d-%d-%d.internal", b[0], b[1], b[2], b[3])
}

func toInt(a netip.Addr) uint32 {
	b := a.As4()
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

func fromInt(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// hash spreads the addresses, so that one that was given back is not given again at once.
func hash(s string) uint32 {
	h := uint32(2166136261) // FNV-1a
	for _, c := range []byte(s) {
		h = (h ^ uint32(c)) * 16777619
	}
	return h >> 1 // so that adding a count does not overflow
}

// Release deletes the interfaces of a task and gives their addresses back.
func Release(tx *store.Tx, taskID string) {
	var gone []*store.Interface
	store.Lookup(tx, store.InterfacesByTask, taskID, func(_ string, i *store.Interface) bool {
		gone = append(gone, i)
		return true
	})
	for _, i := range gone {
		store.Delete(tx, store.Interfaces, i.ID)
		store.Delete(tx, store.Addresses, store.Key(i.SubnetID, cmp.Or(i.IPv4, i.IPv6)))
	}
}

// Gateways are the addresses of a subnet's gateway, with the length of its prefix; the
// first is not valid without IPv4, the second without IPv6.
func Gateways(s *store.Subnet) (v4, v6 netip.Prefix) {
	if p, err := netip.ParsePrefix(s.CIDR); err == nil {
		v4 = netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
	}
	if p, err := netip.ParsePrefix(s.IPv6CIDR); err == nil {
		v6 = netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
	}
	return v4, v6
}

// NewMAC makes a locally administered MAC address (IEEE 802).
func NewMAC() string {
	var b [5]byte
	rand.Read(b[:]) // never fails: the program ends instead
	return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4])
}
