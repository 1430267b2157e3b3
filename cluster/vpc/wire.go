package vpc

import (
	"slices"
	"strconv"
	"strings"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// Wire is an interface as an agent is told of it.
func Wire(r store.Reader, i *store.Interface, attachmentARN string, index int) acs.ElasticNetworkInterface {
	at := int64(index)
	out := acs.ElasticNetworkInterface{
		Name: i.ID, MACAddress: i.MAC, AttachmentARN: attachmentARN, EC2ID: i.ID, Index: &at,
		InterfaceAssociationProtocol: "default", PrivateDNSName: i.DNSName,
		InterfacePoolProperties: &acs.InterfacePoolProperties{SubnetID: i.SubnetID},
	}
	if i.IPv4 != "" {
		out.IPv4Addresses = []acs.IPv4Address{{PrivateAddress: i.IPv4, Primary: true}}
	}
	if i.IPv6 != "" {
		out.IPv6Addresses = []acs.IPv6Address{{Address: i.IPv6, Primary: true}}
	}
	if s, ok := store.Get(r, store.Subnets, i.SubnetID); ok {
		v4, v6 := Gateways(s)
		if v4.IsValid() {
			out.SubnetGatewayIPv4Address = v4.String()
		}
		if v6.IsValid() {
			out.SubnetGatewayIPv6Address = v6.String()
		}
	}
	return out
}

// OfTask lists the interfaces of a task in the order of their making.
func OfTask(r store.Reader, taskID string) []*store.Interface {
	var out []*store.Interface
	store.Lookup(r, store.InterfacesByTask, taskID, func(_ string, i *store.Interface) bool {
		out = append(out, i)
		return true
	})
	slices.SortFunc(out, func(a, b *store.Interface) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// Policy is everything that an instance has to know of security groups: the rules of the
// interfaces on it, and the addresses of the groups that those name. The groups that it
// depends on are those and the interfaces' own.
func Policy(r store.Reader, instanceID string) (*acs.TaskNetworkPolicyMessage, map[string]bool) {
	m := &acs.TaskNetworkPolicyMessage{}
	groups := map[string]bool{}
	named := map[string]bool{}
	store.Lookup(r, store.InterfacesByInstance, instanceID, func(_ string, i *store.Interface) bool {
		p := acs.InterfacePolicy{MACAddress: i.MAC, EC2ID: i.ID}
		for _, group := range i.Groups {
			groups[group] = true
			store.Scan(r, store.SecurityGroupRules, store.Prefix(group), func(_ string, rule *store.SecurityGroupRule) bool {
				if rule.PeerGroup != "" && !named[rule.PeerGroup] {
					named[rule.PeerGroup], groups[rule.PeerGroup] = true, true
					m.Groups = append(m.Groups, addressesOf(r, rule.PeerGroup))
				}
				if rule.Egress {
					p.Egress = append(p.Egress, wireRule(rule))
				} else {
					p.Ingress = append(p.Ingress, wireRule(rule))
				}
				return true
			})
		}
		m.Interfaces = append(m.Interfaces, p)
		return true
	})
	return m, groups
}

func wireRule(r *store.SecurityGroupRule) acs.TrafficRule {
	cidr := r.IPv4
	if r.IPv6 != "" {
		cidr = r.IPv6
	}
	return acs.TrafficRule{Protocol: protocolNumber(r.Protocol), From: r.From, To: r.To, CIDR: cidr, GroupID: r.PeerGroup}
}

func addressesOf(r store.Reader, group string) acs.AddressGroup {
	var list []string
	store.Lookup(r, store.InterfacesByGroup, group, func(_ string, i *store.Interface) bool {
		if i.IPv4 != "" {
			list = append(list, i.IPv4)
		}
		if i.IPv6 != "" {
			list = append(list, i.IPv6)
		}
		return true
	})
	return acs.AddressGroup{GroupID: group, Addresses: strings.Join(list, " ")}
}

// protocolNumber is the number of a protocol (IANA), -1 for all.
func protocolNumber(name string) int32 {
	switch name {
	case "tcp":
		return 6
	case "udp":
		return 17
	case "icmp":
		return 1
	case "icmpv6":
		return 58
	}
	n, err := strconv.ParseInt(name, 10, 32)
	if err != nil {
		return -1
	}
	return int32(n)
}
