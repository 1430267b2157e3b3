package ec2

import (
	"context"
	"net/netip"
	"strings"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

func noSubnet(id string) error {
	return failure("InvalidSubnetID.NotFound", "The subnet ID '%s' does not exist", clip(id))
}

func (s *Server) createSubnet(ctx context.Context, f form) ([]node, error) {
	tags, err := f.tagsOf("subnet")
	if err != nil {
		return nil, err
	}
	n := &store.Subnet{ID: vpc.NewID("subnet"), VPCID: f.get("VpcId"), Zone: f.get("AvailabilityZone"), Tags: tags}
	switch native, cidr := f.get("Ipv6Native") == "true", f.get("CidrBlock"); {
	case native && cidr != "":
		return nil, failure("InvalidParameterCombination", "The parameter CidrBlock cannot be used for an IPv6-only subnet.")
	case native && f.get("Ipv6CidrBlock") == "":
		return nil, failure("MissingParameter", "The request must contain the parameter Ipv6CidrBlock for an IPv6-only subnet.")
	case native:
		n.AssignIPv6 = true
	default:
		p, err := rangeOf(cidr)
		if err != nil {
			return nil, err
		}
		n.CIDR = p.String()
	}
	if id := f.get("AvailabilityZoneId"); n.Zone == "" && id != "" {
		n.Zone = zoneOfID(s.Region, id)
	}
	if n.Zone == "" {
		n.Zone = s.Region + "a"
	}
	if !strings.HasPrefix(n.Zone, s.Region) || len(n.Zone) > len(s.Region)+8 {
		return nil, failure("InvalidParameterValue", "Value (%s) for parameter availabilityZone is invalid.", clip(n.Zone))
	}
	var free int
	err = s.Store.Update(ctx, func(tx *store.Tx) error {
		v, ok := store.Get(tx, store.VPCs, n.VPCID)
		if !ok {
			return noVPC(n.VPCID)
		}
		if n.IPv6CIDR, err = subnetIPv6(v, f.get("Ipv6CidrBlock")); err != nil {
			return err
		}
		if err := s.checkSubnet(tx, v, n); err != nil {
			return err
		}
		store.Put(tx, store.Subnets, n.ID, n)
		free = vpc.Free(tx, n)
		return nil
	})
	return []node{{name: "subnet", members: s.subnetMembers(n, free)}}, err
}

// checkSubnet refuses ranges outside the VPC, and ones that overlap any other subnet:
// hosts route between all of them.
func (s *Server) checkSubnet(tx *store.Tx, v *store.VPC, n *store.Subnet) (err error) {
	if n.CIDR != "" {
		p, err1 := netip.ParsePrefix(n.CIDR)
		whole, err2 := netip.ParsePrefix(v.CIDR)
		if err1 != nil || err2 != nil || !whole.Contains(p.Addr()) || whole.Bits() > p.Bits() {
			return failure("InvalidSubnet.Range", "The CIDR '%s' is invalid.", n.CIDR)
		}
	}
	count := 0
	store.Scan(tx, store.Subnets, "", func(_ string, o *store.Subnet) bool {
		if o.VPCID == v.ID {
			count++
		}
		for _, pair := range [][2]string{{n.CIDR, o.CIDR}, {n.IPv6CIDR, o.IPv6CIDR}} {
			if overlap(pair[0], pair[1]) {
				err = failure("InvalidSubnet.Conflict", "The CIDR '%s' conflicts with another subnet (%s)", pair[0], o.ID)
			}
		}
		return err == nil
	})
	if err == nil && count >= maxSubnets {
		err = failure("SubnetLimitExceeded", "The maximum number of subnets has been reached.")
	}
	return err
}

// overlap reports whether two ranges have an address in common; none has one with "".
func overlap(a, b string) bool {
	p, err1 := netip.ParsePrefix(a)
	q, err2 := netip.ParsePrefix(b)
	return err1 == nil && err2 == nil && p.Overlaps(q)
}

func subnetIPv6(v *store.VPC, s string) (string, error) {
	if s == "" {
		return "", nil
	}
	whole, err := netip.ParsePrefix(v.IPv6CIDR)
	p, err2 := netip.ParsePrefix(s)
	if err != nil || err2 != nil || p.Bits() != 64 || p != p.Masked() || !whole.Contains(p.Addr()) {
		return "", failure("InvalidSubnet.Range", "The IPv6 CIDR '%s' is invalid: it must be a /64 of the VPC's IPv6 range.", clip(s))
	}
	return p.String(), nil
}

// Zone ids are the region and a number; zone a has the first.
func zoneID(region, zone string) string {
	letter := strings.TrimPrefix(zone, region)
	if len(letter) == 1 {
		return region + "-az" + string('1'+letter[0]-'a')
	}
	return zone
}

func zoneOfID(region, id string) string {
	n := strings.TrimPrefix(id, region+"-az")
	if len(n) == 1 && n[0] >= '1' && n[0] <= '9' {
		return region + string('a'+n[0]-'1')
	}
	return id
}

func (s *Server) subnetMembers(n *store.Subnet, free int) []node {
	out := []node{
		text("subnetId", n.ID), text("subnetArn", s.arn("subnet", n.ID)), text("state", "available"), text("ownerId", s.Account),
		text("vpcId", n.VPCID), number("availableIpAddressCount", free),
		text("availabilityZone", n.Zone), text("availabilityZoneId", zoneID(s.Region, n.Zone)),
		boolean("defaultForAz", n.Default), boolean("mapPublicIpOnLaunch", n.PublicIP),
		boolean("assignIpv6AddressOnCreation", n.AssignIPv6), boolean("mapCustomerOwnedIpOnLaunch", false),
		boolean("enableDns64", false), boolean("ipv6Native", n.CIDR == ""),
		list("privateDnsNameOptionsOnLaunch", text("hostnameType", "ip-name"), boolean("enableResourceNameDnsARecord", false), boolean("enableResourceNameDnsAAAARecord", false)),
		tagSet(n.Tags),
	}
	if n.CIDR != "" {
		out = append(out, text("cidrBlock", n.CIDR))
	}
	set := node{name: "ipv6CidrBlockAssociationSet"}
	if n.IPv6CIDR != "" {
		set.members = append(set.members, item(
			text("ipv6CidrBlock", n.IPv6CIDR), text("associationId", derived("subnet-cidr-assoc", n.ID)),
			list("ipv6CidrBlockState", text("state", "associated")),
		))
	}
	return append(out, set)
}

func (s *Server) describeSubnets(_ context.Context, f form) ([]node, error) {
	items, err := describe(s.Store, f, "SubnetId", store.Subnets, noSubnet, func(_ store.Reader, n *store.Subnet) (string, map[string]string, func(string) ([]string, bool)) {
		return n.ID, n.Tags, func(name string) ([]string, bool) {
			switch name {
			case "subnet-id":
				return []string{n.ID}, true
			case "subnet-arn":
				return []string{s.arn("subnet", n.ID)}, true
			case "vpc-id":
				return []string{n.VPCID}, true
			case "cidr", "cidr-block", "cidrBlock":
				return []string{n.CIDR}, true
			case "availability-zone", "availabilityZone":
				return []string{n.Zone}, true
			case "availability-zone-id", "availabilityZoneId":
				return []string{zoneID(s.Region, n.Zone)}, true
			case "default-for-az", "defaultForAz":
				return []string{boolText(n.Default)}, true
			case "map-public-ip-on-launch":
				return []string{boolText(n.PublicIP)}, true
			case "state":
				return []string{"available"}, true
			case "owner-id":
				return []string{s.Account}, true
			case "ipv6-cidr-block-association.ipv6-cidr-block":
				return []string{n.IPv6CIDR}, true
			case "ipv6-native":
				return []string{boolText(n.CIDR == "")}, true
			}
			return nil, false
		}
	}, func(r store.Reader, n *store.Subnet) []node { return s.subnetMembers(n, vpc.Free(r, n)) })
	return []node{list("subnetSet", items...)}, err
}

func (s *Server) deleteSubnet(ctx context.Context, f form) ([]node, error) {
	id := f.get("SubnetId")
	err := s.Store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := store.Get(tx, store.Subnets, id); !ok {
			return noSubnet(id)
		}
		used := false
		store.Scan(tx, store.Addresses, store.Prefix(id), func(string, *store.Address) bool { used = true; return false })
		if used {
			return failure("DependencyViolation", "The subnet '%s' has dependencies and cannot be deleted.", id)
		}
		store.Delete(tx, store.Subnets, id)
		return nil
	})
	return done(), err
}

func (s *Server) modifySubnetAttribute(ctx context.Context, f form) ([]node, error) {
	id := f.get("SubnetId")
	err := s.Store.Update(ctx, func(tx *store.Tx) error {
		old, ok := store.Get(tx, store.Subnets, id)
		if !ok {
			return noSubnet(id)
		}
		n := *old
		if f.has("MapPublicIpOnLaunch.Value") {
			n.PublicIP = f.get("MapPublicIpOnLaunch.Value") == "true"
		}
		if f.has("AssignIpv6AddressOnCreation.Value") {
			n.AssignIPv6 = f.get("AssignIpv6AddressOnCreation.Value") == "true"
		}
		store.Put(tx, store.Subnets, id, &n)
		return nil
	})
	return done(), err
}
