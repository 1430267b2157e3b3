package session

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"
)

// service is the cluster's side: each upgrade is handed to the test.
type service struct {
	t        *testing.T
	url      string
	upgrades chan upgrade
	refuse   func(http.ResponseWriter) bool
}

// upgrade is one opened session. The test ends it by closing done.
type upgrade struct {
	r    *http.Request
	conn *websocket.Conn
	done chan struct{}
}

func newService(t *testing.T) *service {
	s := &service{t: t, upgrades: make(chan upgrade)}
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.refuse != nil && s.refuse(w) {
			return
		}
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		u := upgrade{r: r, conn: c, done: make(chan struct{})}
		select {
		case s.upgrades <- u:
			<-u.done
		case <-t.Context().Done():
		}
		_ = c.CloseNow() // the test is through with it
	}))
	t.Cleanup(h.Close)
	s.url = h.URL
	return s
}

// client runs a session until the test ends. Frames that are received come on the channel.
func (s *service) client(edit func(*Config)) (frames chan string, states chan State, ended chan error) {
	s.t.Helper()
	frames, states, ended = make(chan string, 100), make(chan State, 100), make(chan error, 1)
	c := Config{
		Service: "ACS", Region: "eu-west-1", UserAgent: "berth-test", MaxFrame: 1 << 20,
		Endpoint:    func(context.Context) (string, error) { return s.url, nil },
		Query:       func(first bool) url.Values { return url.Values{"first": {fmt.Sprint(first)}} },
		Credentials: credentials.NewStaticCredentialsProvider("AKIATEST", "secret-not-shown", "token"),
		Frame:       func(_ context.Context, _ *Session, f []byte) { frames <- string(f) },
		Observe:     func(st State, _ error) { states <- st },
		Log:         slog.New(slog.DiscardHandler),
		Timing:      Timing{BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond, Random: func(time.Duration) time.Duration { return 0 }},
	}
	if edit != nil {
		edit(&c)
	}
	cl, err := New(c)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() { defer close(done); ended <- cl.Run(ctx) }()
	s.t.Cleanup(func() { cancel(); <-done })
	return frames, states, ended
}

func (s *service) next() upgrade {
	s.t.Helper()
	select {
	case u := <-s.upgrades:
		s.t.Cleanup(sync.OnceFunc(func() {
			select {
			case <-u.done:
			default:
				close(u.done)
			}
		}))
		return u
	case <-time.After(30 * time.Second):
		s.t.Fatal("no session within 30 s")
		return upgrade{}
	}
}

