package store

import "time"

// A VPC is a virtual network: a range of addresses that subnets are cut from.
type VPC struct {
	ID, CIDR string
	IPv6CIDR string // empty without IPv6
	Default  bool
	// DNSSupport and DNSHostnames are kept for clients that set and read them.
	DNSSupport, DNSHostnames bool
	Tags                     map[string]string
}

// A Subnet is a range of addresses of a VPC that network interfaces get theirs from. Its
// first address is the gateway's.
type Subnet struct {
	ID, VPCID, CIDR string // CIDR is empty without IPv4
	IPv6CIDR        string // empty without IPv6
	Zone            string
	Default         bool
	// PublicIP and AssignIPv6 are the subnet's settings for new interfaces.
	PublicIP, AssignIPv6 bool
	Tags                 map[string]string
}

// A SecurityGroup is a set of rules; network interfaces are its members.
type SecurityGroup struct {
	ID, VPCID, Name, Description string
	Tags                         map[string]string
}

// A SecurityGroupRule lets some traffic pass. Exactly one of IPv4, IPv6 and PeerGroup is
// set.
type SecurityGroupRule struct {
	ID, GroupID string
	Egress      bool
	// Protocol is tcp, udp, icmp, icmpv6, a number, or -1 for all.
	Protocol string
	// From and To are ports, or an ICMP type and code; -1 for all.
	From, To              int32
	IPv4, IPv6, PeerGroup string
	Description           string
	Tags                  map[string]string
}

// An Interface is a network interface of a task.
type Interface struct {
	ID           string
	AttachmentID string
	SubnetID     string
	VPCID        string
	MAC          string
	IPv4, IPv6   string
	DNSName      string
	Groups       []string
	ClusterName  string
	TaskID       string
	InstanceID   string
	CreatedAt    time.Time
}

// An Address says whose an address of a subnet is.
type Address struct {
	InterfaceID string
}
