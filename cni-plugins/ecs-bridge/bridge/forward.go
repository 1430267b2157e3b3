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
	IPForward string `json:"ipForward"`
}

const (
	savedFile  = "host.json"
	forwarding = "ipv4/ip_forward"
)

// bridgeAlias begins the alias of the bridge of every system on a host. The value that
// forwarding had before the first of them follows.
const bridgeAlias = "berth bridge, ip_forward was "

// enableForwarding turns IPv4 forwarding on, after noting that it was off: in host.json,
// and with the bridge for other systems on this host, of which the last restores it.
func (h *Host) enableForwarding() error {
	was, err := os.ReadFile(filepath.Join(sysctlRoot, forwarding))
	if err != nil {
		return fmt.Errorf("sysctl net.ipv4.ip_forward: %w", err)
	}
	value := strings.TrimSpace(string(was))
	path := filepath.Join(h.cfg.Dir, savedFile)
	note := value
	if value == "1" {
		if note, err = h.notedForwarding(path); err != nil {
			return err
		}
	}
	if note != "1" {
		data, err := json.Marshal(saved{IPForward: note})
		if err != nil {
			return err
		}
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	link, err := h.route.LinkByName(h.cfg.Bridge)
	if err == nil && link.Attrs().Alias != bridgeAlias+note {
		err = h.route.LinkSetAlias(link, bridgeAlias+note)
	}
	if err != nil || value == "1" {
		return err
	}
	return writeSysctl(forwarding, "1")
}

// notedForwarding is what forwarding was before the first system, by this one's file or
// the bridge of another.
func (h *Host) notedForwarding(path string) (string, error) {
	var was saved
	data, err := os.ReadFile(path)
	if err == nil && json.Unmarshal(data, &was) == nil && was.IPForward != "" {
		return was.IPForward, nil
	}
	others, err := h.siblings()
	if err != nil {
		return "", err
	}
	for _, note := range others {
		if note != "1" {
			return note, nil
		}
	}
	return "1", nil
}

// siblings are the notes of the bridges of other systems on this host.
func (h *Host) siblings() (notes []string, err error) {
	links, err := h.route.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		note, ours := strings.CutPrefix(l.Attrs().Alias, bridgeAlias)
		if ours && l.Type() == "bridge" && l.Attrs().Name != h.cfg.Bridge {
			notes = append(notes, note)
		}
	}
	return notes, nil
}

// restoreForwarding turns forwarding off again if it was off before the first system, and
// this is the last; its bridge is gone already.
func (h *Host) restoreForwarding() error {
	var was saved
	data, err := os.ReadFile(filepath.Join(h.cfg.Dir, savedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	others, err := h.siblings()
	if err != nil || len(others) > 0 || json.Unmarshal(data, &was) != nil || was.IPForward != "0" {
		return err
	}
	return writeSysctl(forwarding, was.IPForward)
}