func (u upgrade) write(t *testing.T, text string) {
	t.Helper()
	if err := u.conn.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func (u upgrade) read(t *testing.T) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, b, err := u.conn.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSessionIsSignedAndCarriesFramesInOrder(t *testing.T) {
	s := newService(t)
	opened := make(chan *Session, 1)
	frames, states, _ := s.client(func(c *Config) {
		c.Opened = func(ctx context.Context, ss *Session) { opened <- ss; <-ctx.Done() }
	})
	u := s.next()
	auth := u.r.Header.Get("Authorization")
	if u.r.URL.Path != "/ws" || u.r.URL.RawQuery != "first=true" || u.r.Header.Get("User-Agent") != "berth-test" || u.r.Header.Get("X-Amz-Security-Token") != "token" ||
		!strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential=AKIATEST/") || !strings.Contains(auth, "/eu-west-1/ecs/aws4_request") {
		t.Errorf("%s %v", u.r.URL, u.r.Header)
	}
	if st := <-states; st != Connected {
		t.Errorf("state %v", st)
	}
	for i := range 50 {
		u.write(t, fmt.Sprint("down ", i))
	}
	for i := range 50 {
		if got := <-frames; got != fmt.Sprint("down ", i) {
			t.Errorf("frame %d is %q", i, got)
		}
	}
	ss := <-opened
	for i := range 50 {
		if err := ss.Send(t.Context(), []byte(fmt.Sprint("up ", i))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		if got := u.read(t); got != fmt.Sprint("up ", i) {
			t.Errorf("answer %d is %q", i, got)
		}
	}
	header, err := ss.cl.Sign(t.Context(), ss.URL(), []byte("body"))
	sum := sha256.Sum256([]byte("body"))
	if err != nil || !strings.HasPrefix(header.Get("Authorization"), "AWS4-HMAC-SHA256 ") || strings.Contains(fmt.Sprint(header), "secret-not-shown") || hex.EncodeToString(sum[:]) == "" {
		t.Errorf("%v, %v", header, err)
	}
}

// TestEnds is what becomes of a session after each kind of end.
func TestEnds(t *testing.T) {
	for name, end := range map[string]func(upgrade) error{
		"normal":         func(u upgrade) error { return u.conn.Close(websocket.StatusNormalClosure, "") },
		"going away":     func(u upgrade) error { return u.conn.Close(websocket.StatusGoingAway, "") },
		"internal error": func(u upgrade) error { return u.conn.Close(websocket.StatusInternalError, "") },
		"policy":         func(u upgrade) error { return u.conn.Close(websocket.StatusPolicyViolation, "") },
		"broken":         func(u upgrade) error { return u.conn.CloseNow() },
		"frame too long": func(u upgrade) error {
			return u.conn.Write(context.Background(), websocket.MessageText, make([]byte, 2<<20))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			_, states, _ := s.client(nil)
			for i := range 3 {
				u := s.next()
				if want := fmt.Sprint("first=", i == 0); u.r.URL.RawQuery != want {
					t.Errorf("session %d asks %s, want %s", i, u.r.URL.RawQuery, want)
				}
				if err := end(u); err != nil {
					t.Logf("%v", err) // the other side may be quicker
				}
				close(u.done)
				if a, b := <-states, <-states; a != Connected || b != Disconnected {
					t.Errorf("states %v, %v", a, b)
				}
			}
		})
	}
}

func TestSilentServiceIsLeft(t *testing.T) {
	s := newService(t)
	why := make(chan error, 10)
	s.client(func(c *Config) {
		c.Timing.Inactivity = 50 * time.Millisecond
		c.Timing.InactivityJitter = time.Nanosecond
		c.Observe = func(st State, err error) {
			if st == Disconnected {
				why <- err
			}
		}
	})
	s.next()
	if err := <-why; err == nil || err.Error() != "no message of the cluster for 50ms" {
		t.Errorf("%v", err)
	}
	s.next() // a new one
}

func TestSessionEndsAtItsAge(t *testing.T) {
	s := newService(t)
	opened := make(chan *Session, 2)
	s.client(func(c *Config) {
		c.Timing.Lifetime = 100 * time.Millisecond
		c.Timing.LifetimeJitter = time.Nanosecond
		c.Opened = func(ctx context.Context, ss *Session) { opened <- ss; <-ctx.Done() }
	})
	u := s.next()
	ss := <-opened
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, _, err := u.conn.Read(ctx)
	var closed websocket.CloseError
	if !errors.As(err, &closed) || closed.Code != websocket.StatusNormalClosure || closed.Reason != expiredText {
		t.Errorf("%v", err)
	}
	<-ss.Done()
	if err := ss.Send(t.Context(), []byte("late")); err == nil {
		t.Error("a session that has ended takes frames")
	}
	close(u.done)
	s.next()
}

