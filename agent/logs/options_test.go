package logs

import (
	"strings"
	"testing"
	"time"
)

// TestCheck has a good and a bad value of every option of every driver, and the words
// that tell which option is at fault.
func TestCheck(t *testing.T) {
	with := func(required string, kv ...string) map[string]string {
		o := map[string]string{}
		for pair := range strings.FieldsSeq(required) {
			k, v, _ := strings.Cut(pair, "=")
			o[k] = v
		}
		for i := 0; i+1 < len(kv); i += 2 {
			o[kv[i]] = kv[i+1]
		}
		return o
	}
	required := map[string]string{
		GELF: "gelf-address=udp://h:1", Syslog: "syslog-tls-cert=/c syslog-tls-key=/k", Splunk: "splunk-token=t splunk-url=https://h:8088", Awslogs: "awslogs-group=g",
	}
	values := map[string]map[string][2]string{
		JSONFile: {"max-size": {"10m", "ten"}, "max-file": {"3", "0"}, "compress": {"false", "maybe"}},
		Syslog: {
			"syslog-address": {"tcp+tls://h:6514", "http://h"}, "syslog-facility": {"local3", "loud"}, "syslog-format": {"rfc5424micro", "rfc1"},
			"syslog-tls-ca-cert": {"/ca.pem", "ca.pem"}, "syslog-tls-cert": {"/c.pem", "c.pem"}, "syslog-tls-key": {"/k.pem", "k.pem"}, "tag": {"{{.Name}}/{{.ID}}", "{{.Nothing}}"},
		},
		Journald: {"labels-regex": {"^a", "("}, "env-regex": {"b$", "["}, "tag": {"x", "{{"}},
		GELF: {
			"gelf-address": {"tcp://h:12201", "tls://h:1"}, "gelf-compression-type": {"zlib", "lzma"}, "gelf-compression-level": {"9", "10"},
			"gelf-tcp-max-reconnect": {"3", "-1"}, "gelf-tcp-reconnect-delay": {"1", "soon"},
		},
		Fluentd: {
			"fluentd-address": {"tls://h:24224", "udp://h:1"}, "fluentd-async": {"true", "2"}, "fluentd-async-connect": {"0", "no way"},
			"fluentd-async-reconnect-interval": {"100ms", "often"}, "fluentd-buffer-limit": {"8m", "-8"}, "fluentd-max-retries": {"5", "x"},
			"fluentd-retry-wait": {"1000", "1 second"}, "fluentd-request-ack": {"true", "please"}, "fluentd-sub-second-precision": {"true", "9"},
			"fluentd-write-timeout": {"3s", "-1s"}, "fluentd-read-timeout": {"3s", "x"},
		},
		Splunk: {
			"splunk-url": {"http://h:1/", "https://h/path"}, "splunk-capath": {"/ca", "ca"}, "splunk-insecureskipverify": {"1", "x"},
			"splunk-format": {"raw", "xml"}, "splunk-verify-connection": {"false", "x"}, "splunk-gzip": {"true", "x"}, "splunk-gzip-level": {"-1", "11"},
			"splunk-index-acknowledgment": {"true", "x"},
		},
		Awslogs: {
			"awslogs-create-group": {"true", "x"}, "awslogs-create-stream": {"false", "x"}, "awslogs-datetime-format": {"[%Y-%m-%d]", "%Q"},
			"awslogs-multiline-pattern": {"^\\d", "("}, "awslogs-endpoint": {"https://h", "h"}, "awslogs-force-flush-interval-seconds": {"1", "0"},
			"awslogs-max-buffered-events": {"4096", "none"}, "awslogs-format": {"json/emf", "json"}, "tag": {"{{ with split .ImageName \":\" }}{{join . \"_\"}}{{end}}", "{{.X}}"},
		},
	}
	for driver, options := range values {
		for name, v := range options {
			if err := Check(driver, with(required[driver], name, v[0]), nil); err != nil {
				t.Errorf("%s %s=%s: %v", driver, name, v[0], err)
			}
			err := Check(driver, with(required[driver], name, v[1]), nil)
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s %s=%s: %v, want an error that names the option", driver, name, v[1], err)
			}
		}
		for _, mode := range []string{"blocking", "non-blocking"} {
			if err := Check(driver, with(required[driver], "mode", mode), nil); err != nil {
				t.Errorf("%s mode %s: %v", driver, mode, err)
			}
		}
	}
	for driver, d := range drivers {
		for name := range d.options {
			if _, described := described[name]; !described && values[driver][name] == [2]string{} && check(d.options[name]) {
				t.Errorf("option %s of %s is in no row of this table", name, driver)
			}
		}
	}
	for name, tt := range map[string]struct {
		driver  string
		options map[string]string
		given   []string
		want    string
	}{
		"driver":                {"logentries", nil, nil, `log driver "logentries" is unknown; this agent has awslogs, fluentd`},
		"option":                {JSONFile, map[string]string{"max-sise": "1m"}, nil, `unknown log opt "max-sise" for json-file log driver; it has compress`},
		"secret option":         {Splunk, with(required[Splunk]), []string{"splunk-tokens"}, `unknown log opt "splunk-tokens"`},
		"required":              {Splunk, map[string]string{"splunk-url": "https://h"}, nil, "log driver splunk requires the option splunk-token"},
		"required is a secret":  {Splunk, map[string]string{"splunk-url": "https://h"}, []string{"splunk-token"}, ""},
		"mode":                  {Syslog, map[string]string{"mode": "quick"}, nil, `log option mode: "quick" is not one of blocking, non-blocking`},
		"buffer of blocking":    {Syslog, map[string]string{"mode": "blocking", "max-buffer-size": "1m"}, nil, "max-buffer-size is only supported with mode=non-blocking"},
		"two multiline options": {Awslogs, with(required[Awslogs], "awslogs-datetime-format", "%Y", "awslogs-multiline-pattern", "x"), nil, "at the same time"},
		"half a key pair":       {Syslog, map[string]string{"syslog-tls-cert": "/c"}, nil, "syslog-tls-cert and syslog-tls-key must be given together"},
		"compression over TCP":  {GELF, map[string]string{"gelf-address": "tcp://h:1", "gelf-compression-type": "gzip"}, nil, "only supported on UDP"},
		"format and multiline":  {Awslogs, with(required[Awslogs], "awslogs-format", "json/emf", "awslogs-datetime-format", "%Y"), nil, "awslogs-format excludes"},
	} {
		err := Check(tt.driver, tt.options, tt.given)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// check reports whether an option refuses anything at all.
func check(o option) bool { return o("\x00{{[(") != nil }

func TestSizesAddressesAndNames(t *testing.T) {
	for v, want := range map[string]int64{"1": 1, "10k": 10 << 10, "10MB": 10 << 20, "2g": 2 << 30, "-1": 0} {
		if n, err := Size(v); err != nil || n != want {
			t.Errorf("size %s: %d, %v", v, n, err)
		}
	}
	for _, v := range []string{"", "0", "-2", "1t", "m", "9999999g", "1.5m"} {
		if n, err := Size(v); err == nil {
			t.Errorf("size %q is taken for %d", v, n)
		}
	}
	for v, want := range map[string]string{
		"h": "tcp h:24224", "h:1": "tcp h:1", "tls://h": "tls h:24224", "unix:///run/x.sock": "unix /run/x.sock", "tcp://[::1]:2": "tcp [::1]:2",
	} {
		network, addr, err := Address(v, "24224", "tcp", "tls", "unix")
		if got := network + " " + addr; err != nil || got != want {
			t.Errorf("address %s: %s, %v", v, got, err)
		}
	}
	for _, v := range []string{"udp://h:1", "unix://x", "tcp://", "tcp://h/path", "://", "%zz"} {
		if network, addr, err := Address(v, "1", "tcp", "unix"); err == nil {
			t.Errorf("address %s is taken for %s %s", v, network, addr)
		}
	}
	for v, want := range map[string]int{"kern": 0, "daemon": 3, "local7": 23, "5": 5} {
		if n, err := Facility(v); err != nil || n != want {
			t.Errorf("facility %s: %d, %v", v, n, err)
		}
	}
	for _, v := range []string{"", "24", "-1", "Daemon"} {
		if n, err := Facility(v); err == nil {
			t.Errorf("facility %q is taken for %d", v, n)
		}
	}
	for v, want := range map[string]time.Duration{"250": 250 * time.Millisecond, "3s": 3 * time.Second, "0": 0} {
		if d, err := Duration(v); err != nil || d != want {
			t.Errorf("duration %s: %v, %v", v, d, err)
		}
	}
}

func TestDatetimePattern(t *testing.T) {
	for format, line := range map[string]string{
		"%Y-%m-%d %H:%M:%S":      "2026-11-23 04:05:06 started",
		"[%b %d, %Y %I:%M:%S %p": "[Nov 23, 2026 04:05:06 AM] x",
		"%A %B %j %w %y %Z %z":   "Monday November 327 1 26 CET +0100 x",
		"%H:%M:%S%L":             "04:05:06.123",
		"%f%%":                   "123456% done",
	} {
		re, err := DatetimePattern(format)
		if err != nil || !re.MatchString(line) || re.MatchString("  at main.go:1") {
			t.Errorf("%s on %q: %v", format, line, err)
		}
	}
	for _, format := range []string{"%", "%Y%", "%é"} {
		if re, err := DatetimePattern(format); err == nil {
			t.Errorf("%s became %s", format, re)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add("awslogs", "awslogs-datetime-format", "%Y-%m-%d")
	f.Add("syslog", "syslog-address", "tcp+tls://[::1]:514")
	f.Add("splunk", "splunk-url", "https://h:8088")
	f.Add("gelf", "tag", "{{.Name | upper}}")
	f.Fuzz(func(t *testing.T, driver, name, value string) {
		err := Check(driver, map[string]string{name: value}, nil)
		if err == nil && driver == "" {
			t.Error("no driver is taken")
		}
	})
}
