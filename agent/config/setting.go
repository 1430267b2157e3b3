package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth.dev/berth/agent/task"
)

// Section is a group of settings, with the heading it has in the documentation.
type Section struct {
	Title    string
	Settings []Setting
}

// Setting is one line of the table. A setting without a Name can only be set in the
// JSON file, one without a Key only in the environment.
type Setting struct {
	Name    string   // environment variable
	Key     string   // key in the JSON file, matched without case
	Default string   // in the form the environment has
	Text    string   // what it means
	OneOf   []string // the values it may have, if they are few
	Acted   bool     // whether this build does anything with it

	to     func(*Config) any // where it goes; the pointer's type is its kind
	bounds bounds
	comma  bool // a list separated by commas rather than a JSON array
	number bool // a text that must be a decimal number
	ipv6   bool // a network of IPv6 rather than IPv4
}

// bounds limit a number or a duration; nil means no limit. below and above say what
// happens to a value outside.
type bounds struct {
	min, max     *int64
	below, above policy
}

// policy is what happens to a value outside its bounds.
type policy int

const (
	refuse policy = iota // an error
	raise                // the lower bound is taken instead, with a warning
	lower                // the upper bound is taken instead, with a warning
	ignore               // the value counts as not given, with a warning
)

func num[T ~int | ~int64](v T) *int64 {
	n := int64(v)
	return &n
}

// Settings is the table of all settings, in the order of the documentation.
func Settings() []Section { return sections() }

// id is what the setting is called in messages.
func (s *Setting) id() string {
	if s.Name != "" {
		return s.Name
	}
	return s.Key
}

// family is the version of IP that a network is of.
func (s *Setting) family() string {
	if s.ipv6 {
		return "IPv6"
	}
	return "IPv4"
}

// errIgnored marks a value that counts as not given; its words are the warning.
type errIgnored struct{ why string }

func (e errIgnored) Error() string { return e.why }

// secret reports whether the value must not be shown.
func (s *Setting) secret() bool {
	_, ok := s.to(new(Config)).(*task.Secret)
	return ok
}

// Kind is the kind of value, in the words of the documentation.
func (s *Setting) Kind() string {
	switch s.to(new(Config)).(type) {
	case *bool:
		return "boolean"
	case *int64:
		return "number"
	case *time.Duration:
		return "duration"
	case *[]uint16:
		return "JSON array of ports"
	case *[]string:
		if s.comma {
			return "list, separated by commas"
		}
		return "JSON array of texts"
	case *map[string]string:
		return "JSON object of texts"
	case *PortRange:
		return "port range"
	case *Rates:
		return "two numbers"
	case *netip.Prefix:
		return s.family() + " network"
	case *task.Secret:
		return "secret"
	default:
		if s.number {
			return "decimal number"
		}
		return "text"
	}
}

// Allowed says which values the setting takes, for messages and documentation.
func (s *Setting) Allowed() string {
	switch s.to(new(Config)).(type) {
	case *bool:
		return "true or false"
	case *int64:
		return strings.TrimSpace("a whole number " + s.span(func(n int64) string { return strconv.FormatInt(n, 10) }))
	case *time.Duration:
		return strings.TrimSpace("a duration such as 30s or 1h30m " + s.span(func(n int64) string { return short(time.Duration(n)) }))
	case *[]uint16:
		return "a JSON array of ports from 1 to 65535, such as [22,80]"
	case *[]string:
		if s.comma {
			return "a list separated by commas"
		}
		return `a JSON array of texts, such as ["a","b"]`
	case *map[string]string:
		return `a JSON object of texts, such as {"a":"b"}`
	case *PortRange:
		return "two ports, such as 49153-65535, the first not above the second"
	case *Rates:
		return "two numbers above 0, such as 40,60, the first not above the second"
	case *netip.Prefix:
		if s.ipv6 {
			return "an IPv6 network, such as fd7b:8a31:44::/64"
		}
		return "an IPv4 network, such as 10.88.0.0/16"
	}
	if len(s.OneOf) > 0 {
		return strings.Join(s.OneOf, ", ")
	}
	if s.number {
		return "a decimal number above 0"
	}
	return ""
}

func (s *Setting) span(show func(int64) string) string {
	switch b := s.bounds; {
	case b.min != nil && b.max != nil:
		return "from " + show(*b.min) + " to " + show(*b.max)
	case b.min != nil && *b.min > 0:
		return "of at least " + show(*b.min)
	default:
		return ""
	}
}

