package task

import (
	"net/netip"
	"time"
)

// Interface is one network interface of a task in network mode awsvpc (agent protocol,
// "ENI object").
type Interface struct {
	ID             string       `json:"id"` // eni-…
	AttachmentARN  string       `json:"attachmentArn,omitempty"`
	MAC            string       `json:"mac"`
	Index          int          `json:"index,omitempty"`
	Addresses      []netip.Addr `json:"addresses"` // the primary ones first
	GatewayV4      netip.Prefix `json:"gatewayV4,omitzero"`
	GatewayV6      netip.Prefix `json:"gatewayV6,omitzero"`
	Domains        []string     `json:"domains,omitempty"` // search list
	NameServers    []string     `json:"nameServers,omitempty"`
	PrivateDNSName string       `json:"privateDnsName,omitempty"`

	// VLAN and Trunk are set for a branch interface: the id of the VLAN, and the MAC
	// address of the device that it is on.
	VLAN  int    `json:"vlan,omitempty"`
	Trunk string `json:"trunk,omitempty"`

	// Subnet is set when the agent makes the device itself; nobody else keeps the security
	// groups of such an interface.
	Subnet string `json:"subnet,omitempty"`
}

// Pooled reports whether the agent makes the device itself.
func (i *Interface) Pooled() bool { return i.Subnet != "" }

// lengthV6 is the length of the prefix of every subnet's IPv6 range (agent protocol, "ENI
// object").
const lengthV6 = 64

// Prefixes are the addresses with the lengths of the subnet's prefixes.
func (i *Interface) Prefixes() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(i.Addresses))
	for _, a := range i.Addresses {
		bits := lengthV6
		if a.Is4() {
			bits = i.GatewayV4.Bits()
		}
		out = append(out, netip.PrefixFrom(a, bits))
	}
	return out
}

// Gateways are the gateways whose routes the agent sets: that of IPv4, and that of IPv6
// where there is no IPv4 or the agent makes the device itself. Elsewhere the route of
// IPv6 comes from router advertisements (agent protocol, "CNI chain").
func (i *Interface) Gateways() []netip.Prefix {
	var out []netip.Prefix
	if i.GatewayV4.IsValid() {
		out = append(out, i.GatewayV4)
	}
	if i.GatewayV6.IsValid() && (len(out) == 0 || i.Pooled()) {
		out = append(out, i.GatewayV6)
	}
	return out
}

// First is the first address of a family; not valid when there is none.
func (i *Interface) First(v6 bool) netip.Addr {
	for _, a := range i.Addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// Attachment is an interface that the cluster has announced, or, where Volume is set, a
// block volume.
type Attachment struct {
	ARN        string           `json:"arn"`
	TaskARN    string           `json:"taskArn,omitempty"` // empty for one of the instance
	ClusterARN string           `json:"clusterArn,omitempty"`
	Interface  Interface        `json:"interface,omitzero"`
	Volume     *Volume          `json:"volume,omitempty"`
	Status     AttachmentStatus `json:"status"`
	Expires    time.Time        `json:"expires"` // it must be there and told of before
}

// AttachmentChange is the change of status of one attachment, part of a Change.
type AttachmentChange struct {
	ARN    string           `json:"arn"`
	Status AttachmentStatus `json:"status"`
}

// TrafficRule lets some traffic pass an interface. The other side is Prefix or the members
// of Group.
type TrafficRule struct {
	Protocol int          `json:"protocol"` // IANA number; -1 is all
	First    int          `json:"first"`    // port, or ICMP type; -1 is all
	Last     int          `json:"last"`     // port, or ICMP code; -1 is all
	Prefix   netip.Prefix `json:"prefix,omitzero"`
	Group    string       `json:"group,omitempty"`
}

// TrafficPolicy is what the security groups of one interface let pass, and the addresses
// of the groups that its rules name.
type TrafficPolicy struct {
	Ingress []TrafficRule           `json:"ingress,omitempty"`
	Egress  []TrafficRule           `json:"egress,omitempty"`
	Groups  map[string][]netip.Addr `json:"groups,omitempty"`
}
