package ec2

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

func noRule(id string) error {
	return failure("InvalidSecurityGroupRuleId.NotFound", "The security group rule ID '%s' does not exist", clip(id))
}

// protocolOf is a protocol as it is kept: a name for those that have one, -1 for all.
func protocolOf(s string) (string, error) {
	switch p := strings.ToLower(s); p {
	case "tcp", "6":
		return "tcp", nil
	case "udp", "17":
		return "udp", nil
	case "icmp", "1":
		return "icmp", nil
	case "icmpv6", "58":
		return "icmpv6", nil
	case "-1", "all":
		return "-1", nil
	default:
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 || n > 255 {
			return "", failure("InvalidPermission.Malformed", "Invalid value '%s' for IP protocol. Unknown protocol.", clip(s))
		}
		return p, nil
	}
}

// port reads a port of a request, -1 when it is not given.
func (f form) port(name string) (int32, error) {
	s := f.get(name)
	if s == "" {
		return -1, nil
	}
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < -1 || n > 65535 {
		return 0, failure("InvalidParameterValue", "Invalid value '%s' for portRange. Must be between 0 and 65535", clip(s))
	}
	return int32(n), nil
}

// service reads protocol and ports.
func (f form) service() (store.SecurityGroupRule, error) {
	var r store.SecurityGroupRule
	var err error
	if r.Protocol, err = protocolOf(f.get("IpProtocol")); err != nil {
		return r, err
	}
	if r.From, err = f.port("FromPort"); err != nil {
		return r, err
	}
	if r.To, err = f.port("ToPort"); err != nil {
		return r, err
	}
	switch r.Protocol {
	case "tcp", "udp":
		if r.From < 0 || r.To < 0 {
			return r, failure("MissingParameter", "The request must contain the parameters fromPort and toPort for protocol %s", r.Protocol)
		}
		if r.From > r.To {
			return r, failure("InvalidParameterValue", "Invalid TCP/UDP port range (%d:%d)", r.From, r.To)
		}
	case "icmp", "icmpv6":
	default:
		r.From, r.To = -1, -1
	}
	return r, nil
}

// network reads a range of addresses of a family, and says what it is with the bits
// behind the prefix cleared, as EC2 does.
func network(s string, v6 bool) (string, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is6() != v6 || p.Addr().Is4In6() {
		return "", failure("InvalidParameterValue", "CIDR block %s is malformed", clip(s))
	}
	return p.Masked().String(), nil
}

// permissionsOf reads the rules of a request: IpPermissions, or the older parameters for
// one rule.
func permissionsOf(r store.Reader, f form, group *store.SecurityGroup, egress bool) ([]*store.SecurityGroupRule, error) {
	parts, err := f.structures("IpPermissions")
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 && f.has("IpProtocol") {
		one := form{map[string][]string{}}
		for _, name := range []string{"IpProtocol", "FromPort", "ToPort"} {
			if f.has(name) {
				one.values.Set(name, f.get(name))
			}
		}
		if f.has("CidrIp") {
			one.values.Set("IpRanges.1.CidrIp", f.get("CidrIp"))
		}
		if f.has("SourceSecurityGroupName") {
			one.values.Set("Groups.1.GroupName", f.get("SourceSecurityGroupName"))
		}
		parts = []form{one}
	}
	var out []*store.SecurityGroupRule
	for _, p := range parts {
		rules, err := p.expand(r, group)
		if err != nil {
			return nil, err
		}
		out = append(out, rules...)
	}
	for _, rule := range out {
		rule.GroupID, rule.Egress = group.ID, egress
	}
	if len(out) > maxItems {
		return nil, failure("RulesPerSecurityGroupLimitExceeded", "The maximum number of rules per security group has been reached.")
	}
	return out, nil
}