// short is a duration without the parts that are zero: 1h rather than 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// assign parses text and puts it where the setting goes. Nothing is changed when it
// fails. A warning says that another value than the given one was taken.
func (s *Setting) assign(c *Config, text string) (warning string, err error) {
	text = strings.TrimSpace(text)
	switch to := s.to(c).(type) {
	case *bool:
		v, err := strconv.ParseBool(text)
		if err != nil {
			return "", errIgnored{"is not a boolean and counts as not set"}
		}
		*to = v
	case *int64:
		v, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return "", errors.New("not a whole number")
		}
		*to, warning, err = s.within(v, *to, func(n int64) string { return strconv.FormatInt(n, 10) })
		return warning, err
	case *time.Duration:
		v, err := time.ParseDuration(text)
		if err != nil {
			return "", errors.New("not a duration")
		}
		n, warning, err := s.within(int64(v), int64(*to), func(n int64) string { return short(time.Duration(n)) })
		*to = time.Duration(n)
		return warning, err
	case *[]uint16:
		return "", assignPorts(to, text)
	case *[]string:
		return "", s.assignList(to, text)
	case *map[string]string:
		var v map[string]string
		if json.Unmarshal([]byte(text), &v) != nil {
			return "", errors.New("not a JSON object of texts")
		}
		*to = v
	case *PortRange:
		return "", to.parse(text)
	case *Rates:
		return "", to.parse(text)
	case *netip.Prefix:
		v, err := netip.ParsePrefix(text)
		if err != nil || v.Addr().Is6() != s.ipv6 || v.Addr().Is4In6() {
			return "", errors.New("not an " + s.family() + " network")
		}
		*to = v.Masked()
	case *task.Secret:
		*to = task.NewSecret(text)
	case *string:
		return "", s.assignText(to, text)
	}
	return "", nil
}

func (s *Setting) assignText(to *string, text string) error {
	if len(s.OneOf) > 0 && !slices.Contains(s.OneOf, text) {
		return errors.New("unknown value")
	}
	if s.number {
		if v, err := strconv.ParseFloat(text, 64); err != nil || v <= 0 {
			return errors.New("not a number above 0")
		}
	}
	*to = text
	return nil
}

// within applies the bounds to v; was is the value so far.
func (s *Setting) within(v, was int64, show func(int64) string) (int64, string, error) {
	b := s.bounds
	limit, do := int64(0), refuse
	switch {
	case b.min != nil && v < *b.min:
		limit, do = *b.min, b.below
	case b.max != nil && v > *b.max:
		limit, do = *b.max, b.above
	default:
		return v, "", nil
	}
	switch do {
	case raise, lower:
		return limit, fmt.Sprintf("is taken as %s", show(limit)), nil
	case ignore:
		return was, "", errIgnored{"is below " + show(limit) + " and is ignored"}
	default:
		return was, "", errors.New("out of range")
	}
}

func (s *Setting) assignList(to *[]string, text string) error {
	var v []string
	if s.comma && !strings.HasPrefix(text, "[") {
		for e := range strings.SplitSeq(text, ",") {
			if e = strings.TrimSpace(e); e != "" {
				v = append(v, e)
			}
		}
		*to = v
		return nil
	}
	if json.Unmarshal([]byte(text), &v) != nil {
		return errors.New("not a JSON array of texts")
	}
	*to = v
	return nil
}

func assignPorts(to *[]uint16, text string) error {
	var v []uint16
	if json.Unmarshal([]byte(text), &v) != nil || slices.Contains(v, 0) {
		return errors.New("not a JSON array of ports")
	}
	slices.Sort(v)
	*to = slices.Compact(v)
	return nil
}

func (r *PortRange) parse(text string) error {
	a, b, ok := strings.Cut(text, "-")
	first, err1 := strconv.ParseUint(strings.TrimSpace(a), 10, 16)
	last, err2 := strconv.ParseUint(strings.TrimSpace(b), 10, 16)
	if !ok || err1 != nil || err2 != nil || first == 0 || first > last {
		return errors.New("not a port range")
	}
	*r = PortRange{First: uint16(first), Last: uint16(last)}
	return nil
}

func (r *Rates) parse(text string) error {
	a, b, ok := strings.Cut(text, ",")
	steady, err1 := strconv.ParseInt(strings.TrimSpace(a), 10, 32)
	burst, err2 := strconv.ParseInt(strings.TrimSpace(b), 10, 32)
	if !ok || err1 != nil || err2 != nil || steady < 1 || burst < steady {
		return errors.New("not two numbers")
	}
	*r = Rates{Steady: steady, Burst: burst}
	return nil
}
