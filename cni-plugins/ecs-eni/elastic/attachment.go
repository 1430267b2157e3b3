package elastic

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
	"regexp"
	"strings"

	"berth.dev/berth/cni-plugins/plugin"
	"berth.dev/berth/eni"
)

// Key names an attachment.
type Key struct {
	ID     string // CNI container id; the agent's is the task's id
	IfName string // interface inside the namespace
}

// Request asks for one attachment.
type Request struct {
	Key
	Namespace string         // path of the network namespace
	MAC       string         // of the device
	Addresses []netip.Prefix // with the length of the subnet's prefix
	Gateways  []netip.Addr   // at most one of a family
	MTU       int            // bytes; 0 keeps the device's
	Index     int            // place among the interfaces of the namespace

	// Trunk and VLAN make the device first: a VLAN on the device with the MAC address
	// Trunk. VLAN 0 means that there is a device.
	Trunk string
	VLAN  int

	BlockMetadata bool
	Discard       bool // the device is deleted at the end and not given back
}

// Attachment is one interface in a namespace, and the content of its record.
type Attachment struct {
	ID            string         `json:"id"`
	IfName        string         `json:"ifName"`
	Namespace     string         `json:"namespace"`
	MAC           string         `json:"mac"`
	Addresses     []netip.Prefix `json:"addresses"`
	Gateways      []netip.Addr   `json:"gateways,omitempty"`
	MTU           int            `json:"mtu,omitempty"`
	Index         int            `json:"index,omitempty"`
	Trunk         string         `json:"trunk,omitempty"`
	VLAN          int            `json:"vlan,omitempty"`
	BlockMetadata bool           `json:"blockMetadata,omitempty"`
	Discard       bool           `json:"discard,omitempty"`
}

// Key returns the attachment's key.
func (a *Attachment) Key() Key { return Key{ID: a.ID, IfName: a.IfName} }

func (a *Attachment) mac() (net.HardwareAddr, error) { return eni.ParseMAC(a.MAC) }

// inside is the interface as package eni takes it.
func (a *Attachment) inside() (eni.Interface, error) {
	mac, err := a.mac()
	return eni.Interface{
		MAC: mac, Name: a.IfName, Addresses: a.Addresses, Gateways: a.Gateways, MTU: a.MTU, Index: a.Index, BlockMetadata: a.BlockMetadata,
	}, err
}

// Kind sorts errors by what the caller may do.
type Kind int

// Error kinds. Errors without one come from the kernel or the file system.
const (
	Other    Kind = iota
	Invalid       // the request or the configuration is wrong
	Exists        // the attachment exists already
	NoDevice      // no interface of the host has the MAC address, at present
	Damaged       // Check found that something is missing or different
)

// Error is an error with a kind.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.Err }

func fail(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// KindOf returns the kind of the nearest Error in err's chain.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	if errors.Is(err, eni.ErrNoDevice) {
		return NoDevice
	}
	return Other
}

var linkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}$`)

// Limits of a request. A VLAN id has 12 bits, of which 0 and 4095 are taken (IEEE 802.1Q).
const (
	maxAddresses = 64
	maxID        = 255
	maxVLAN      = 4094
)

// attachment checks a request.
func (r *Request) attachment() (*Attachment, error) {
	mac, err := eni.ParseMAC(r.MAC)
	if err != nil {
		return nil, fail(Invalid, "%w", err)
	}
	a := &Attachment{
		ID: r.ID, IfName: r.IfName, Namespace: r.Namespace, MAC: mac.String(), Addresses: r.Addresses, Gateways: r.Gateways,
		MTU: r.MTU, Index: r.Index, VLAN: r.VLAN, BlockMetadata: r.BlockMetadata, Discard: r.Discard || r.VLAN != 0,
	}
	switch {
	case r.ID == "" || len(r.ID) > maxID:
		return nil, fail(Invalid, "container id of %d bytes: must have 1 to %d", len(r.ID), maxID)
	case !linkName.MatchString(r.IfName):
		return nil, fail(Invalid, "interface name %q is not 1 to 15 letters, digits, dots, dashes and underscores", r.IfName)
	case len(r.Addresses) == 0 || len(r.Addresses) > maxAddresses:
		return nil, fail(Invalid, "%d addresses: an interface has 1 to %d", len(r.Addresses), maxAddresses)
	case r.MTU != 0 && (r.MTU < 576 || r.MTU > 65535):
		return nil, fail(Invalid, "mtu %d: must be between 576 and 65535, or 0 for the device's", r.MTU)
	case r.VLAN < 0 || r.VLAN > maxVLAN:
		return nil, fail(Invalid, "VLAN %d: must be between 1 and %d", r.VLAN, maxVLAN)
	case r.Index < 0 || r.Index > maxAddresses:
		return nil, fail(Invalid, "index %d of the interface: must be between 0 and %d", r.Index, maxAddresses)
	}
	if r.VLAN != 0 {
		trunk, err := eni.ParseMAC(r.Trunk)
		if err != nil {
			return nil, fail(Invalid, "trunk: %w", err)
		}
		a.Trunk = trunk.String()
	}
	return a, checkAddresses(a)
}

func checkAddresses(a *Attachment) error {
	seen := map[bool]bool{}
	for _, p := range a.Addresses {
		if !p.IsValid() || p.Addr().IsUnspecified() || p.Addr().IsMulticast() || p.Addr().Is4In6() {
			return fail(Invalid, "address %s is none that an interface can have", p)
		}
	}
	for _, gw := range a.Gateways {
		switch {
		case !gw.IsValid() || gw.IsUnspecified() || gw.Is4In6() || gw.Zone() != "":
			return fail(Invalid, "gateway %s is not an address", gw)
		case seen[gw.Is4()]:
			return fail(Invalid, "gateway %s is the second one of its family", gw)
		}
		seen[gw.Is4()] = true
	}
	return nil
}

// records is the directory of records.
type records struct{ dir string }

// temporary files start with this; a crash may leave one, a collection removes it.
const temporary = ".new-"

func (r records) files() plugin.Records { return plugin.Records{Dir: r.dir, Temporary: temporary} }

func recordName(k Key) string {
	sum := sha256.Sum256([]byte(k.ID + "\x00" + k.IfName))
	return hex.EncodeToString(sum[:16])
}

// create writes a record that must not exist.
func (r records) create(a *Attachment) error {
	if err := r.files().Create(recordName(a.Key()), a); err != nil {
		return fmt.Errorf("record of the attachment: %w", err)
	}
	return nil
}

// read returns the attachment of a key, nil when there is none. A record that does not
// decode is removed and counts as none.
func (r records) read(k Key) (*Attachment, error) {
	name := recordName(k)
	a, err := r.decode(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if KindOf(err) == Damaged {
		return nil, r.remove(name)
	}
	if err == nil && a.Key() != k {
		return nil, fail(Damaged, "record %s is of another attachment", name)
	}
	return a, err
}

func (r records) decode(name string) (*Attachment, error) {
	data, err := os.ReadFile(filepath.Join(r.dir, name))
	if err != nil {
		return nil, fmt.Errorf("record of an attachment: %w", err)
	}
	a := &Attachment{}
	if err := json.Unmarshal(data, a); err != nil || recordName(a.Key()) != name {
		return nil, fail(Damaged, "record %s does not say whose it is", name)
	}
	return a, nil
}

func (r records) remove(name string) error {
	if err := r.files().Remove(name); err != nil {
		return fmt.Errorf("remove record of an attachment: %w", err)
	}
	return nil
}

// list returns all attachments, and the names of files that are nobody's.
func (r records) list() (all []*Attachment, junk []string, err error) {
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list records of attachments: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporary) {
			junk = append(junk, e.Name())
			continue
		}
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		a, err := r.decode(e.Name())
		switch {
		case KindOf(err) == Damaged:
			junk = append(junk, e.Name())
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, nil, err
		default:
			all = append(all, a)
		}
	}
	return all, junk, nil
}

// lock takes the directory's lock.
func (r records) lock(exclusive bool) (unlock func(), err error) { return r.files().Lock(exclusive) }