// expand makes one rule of each range and each group of a permission.
func (f form) expand(r store.Reader, group *store.SecurityGroup) ([]*store.SecurityGroupRule, error) {
	base, err := f.service()
	if err != nil {
		return nil, err
	}
	var out []*store.SecurityGroupRule
	for _, family := range []struct {
		list, member string
		v6           bool
	}{{"IpRanges", "CidrIp", false}, {"Ipv6Ranges", "CidrIpv6", true}} {
		parts, err := f.structures(family.list)
		if err != nil {
			return nil, err
		}
		for _, p := range parts {
			cidr, err := network(p.get(family.member), family.v6)
			if err != nil {
				return nil, err
			}
			rule := base
			rule.Description = p.get("Description")
			if family.v6 {
				rule.IPv6 = cidr
			} else {
				rule.IPv4 = cidr
			}
			out = append(out, &rule)
		}
	}
	for _, name := range []string{"Groups", "UserIdGroupPairs"} {
		parts, err := f.structures(name)
		if err != nil {
			return nil, err
		}
		for _, p := range parts {
			rule := base
			rule.Description = p.get("Description")
			if rule.PeerGroup, err = peerOf(r, p, group); err != nil {
				return nil, err
			}
			out = append(out, &rule)
		}
	}
	lists, err := f.structures("PrefixListIds")
	if err != nil {
		return nil, err
	}
	if len(lists) > 0 {
		return nil, failure("InvalidPrefixListID.NotFound", "The prefix list ID '%s' does not exist", clip(lists[0].get("PrefixListId")))
	}
	for _, rule := range out {
		if len(rule.Description) > maxText {
			return nil, failure("InvalidParameterValue", "Invalid rule description: it must have at most %d characters", maxText)
		}
	}
	return out, nil
}

func peerOf(r store.Reader, p form, group *store.SecurityGroup) (string, error) {
	if id := p.get("GroupId"); id != "" {
		if _, ok := store.Get(r, store.SecurityGroups, id); !ok {
			return "", noGroup(id)
		}
		return id, nil
	}
	if g := vpc.GroupByName(r, group.VPCID, p.get("GroupName")); g != nil {
		return g.ID, nil
	}
	return "", noGroup(p.get("GroupName"))
}

// sameTraffic reports whether two rules let the same pass.
func sameTraffic(a, b *store.SecurityGroupRule) bool {
	return a.Egress == b.Egress && a.Protocol == b.Protocol && a.From == b.From && a.To == b.To &&
		a.IPv4 == b.IPv4 && a.IPv6 == b.IPv6 && a.PeerGroup == b.PeerGroup
}

func (s *Server) authorize(egress bool) action {
	return func(ctx context.Context, f form) ([]node, error) {
		tags, err := f.tagsOf("security-group-rule")
		if err != nil {
			return nil, err
		}
		set := node{name: "securityGroupRuleSet"}
		err = s.Store.Update(ctx, func(tx *store.Tx) error {
			set.members = nil
			g, err := groupOf(tx, f)
			if err != nil {
				return err
			}
			rules, err := permissionsOf(tx, f, g, egress)
			if err != nil {
				return err
			}
			if len(rules) == 0 {
				return failure("MissingParameter", "The request must contain at least one rule with a range or a group")
			}
			have := store.List(tx, store.SecurityGroupRules, store.Prefix(g.ID))
			n := len(rules)
			for _, h := range have {
				if h.Egress == egress {
					n++
				}
			}
			if n > maxGroupRules {
				return failure("RulesPerSecurityGroupLimitExceeded", "The maximum number of rules per security group has been reached.")
			}
			for _, rule := range rules {
				for _, h := range have {
					if sameTraffic(h, rule) {
						return failure("InvalidPermission.Duplicate", "the specified rule \"peer: %s, %s, from port: %d, to port: %d, ALLOW\" already exists",
							rule.IPv4+rule.IPv6+rule.PeerGroup, rule.Protocol, rule.From, rule.To)
					}
				}
				have = append(have, rule)
				rule.Tags = tags
				vpc.AddRule(tx, rule)
				set.members = append(set.members, item(s.ruleMembers(rule)...))
			}
			return nil
		})
		return []node{text("return", "true"), set}, err
	}
}

func (s *Server) revoke(egress bool) action {
	return func(ctx context.Context, f form) ([]node, error) {
		ids, err := f.list("SecurityGroupRuleId")
		if err != nil {
			return nil, err
		}
		err = s.Store.Update(ctx, func(tx *store.Tx) error {
			g, err := groupOf(tx, f)
			if err != nil {
				return err
			}
			for _, id := range ids {
				r, ok := store.Get(tx, store.SecurityGroupRules, store.Key(g.ID, id))
				if !ok || r.Egress != egress {
					return noRule(id)
				}
				store.Delete(tx, store.SecurityGroupRules, store.Key(g.ID, id))
			}
			rules, err := permissionsOf(tx, f, g, egress)
			if err != nil {
				return err
			}
			for _, rule := range rules {
				found := false
				for _, h := range store.List(tx, store.SecurityGroupRules, store.Prefix(g.ID)) {
					if sameTraffic(h, rule) {
						store.Delete(tx, store.SecurityGroupRules, store.Key(g.ID, h.ID))
						found = true
					}
				}
				if !found {
					return failure("InvalidPermission.NotFound", "The specified rule does not exist in this security group.")
				}
			}
			return nil
		})
		return done(), err
	}
}