func TestRefusal(t *testing.T) {
	s := newService(t)
	s.refuse = func(w http.ResponseWriter) bool {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"InvalidClusterException":"no such cluster"}`)
		return true
	}
	why := make(chan error, 100)
	s.client(func(c *Config) {
		c.Refusal = func(body []byte) error { return errors.New("named: " + string(body)) }
		c.Observe = func(_ State, err error) {
			select {
			case why <- err:
			default:
			}
		}
	})
	for range 3 { // it is tried again
		if err := <-why; err == nil || !strings.HasSuffix(err.Error(), `refused the session: named: {"InvalidClusterException":"no such cluster"}`) {
			t.Errorf("%v", err)
		}
	}
}

// TestDeregisteredInstanceWaits does not ask again before its time.
func TestDeregisteredInstanceWaits(t *testing.T) {
	s := newService(t)
	var mu sync.Mutex
	asked := 0
	s.refuse = func(w http.ResponseWriter) bool {
		mu.Lock()
		defer mu.Unlock()
		if asked++; asked > 1 {
			return false
		}
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"InactiveInstanceException":"gone"}`)
		return true
	}
	const wait = 300 * time.Millisecond
	_, states, _ := s.client(func(c *Config) {
		c.Timing.InactiveWait = wait
		c.Refusal = func(body []byte) error { return errors.New(string(body)) }
	})
	if st := <-states; st != Deregistered {
		t.Fatalf("state %v", st)
	}
	begin := time.Now()
	s.next()
	if waited := time.Since(begin); waited < wait-50*time.Millisecond {
		t.Errorf("asked again after %v", waited)
	}
}

func TestAgentThatEndsSaysGoodbye(t *testing.T) {
	s := newService(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	states := make(chan State, 10)
	cl, err := New(Config{
		Observe: func(st State, _ error) { states <- st },
		Service: "ACS", Region: "eu-west-1", MaxFrame: 1000, Log: slog.New(slog.DiscardHandler),
		Endpoint: func(context.Context) (string, error) { return s.url, nil }, Query: func(bool) url.Values { return nil },
		Credentials: credentials.NewStaticCredentialsProvider("A", "s", ""), Frame: func(context.Context, *Session, []byte) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cl.Run(ctx) }()
	u := s.next()
	reason := errors.New("the agent ends")
	if st := <-states; st != Connected {
		t.Fatalf("state %v", st)
	}
	cancel(reason)
	rctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	_, _, err = u.conn.Read(rctx)
	if websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("%v", err)
	}
	if err := <-ended; !errors.Is(err, reason) {
		t.Errorf("%v", err)
	}
}

func TestAddresses(t *testing.T) {
	cl := &Client{c: Config{Service: "TCS", Query: func(first bool) url.Values { return url.Values{"a": {"b c"}} }}}
	for in, want := range map[string]string{
		"https://h:443":     "wss://h:443/ws?a=b+c",
		"http://h/base/":    "ws://h/base/ws?a=b+c",
		"wss://h":           "wss://h/ws?a=b+c",
		"ftp://u:secret@h/": "",
		"://":               "",
	} {
		u, err := cl.url(in)
		got := ""
		if err == nil {
			got = u.String()
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", in, err)
		}
		if got != want {
			t.Errorf("%s: %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestDelaysGrowToTheirLimit(t *testing.T) {
	timing := Timing{Random: func(max time.Duration) time.Duration { return max }}.withDefaults()
	var b backoff
	var got []time.Duration
	for range 4 {
		got = append(got, b.next(timing).Round(time.Millisecond))
	}
	want := []time.Duration{300 * time.Millisecond, 450 * time.Millisecond, 675 * time.Millisecond, 1013 * time.Millisecond}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for range 100 {
		if d := b.next(timing); d > timing.BackoffMax+timing.BackoffMax/5 {
			t.Fatalf("a delay of %v", d)
		}
	}
}

func TestConfigThatIsNotComplete(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an empty configuration is taken")
	}
	c := Config{
		Endpoint: func(context.Context) (string, error) { return "", nil }, Query: func(bool) url.Values { return nil },
		Credentials: credentials.NewStaticCredentialsProvider("A", "s", ""), Frame: func(context.Context, *Session, []byte) {}, Log: slog.New(slog.DiscardHandler),
	}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "AWS_DEFAULT_REGION") {
		t.Errorf("without a region: %v", err)
	}
}
