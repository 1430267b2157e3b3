package acs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/session"
	wire "berth.dev/berth/wire/acs"
)

const instance = "arn:aws:ecs:eu-west-1:111122223333:container-instance/lab/0a1b2c"

// recorder is a handler that notes what it gets and answers heartbeats.
type recorder struct {
	mu  sync.Mutex
	got []string
	ch  chan string
}

func (h *recorder) note(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	h.mu.Lock()
	h.got = append(h.got, line)
	h.mu.Unlock()
	if h.ch != nil {
		h.ch <- line
	}
}

func (h *recorder) Payload(ctx context.Context, m *wire.PayloadMessage, r wire.Responder) error {
	h.note("payload %s", m.MessageID)
	return r.Send(ctx, &wire.AckRequest{MessageID: m.MessageID})
}

func (h *recorder) Credentials(_ context.Context, m *wire.IAMRoleCredentialsMessage, _ wire.Responder) error {
	h.note("credentials %s", m.MessageID)
	return nil
}

func (h *recorder) Attach(_ context.Context, m wire.AttachMessage, _ wire.Responder) error {
	h.note("attach %s", m.TypeName())
	return errors.New("not supported")
}

func (h *recorder) Policy(_ context.Context, m *wire.TaskNetworkPolicyMessage) error {
	h.note("policy %s", m.MessageID)
	return nil
}

func (h *recorder) Pool(_ context.Context, m *wire.VolumePoolMessage, _ wire.Responder) error {
	h.note("pool %s", m.MessageID)
	return nil
}

func (h *recorder) Manifest(_ context.Context, m *wire.TaskManifestMessage, _ wire.Responder) error {
	h.note("manifest %s", m.MessageID)
	return nil
}

func (h *recorder) StopVerified(_ context.Context, m *wire.TaskStopVerificationAck) error {
	h.note("verified %s", m.MessageID)
	return nil
}

func (h *recorder) Heartbeat(ctx context.Context, m *wire.HeartbeatMessage, r wire.Responder) error {
	h.note("heartbeat %s", m.MessageID)
	return r.Send(ctx, &wire.HeartbeatAckRequest{MessageID: m.MessageID})
}

type keys struct{}

func (keys) Retrieve(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "SKCANARY", SessionToken: "STCANARY"}, nil
}

// config is a client's configuration with nothing random in it.
func config(endpoint string, h Handler) Config {
	return Config{
		Endpoint:    func(context.Context) (string, error) { return endpoint, nil },
		Credentials: keys{}, Region: "eu-west-1", Cluster: "lab", InstanceARN: instance,
		AgentVersion: "1.0.0", AgentHash: "abcdef12", RuntimeVersion: "containerd", Handler: h,
		Timing: session.Timing{Random: func(time.Duration) time.Duration { return 0 }},
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

// start runs a client; the returned function ends it and gives Run's error.
func start(t *testing.T, c Config) (stop func() error) {
	t.Helper()
	cl, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- cl.Run(ctx) }()
	var once sync.Once
	var result error
	stop = func() error {
		once.Do(func() { cancel(); result = <-done })
		return result
	}
	t.Cleanup(func() { _ = stop() }) // tests that look at the error have called it before
	return stop
}

// accept is an HTTP handler that gives each websocket, and the request, to fn.
func accept(t *testing.T, fn func(ctx context.Context, c *websocket.Conn, r *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = c.CloseNow() }() // a test has closed it as it wants
		fn(r.Context(), c, r)
	}
}

func send(ctx context.Context, t *testing.T, c *websocket.Conn, frame string) {
	t.Helper()
	if err := c.Write(ctx, websocket.MessageText, []byte(frame)); err != nil {
		t.Error(err)
	}
}

