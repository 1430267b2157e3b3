package session

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/coder/websocket"
)

// Client keeps a session to one service of the cluster.
type Client struct {
	c         Config
	http      *http.Client
	signer    *v4.Signer
	connected bool // a connection has succeeded
}

// New makes a client. It does nothing until Run.
func New(c Config) (*Client, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c.Timing = c.Timing.withDefaults()
	config := &tls.Config{}
	if c.TLS != nil {
		config = c.TLS.Clone()
	}
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	config.NextProtos = []string{"http/1.1"} // a websocket is an upgrade of HTTP/1.1
	transport := &http.Transport{
		TLSClientConfig: config, TLSHandshakeTimeout: c.Timing.Handshake, ResponseHeaderTimeout: c.Timing.Handshake,
		Proxy: c.Proxy, DialContext: c.DialContext, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
	}
	client := &http.Client{
		Transport: transport,
		// The signature is for one host; an answer that points elsewhere is refused.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return &Client{c: c, http: client, signer: v4.NewSigner()}, nil
}

// ending is how a session ended.
type ending struct {
	err   error
	clean bool // a kind of end that calls for a new session at once
}

// Run keeps a session open until ctx ends, and returns then.
func (cl *Client) Run(ctx context.Context) error {
	var delay backoff
	short := 0 // clean ends in a row of sessions that were ended straight away
	for {
		lasted, end := cl.once(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if lasted >= cl.c.Timing.Settled+cl.c.Timing.Random(cl.c.Timing.SettledJitter) {
			delay, short = backoff{}, 0
		}
		wait := time.Duration(0)
		switch {
		case isInactive(end.err):
			cl.observe(Deregistered, end.err)
			cl.c.Log.Error("the cluster has deregistered this container instance", "err", end.err, "wait", cl.c.Timing.InactiveWait)
			wait = cl.c.Timing.InactiveWait
		case end.clean:
			// At once, as the protocol has it, but only once for sessions that were ended
			// straight away: such a server must not be asked hundreds of times a second.
			if lasted >= worthwhile {
				short = 0
			}
			if short == 0 {
				delay = backoff{}
			} else {
				wait = delay.next(cl.c.Timing)
			}
			short++
			cl.observe(Disconnected, end.err)
			cl.c.Log.Info("session ended", "service", cl.c.Service, "err", end.err, "dur", lasted.Round(time.Millisecond), "wait", wait)
		default:
			wait = delay.next(cl.c.Timing)
			cl.observe(Disconnected, end.err)
			cl.c.Log.Warn("session failed", "service", cl.c.Service, "err", end.err, "dur", lasted.Round(time.Millisecond), "wait", wait)
		}
		if !sleep(ctx, wait) {
			return context.Cause(ctx)
		}
	}
}

func (cl *Client) observe(s State, err error) {
	if cl.c.Observe != nil {
		cl.c.Observe(s, err)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// worthwhile is how long a session lasts at least that was not ended straight away.
const worthwhile = time.Second

// backoff is the delay before the next try; its zero value starts anew.
type backoff struct{ last time.Duration }

func (b *backoff) next(t Timing) time.Duration {
	if b.last == 0 {
		b.last = t.BackoffMin
	} else {
		b.last = min(time.Duration(float64(b.last)*t.BackoffFactor), t.BackoffMax)
	}
	return b.last + t.Random(time.Duration(float64(b.last)*backoffJitter))
}

// once opens one session and returns when it has ended, with the time it was open.
func (cl *Client) once(ctx context.Context) (time.Duration, ending) {
	conn, u, err := cl.dial(ctx)
	if err != nil {
		return 0, ending{err: err}
	}
	begin := time.Now()
	cl.connected = true
	cl.c.Log.Info("session open", "service", cl.c.Service)
	cl.observe(Connected, nil)
	end := newSession(cl, conn, u).run(ctx)
	return time.Since(begin), end
}

// dial opens the websocket. A refusal that the cluster gave a name is that exception.
func (cl *Client) dial(ctx context.Context) (*websocket.Conn, *url.URL, error) {
	endpoint, err := cl.c.Endpoint(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("find the %s endpoint: %w", cl.c.Service, err)
	}
	u, err := cl.url(endpoint)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cl.c.Timing.Handshake)
	defer cancel()
	header, err := cl.sign(ctx, u)
	if err != nil {
		return nil, nil, err
	}
	conn, resp, err := websocket.Dial(ctx, u.String(), &websocket.DialOptions{HTTPClient: cl.http, HTTPHeader: header})
	if err != nil {
		return nil, nil, cl.refusal(u, resp, err)
	}
	conn.SetReadLimit(cl.c.MaxFrame)
	return conn, u, nil
}

// url is the address of the websocket (agent protocol, "Connecting"). Its path and
// query are what is signed.
func (cl *Client) url(endpoint string) (*url.URL, error) {
	u, err := url.Parse(endpoint)
	if err != nil {
		return nil, fmt.Errorf("%s endpoint is not a URL", cl.c.Service)
	}
	switch u.Scheme {
	case "https", "wss":
		u.Scheme = "wss"
	case "http", "ws":
		u.Scheme = "ws"
	default:
		return nil, fmt.Errorf("%s endpoint %q has an unknown scheme; http or https is needed", cl.c.Service, u.Redacted())
	}
	u.Path = strings.TrimSuffix(u.Path, "/") + "/ws"
	u.RawQuery = cl.c.Query(!cl.connected).Encode()
	return u, nil
}

// sign gives the headers of a signed upgrade request.
func (cl *Client) sign(ctx context.Context, u *url.URL) (http.Header, error) {
	header, err := cl.Sign(ctx, u, nil)
	if err == nil && cl.c.UserAgent != "" {
		header.Set("User-Agent", cl.c.UserAgent)
	}
	return header, err
}

// Sign gives the headers of a signed GET request of u with this body.
func (cl *Client) Sign(ctx context.Context, u *url.URL, body []byte) (http.Header, error) {
	credentials, err := cl.c.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("credentials of the agent: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	err = cl.signer.SignHTTP(ctx, credentials, req, hex.EncodeToString(sum[:]), "ecs", cl.c.Region, time.Now())
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	return req.Header, nil
}

// refusal makes an error of a websocket that was not opened.
func (cl *Client) refusal(u *url.URL, resp *http.Response, err error) error {
	if resp == nil || resp.StatusCode == http.StatusSwitchingProtocols {
		return fmt.Errorf("connect to %s: %w", u.Host, withoutURL(err))
	}
	if resp.Body != nil {
		body, readErr := io.ReadAll(io.LimitReader(resp.Body, 1024)) // what the library kept
		if readErr == nil && cl.c.Refusal != nil {
			if named := cl.c.Refusal(body); named != nil {
				return fmt.Errorf("%s refused the session: %w", u.Host, named)
			}
		}
	}
	return fmt.Errorf("%s refused the session with HTTP status %d", u.Host, resp.StatusCode)
}

// withoutURL drops the URL that net/http puts before its errors; it is long and says
// nothing new.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// isInactive reports whether the cluster has deregistered the instance.
func isInactive(err error) bool {
	return err != nil && strings.Contains(err.Error(), "InactiveInstanceException")
}
