package ec2

import (
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/cluster/store"
)

func noInterface(id string) error {
	return failure("InvalidNetworkInterfaceID.NotFound", "The networkInterface ID '%s' does not exist", clip(id))
}

func (s *Server) describeNetworkInterfaces(_ context.Context, f form) ([]node, error) {
	items, err := describe(s.Store, f, "NetworkInterfaceId", store.Interfaces, noInterface, func(_ store.Reader, i *store.Interface) (string, map[string]string, func(string) ([]string, bool)) {
		return i.ID, nil, func(name string) ([]string, bool) {
			switch name {
			case "network-interface-id":
				return []string{i.ID}, true
			case "subnet-id":
				return []string{i.SubnetID}, true
			case "vpc-id":
				return []string{i.VPCID}, true
			case "group-id":
				return i.Groups, true
			case "private-ip-address", "addresses.private-ip-address":
				return []string{i.IPv4}, true
			case "ipv6-addresses.ipv6-address":
				return []string{i.IPv6}, true
			case "mac-address":
				return []string{i.MAC}, true
			case "private-dns-name":
				return []string{i.DNSName}, true
			case "status":
				return []string{"in-use"}, true
			case "description":
				return []string{describeInterface(i)}, true
			case "attachment.attachment-id":
				return []string{attachID(i)}, true
			case "attachment.status":
				return []string{"attached"}, true
			case "interface-type":
				return []string{"interface"}, true
			case "requester-managed":
				return []string{"true"}, true
			case "attachment.instance-owner-id", "requester-id", "attachment.instance-id", "association.public-ip", "group-name":
				return nil, true
			}
			return nil, false
		}
	}, s.interfaceMembers)
	return []node{list("networkInterfaceSet", items...)}, err
}

func describeInterface(i *store.Interface) string {
	return "task " + i.ClusterName + "/" + i.TaskID
}

func attachID(i *store.Interface) string { return derived("eni-attach", i.ID) }

func (s *Server) interfaceMembers(r store.Reader, i *store.Interface) []node {
	zone := ""
	if n, ok := store.Get(r, store.Subnets, i.SubnetID); ok {
		zone = n.Zone
	}
	groups := node{name: "groupSet"}
	for _, id := range i.Groups {
		name := ""
		if g, ok := store.Get(r, store.SecurityGroups, id); ok {
			name = g.Name
		}
		groups.members = append(groups.members, item(text("groupId", id), text("groupName", name)))
	}
	v6 := node{name: "ipv6AddressesSet"}
	if i.IPv6 != "" {
		v6.members = append(v6.members, item(text("ipv6Address", i.IPv6)))
	}
	out := []node{
		text("networkInterfaceId", i.ID), text("subnetId", i.SubnetID), text("vpcId", i.VPCID), text("availabilityZone", zone),
		text("description", describeInterface(i)), text("ownerId", s.Account), boolean("requesterManaged", true), text("status", "in-use"),
		text("macAddress", i.MAC), text("privateDnsName", i.DNSName), boolean("sourceDestCheck", true),
		groups, text("interfaceType", "interface"),
		list("attachment", text("attachmentId", attachID(i)), text("status", "attached"), number("deviceIndex", 1),
			text("attachTime", instant(i.CreatedAt)), boolean("deleteOnTermination", true)),
		v6, list("tagSet"),
	}
	if i.IPv4 == "" {
		return append(out, list("privateIpAddressesSet"))
	}
	return append(out, text("privateIpAddress", i.IPv4),
		list("privateIpAddressesSet", item(text("privateIpAddress", i.IPv4), text("privateDnsName", i.DNSName), boolean("primary", true))))
}

// zones are those of subnets and of container instances, and the first one of the region.
func (s *Server) zones() []string {
	seen := map[string]bool{s.Region + "a": true}
	s.Store.View(func(r store.Reader) {
		store.Scan(r, store.Subnets, "", func(_ string, n *store.Subnet) bool { seen[n.Zone] = true; return true })
		store.Scan(r, store.Instances, "", func(_ string, i *store.Instance) bool {
			for _, a := range i.Instance.Attributes {
				if aws.ToString(a.Name) == "ecs.availability-zone" && aws.ToString(a.Value) != "" {
					seen[*a.Value] = true
				}
			}
			return true
		})
	})
	out := make([]string, 0, len(seen))
	for z := range seen {
		out = append(out, z)
	}
	slices.Sort(out)
	return out
}

