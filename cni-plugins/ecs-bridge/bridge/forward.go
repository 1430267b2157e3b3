package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// saved is what Teardown restores, the content of host.json.
type saved struct {
	IPForward string `json:"ipForward,omitempty"`
	// IPv6Forwarding is only there with an IPv6 subnet. AcceptRA names the interfaces that
	// listen to routers and would have stopped when they became a router's own.
	IPv6Forwarding string   `json:"ipv6Forwarding,omitempty"`
	AcceptRA       []string `json:"acceptRA,omitempty"`
}

const (
	savedFile   = "host.json"
	forwarding  = "ipv4/ip_forward"
	forwarding6 = "ipv6/conf/all/forwarding"
)

// bridgeAlias begins the alias of the bridge of every system on a host. The value that
// forwarding had before the first of them follows, and after alias6 that of IPv6 in
// systems that have it.
const (
	bridgeAlias = "berth bridge, ip_forward was "
	alias6      = ", of IPv6 "
)

// notes are what forwarding was before the first system, by family; "" is not known.
type notes struct{ v4, v6 string }

func (n notes) alias() string {
	if n.v6 == "" {
		return bridgeAlias + n.v4
	}
	return bridgeAlias + n.v4 + alias6 + n.v6
}

// enableForwarding turns forwarding on, after noting that it was off: in host.json, and
// with the bridge for other systems on this host, of which the last restores it.
func (h *Host) enableForwarding() error {
	file, err := h.savedNotes()
	if err != nil {
		return err
	}
	others, err := h.siblings()
	if err != nil {
		return err
	}
	var now, note notes
	if now.v4, note.v4, err = before(forwarding, file.IPForward, others, func(n notes) string { return n.v4 }); err != nil {
		return err
	}
	if h.cfg.Subnet6.IsValid() {
		now.v6, note.v6, err = before(forwarding6, file.IPv6Forwarding, others, func(n notes) string { return n.v6 })
		if err == nil && now.v6 != "1" {
			file.AcceptRA, err = listeners()
		}
		if err != nil {
			return err
		}
	}
	file.IPForward, file.IPv6Forwarding = note.v4, note.v6
	if note.v4 != "1" || note.v6 == "0" {
		if err := h.save(file); err != nil {
			return err
		}
	}
	link, err := h.route.LinkByName(h.cfg.Bridge)
	if err == nil && link.Attrs().Alias != note.alias() {
		err = h.route.LinkSetAlias(link, note.alias())
	}
	if err == nil && now.v4 != "1" {
		err = writeSysctl(forwarding, "1")
	}
	if err == nil && h.cfg.Subnet6.IsValid() && now.v6 != "1" {
		err = forwardIPv6(file.AcceptRA)
	}
	return err
}

// before is what a sysctl is now, and what it was before the first system.
func before(key, noted string, others []notes, of func(notes) string) (now, was string, err error) {
	data, err := os.ReadFile(filepath.Join(sysctlRoot, key))
	if err != nil {
		return "", "", fmt.Errorf("sysctl net.%s: %w", strings.ReplaceAll(key, "/", "."), err)
	}
	now = strings.TrimSpace(string(data))
	if now != "1" {
		return now, now, nil
	}
	if noted != "" {
		return now, noted, nil
	}
	for _, n := range others {
		if v := of(n); v != "" && v != "1" {
			return now, v, nil
		}
	}
	return now, now, nil
}

// listeners are the interfaces whose routes come from router advertisements, unless they
// are themselves routers.
func listeners() ([]string, error) {
	const dir = "ipv6/conf"
	entries, err := os.ReadDir(filepath.Join(sysctlRoot, dir))
	if err != nil {
		return nil, fmt.Errorf("interfaces with IPv6: %w", err)
	}
	var out []string
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(sysctlRoot, dir, e.Name(), "accept_ra"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("sysctl accept_ra of interface %s: %w", e.Name(), err)
		}
		if strings.TrimSpace(string(data)) == "1" && e.Name() != "all" && e.Name() != "lo" {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// forwardIPv6 makes the host a router without taking from it the routes that it has
// learnt from others (kernel documentation, ip-sysctl, accept_ra).
func forwardIPv6(listeners []string) error {
	if err := acceptRA(listeners, "2"); err != nil {
		return err
	}
	return writeSysctl(forwarding6, "1")
}

// acceptRA sets whether interfaces listen to routers. One that is gone is success.
func acceptRA(names []string, value string) error {
	for _, name := range names {
		if err := writeSysctl("ipv6/conf/"+name+"/accept_ra", value); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (h *Host) save(s saved) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(h.cfg.Dir, savedFile)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// savedNotes reads host.json. One that is not there or does not decode knows nothing.
func (h *Host) savedNotes() (saved, error) {
	var was saved
	data, err := os.ReadFile(filepath.Join(h.cfg.Dir, savedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return was, nil
	}
	if err != nil {
		return was, err
	}
	if json.Unmarshal(data, &was) != nil {
		return saved{}, nil
	}
	return was, nil
}

// siblings are the notes of the bridges of other systems on this host.
func (h *Host) siblings() (out []notes, err error) {
	links, err := h.route.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		text, ours := strings.CutPrefix(l.Attrs().Alias, bridgeAlias)
		if ours && l.Type() == "bridge" && l.Attrs().Name != h.cfg.Bridge {
			var n notes
			n.v4, n.v6, _ = strings.Cut(text, alias6)
			out = append(out, n)
		}
	}
	return out, nil
}

// restoreForwarding turns forwarding off again if it was off before the first system, and
// this is the last; its bridge is gone already.
func (h *Host) restoreForwarding() error {
	was, err := h.savedNotes()
	if err != nil {
		return err
	}
	others, err := h.siblings()
	if err != nil {
		return err
	}
	last6 := true
	for _, n := range others {
		last6 = last6 && n.v6 == ""
	}
	if len(others) == 0 && was.IPForward == "0" {
		err = writeSysctl(forwarding, "0")
	}
	if last6 && was.IPv6Forwarding == "0" {
		err = errors.Join(err, writeSysctl(forwarding6, "0"), acceptRA(was.AcceptRA, "1"))
	}
	return err
}