func TestSession(t *testing.T) {
	h := &recorder{}
	type request struct{ uri, authorization, token, target string }
	requests := make(chan request, 1)
	answers := make(chan string, 16)
	server := httptest.NewServer(accept(t, func(ctx context.Context, c *websocket.Conn, r *http.Request) {
		requests <- request{r.URL.RequestURI(), r.Header.Get("Authorization"), r.Header.Get("X-Amz-Security-Token"), r.Header.Get("X-Amz-Date")}
		for _, frame := range []string{
			`{"type":"HeartbeatMessage","message":{"healthy":true,"messageId":"h-1"}}`,
			`{"type":"Unheard","message":{}}`, `garbage`, "{\"type\":\"\xff\"}",
			`{"type":"AckRequest","message":{"messageId":"x"}}`,
			`{"type":"AttachTaskNetworkInterfacesMessage","message":{"messageId":"n"}}`,
			`{"type":"ServerException","message":{"message":"oops"}}`,
			`{"type":"PerformUpdateMessage","message":{"messageId":"u"}}`,
			`{"type":"IAMRoleCredentialsMessage","message":{"messageId":"i"}}`,
			`{"type":"TaskManifestMessage","message":{"messageId":"t"}}`,
			`{"type":"TaskStopVerificationAck","message":{"messageId":"t"}}`,
		} {
			send(ctx, t, c, frame)
		}
		// Binary frames are processed like text.
		if err := c.Write(ctx, websocket.MessageBinary, []byte(`{"type":"PayloadMessage","message":{"messageId":"m-1"}}`)); err != nil {
			t.Error(err)
		}
		for {
			kind, frame, err := c.Read(ctx)
			if err != nil {
				close(answers)
				return
			}
			answers <- fmt.Sprint(kind, " ", string(frame))
		}
	}))
	defer server.Close()
	stop := start(t, config(server.URL, h))
	for _, want := range []string{
		`MessageText {"type":"HeartbeatAckRequest","message":{"messageId":"h-1"}}`,
		`MessageText {"type":"AckRequest","message":{"messageId":"m-1"}}`,
	} {
		if got := <-answers; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	r := <-requests
	if want := "/ws?agentHash=abcdef12&agentVersion=1.0.0&clusterArn=lab&containerInstanceArn=arn%3Aaws%3Aecs%3Aeu-west-1%3A111122223333%3Acontainer-instance%2Flab%2F0a1b2c&dockerVersion=containerd&protocolVersion=2&sendCredentials=true&seqNum=1"; r.uri != want {
		t.Errorf("request %s\nwant    %s", r.uri, want)
	}
	if !strings.HasPrefix(r.authorization, "AWS4-HMAC-SHA256 Credential=AKID/") || !strings.Contains(r.authorization, "/eu-west-1/ecs/aws4_request") || r.token != "STCANARY" || r.target == "" {
		t.Errorf("not signed: %+v", r)
	}
	want := []string{"heartbeat h-1", "attach AttachTaskNetworkInterfacesMessage", "credentials i", "manifest t", "verified t", "payload m-1"}
	if d := cmp.Diff(want, h.got); d != "" {
		t.Error(d)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Run gave %v", err)
	}
	if _, open := <-answers; open {
		t.Error("the session outlived the client")
	}
}

func TestOversizedFrameEndsOnlyTheSession(t *testing.T) {
	h := &recorder{ch: make(chan string, 1)}
	sessions := 0
	server := httptest.NewServer(accept(t, func(ctx context.Context, c *websocket.Conn, _ *http.Request) {
		sessions++
		if sessions == 1 {
			big := `{"type":"PayloadMessage","message":{"messageId":"` + strings.Repeat("x", wire.MaxFrame) + `"}}`
			_ = c.Write(ctx, websocket.MessageText, []byte(big)) // the client hangs up in the middle of it
			return
		}
		send(ctx, t, c, `{"type":"HeartbeatMessage","message":{"messageId":"h-2"}}`)
		_, _, _ = c.Read(ctx)
		_, _, _ = c.Read(ctx) // until the client leaves
	}))
	defer server.Close()
	c := config(server.URL, h)
	c.Timing.BackoffMin = time.Millisecond
	start(t, c)
	if got := <-h.ch; got != "heartbeat h-2" {
		t.Errorf("got %s", got)
	}
}

func TestTLS(t *testing.T) {
	h := &recorder{ch: make(chan string, 1)}
	server := httptest.NewUnstartedServer(accept(t, func(ctx context.Context, c *websocket.Conn, _ *http.Request) {
		send(ctx, t, c, `{"type":"HeartbeatMessage","message":{"messageId":"h-1"}}`)
		_, _, _ = c.Read(ctx)
		_, _, _ = c.Read(ctx) // until the client leaves
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelDebug)
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	refused := func(name string, cfg *tls.Config, url string) {
		t.Run(name, func(t *testing.T) {
			failed := make(chan error, 8)
			c := config(url, h)
			c.TLS = cfg
			c.Observe = func(s session.State, err error) {
				if s == session.Connected {
					err = nil
				}
				select {
				case failed <- err:
				default:
				}
			}
			stop := start(t, c)
			err := <-failed
			_ = stop() // its error is the cancellation
			if err == nil {
				t.Fatal("the session was opened")
			}
			if strings.Contains(err.Error(), "CANARY") || strings.Contains(err.Error(), "agentHash") {
				t.Errorf("error says too much: %v", err)
			}
			t.Log(err)
		})
	}
	refused("unknown authority", nil, server.URL)
	refused("wrong name", &tls.Config{RootCAs: roots, ServerName: "elsewhere.example"}, server.URL)
	refused("old version", &tls.Config{RootCAs: roots, MaxVersion: tls.VersionTLS11}, server.URL)
	refused("plain text to a TLS port", nil, strings.Replace(server.URL, "https", "http", 1))
	refused("no scheme", nil, strings.TrimPrefix(server.URL, "https://"))
	c := config(server.URL, h) // a port that is not 443, and the name is checked without it
	c.TLS = &tls.Config{RootCAs: roots}
	start(t, c)
	if got := <-h.ch; got != "heartbeat h-1" {
		t.Errorf("got %s", got)
	}
}

func TestRedirectIsRefused(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer elsewhere.Close()
	server := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	failed := make(chan error, 1)
	c := config(server.URL, &recorder{})
	c.Observe = func(_ session.State, err error) {
		select {
		case failed <- err:
		default:
		}
	}
	start(t, c)
	if err := <-failed; err == nil || !strings.Contains(err.Error(), "HTTP status 307") {
		t.Errorf("got %v", err)
	}
}

// pipes is a network in memory, for tests in which time is not real.
type pipes struct{ conns chan net.Conn }

func (p *pipes) Accept() (net.Conn, error) {
	if c, ok := <-p.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p *pipes) Close() error   { return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// inBubble runs a client against a server in a bubble with time of its own, for a
// while, and returns when each connection was asked for.
func inBubble(t *testing.T, while time.Duration, change func(*Config), serve func(n int, w http.ResponseWriter, r *http.Request)) (starts []time.Duration, requests []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var mu sync.Mutex
		network := &pipes{conns: make(chan net.Conn)}
		server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			starts = append(starts, time.Since(begin))
			requests = append(requests, r.URL.Query().Get("sendCredentials"))
			n := len(starts)
			mu.Unlock()
			serve(n, w, r)
		})}
		served := make(chan error, 1)
		go func() { served <- server.Serve(network) }()
		c := config("http://acs.example", &recorder{})
		c.DialContext = network.dial
		if change != nil {
			change(&c)
		}
		stop := start(t, c)
		time.Sleep(while) // the bubble's time
		_ = stop()        // its error is the cancellation
		close(network.conns)
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-served
	})
	return starts, requests
}

