package ec2

import (
	"context"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/cluster/vpc"
)

func noGroup(id string) error {
	return failure("InvalidGroup.NotFound", "The security group '%s' does not exist", clip(id))
}

func (s *Server) createSecurityGroup(ctx context.Context, f form) ([]node, error) {
	g := &store.SecurityGroup{ID: vpc.NewID("sg"), VPCID: f.get("VpcId"), Name: f.get("GroupName"), Description: f.get("GroupDescription")}
	var err error
	if g.Tags, err = f.tagsOf("security-group"); err != nil {
		return nil, err
	}
	switch {
	case g.Name == "" || len(g.Name) > maxText:
		return nil, failure("InvalidParameterValue", "Value (%s) for parameter groupName is invalid. Character sets beyond ASCII are not supported.", clip(g.Name))
	case len(g.Name) > 3 && g.Name[:3] == "sg-":
		return nil, failure("InvalidParameterValue", "Value (%s) for parameter groupName is invalid. Group names may not be in the format sg-*.", clip(g.Name))
	case g.Description == "" || len(g.Description) > maxText:
		return nil, failure("MissingParameter", "The request must contain the parameter GroupDescription of at most %d characters", maxText)
	}
	err = s.Store.Update(ctx, func(tx *store.Tx) error {
		if g.VPCID == "" {
			g.VPCID = vpc.Default(tx)
		}
		v, ok := store.Get(tx, store.VPCs, g.VPCID)
		if !ok {
			return noVPC(g.VPCID)
		}
		if vpc.GroupByName(tx, g.VPCID, g.Name) != nil {
			return failure("InvalidGroup.Duplicate", "The security group '%s' already exists for VPC '%s'", clip(g.Name), g.VPCID)
		}
		if len(store.List(tx, store.SecurityGroups, "")) >= maxGroups {
			return failure("SecurityGroupLimitExceeded", "The maximum number of security groups has been reached.")
		}
		made := *g
		vpc.AddGroup(tx, &made, v.IPv6CIDR != "")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []node{text("return", "true"), text("groupId", g.ID), text("securityGroupArn", s.arn("security-group", g.ID)), tagSet(g.Tags)}, nil
}

// groupOf finds the group of a request, by id or, in the default VPC, by name.
func groupOf(r store.Reader, f form) (*store.SecurityGroup, error) {
	id, name := f.get("GroupId"), f.get("GroupName")
	if id == "" && name == "" {
		return nil, failure("MissingParameter", "The request must contain the parameter groupName or groupId")
	}
	if id == "" {
		if g := vpc.GroupByName(r, vpc.Default(r), name); g != nil {
			return g, nil
		}
		return nil, noGroup(name)
	}
	g, ok := store.Get(r, store.SecurityGroups, id)
	if !ok {
		return nil, noGroup(id)
	}
	return g, nil
}

func (s *Server) deleteSecurityGroup(ctx context.Context, f form) ([]node, error) {
	var id string
	err := s.Store.Update(ctx, func(tx *store.Tx) error {
		g, err := groupOf(tx, f)
		if err != nil {
			return err
		}
		id = g.ID
		if g.Name == vpc.DefaultGroup {
			return failure("CannotDelete", "the specified group: \"%s\" name: \"default\" cannot be deleted by a user", g.ID)
		}
		used := false
		store.Lookup(tx, store.InterfacesByGroup, g.ID, func(string, *store.Interface) bool { used = true; return false })
		store.Scan(tx, store.SecurityGroupRules, "", func(_ string, r *store.SecurityGroupRule) bool {
			used = used || r.PeerGroup == g.ID && r.GroupID != g.ID
			return !used
		})
		if used {
			return failure("DependencyViolation", "resource %s has a dependent object", g.ID)
		}
		removeGroup(tx, g.ID)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []node{text("return", "true"), text("groupId", id)}, nil
}

// removeGroup deletes a group with its rules.
func removeGroup(tx *store.Tx, id string) {
	for _, r := range store.List(tx, store.SecurityGroupRules, store.Prefix(id)) {
		store.Delete(tx, store.SecurityGroupRules, store.Key(id, r.ID))
	}
	store.Delete(tx, store.SecurityGroups, id)
}

func (s *Server) describeSecurityGroups(_ context.Context, f form) ([]node, error) {
	names, err := f.list("GroupName")
	if err != nil {
		return nil, err
	}
	var nameErr error
	s.Store.View(func(r store.Reader) {
		for _, n := range names {
			if vpc.GroupByName(r, vpc.Default(r), n) == nil {
				nameErr = noGroup(n)
			}
		}
	})
	if nameErr != nil {
		return nil, nameErr
	}
	wanted := map[string]bool{}
	for _, n := range names {
		wanted[n] = true
	}
	items, err := describe(s.Store, f, "GroupId", store.SecurityGroups, noGroup, func(r store.Reader, g *store.SecurityGroup) (string, map[string]string, func(string) ([]string, bool)) {
		return g.ID, g.Tags, func(name string) ([]string, bool) { return s.groupFilter(r, g, name) }
	}, func(r store.Reader, g *store.SecurityGroup) []node { return s.groupMembers(r, g) })
	if err != nil {
		return nil, err
	}
	if len(wanted) > 0 {
		kept := items[:0]
		for _, n := range items {
			if n.member("vpcId") == s.defaultVPC() && wanted[n.member("groupName")] {
				kept = append(kept, n)
			}
		}
		items = kept
	}
	return []node{list("securityGroupInfo", items...)}, nil
}

func (s *Server) defaultVPC() (id string) {
	s.Store.View(func(r store.Reader) { id = vpc.Default(r) })
	return id
}

func (s *Server) groupFilter(r store.Reader, g *store.SecurityGroup, name string) ([]string, bool) {
	switch name {
	case "group-id":
		return []string{g.ID}, true
	case "group-name":
		return []string{g.Name}, true
	case "vpc-id":
		return []string{g.VPCID}, true
	case "description":
		return []string{g.Description}, true
	case "owner-id":
		return []string{s.Account}, true
	}
	for prefix, egress := range map[string]bool{"ip-permission.": false, "egress.ip-permission.": true} {
		if len(name) > len(prefix) && name[:len(prefix)] == prefix {
			return ruleValues(r, g.ID, egress, name[len(prefix):])
		}
	}
	return nil, false
}

// ruleValues are the values of a filter on the rules of a group.
func ruleValues(r store.Reader, group string, egress bool, member string) (out []string, known bool) {
	of := map[string]func(*store.SecurityGroupRule) string{
		"cidr": func(r *store.SecurityGroupRule) string { return r.IPv4 }, "ipv6-cidr": func(r *store.SecurityGroupRule) string { return r.IPv6 },
		"group-id": func(r *store.SecurityGroupRule) string { return r.PeerGroup }, "protocol": func(r *store.SecurityGroupRule) string { return r.Protocol },
		"from-port": func(r *store.SecurityGroupRule) string { return number("", int(r.From)).text },
		"to-port":   func(r *store.SecurityGroupRule) string { return number("", int(r.To)).text },
	}[member]
	if of == nil {
		return nil, false
	}
	for _, rule := range store.List(r, store.SecurityGroupRules, store.Prefix(group)) {
		if v := of(rule); rule.Egress == egress && v != "" {
			out = append(out, v)
		}
	}
	return out, true
}

func (s *Server) groupMembers(r store.Reader, g *store.SecurityGroup) []node {
	rules := store.List(r, store.SecurityGroupRules, store.Prefix(g.ID))
	return []node{
		text("ownerId", s.Account), text("groupId", g.ID), text("groupName", g.Name), text("groupDescription", g.Description),
		text("vpcId", g.VPCID), text("securityGroupArn", s.arn("security-group", g.ID)),
		list("ipPermissions", s.permissions(rules, false)...), list("ipPermissionsEgress", s.permissions(rules, true)...), tagSet(g.Tags),
	}
}

// permissions groups the rules of one direction by protocol and ports, as EC2 shows them.
func (s *Server) permissions(rules []*store.SecurityGroupRule, egress bool) []node {
	type service struct {
		protocol string
		from, to int32
	}
	var order []service
	by := map[service][]*store.SecurityGroupRule{}
	for _, r := range rules {
		if r.Egress != egress {
			continue
		}
		k := service{r.Protocol, r.From, r.To}
		if by[k] == nil {
			order = append(order, k)
		}
		by[k] = append(by[k], r)
	}
	var out []node
	for _, k := range order {
		groups, v4, v6 := node{name: "groups"}, node{name: "ipRanges"}, node{name: "ipv6Ranges"}
		for _, r := range by[k] {
			var about []node
			if r.Description != "" {
				about = append(about, text("description", r.Description))
			}
			switch {
			case r.PeerGroup != "":
				groups.members = append(groups.members, item(append(about, text("userId", s.Account), text("groupId", r.PeerGroup))...))
			case r.IPv6 != "":
				v6.members = append(v6.members, item(append(about, text("cidrIpv6", r.IPv6))...))
			default:
				v4.members = append(v4.members, item(append(about, text("cidrIp", r.IPv4))...))
			}
		}
		members := []node{text("ipProtocol", k.protocol)}
		if k.protocol != "-1" {
			members = append(members, number("fromPort", int(k.from)), number("toPort", int(k.to)))
		}
		out = append(out, item(append(members, groups, v4, v6, list("prefixListIds"))...))
	}
	return out
}

// member is the text of a member.
func (n *node) member(name string) string {
	for i := range n.members {
		if n.members[i].name == name {
			return n.members[i].text
		}
	}
	return ""
}
