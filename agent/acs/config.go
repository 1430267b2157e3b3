package acs

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

	wire "berth.dev/berth/wire/acs"
)

// Handler receives decoded, size-limited messages one at a time, in order. An error
// means that the message has no answer; it is logged and the session goes on.
type Handler interface {
	Payload(ctx context.Context, m *wire.PayloadMessage, r wire.Responder) error
	Credentials(ctx context.Context, m *wire.IAMRoleCredentialsMessage, r wire.Responder) error
	Attach(ctx context.Context, m wire.AttachMessage, r wire.Responder) error
	Manifest(ctx context.Context, m *wire.TaskManifestMessage, r wire.Responder) error
	StopVerified(ctx context.Context, m *wire.TaskStopVerificationAck) error
	Heartbeat(ctx context.Context, m *wire.HeartbeatMessage, r wire.Responder) error
}

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
	// Endpoint gives the URL of the service, asked for before each connection (agent
	// protocol, DiscoverPollEndpoint).
	Endpoint    func(ctx context.Context) (string, error)
	Credentials aws.CredentialsProvider
	Region      string

	Cluster        string // name or ARN, as it was configured
	InstanceARN    string
	AgentVersion   string
	AgentHash      string
	RuntimeVersion string // empty leaves it out; "containerd" for containerd
	UserAgent      string

	Handler Handler
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
	InactiveWait     time.Duration // after InactiveInstanceException: 1 h
	// Settled is the age from which the end of a session counts as new trouble, so that
	// delays start again from BackoffMin: 60 s, and up to SettledJitter more: 60 s.
	Settled       time.Duration
	SettledJitter time.Duration
	// Random gives a duration from 0 to below max; tests make it steady.
	Random func(max time.Duration) time.Duration
}

const (
	backoffFactor = 1.5
	backoffJitter = 0.2 // each delay is up to a fifth longer
)

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
	case c.Endpoint == nil, c.Credentials == nil, c.Handler == nil, c.Log == nil:
		return errors.New("acs: Endpoint, Credentials, Handler and Log are needed")
	case c.Region == "":
		return errors.New("acs: no region to sign for; set AWS_DEFAULT_REGION")
	case c.InstanceARN == "":
		return errors.New("acs: no container instance ARN; register first")
	}
	return nil
}