func (s *Server) describeAvailabilityZones(_ context.Context, f form) ([]node, error) {
	filters, err := f.filters()
	if err != nil {
		return nil, err
	}
	names, err := f.list("ZoneName")
	if err != nil {
		return nil, err
	}
	set := node{name: "availabilityZoneInfo"}
	for _, z := range s.zones() {
		fields := map[string]string{
			"zone-name": z, "zone-id": zoneID(s.Region, z), "region-name": s.Region, "state": "available",
			"zone-type": "availability-zone", "opt-in-status": "opt-in-not-required", "group-name": s.Region,
		}
		ok, err := matches(filters, nil, func(name string) ([]string, bool) {
			v, known := fields[name]
			return []string{v}, known
		})
		if err != nil {
			return nil, err
		}
		if !ok || len(names) > 0 && !slices.Contains(names, z) {
			continue
		}
		set.members = append(set.members, item(
			text("zoneName", z), text("zoneState", "available"), text("regionName", s.Region), text("zoneId", zoneID(s.Region, z)),
			text("groupName", s.Region), text("networkBorderGroup", s.Region), text("optInStatus", "opt-in-not-required"),
			text("zoneType", "availability-zone"), list("messageSet"),
		))
	}
	return []node{set}, nil
}

func (s *Server) describeRegions(context.Context, form) ([]node, error) {
	return []node{list("regionInfo", item(text("regionName", s.Region), text("regionEndpoint", "ec2."+s.Region+".amazonaws.com"), text("optInStatus", "opt-in-not-required")))}, nil
}

