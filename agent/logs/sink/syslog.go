package sink

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"berth.dev/berth/agent/logs"
)

// Severities of RFC 5424, section 6.2.1: errors are what a container writes to its
// standard error, all else is information.
const (
	severityError = 3
	severityInfo  = 6
)

// maxDatagram is what a datagram of a syslog message may be: more does not fit into UDP.
const maxDatagram = 65000

// syslogSockets are where a syslog daemon of this host listens.
var syslogSockets = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}

// syslog writes messages of RFC 3164 or RFC 5424.
type syslog struct {
	wire     wire
	datagram bool
	counted  bool // frames of RFC 5425 instead of lines
	local    []string
	format   func(b []byte, priority int, r Record) []byte
	facility int
	buf      []byte
}

func newSyslog(c Config) (*syslog, error) {
	o := c.Options
	s := &syslog{facility: 3} // daemon
	var err error
	if v := o["syslog-facility"]; v != "" {
		if s.facility, err = logs.Facility(v); err != nil {
			return nil, err
		}
	}
	if err := s.address(o); err != nil {
		return nil, err
	}
	tag, err := c.tag("{{.ID}}")
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	// What RFC 5424 takes as HOSTNAME, APP-NAME and MSGID is printable and bounded.
	host, pid := plain(host, 255), strconv.Itoa(os.Getpid())
	switch o["syslog-format"] {
	case "rfc5424", "rfc5424micro":
		stamp := "2006-01-02T15:04:05Z07:00"
		if o["syslog-format"] == "rfc5424micro" {
			stamp = "2006-01-02T15:04:05.000000Z07:00"
		}
		app, msgid := plain(tag, 48), plain(tag, 32)
		s.format = func(b []byte, priority int, r Record) []byte {
			b = append(b, '<')
			b = strconv.AppendInt(b, int64(priority), 10)
			b = append(b, ">1 "...)
			b = r.Time.Local().AppendFormat(b, stamp)
			b = append(b, " "+host+" "+app+" "+pid+" "+msgid+" - "...)
			return append(b, r.Line...)
		}
	default:
		app := strings.Map(func(c rune) rune {
			if c <= ' ' || c == ':' {
				return '_'
			}
			return c
		}, tag)
		s.format = func(b []byte, priority int, r Record) []byte {
			b = append(b, '<')
			b = strconv.AppendInt(b, int64(priority), 10)
			b = append(b, '>')
			b = r.Time.Local().AppendFormat(b, time.Stamp)
			b = append(b, ' ')
			if s.local == nil {
				b = append(b, host+" "...)
			}
			b = append(b, app+"["+pid+"]: "...)
			return append(b, r.Line...)
		}
	}
	return s, nil
}

func (s *syslog) address(o map[string]string) error {
	address := o["syslog-address"]
	if address == "" {
		s.local, s.datagram = syslogSockets, true
		return nil
	}
	network, addr, err := logs.Address(address, "514", "udp", "tcp", "tcp+tls", "unix", "unixgram")
	if err != nil {
		return err
	}
	s.wire.network, s.wire.addr = network, addr
	switch network {
	case "unix", "unixgram":
		s.local, s.datagram = []string{addr}, true
	case "udp":
		s.datagram = true
	case "tcp+tls":
		_, port, _ := strings.Cut(addr, ":")
		if !strings.Contains(strings.TrimPrefix(address, "tcp+tls://"), ":"+port) {
			_, s.wire.addr, err = logs.Address(address, "6514", "tcp+tls") // RFC 5425
		}
		if err == nil {
			s.wire.network = "tcp"
			s.wire.tls, err = tlsConfig(o["syslog-tls-ca-cert"], o["syslog-tls-cert"], o["syslog-tls-key"], o["syslog-tls-skip-verify"] != "")
		}
		s.counted = strings.HasPrefix(o["syslog-format"], "rfc5424")
	}
	return err
}

// tlsConfig is for a client that trusts the given authority, or the host's.
func tlsConfig(ca, cert, key string, insecure bool) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure} //nolint:gosec // as the option says
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", ca)
		}
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// plain makes one word of printable ASCII of at most n bytes; an empty one is "-".
func plain(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	return cmp.Or(s[:min(n, len(s))], "-")
}

func (s *syslog) Linger() time.Duration { return 0 }

func (s *syslog) Close() error { return s.wire.Close() }

func (s *syslog) Send(ctx context.Context, records []Record, _ bool) (int, error) {
	if s.local != nil && s.wire.conn == nil {
		if err := s.openLocal(ctx); err != nil {
			return 0, err
		}
	}
	if !s.datagram && s.wire.conn != nil && !s.wire.alive() {
		_ = s.wire.Close()
	}
	if s.datagram {
		for i, r := range records {
			b := s.message(s.buf[:0], r)
			s.buf = b
			if len(b) > maxDatagram {
				b = b[:maxDatagram]
			}
			if err := s.datagramOut(ctx, b); err != nil {
				return i, err
			}
		}
		return len(records), nil
	}
	var b, frame []byte
	for _, r := range records {
		frame = s.message(frame[:0], r)
		if s.counted {
			b = strconv.AppendInt(b, int64(len(frame)), 10)
			b = append(b, ' ')
			b = append(b, frame...)
			continue
		}
		b = append(append(b, frame...), '\n')
	}
	if err := s.wire.write(ctx, b); err != nil {
		return 0, err
	}
	return len(records), nil
}

func (s *syslog) datagramOut(ctx context.Context, b []byte) error {
	err := s.wire.write(ctx, b)
	if errors.Is(err, syscall.EMSGSIZE) { // a unix socket with a smaller buffer
		err = s.wire.write(ctx, b[:min(len(b), 8000)])
	}
	return err
}

func (s *syslog) message(b []byte, r Record) []byte {
	severity := severityInfo
	if r.Stream == "stderr" {
		severity = severityError
	}
	return s.format(b, s.facility<<3|severity, r)
}

// openLocal connects to a socket of this host, of whichever type it is.
func (s *syslog) openLocal(ctx context.Context) error {
	var errs []error
	for _, path := range s.local {
		for _, network := range []string{"unixgram", "unix"} {
			s.wire.network, s.wire.addr = network, path
			err := s.wire.open(ctx)
			if err == nil {
				s.datagram = network == "unixgram"
				return nil
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
