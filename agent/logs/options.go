package logs

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Names of the log drivers.
const (
	JSONFile = "json-file"
	None     = "none"
	Syslog   = "syslog"
	Journald = "journald"
	GELF     = "gelf"
	Fluentd  = "fluentd"
	Splunk   = "splunk"
	Awslogs  = "awslogs"
	FireLens = "awsfirelens" // becomes fluentd, with the task's log router as its address
)

// Drivers are the log drivers that this agent has, FireLens aside.
func Drivers() []string {
	return slices.Sorted(maps.Keys(drivers))
}

// option checks the value of one option.
type option func(string) error

// driver is what may be said to one log driver.
type driver struct {
	options  map[string]option
	required []string
}

// anywhere are the options of every driver.
var anywhere = map[string]option{
	"mode":            oneOf("blocking", "non-blocking"),
	"max-buffer-size": func(v string) error { _, err := Size(v); return err },
}

// described are the options of the drivers that tell about the container.
var described = map[string]option{
	"tag": template, "labels": text, "labels-regex": expression, "env": text, "env-regex": expression,
}

var drivers = map[string]driver{
	None: {},
	JSONFile: {options: with(map[string]option{
		"max-size": func(v string) error { _, err := Size(v); return err },
		"max-file": number(1, 1000),
		"compress": boolean,
	})},
	Syslog: {options: with(map[string]option{
		"syslog-address":         address("udp", "tcp", "tcp+tls", "unix", "unixgram"),
		"syslog-facility":        func(v string) error { _, err := Facility(v); return err },
		"syslog-format":          oneOf("rfc3164", "rfc5424", "rfc5424micro"),
		"syslog-tls-ca-cert":     file,
		"syslog-tls-cert":        file,
		"syslog-tls-key":         file,
		"syslog-tls-skip-verify": text, // any value means yes
	})},
	Journald: {options: with(nil)},
	GELF: {required: []string{"gelf-address"}, options: with(map[string]option{
		"gelf-address":             address("udp", "tcp"),
		"gelf-compression-type":    oneOf("gzip", "zlib", "none"),
		"gelf-compression-level":   number(-1, 9),
		"gelf-tcp-max-reconnect":   number(0, 1<<31-1),
		"gelf-tcp-reconnect-delay": number(0, 1<<31-1),
	})},
	Fluentd: {options: with(map[string]option{
		"fluentd-address":                  address("tcp", "tls", "unix"),
		"fluentd-async":                    boolean,
		"fluentd-async-connect":            boolean,
		"fluentd-async-reconnect-interval": duration,
		"fluentd-buffer-limit":             func(v string) error { _, err := Size(v); return err },
		"fluentd-max-retries":              number(0, 1<<31-1),
		"fluentd-retry-wait":               duration,
		"fluentd-request-ack":              boolean,
		"fluentd-sub-second-precision":     boolean,
		"fluentd-write-timeout":            duration,
		"fluentd-read-timeout":             duration,
	})},
	Splunk: {required: []string{"splunk-token", "splunk-url"}, options: with(map[string]option{
		"splunk-token":                text,
		"splunk-url":                  splunkURL,
		"splunk-source":               text,
		"splunk-sourcetype":           text,
		"splunk-index":                text,
		"splunk-capath":               file,
		"splunk-caname":               text,
		"splunk-insecureskipverify":   boolean,
		"splunk-format":               oneOf("inline", "json", "raw"),
		"splunk-verify-connection":    boolean,
		"splunk-gzip":                 boolean,
		"splunk-gzip-level":           number(-1, 9),
		"splunk-index-acknowledgment": boolean,
	})},
	Awslogs: {required: []string{"awslogs-group"}, options: map[string]option{
		"awslogs-group":                        text,
		"awslogs-region":                       text,
		"awslogs-stream":                       text,
		"awslogs-stream-prefix":                text,
		"awslogs-create-group":                 boolean,
		"awslogs-create-stream":                boolean,
		"awslogs-datetime-format":              func(v string) error { _, err := DatetimePattern(v); return err },
		"awslogs-multiline-pattern":            expression,
		"awslogs-endpoint":                     httpURL,
		"awslogs-credentials-endpoint":         text,
		"awslogs-force-flush-interval-seconds": number(1, 86400),
		"awslogs-max-buffered-events":          number(1, 1<<31-1),
		"awslogs-format":                       oneOf("json/emf"),
		"tag":                                  template,
	}},
}

// with adds the options of drivers that tell about the container.
func with(own map[string]option) map[string]option {
	out := maps.Clone(described)
	maps.Copy(out, own)
	return out
}

// Check reports what is wrong with a driver and its options. given are options whose
// values are secrets and are not known here. The error names the option.
func Check(name string, options map[string]string, given []string) error {
	d, ok := drivers[name]
	if !ok {
		return fmt.Errorf("log driver %q is unknown; this agent has %s and %s", name, strings.Join(Drivers(), ", "), FireLens)
	}
	lookup := func(o string) (option, error) {
		if check, ok := anywhere[o]; ok {
			return check, nil
		}
		if check, ok := d.options[o]; ok {
			return check, nil
		}
		return nil, fmt.Errorf("unknown log opt %q for %s log driver; it has %s", o, name,
			strings.Join(slices.Sorted(maps.Keys(d.options)), ", "))
	}
	for _, o := range slices.Sorted(maps.Keys(options)) {
		check, err := lookup(o)
		if err != nil {
			return err
		}
		if err := check(options[o]); err != nil {
			return fmt.Errorf("log option %s: %w", o, err)
		}
	}
	for _, o := range given {
		if _, err := lookup(o); err != nil {
			return err
		}
	}
	for _, o := range d.required {
		if options[o] == "" && !slices.Contains(given, o) {
			return fmt.Errorf("log driver %s requires the option %s", name, o)
		}
	}
	return together(name, options)
}