func (s *Server) describeAccountAttributes(_ context.Context, f form) ([]node, error) {
	wanted, err := f.list("AttributeName")
	if err != nil {
		return nil, err
	}
	set := node{name: "accountAttributeSet"}
	for _, a := range [][2]string{{"supported-platforms", "VPC"}, {"default-vpc", orElse(s.defaultVPC(), "none")}, {"vpc-max-security-groups-per-interface", "5"}} {
		if len(wanted) > 0 && !slices.Contains(wanted, a[0]) {
			continue
		}
		set.members = append(set.members, item(text("attributeName", a[0]), list("attributeValueSet", item(text("attributeValue", a[1])))))
	}
	return []node{set}, nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// tagged changes the tags of a resource in place of its kind.
type tagged struct {
	kind string
	get  func(r store.Reader, id string) (map[string]string, bool)
	set  func(tx *store.Tx, id string, tags map[string]string)
}

// taggedOf tells by its id what a resource is.
func taggedOf(id string) (tagged, bool) {
	switch prefix, _, _ := strings.Cut(id, "-"); prefix {
	case "vpc":
		return tagsIn("vpc", store.VPCs, func(v *store.VPC) *map[string]string { return &v.Tags }), true
	case "subnet":
		return tagsIn("subnet", store.Subnets, func(v *store.Subnet) *map[string]string { return &v.Tags }), true
	case "sg":
		return tagsIn("security-group", store.SecurityGroups, func(v *store.SecurityGroup) *map[string]string { return &v.Tags }), true
	case "sgr":
		t := tagsIn("security-group-rule", store.SecurityGroupRules, func(v *store.SecurityGroupRule) *map[string]string { return &v.Tags })
		return t.keyed(ruleKey), true
	case "vol":
		return tagsIn("volume", store.Volumes, func(v *store.Volume) *map[string]string { return &v.Tags }), true
	case "snap":
		return tagsIn("snapshot", store.Snapshots, func(v *store.Snapshot) *map[string]string { return &v.Tags }), true
	}
	return tagged{}, false
}

func tagsIn[T any](kind string, table store.Table[T], tags func(*T) *map[string]string) tagged {
	return tagged{
		kind: kind,
		get: func(r store.Reader, key string) (map[string]string, bool) {
			v, ok := store.Get(r, table, key)
			if !ok {
				return nil, false
			}
			return *tags(v), true
		},
		set: func(tx *store.Tx, key string, to map[string]string) {
			old, ok := store.Get(tx, table, key)
			if !ok {
				return
			}
			v := *old
			*tags(&v) = to
			store.Put(tx, table, key, &v)
		},
	}
}

// keyed is t for a table whose keys are not the ids.
func (t tagged) keyed(key func(store.Reader, string) string) tagged {
	get, set := t.get, t.set
	t.get = func(r store.Reader, id string) (map[string]string, bool) { return get(r, key(r, id)) }
	t.set = func(tx *store.Tx, id string, tags map[string]string) { set(tx, key(tx, id), tags) }
	return t
}

// ruleKey is the key of a rule.
func ruleKey(r store.Reader, id string) (key string) {
	store.Lookup(r, store.RulesByID, id, func(k string, _ *store.SecurityGroupRule) bool { key = k; return false })
	return key
}

// changeTags runs fn on a copy of the tags of each resource of a request.
func (s *Server) changeTags(ctx context.Context, f form, fn func(tags map[string]string) error) ([]node, error) {
	ids, err := f.list("ResourceId")
	if err != nil {
		return nil, err
	}
	err = s.Store.Update(ctx, func(tx *store.Tx) error {
		for _, id := range ids {
			t, ok := taggedOf(id)
			var old map[string]string
			if ok {
				old, ok = t.get(tx, id)
			}
			if !ok {
				return failure("InvalidID", "The ID '%s' is not valid", clip(id))
			}
			tags := map[string]string{}
			for k, v := range old {
				tags[k] = v
			}
			if err := fn(tags); err != nil {
				return err
			}
			t.set(tx, id, tags)
		}
		return nil
	})
	return done(), err
}

func (s *Server) createTags(ctx context.Context, f form) ([]node, error) {
	return s.changeTags(ctx, f, f.addTags)
}

func (s *Server) deleteTags(ctx context.Context, f form) ([]node, error) {
	list, err := f.structures("Tag")
	if err != nil {
		return nil, err
	}
	return s.changeTags(ctx, f, func(tags map[string]string) error {
		if len(list) == 0 {
			clear(tags)
		}
		for _, t := range list {
			if v, has := tags[t.get("Key")]; has && (!t.has("Value") || t.get("Value") == v) {
				delete(tags, t.get("Key"))
			}
		}
		return nil
	})
}

func (s *Server) describeTags(_ context.Context, f form) ([]node, error) {
	filters, err := f.filters()
	if err != nil {
		return nil, err
	}
	set := node{name: "tagSet"}
	s.Store.View(func(r store.Reader) {
		var ids []string
		store.Scan(r, store.VPCs, "", func(id string, _ *store.VPC) bool { ids = append(ids, id); return true })
		store.Scan(r, store.Subnets, "", func(id string, _ *store.Subnet) bool { ids = append(ids, id); return true })
		store.Scan(r, store.SecurityGroups, "", func(id string, _ *store.SecurityGroup) bool { ids = append(ids, id); return true })
		store.Scan(r, store.SecurityGroupRules, "", func(_ string, v *store.SecurityGroupRule) bool { ids = append(ids, v.ID); return true })
		store.Scan(r, store.Volumes, "", func(id string, _ *store.Volume) bool { ids = append(ids, id); return true })
		store.Scan(r, store.Snapshots, "", func(id string, v *store.Snapshot) bool {
			if !v.Deleting {
				ids = append(ids, id)
			}
			return true
		})
		for _, id := range ids {
			t, _ := taggedOf(id)
			tags, _ := t.get(r, id)
			for _, n := range tagSet(tags).members {
				fields := map[string]string{"resource-id": id, "resource-type": t.kind, "key": n.member("key"), "value": n.member("value")}
				var ok bool
				ok, err = matches(filters, nil, func(name string) ([]string, bool) { v, known := fields[name]; return []string{v}, known })
				if err != nil {
					return
				}
				if ok {
					set.members = append(set.members, item(text("resourceId", id), text("resourceType", t.kind), text("key", fields["key"]), text("value", fields["value"])))
				}
			}
		}
	})
	return []node{set}, err
}
