// Package session keeps a signed websocket to a service of the cluster open: it dials,
// reads and writes frames, ends the connection at its age or when the service is silent,
// and opens it again with growing delays (agent protocol, "Liveness and reconnect
// numbers"). What the frames say is the business of agent/acs and agent/tcs.
//
// One goroutine of a session reads and hands over frames, one at a time and in order;
// another one writes what was taken for sending.
package session

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// State is what is told of the sessions.
type State int

// States.
const (
	Disconnected State = iota
	Connected
	// Deregistered means that the cluster refuses the container instance for good; the
	// session is tried again after Timing.InactiveWait.
	Deregistered
)

// Config is what a Client is made of.
type Config struct {
	Service string // ACS or TCS, for people

	// Endpoint gives the URL of the service, asked for before each connection (agent
	// protocol, DiscoverPollEndpoint), and Query what is asked of it; first says that no
	// connection has succeeded yet.
	Endpoint    func(ctx context.Context) (string, error)
	Query       func(first bool) url.Values
	Credentials aws.CredentialsProvider
	Region      string
	UserAgent   string
	MaxFrame    int64 // bytes of the largest frame that is read

	// Frame handles one received frame. Opened, if set, runs beside it for as long as a
	// session is open; its context ends with the session.
	Frame  func(ctx context.Context, s *Session, frame []byte)
	Opened func(ctx context.Context, s *Session)
	// Refusal, if set, makes an error of the body of a refused connection, or nil.
	Refusal func(body []byte) error
	// Observe, if set, is told of changes; err is why the session ended or was refused.
	Observe func(s State, err error)

	TLS         *tls.Config // nil means the system's roots; TLS 1.2 is the least in any case
	Proxy       func(*http.Request) (*url.URL, error)
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	Timing      Timing // zero members have their defaults
	Log         *slog.Logger
}

// Timing is every limit of time of a session. The defaults are those of the agent
// protocol, "Liveness and reconnect numbers".
type Timing struct {
	Handshake        time.Duration // dial, TLS and upgrade: 30 s
	Inactivity       time.Duration // silence of the server after which the session ends: 60 s
	InactivityJitter time.Duration // and up to this more, by session: 60 s
	Write            time.Duration // one write: 3 min
	Lifetime         time.Duration // age at which a session is ended: 30 min
	LifetimeJitter   time.Duration // and up to this more: 5 min
	BackoffMin       time.Duration // 250 ms
	BackoffMax       time.Duration // 2 min
	BackoffFactor    float64       // of one delay to the one before: 1.5
	InactiveWait     time.Duration // after InactiveInstanceException: 1 h
	// Settled is the age from which the end of a session counts as new trouble, so that
	// delays start again from BackoffMin: 60 s, and up to SettledJitter more: 60 s.
	Settled       time.Duration
	SettledJitter time.Duration
	// Random gives a duration from 0 to below max; tests make it steady.
	Random func(max time.Duration) time.Duration
}

const backoffJitter = 0.2 // each delay is up to a fifth longer

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&t.Handshake, 30*time.Second)
	set(&t.Inactivity, 60*time.Second)
	set(&t.InactivityJitter, 60*time.Second)
	set(&t.Write, 3*time.Minute)
	set(&t.Lifetime, 30*time.Minute)
	set(&t.LifetimeJitter, 5*time.Minute)
	set(&t.BackoffMin, 250*time.Millisecond)
	set(&t.BackoffMax, 2*time.Minute)
	set(&t.InactiveWait, time.Hour)
	set(&t.Settled, 60*time.Second)
	set(&t.SettledJitter, 60*time.Second)
	if t.BackoffFactor == 0 {
		t.BackoffFactor = 1.5
	}
	if t.Random == nil {
		t.Random = func(limit time.Duration) time.Duration {
			if limit <= 0 {
				return 0
			}
			return rand.N(limit)
		}
	}
	return t
}

func (c *Config) check() error {
	switch {
	case c.Endpoint == nil, c.Query == nil, c.Credentials == nil, c.Frame == nil, c.Log == nil:
		return errors.New("session: Endpoint, Query, Credentials, Frame and Log are needed")
	case c.Region == "":
		return errors.New("session: no region to sign for; set AWS_DEFAULT_REGION")
	}
	return nil
}
