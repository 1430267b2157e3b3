package world

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"

	"github.com/vishvananda/netlink"
)

// links lists the interfaces of the present network namespace with their kind and the
// bridge they belong to.
func links(Options) ([]string, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{0: "-"}
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var found []string
	for _, l := range all {
		a := l.Attrs()
		found = append(found, fmt.Sprintf("%s type %s master %s", a.Name, l.Type(), names[a.MasterIndex]))
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil {
			return nil, err
		}
		for _, addr := range addrs {
			found = append(found, fmt.Sprintf("%s address %s", a.Name, addr.IPNet))
		}
	}
	return found, nil
}

// routes lists the IPv4 and IPv6 routes of all tables but the local ones, which
// follow from addresses.
func routes(Options) ([]string, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	names := map[int]string{}
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var found []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE) // table 0 is all
		if err != nil {
			return nil, err
		}
		const local = 255 // RT_TABLE_LOCAL of linux/rtnetlink.h
		for _, r := range list {
			if r.Table == local || r.Dst != nil && r.Dst.IP.IsMulticast() {
				continue
			}
			found = append(found, fmt.Sprintf("%v via %v dev %s table %d", r.Dst, r.Gw, names[r.LinkIndex], r.Table))
		}
	}
	return found, nil
}

// firewall lists the objects of the nftables ruleset, without handles and counts.
func firewall(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "nft", "--json", "list", "ruleset").Output()
	if err != nil {
		return nil, fmt.Errorf("nft (Debian package nftables): %w", err)
	}
	return ruleset(out)
}

// ruleset takes apart what nft prints (libnftables-json(5)): each object becomes one
// item, in a form that does not depend on when it was made or used.
func ruleset(out []byte) ([]string, error) {
	if len(bytes.TrimSpace(out)) == 0 {
		return nil, nil
	}
	var doc struct {
		Nftables []map[string]any `json:"nftables"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return nil, fmt.Errorf("nft: %w", err)
	}
	var found []string
	for _, object := range doc.Nftables {
		if _, meta := object["metainfo"]; meta {
			continue
		}
		strip(object)
		b, err := json.Marshal(object) // with sorted keys
		if err != nil {
			return nil, err
		}
		found = append(found, string(b))
	}
	return found, nil
}

// strip removes what the kernel counts or numbers.
func strip(v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range []string{"handle", "packets", "bytes", "expires"} {
			delete(v, key)
		}
		for _, member := range v {
			strip(member)
		}
	case []any:
		for _, element := range v {
			strip(element)
		}
	}
}
