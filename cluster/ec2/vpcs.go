package ec2

import (
	"context"
	"net/netip"
	"strings"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

func noVPC(id string) error {
	return failure("InvalidVpcID.NotFound", "The vpc ID '%s' does not exist", clip(id))
}

// rangeOf reads a range of IPv4 addresses; sizes are those of EC2.
func rangeOf(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() || p != p.Masked() {
		return p, failure("InvalidParameterValue", "Value (%s) for parameter cidrBlock is invalid. This is not a valid CIDR block.", clip(s))
	}
	if p.Bits() < 16 || p.Bits() > 28 {
		return p, failure("InvalidVpc.Range", "The CIDR '%s' is invalid: its size must be between /28 and /16.", s)
	}
	return p, nil
}

func (s *Server) createVPC(ctx context.Context, f form) ([]node, error) {
	p, err := rangeOf(f.get("CidrBlock"))
	if err != nil {
		return nil, err
	}
	tags, err := f.tagsOf("vpc")
	if err != nil {
		return nil, err
	}
	v := &store.VPC{ID: vpc.NewID("vpc"), CIDR: p.String(), DNSSupport: true, Tags: tags}
	if f.get("AmazonProvidedIpv6CidrBlock") == "true" {
		v.IPv6CIDR = newIPv6Range()
	}
	err = s.Store.Update(ctx, func(tx *store.Tx) error {
		if len(store.List(tx, store.VPCs, "")) >= maxVPCs {
			return failure("VpcLimitExceeded", "The maximum number of VPCs has been reached.")
		}
		vpc.AddVPC(tx, v)
		return nil
	})
	return []node{{name: "vpc", members: s.vpcMembers(v)}}, err
}

// newIPv6Range is a random /56 of the unique local addresses (RFC 4193).
func newIPv6Range() string {
	id := vpc.NewID("x")[2:]
	return netip.MustParsePrefix("fd" + id[:2] + ":" + id[2:6] + ":" + id[6:10] + ":" + id[10:12] + "00::/56").String()
}

func (s *Server) vpcMembers(v *store.VPC) []node {
	out := []node{
		text("vpcId", v.ID), text("ownerId", s.Account), text("state", "available"), text("cidrBlock", v.CIDR),
		list("cidrBlockAssociationSet", item(
			text("cidrBlock", v.CIDR), text("associationId", derived("vpc-cidr-assoc", v.ID)),
			list("cidrBlockState", text("state", "associated")),
		)),
		text("dhcpOptionsId", "dopt-00000000"), text("instanceTenancy", "default"), boolean("isDefault", v.Default), tagSet(v.Tags),
	}
	if v.IPv6CIDR != "" {
		out = append(out, list("ipv6CidrBlockAssociationSet", item(
			text("ipv6CidrBlock", v.IPv6CIDR), text("associationId", derived("vpc-cidr-assoc", v.ID+"6")),
			list("ipv6CidrBlockState", text("state", "associated")), text("networkBorderGroup", s.Region), text("ipv6Pool", "Amazon"),
		)))
	}
	return out
}

// derived is the id of something that belongs to another resource and has no record.
func derived(prefix, of string) string {
	_, id, _ := strings.Cut(of, "-")
	return prefix + "-" + id
}

// owner is the VPC that a derived id belongs to.
func owner(id string) string { return "vpc-" + id[strings.LastIndexByte(id, '-')+1:] }

func (s *Server) describeVPCs(_ context.Context, f form) ([]node, error) {
	items, err := describe(s.Store, f, "VpcId", store.VPCs, noVPC, func(_ store.Reader, v *store.VPC) (string, map[string]string, func(string) ([]string, bool)) {
		return v.ID, v.Tags, func(name string) ([]string, bool) {
			switch name {
			case "vpc-id":
				return []string{v.ID}, true
			case "cidr", "cidr-block", "cidrBlock", "cidr-block-association.cidr-block":
				return []string{v.CIDR}, true
			case "isDefault", "is-default":
				return []string{boolText(v.Default)}, true
			case "state", "owner-id", "dhcp-options-id":
				return []string{map[string]string{"state": "available", "owner-id": s.Account, "dhcp-options-id": "dopt-00000000"}[name]}, true
			}
			return nil, false
		}
	}, func(_ store.Reader, v *store.VPC) []node { return s.vpcMembers(v) })
	return []node{list("vpcSet", items...)}, err
}

func boolText(b bool) string { return boolean("", b).text }

// describe answers an operation that lists records: those named, and of those the ones
// that pass all filters. An id that is named and not there is an error.
func describe[T any](st *store.Store, f form, idMember string, table store.Table[T], missing func(string) error,
	look func(store.Reader, *T) (id string, tags map[string]string, get func(string) ([]string, bool)), show func(store.Reader, *T) []node,
) (items []node, err error) {
	ids, err := f.list(idMember)
	if err != nil {
		return nil, err
	}
	filters, err := f.filters()
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, id := range ids {
		wanted[id] = true
	}
	st.View(func(r store.Reader) {
		store.Scan(r, table, "", func(_ string, v *T) bool {
			id, tags, get := look(r, v)
			if len(ids) > 0 && !wanted[id] {
				return true
			}
			delete(wanted, id)
			var ok bool
			if ok, err = matches(filters, tags, get); err != nil {
				return false
			}
			if ok {
				items = append(items, item(show(r, v)...))
			}
			return true
		})
	})
	if err != nil {
		return nil, err
	}
	for id := range wanted {
		return nil, missing(id)
	}
	return items, nil
}

func (s *Server) deleteVPC(ctx context.Context, f form) ([]node, error) {
	id := f.get("VpcId")
	err := s.Store.Update(ctx, func(tx *store.Tx) error {
		if _, ok := store.Get(tx, store.VPCs, id); !ok {
			return noVPC(id)
		}
		used := false
		store.Scan(tx, store.Subnets, "", func(_ string, n *store.Subnet) bool { used = used || n.VPCID == id; return !used })
		var own []*store.SecurityGroup
		store.Scan(tx, store.SecurityGroups, "", func(_ string, g *store.SecurityGroup) bool {
			if g.VPCID == id {
				own = append(own, g)
				used = used || g.Name != vpc.DefaultGroup
			}
			return true
		})
		if used {
			return failure("DependencyViolation", "The vpc '%s' has dependencies and cannot be deleted.", id)
		}
		for _, g := range own {
			removeGroup(tx, g.ID)
		}
		store.Delete(tx, store.VPCs, id)
		return nil
	})
	return done(), err
}

func (s *Server) oneVPC(id string) (v *store.VPC, err error) {
	s.Store.View(func(r store.Reader) { v, _ = store.Get(r, store.VPCs, id) })
	if v == nil {
		return nil, noVPC(id)
	}
	return v, nil
}

func (s *Server) describeVPCAttribute(_ context.Context, f form) ([]node, error) {
	v, err := s.oneVPC(f.get("VpcId"))
	if err != nil {
		return nil, err
	}
	name, value := f.get("Attribute"), false
	switch name {
	case "enableDnsSupport":
		value = v.DNSSupport
	case "enableDnsHostnames":
		value = v.DNSHostnames
	case "enableNetworkAddressUsageMetrics":
	default:
		return nil, failure("InvalidParameterValue", "Value (%s) for parameter attribute is invalid.", clip(name))
	}
	return []node{text("vpcId", v.ID), list(name, boolean("value", value))}, nil
}

func (s *Server) modifyVPCAttribute(ctx context.Context, f form) ([]node, error) {
	id := f.get("VpcId")
	err := s.Store.Update(ctx, func(tx *store.Tx) error {
		old, ok := store.Get(tx, store.VPCs, id)
		if !ok {
			return noVPC(id)
		}
		v := *old
		if f.has("EnableDnsSupport.Value") {
			v.DNSSupport = f.get("EnableDnsSupport.Value") == "true"
		}
		if f.has("EnableDnsHostnames.Value") {
			v.DNSHostnames = f.get("EnableDnsHostnames.Value") == "true"
		}
		store.Put(tx, store.VPCs, id, &v)
		return nil
	})
	return done(), err
}

// describeNetworkACLs shows the one ACL of every VPC, which lets everything pass.
func (s *Server) describeNetworkACLs(_ context.Context, f form) ([]node, error) {
	return s.perVPC(f, "networkAclSet", "acl", func(v *store.VPC, id string) []node {
		rule := func(egress bool, n int, action string) node {
			return item(number("ruleNumber", n), text("protocol", "-1"), text("ruleAction", action), boolean("egress", egress), text("cidrBlock", "0.0.0.0/0"))
		}
		return []node{
			text("networkAclId", id), text("vpcId", v.ID), boolean("default", true), text("ownerId", s.Account),
			list("entrySet", rule(true, 100, "allow"), rule(true, 32767, "deny"), rule(false, 100, "allow"), rule(false, 32767, "deny")),
			list("associationSet"), list("tagSet"),
		}
	})
}

// describeRouteTables shows the one route table of every VPC.
func (s *Server) describeRouteTables(_ context.Context, f form) ([]node, error) {
	return s.perVPC(f, "routeTableSet", "rtb", func(v *store.VPC, id string) []node {
		return []node{
			text("routeTableId", id), text("vpcId", v.ID), text("ownerId", s.Account),
			list("routeSet", item(text("destinationCidrBlock", v.CIDR), text("gatewayId", "local"), text("state", "active"), text("origin", "CreateRouteTable"))),
			list("associationSet", item(
				text("routeTableAssociationId", derived("rtbassoc", v.ID)), text("routeTableId", id), boolean("main", true),
				list("associationState", text("state", "associated")),
			)),
			list("propagatingVgwSet"), list("tagSet"),
		}
	})
}

// perVPC lists something that every VPC has one of and that has no record.
func (s *Server) perVPC(f form, set, prefix string, show func(v *store.VPC, id string) []node) ([]node, error) {
	filters, err := f.filters()
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, member := range []string{"NetworkAclId", "RouteTableId"} {
		ids, err := f.list(member)
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			named[owner(id)] = true
		}
	}
	out := node{name: set}
	s.Store.View(func(r store.Reader) {
		store.Scan(r, store.VPCs, "", func(_ string, v *store.VPC) bool {
			id := derived(prefix, v.ID)
			var ok bool
			ok, err = matches(filters, nil, func(name string) ([]string, bool) {
				switch name {
				case "vpc-id":
					return []string{v.ID}, true
				case "default", "association.main":
					return []string{"true"}, true
				case "network-acl-id", "route-table-id", "association.route-table-id", "association.network-acl-id":
					return []string{id}, true
				case "association.subnet-id", "association.gateway-id", "association.route-table-association-id":
					return nil, true
				}
				return nil, false
			})
			if ok && (len(named) == 0 || named[v.ID]) {
				out.members = append(out.members, item(show(v, id)...))
			}
			return err == nil
		})
	})
	return []node{out}, err
}