// hold keeps a websocket open and reads what comes.
func hold(t *testing.T, beat time.Duration) http.HandlerFunc {
	return accept(t, func(ctx context.Context, c *websocket.Conn, _ *http.Request) {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			for {
				if _, _, err := c.Read(ctx); err != nil {
					return
				}
			}
		}()
		for {
			var tick <-chan time.Time
			if beat > 0 {
				tick = time.After(beat)
			}
			select {
			case <-closed:
				return
			case <-tick:
				if c.Write(ctx, websocket.MessageText, []byte(`{"type":"HeartbeatMessage","message":{"messageId":"h"}}`)) != nil {
					return
				}
			}
		}
	})
}

func expectStarts(t *testing.T, got []time.Duration, want ...time.Duration) {
	t.Helper()
	if len(got) > len(want) {
		got = got[:len(want)]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("connections (-want +got):\n%s", d)
	}
}

func TestSilenceEndsTheSession(t *testing.T) {
	starts, requests := inBubble(t, 3*time.Minute, nil, func(_ int, w http.ResponseWriter, r *http.Request) { hold(t, 0)(w, r) })
	// 60 s of silence; that is no clean end, so 250 ms until the next try.
	expectStarts(t, starts, 0, 60*time.Second+250*time.Millisecond, 120*time.Second+500*time.Millisecond)
	if d := cmp.Diff([]string{"true", "false", "false"}, requests); d != "" {
		t.Errorf("sendCredentials: %s", d)
	}
}

