package acs

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/time/rate"

	"berth.dev/berth/agent/session"
	wire "berth.dev/berth/wire/acs"
)

// Client keeps a session to the cluster.
type Client struct {
	c     Config
	s     *session.Client
	noise rate.Sometimes
}

// New makes a client. It does nothing until Run.
func New(c Config) (*Client, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	cl := &Client{c: c, noise: rate.Sometimes{First: 10, Interval: time.Second}}
	var err error
	cl.s, err = session.New(session.Config{
		Service: "ACS", Endpoint: c.Endpoint, Query: cl.query, Credentials: c.Credentials, Region: c.Region, UserAgent: c.UserAgent,
		MaxFrame: wire.MaxFrame, Frame: cl.frame, Refusal: refusal, Observe: c.Observe,
		TLS: c.TLS, Proxy: c.Proxy, DialContext: c.DialContext, Timing: c.Timing, Log: c.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("acs: %w", err)
	}
	return cl, nil
}

// Run keeps a session open until ctx ends, and returns then.
func (cl *Client) Run(ctx context.Context) error { return cl.s.Run(ctx) }

// query is what is asked of the service (agent protocol, "Connecting"). Credentials are
// asked for until a connection has succeeded: an agent forgets them when it ends.
func (cl *Client) query(first bool) url.Values {
	q := url.Values{
		"agentHash":            {cl.c.AgentHash},
		"agentVersion":         {cl.c.AgentVersion},
		"clusterArn":           {cl.c.Cluster},
		"containerInstanceArn": {cl.c.InstanceARN},
		"protocolVersion":      {"2"},
		"seqNum":               {"1"},
		"sendCredentials":      {strconv.FormatBool(first)},
	}
	switch v := cl.c.RuntimeVersion; v {
	case "":
	case "containerd":
		q.Set("dockerVersion", v)
	default:
		q.Set("dockerVersion", "DockerVersion: "+v)
	}
	return q
}

// refusal is the exception in the body of a refused connection.
func refusal(body []byte) error {
	m, err := wire.Decode(body)
	if err != nil {
		return nil // it has no name that the protocol knows
	}
	named, _ := m.(error)
	return named
}

// responder answers on one session.
type responder struct{ s *session.Session }

// Send takes a message for sending.
func (r responder) Send(ctx context.Context, m wire.Message) error {
	frame, err := wire.Encode(m)
	if err != nil {
		return err
	}
	return r.s.Send(ctx, frame)
}

// frame decodes a frame and has it handled.
func (cl *Client) frame(ctx context.Context, s *session.Session, frame []byte) {
	m, err := wire.Decode(frame)
	if err != nil {
		cl.noise.Do(func() { cl.c.Log.Warn("ACS frame ignored", "err", err, "size", len(frame)) })
		return
	}
	if err := cl.dispatch(ctx, m, responder{s}); err != nil && ctx.Err() == nil {
		cl.noise.Do(func() { cl.c.Log.Warn("ACS message not answered", "type", m.TypeName(), "err", err) })
	}
}

// dispatch hands a message to the handler. Messages that only agents send, and those
// that ask for nothing, are passed over; all count as a sign of life.
func (cl *Client) dispatch(ctx context.Context, m wire.Message, s wire.Responder) error {
	h := cl.c.Handler
	switch m := m.(type) {
	case *wire.PayloadMessage:
		return h.Payload(ctx, m, s)
	case *wire.HeartbeatMessage:
		return h.Heartbeat(ctx, m, s)
	case *wire.IAMRoleCredentialsMessage:
		return h.Credentials(ctx, m, s)
	case *wire.TaskManifestMessage:
		return h.Manifest(ctx, m, s)
	case *wire.TaskStopVerificationAck:
		return h.StopVerified(ctx, m)
	case wire.AttachMessage:
		return h.Attach(ctx, m, s)
	case *wire.TaskNetworkPolicyMessage:
		return h.Policy(ctx, m)
	case *wire.VolumePoolMessage:
		return h.Pool(ctx, m, s)
	case error:
		cl.c.Log.Warn("the cluster reports an error", "err", m)
	case *wire.StageUpdateMessage:
		if cl.c.Updates != nil {
			return cl.c.Updates.Stage(ctx, m, s)
		}
		cl.c.Log.Info("update message ignored", "type", m.TypeName())
	case *wire.PerformUpdateMessage:
		if cl.c.Updates != nil {
			return cl.c.Updates.Perform(ctx, m, s)
		}
		cl.c.Log.Info("update message ignored", "type", m.TypeName())
	case *wire.CloseMessage, *wire.ErrorMessage:
		cl.c.Log.Info("message of the cluster", "type", m.TypeName())
	default:
		return fmt.Errorf("%s is not for agents", m.TypeName())
	}
	return nil
}