// together checks options that depend on each other.
func together(name string, o map[string]string) error {
	switch name {
	case Awslogs:
		if o["awslogs-datetime-format"] != "" && o["awslogs-multiline-pattern"] != "" {
			return errors.New("you cannot configure log opt awslogs-datetime-format and awslogs-multiline-pattern at the same time")
		}
		if o["awslogs-format"] != "" && (o["awslogs-datetime-format"] != "" || o["awslogs-multiline-pattern"] != "") {
			return errors.New("awslogs-format excludes awslogs-datetime-format and awslogs-multiline-pattern")
		}
	case Syslog:
		if (o["syslog-tls-cert"] == "") != (o["syslog-tls-key"] == "") {
			return errors.New("syslog-tls-cert and syslog-tls-key must be given together")
		}
	case GELF:
		tcp := strings.HasPrefix(o["gelf-address"], "tcp:")
		for _, name := range []string{"gelf-compression-type", "gelf-compression-level"} {
			if tcp && o[name] != "" && o[name] != "none" {
				return fmt.Errorf("log option %s: compression is only supported on UDP", name)
			}
		}
	}
	if o["max-buffer-size"] != "" && o["mode"] != "" && o["mode"] != "non-blocking" {
		return errors.New("log option max-buffer-size is only supported with mode=non-blocking")
	}
	return nil
}

func text(string) error { return nil }

func boolean(v string) error {
	if _, err := strconv.ParseBool(v); err != nil {
		return fmt.Errorf("%q is neither true nor false", v)
	}
	return nil
}

func number(least, most int64) option {
	return func(v string) error {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < least || n > most {
			return fmt.Errorf("%q is not a number from %d to %d", v, least, most)
		}
		return nil
	}
}

func oneOf(values ...string) option {
	return func(v string) error {
		if !slices.Contains(values, v) {
			return fmt.Errorf("%q is not one of %s", v, strings.Join(values, ", "))
		}
		return nil
	}
}

// Duration reads a time such as 500ms, or whole milliseconds without a unit, as Docker
// does for fluentd-retry-wait.
func Duration(v string) (time.Duration, error) {
	if n, err := strconv.ParseInt(v, 10, 32); err == nil && n >= 0 {
		return time.Duration(n) * time.Millisecond, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration such as 500ms", v)
	}
	return d, nil
}

func duration(v string) error { _, err := Duration(v); return err }

func expression(v string) error {
	_, err := regexp.Compile(v)
	return err
}

func file(v string) error {
	if !filepath.IsAbs(v) {
		return fmt.Errorf("%q is not the absolute path of a file on the host", v)
	}
	return nil
}

// Size reads a size such as "10m": bytes, or binary kilo-, mega- or gigabytes. -1 is
// Docker's word for no limit, which Berth does not give: 0, the default, is returned.
func Size(v string) (int64, error) {
	if v == "-1" {
		return 0, nil
	}
	shift := 0
	digits := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(v)), "b")
	for unit, bits := range map[string]int{"k": 10, "m": 20, "g": 30} {
		if d, ok := strings.CutSuffix(digits, unit); ok {
			digits, shift = d, bits
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<40>>shift {
		return 0, fmt.Errorf("%q is not a size such as 10m", v)
	}
	return n << shift, nil
}

// Address reads where a driver sends: PROTOCOL://HOST:PORT or unix:///PATH. Without a
// protocol the first one is meant. port is for addresses without one.
func Address(v string, port string, protocols ...string) (network, addr string, err error) {
	if !strings.Contains(v, "://") {
		v = protocols[0] + "://" + v
	}
	u, err := url.Parse(v)
	if err != nil || !slices.Contains(protocols, u.Scheme) {
		return "", "", fmt.Errorf("%q is not an address such as %s://host:port; the protocols are %s", v, protocols[0], strings.Join(protocols, ", "))
	}
	if u.Scheme == "unix" || u.Scheme == "unixgram" {
		if !filepath.IsAbs(u.Path) {
			return "", "", fmt.Errorf("%q does not name the absolute path of a socket", v)
		}
		return u.Scheme, u.Path, nil
	}
	if u.Hostname() == "" || u.Path != "" && u.Path != "/" {
		return "", "", fmt.Errorf("%q is not an address such as %s://host:port", v, u.Scheme)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	if port == "" {
		return "", "", fmt.Errorf("%q has no port", v)
	}
	return u.Scheme, net.JoinHostPort(u.Hostname(), port), nil
}

func address(protocols ...string) option {
	return func(v string) error {
		_, _, err := Address(v, "1", protocols...)
		return err
	}
}

func httpURL(v string) error {
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is not a URL such as https://host", v)
	}
	return nil
}

// splunkURL takes what Docker takes: a scheme, a host, and nothing behind it.
func splunkURL(v string) error {
	if err := httpURL(v); err != nil {
		return err
	}
	u, err := url.Parse(v)
	if err != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%q must be of the form https://host:port without a path", v)
	}
	return nil
}

// facilities of RFC 5424, section 6.2.1, by the names that Docker takes.
var facilities = []string{
	"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}

// Facility is the number of a syslog facility, given by name or number.
func Facility(v string) (int, error) {
	if i := slices.Index(facilities, v); i >= 0 && v != "" {
		return i, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 || n > 23 {
		return 0, fmt.Errorf("%q is not a facility such as daemon, local0 or 3", v)
	}
	return n, nil
}