func TestHeartbeatsKeepTheSessionUntilItsAge(t *testing.T) {
	var mu sync.Mutex // the next connection may be served while this one's close is still read
	var reasons []string
	starts, _ := inBubble(t, 61*time.Minute, nil, func(_ int, w http.ResponseWriter, r *http.Request) {
		accept(t, func(ctx context.Context, c *websocket.Conn, _ *http.Request) {
			closed := make(chan error, 1)
			go func() {
				for {
					if _, _, err := c.Read(ctx); err != nil {
						closed <- err
						return
					}
				}
			}()
			for {
				select {
				case err := <-closed:
					if e, ok := errors.AsType[websocket.CloseError](err); ok {
						mu.Lock()
						reasons = append(reasons, fmt.Sprint(int(e.Code), " ", e.Reason))
						mu.Unlock()
					}
					return
				case <-time.After(29 * time.Second): // never at the moment of the close
					if c.Write(ctx, websocket.MessageText, []byte(`{"type":"HeartbeatMessage","message":{"messageId":"h"}}`)) != nil {
						return
					}
				}
			}
		})(w, r)
	})
	expectStarts(t, starts, 0, 30*time.Minute, 60*time.Minute)
	if len(starts) != 3 {
		t.Errorf("%d connections", len(starts))
	}
	want := []string{"1000 ConnectionExpired: Reconnect to continue", "1000 ConnectionExpired: Reconnect to continue", "1001 agent stops"}
	if d := cmp.Diff(want, reasons); d != "" {
		t.Errorf("close frames: %s", d)
	}
}

func TestCloseCodes(t *testing.T) {
	for code, atOnce := range map[websocket.StatusCode]bool{1000: true, 1001: true, 1011: true, 1008: false, 1013: false} {
		t.Run(fmt.Sprint(int(code)), func(t *testing.T) {
			starts, _ := inBubble(t, 10*time.Minute, nil, func(n int, w http.ResponseWriter, r *http.Request) {
				if n > 1 {
					hold(t, 30*time.Second)(w, r)
					return
				}
				accept(t, func(_ context.Context, c *websocket.Conn, _ *http.Request) {
					_ = c.Close(code, "") // whether the client answers is not the question
				})(w, r)
			})
			want := 250 * time.Millisecond
			if atOnce {
				want = 0
			}
			expectStarts(t, starts, 0, want)
		})
	}
}

