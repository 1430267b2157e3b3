package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
)

// Defaults of Config.
const (
	DefaultBridge = "berth0"
	DefaultTable  = "berth"
	// DefaultMTU is used when the host has no default route whose link tells one.
	DefaultMTU = 1500
)

// DefaultSubnet lies in the part of 10.0.0.0/8 that neither cloud providers' default
// networks nor other container tools use by default. It has 4,093 addresses for tasks.
var DefaultSubnet = netip.MustParsePrefix("10.213.64.0/20")

// Port range used for dynamic host ports when neither a setting nor the kernel's
// ip_local_port_range gives one (agent protocol, ECS_DYNAMIC_HOST_PORT_RANGE).
const (
	DefaultFirstPort = 49153
	DefaultLastPort  = 65535
)

// Config says what a Host is made of. Dir is required.
type Config struct {
	Bridge string       // name of the bridge interface, at most 15 bytes
	Table  string       // name of the inet and the bridge nftables table; empty takes TableOf(Bridge)
	Subnet netip.Prefix // IPv4, /8 to /29; its first address is the bridge's

	// Subnet6 gives namespaces an IPv6 address as well, and publishes ports on the host's
	// IPv6 addresses; the zero value is IPv4 only. It must have room for all of Subnet.
	Subnet6 netip.Prefix

	MTU int    // bytes; 0 takes that of the link of the default route
	Dir string // reservations; must be emptied by a reboot or swept after it

	// FirstPort and LastPort bound dynamic host ports. Zero takes the kernel's
	// net.ipv4.ip_local_port_range.
	FirstPort, LastPort uint16

	// Hold keeps a socket bound on every published port while the Host is open.
	Hold bool

	Log *slog.Logger
}

var (
	linkName  = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}$`)
	tableName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_]{0,30}$`)
)

// normalize fills defaults and names what is wrong.
func (c *Config) normalize() error {
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if c.Table == "" {
		c.Table = TableOf(c.Bridge)
	}
	if !c.Subnet.IsValid() {
		c.Subnet = DefaultSubnet
	}
	c.Subnet, c.Subnet6 = c.Subnet.Masked(), c.Subnet6.Masked()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case !linkName.MatchString(c.Bridge):
		return fail(Invalid, "bridge %q: not an interface name of 1 to 15 letters, digits, dots, dashes and underscores", c.Bridge)
	case !tableName.MatchString(c.Table):
		return fail(Invalid, "table %q: not an nftables table name of 1 to 31 letters, digits and underscores", c.Table)
	case !c.Subnet.Addr().Is4():
		return fail(Invalid, "subnet %s: must be IPv4", c.Subnet)
	case c.Subnet.Bits() < 8 || c.Subnet.Bits() > 29:
		return fail(Invalid, "subnet %s: the prefix must be between /8 and /29", c.Subnet)
	case c.Subnet6.IsValid() && (!c.Subnet6.Addr().Is6() || c.Subnet6.Addr().Is4In6() || c.Subnet6.Addr().IsMulticast() || c.Subnet6.Addr().IsLinkLocalUnicast()):
		return fail(Invalid, "IPv6 subnet %s: must be a network of unicast IPv6 addresses that are not link-local", c.Subnet6)
	case c.Subnet6.IsValid() && (c.Subnet6.Bits() < 8 || c.Subnet6.Bits() > 96+c.Subnet.Bits()):
		return fail(Invalid, "IPv6 subnet %s: the prefix must be between /8 and /%d, to have an address for each of %s", c.Subnet6, 96+c.Subnet.Bits(), c.Subnet)
	case c.Subnet6.IsValid() && c.MTU != 0 && c.MTU < minMTU6:
		return fail(Invalid, "mtu %d: must be at least %d with IPv6 (RFC 8200)", c.MTU, minMTU6)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65535):
		return fail(Invalid, "mtu %d: must be between 576 and 65535, or 0 for the host's", c.MTU)
	case c.FirstPort > c.LastPort || (c.FirstPort == 0) != (c.LastPort == 0):
		return fail(Invalid, "dynamic host port range %d-%d: the first port must be at least 1 and not above the last", c.FirstPort, c.LastPort)
	case !filepath.IsAbs(c.Dir):
		return fail(Invalid, "data directory %q: must be an absolute path", c.Dir)
	}
	return nil
}

// TableOf is the name of the nftables tables that go with a bridge by default: two bridges
// must not share them, because their owners replace them as a whole.
func TableOf(bridge string) string {
	if bridge == "" || bridge == DefaultBridge {
		return DefaultTable
	}
	return strings.NewReplacer("-", "_", ".", "_").Replace(bridge)
}

// minMTU6 is the least that a link must have for IPv6 (RFC 8200, section 5), in bytes.
const minMTU6 = 1280

// gateway is the bridge's own address, the first of the subnet.
func (c *Config) gateway() netip.Addr { return c.Subnet.Addr().Next() }

// beside is the IPv6 address that goes with an IPv4 address: at the same place in its
// subnet. It is the zero value where there is no IPv6.
func (c *Config) beside(a netip.Addr) netip.Addr {
	if !c.Subnet6.IsValid() {
		return netip.Addr{}
	}
	base, addr, out := c.Subnet.Addr().As4(), a.As4(), c.Subnet6.Addr().As16()
	place := binary.BigEndian.Uint32(addr[:]) - binary.BigEndian.Uint32(base[:])
	low := out[12:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)|place)
	return netip.AddrFrom16(out)
}

// Kind sorts errors by what the caller may do.
type Kind int

// Error kinds. Errors without one come from the kernel or the file system.
const (
	Other     Kind = iota
	Invalid        // the request or the configuration is wrong
	Exists         // the attachment exists already
	Exhausted      // no free address, or no free port in the dynamic range, at present
	PortTaken      // a host port belongs to a process that is not ours
	Damaged        // Check found that something is missing or different
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
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Other
}