func (s *Server) ruleMembers(r *store.SecurityGroupRule) []node {
	out := []node{
		text("securityGroupRuleId", r.ID), text("securityGroupRuleArn", s.arn("security-group-rule", r.ID)), text("groupId", r.GroupID),
		text("groupOwnerId", s.Account), boolean("isEgress", r.Egress), text("ipProtocol", r.Protocol),
		number("fromPort", int(r.From)), number("toPort", int(r.To)),
	}
	switch {
	case r.PeerGroup != "":
		// Without its owner, whom Terraform would compare with an account that it may not know.
		out = append(out, list("referencedGroupInfo", text("groupId", r.PeerGroup)))
	case r.IPv6 != "":
		out = append(out, text("cidrIpv6", r.IPv6))
	default:
		out = append(out, text("cidrIpv4", r.IPv4))
	}
	if r.Description != "" {
		out = append(out, text("description", r.Description))
	}
	return append(out, tagSet(r.Tags))
}

func (s *Server) describeSecurityGroupRules(_ context.Context, f form) ([]node, error) {
	items, err := describe(s.Store, f, "SecurityGroupRuleId", store.SecurityGroupRules, noRule, func(_ store.Reader, r *store.SecurityGroupRule) (string, map[string]string, func(string) ([]string, bool)) {
		return r.ID, r.Tags, func(name string) ([]string, bool) {
			switch name {
			case "group-id":
				return []string{r.GroupID}, true
			case "security-group-rule-id":
				return []string{r.ID}, true
			}
			return nil, false
		}
	}, func(_ store.Reader, r *store.SecurityGroupRule) []node { return s.ruleMembers(r) })
	return []node{list("securityGroupRuleSet", items...)}, err
}

func (s *Server) modifySecurityGroupRules(ctx context.Context, f form) ([]node, error) {
	parts, err := f.structures("SecurityGroupRule")
	if err != nil {
		return nil, err
	}
	err = s.Store.Update(ctx, func(tx *store.Tx) error {
		g, err := groupOf(tx, f)
		if err != nil {
			return err
		}
		for _, p := range parts {
			id := p.get("SecurityGroupRuleId")
			key := store.Key(g.ID, id)
			old, ok := store.Get(tx, store.SecurityGroupRules, key)
			if !ok {
				return noRule(id)
			}
			inner, err := p.under("SecurityGroupRule").modified(tx, old)
			if err != nil {
				return err
			}
			for _, h := range store.List(tx, store.SecurityGroupRules, store.Prefix(g.ID)) {
				if h.ID != id && sameTraffic(h, inner) {
					return failure("InvalidPermission.Duplicate", "a rule of the same traffic already exists in this security group")
				}
			}
			store.Put(tx, store.SecurityGroupRules, key, inner)
		}
		return nil
	})
	return done(), err
}

// under is the part of a form below a member.
func (f form) under(name string) form {
	out := form{map[string][]string{}}
	for k, v := range f.values {
		if rest, ok := strings.CutPrefix(k, name+"."); ok {
			out.values[rest] = v
		}
	}
	return out
}

// modified is a rule with what a request says in place of what it said.
func (f form) modified(r store.Reader, old *store.SecurityGroupRule) (*store.SecurityGroupRule, error) {
	rule, err := f.service()
	if err != nil {
		return nil, err
	}
	rule.ID, rule.GroupID, rule.Egress, rule.Tags, rule.Description = old.ID, old.GroupID, old.Egress, old.Tags, f.get("Description")
	switch {
	case f.has("CidrIpv4"):
		rule.IPv4, err = network(f.get("CidrIpv4"), false)
	case f.has("CidrIpv6"):
		rule.IPv6, err = network(f.get("CidrIpv6"), true)
	case f.has("ReferencedGroupId"):
		rule.PeerGroup = f.get("ReferencedGroupId")
		if _, ok := store.Get(r, store.SecurityGroups, rule.PeerGroup); !ok {
			err = noGroup(rule.PeerGroup)
		}
	default:
		err = failure("MissingParameter", "The rule must have a range or a group")
	}
	return &rule, err
}
