package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"berth.dev/berth/cni-plugins/plugin"
)

// Key names an attachment.
type Key struct {
	ID     string // CNI container id; the agent's key of a task's or a container's network
	IfName string // interface inside the namespace
}

// Port is one published port, or Count consecutive ones.
type Port struct {
	Protocol      string `json:"protocol"`          // tcp or udp
	HostPort      uint16 `json:"hostPort"`          // 0 in a request asks for a dynamic one
	ContainerPort uint16 `json:"containerPort"`     //
	Count         uint16 `json:"count,omitempty"`   // 0 counts as 1
	Label         string `json:"label,omitempty"`   // the caller's own mark, kept as it is
	Dynamic       bool   `json:"dynamic,omitempty"` // HostPort was chosen here
}

func (p Port) count() int { return max(1, int(p.Count)) }

// Attachment is one namespace connected to the bridge, and the content of its reservation.
type Attachment struct {
	ID        string     `json:"id"`
	IfName    string     `json:"ifName"`
	Group     string     `json:"group,omitempty"` // attachments of one group reach each other directly
	Namespace string     `json:"namespace"`
	Bridge    string     `json:"bridge"`
	HostVeth  string     `json:"hostVeth"`
	Address   netip.Addr `json:"address"`
	Gateway   netip.Addr `json:"gateway"`
	Address6  netip.Addr `json:"address6,omitzero"` // only with an IPv6 subnet
	Gateway6  netip.Addr `json:"gateway6,omitzero"`
	MAC       string     `json:"mac"`
	MTU       int        `json:"mtu"`
	Ports     []Port     `json:"ports,omitempty"`
}

// Key returns the attachment's key.
func (a *Attachment) Key() Key { return Key{ID: a.ID, IfName: a.IfName} }

func (a *Attachment) hardwareAddr() net.HardwareAddr { return macOf(a.Address) }

// addresses are the attachment's own, IPv4 first; gateways have the same order.
func (a *Attachment) addresses() []netip.Addr { return some(a.Address, a.Address6) }

func (a *Attachment) gateways() []netip.Addr { return some(a.Gateway, a.Gateway6) }

func some(list ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(list, func(a netip.Addr) bool { return !a.IsValid() })
}

// vethName is the host's end of an attachment's veth pair: 15 bytes, the longest name
// that the kernel takes.
func vethName(bridge string, k Key) string {
	sum := sha256.Sum256([]byte(bridge + "\x00" + k.ID + "\x00" + k.IfName))
	return "brth" + hex.EncodeToString(sum[:])[:11]
}

// macOf derives a locally administered MAC address from an IPv4 address, so that an
// address has the same MAC whoever holds it and neighbour tables never go stale.
func macOf(a netip.Addr) net.HardwareAddr {
	ip := a.As4()
	return net.HardwareAddr{0x02, 0xbe, ip[0], ip[1], ip[2], ip[3]}
}

// temporary files start with this; a crash may leave one, a sweep removes it.
const claimPrefix = ".claim-"

// reservations is the directory of address reservations.
type reservations struct{ dir string }

func (r reservations) files() plugin.Records {
	return plugin.Records{Dir: r.dir, Temporary: claimPrefix}
}

// claim makes a's address a's, atomically: the file appears complete and fsynced, or
// fs.ErrExist is returned.
func (r reservations) claim(a *Attachment) error {
	if err := r.files().Create(a.Address.String(), a); err != nil {
		return fmt.Errorf("reserve address %s: %w", a.Address, err)
	}
	return nil
}

// read returns the attachment that holds an address; nil when nobody does. A file that
// does not decode gives an error that is not one of the file system.
func (r reservations) read(name string) (*Attachment, error) {
	data, err := os.ReadFile(filepath.Join(r.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read reservation: %w", err)
	}
	a := &Attachment{}
	if err := json.Unmarshal(data, a); err != nil || a.Address.String() != name || a.ID == "" || a.IfName == "" {
		return nil, fail(Damaged, "reservation %s does not say who holds it", name)
	}
	return a, nil
}

// release gives an address back. One that is not reserved is success.
func (r reservations) release(name string) error {
	if err := r.files().Remove(name); err != nil {
		return fmt.Errorf("release address %s: %w", name, err)
	}
	return nil
}

// list returns every reservation, and the names of files that are nobody's: undecodable
// reservations and unfinished claims.
func (r reservations) list() (all []*Attachment, junk []string, err error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list reservations: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), claimPrefix) {
			junk = append(junk, e.Name())
			continue
		}
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		a, err := r.read(e.Name())
		switch {
		case KindOf(err) == Damaged:
			junk = append(junk, e.Name())
		case err != nil:
			return nil, nil, err
		case a != nil:
			all = append(all, a)
		}
	}
	return all, junk, nil
}

// lock takes the directory's lock: shared for work on one attachment, exclusive for
// work on all. It is held against other processes and other Hosts of this one.
func (r reservations) lock(exclusive bool) (unlock func(), err error) {
	return r.files().Lock(exclusive)
}
