package acs

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/aws"

	"berth.dev/berth/agent/session"
	wire "berth.dev/berth/wire/acs"
)

// Handler receives decoded, size-limited messages one at a time, in order. An error
// means that the message has no answer; it is logged and the session goes on.
type Handler interface {
	Payload(ctx context.Context, m *wire.PayloadMessage, r wire.Responder) error
	Credentials(ctx context.Context, m *wire.IAMRoleCredentialsMessage, r wire.Responder) error
	Attach(ctx context.Context, m wire.AttachMessage, r wire.Responder) error
	Policy(ctx context.Context, m *wire.TaskNetworkPolicyMessage) error
	Pool(ctx context.Context, m *wire.VolumePoolMessage, r wire.Responder) error
	Manifest(ctx context.Context, m *wire.TaskManifestMessage, r wire.Responder) error
	StopVerified(ctx context.Context, m *wire.TaskStopVerificationAck) error
	Heartbeat(ctx context.Context, m *wire.HeartbeatMessage, r wire.Responder) error
}

// Updates receives the messages about updates of the agent, under the same rules.
type Updates interface {
	Stage(ctx context.Context, m *wire.StageUpdateMessage, r wire.Responder) error
	Perform(ctx context.Context, m *wire.PerformUpdateMessage, r wire.Responder) error
}

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
	// Updates may be nil: an agent on containerd may ignore updates (agent protocol,
	// PerformUpdateMessage).
	Updates Updates
	// Observe, if set, is told of changes; err is why the session ended or was refused.
	Observe func(s session.State, err error)

	TLS         *tls.Config // nil means the system's roots; TLS 1.2 is the least in any case
	Proxy       func(*http.Request) (*url.URL, error)
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	Timing      session.Timing // zero members have their defaults
	Log         *slog.Logger
}

func (c *Config) check() error {
	switch {
	case c.Handler == nil, c.Log == nil:
		return errors.New("acs: Handler and Log are needed")
	case c.InstanceARN == "":
		return errors.New("acs: no container instance ARN; register first")
	}
	return nil
}