func TestBrokenConnectionIsMadeAgainAtOnce(t *testing.T) {
	starts, _ := inBubble(t, time.Minute, nil, func(n int, w http.ResponseWriter, r *http.Request) {
		if n > 1 {
			hold(t, 30*time.Second)(w, r)
			return
		}
		accept(t, func(_ context.Context, c *websocket.Conn, _ *http.Request) { _ = c.CloseNow() })(w, r)
	})
	expectStarts(t, starts, 0, 0)
}

func TestCrashingServerIsNotHammered(t *testing.T) {
	starts, _ := inBubble(t, 10*time.Minute, nil, func(_ int, w http.ResponseWriter, r *http.Request) {
		accept(t, func(_ context.Context, c *websocket.Conn, _ *http.Request) { _ = c.CloseNow() })(w, r)
	})
	if len(starts) > 20 {
		t.Errorf("%d connections in 10 minutes", len(starts))
	}
	expectStarts(t, starts, 0, 0, 250*time.Millisecond, 625*time.Millisecond)
}

func TestRefusalsBackOff(t *testing.T) {
	starts, requests := inBubble(t, 10*time.Minute, nil, func(_ int, w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"AccessDeniedException":"no"}`) // the client may be gone
	})
	// 250 ms x 1.5 each time, at most 2 min.
	expectStarts(t, starts, 0, 250*time.Millisecond, 625*time.Millisecond, 1187500*time.Microsecond)
	if len(starts) > 20 {
		t.Errorf("%d connections in 10 minutes", len(starts))
	}
	if requests[len(requests)-1] != "true" {
		t.Error("sendCredentials fell without a connection")
	}
}

func TestDeregisteredInstanceWaitsAnHour(t *testing.T) {
	var states []session.State
	starts, _ := inBubble(t, 90*time.Minute, func(c *Config) {
		c.Observe = func(s session.State, _ error) { states = append(states, s) }
	}, func(n int, w http.ResponseWriter, r *http.Request) {
		if n > 1 {
			hold(t, 30*time.Second)(w, r)
			return
		}
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"type":"InactiveInstanceException","message":{"message":"gone"}}`) // the client may be gone
	})
	expectStarts(t, starts, 0, time.Hour)
	if d := cmp.Diff([]session.State{session.Deregistered, session.Connected}, states); d != "" {
		t.Error(d)
	}
}

// A cluster that is restarted every few seconds is found again each time at once.
func TestRestartedServerIsFoundAtOnce(t *testing.T) {
	starts, _ := inBubble(t, 7*time.Second, nil, func(_ int, w http.ResponseWriter, r *http.Request) {
		accept(t, func(_ context.Context, c *websocket.Conn, _ *http.Request) {
			<-time.After(2 * time.Second)
			_ = c.CloseNow()
		})(w, r)
	})
	expectStarts(t, starts, 0, 2*time.Second, 4*time.Second, 6*time.Second)
}

func TestDelaysStartAnewAfterAGoodSession(t *testing.T) {
	starts, _ := inBubble(t, 10*time.Minute, nil, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 4 {
			accept(t, func(ctx context.Context, c *websocket.Conn, _ *http.Request) {
				go func() { _, _, _ = c.Read(ctx); _, _, _ = c.Read(ctx); _, _, _ = c.Read(ctx) }() // three answers
				for range 3 {
					<-time.After(30 * time.Second)
					send(ctx, t, c, `{"type":"HeartbeatMessage","message":{}}`)
				}
				_ = c.Close(1008, "") // whether the client answers is not the question
			})(w, r)
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	fourth := 1187500 * time.Microsecond
	expectStarts(t, starts, 0, 250*time.Millisecond, 625*time.Millisecond, fourth, fourth+90250*time.Millisecond, fourth+90625*time.Millisecond)
}

func TestConfigIsChecked(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"endpoint": func(c *Config) { c.Endpoint = nil }, "region": func(c *Config) { c.Region = "" }, "instance": func(c *Config) { c.InstanceARN = "" },
	} {
		c := config("http://x", &recorder{})
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("without %s: no error", name)
		}
	}
}
