package sink

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"berth.dev/berth/agent/logs"
)

// Record is one piece of output.
type Record struct {
	Line   string // without a final newline
	Stream string // stdout, stderr, or berth for remarks about the log itself
	Time   time.Time
	// Part is set for the pieces of a line that was too long for one.
	Part *Part
}

// Part says which piece of which long line it is.
type Part struct {
	ID      string // the same for all pieces of a line
	Ordinal int    // from 1
	Last    bool
}

// Sink is one destination of one container. It is for one goroutine.
type Sink interface {
	// Send sends records in order and returns how many of them need not be sent again.
	// With an error there are some that do, or, where it is Refused, never will be taken.
	// more says that others follow these at once: then the last ones may be left for the
	// next call, which has them first, if they belong together with what follows.
	Send(ctx context.Context, records []Record, more bool) (int, error)

	// Linger is how long it is worth waiting for more records before a Send; 0 is not at all.
	Linger() time.Duration

	// Close lets connections go.
	Close() error
}

// Refused is an error for records that the destination does not take and that are not
// to be sent again: the next N ones.
type Refused struct {
	N   int
	Err error
}

func (r *Refused) Error() string { return r.Err.Error() }

// Unwrap is the cause.
func (r *Refused) Unwrap() error { return r.Err }

// Config is what a sink is made from.
type Config struct {
	Stream *logs.Stream
	// Options are the stream's with the values of secret ones in them.
	Options map[string]string
	// Credentials are for requests to AWS in the name of the task or the instance.
	Credentials func(ctx context.Context) (Credentials, error)
	Region      string // where the agent is; "" if it has not said
	JournalPath string // "" means the system's journal
	Log         *slog.Logger
}

// Credentials sign requests to AWS.
type Credentials struct {
	AccessKeyID, SecretAccessKey, SessionToken string
	Expires                                    time.Time // zero: not known
}

// New makes the sink of a stream. It connects when there is something to send.
func New(c Config) (Sink, error) {
	var s Sink
	var err error
	switch c.Stream.Driver {
	case logs.Syslog:
		s, err = newSyslog(c)
	case logs.Journald:
		s, err = newJournald(c)
	case logs.GELF:
		s, err = newGELF(c)
	case logs.Fluentd:
		s, err = newFluentd(c)
	case logs.Splunk:
		s, err = newSplunk(c)
	case logs.Awslogs:
		s, err = newAwslogs(c)
	default:
		return nil, fmt.Errorf("log driver %q sends nothing", c.Stream.Driver)
	}
	if err != nil {
		return nil, fmt.Errorf("log driver %s: %w", c.Stream.Driver, err)
	}
	return s, nil
}

// tag is the value of the option tag, carried out; def is the usual template.
func (c *Config) tag(def string) (string, error) {
	text := cmp.Or(c.Options["tag"], def)
	v, err := logs.Tag(text, c.Stream.Info())
	if err != nil {
		return "", fmt.Errorf("log option tag: %w", err)
	}
	return v, nil
}

// Limits of one exchange with a destination.
const (
	dialTimeout  = 5 * time.Second
	writeTimeout = 10 * time.Second
	replyTimeout = 30 * time.Second
)

// wire is a connection that is made when it is needed and again when it was broken.
type wire struct {
	network, addr string
	tls           *tls.Config
	conn          net.Conn
}

func (w *wire) open(ctx context.Context) error {
	if w.conn != nil {
		return nil
	}
	d := &net.Dialer{Timeout: dialTimeout}
	var err error
	if w.tls != nil {
		w.conn, err = (&tls.Dialer{NetDialer: d, Config: w.tls}).DialContext(ctx, w.network, w.addr)
	} else {
		w.conn, err = d.DialContext(ctx, w.network, w.addr)
	}
	if err != nil {
		w.conn = nil
	}
	return err
}

// write sends b whole, or breaks the connection off.
func (w *wire) write(ctx context.Context, b []byte) error {
	if err := w.open(ctx); err != nil {
		return err
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return w.broken(err)
	}
	if _, err := w.conn.Write(b); err != nil {
		return w.broken(err)
	}
	return nil
}

// alive reports whether the other side has not closed the connection, as one that sends
// nothing back is known to have only when it is read.
func (w *wire) alive() bool {
	if w.conn == nil {
		return false
	}
	var one [1]byte
	if err := w.conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return false
	}
	_, err := w.conn.Read(one[:])
	var timeout net.Error
	return err == nil || errors.As(err, &timeout) && timeout.Timeout()
}

func (w *wire) broken(err error) error {
	if w.conn == nil {
		return err
	}
	w.conn.Close() // it is of no use any more
	w.conn = nil
	return err
}

func (w *wire) Close() error {
	if w.conn == nil {
		return nil
	}
	err := w.conn.Close()
	w.conn = nil
	return err
}
