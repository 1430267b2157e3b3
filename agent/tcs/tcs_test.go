package tcs

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/coder/websocket"

	"berth.dev/berth/agent/session"
	wire "berth.dev/berth/wire/tcs"
)

// source has n tasks, all the same, whenever it is asked.
type source struct {
	mu    sync.Mutex
	tasks int
	big   int // bytes of padding of each task
	taken int
	asked chan struct{} // each time it is asked, unless it is nil
}

func (s *source) Metrics() ([]wire.TaskMetric, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken++
	if s.asked != nil {
		s.asked <- struct{}{}
	}
	var out []wire.TaskMetric
	for i := range s.tasks {
		out = append(out, wire.TaskMetric{TaskARN: fmt.Sprintf("task-%d-%d", s.taken, i), TaskDefinitionFamily: strings.Repeat("x", s.big)})
	}
	return out, s.tasks == 0
}
func (s *source) Health() []wire.TaskHealth     { return nil }
func (s *source) Status() []wire.InstanceStatus { return nil }

// service is a telemetry service that takes what it is sent.
type service struct {
	*httptest.Server
	mu    sync.Mutex
	got   []*wire.PublishMetricsRequest
	heads []string
	mute  bool // takes and does not acknowledge
	conns []*websocket.Conn
	heard chan struct{}
}

func newService(t *testing.T) *service {
	s := &service{heard: make(chan struct{}, 1000)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		c.SetReadLimit(wire.MaxFrame)
		s.mu.Lock()
		s.conns = append(s.conns, c)
		s.mu.Unlock()
		for {
			_, data, err := c.Read(r.Context())
			if err != nil {
				return
			}
			m, err := wire.Decode(data)
			if err != nil {
				t.Errorf("frame: %v", err)
				return
			}
			s.mu.Lock()
			head, _, _ := strings.Cut(string(data), "\r\n\r\n")
			s.heads = append(s.heads, head)
			s.got = append(s.got, m.(*wire.PublishMetricsRequest))
			mute := s.mute
			s.mu.Unlock()
			if !mute {
				if err := c.Write(r.Context(), websocket.MessageText, []byte(`{"type":"AckPublishMetric","message":{"message":""}}`)); err != nil {
					return
				}
			}
			s.heard <- struct{}{}
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *service) requests() []*wire.PublishMetricsRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*wire.PublishMetricsRequest{}, s.got...)
}

// wait waits for n more requests.
func (s *service) wait(t *testing.T, n int) {
	t.Helper()
	limit := time.After(time.Minute)
	for range n {
		select {
		case <-s.heard:
		case <-limit:
			t.Fatalf("only %d requests came", len(s.requests()))
		}
	}
}

func start(t *testing.T, c Config) *Client {
	t.Helper()
	c.Region, c.Cluster, c.InstanceARN, c.Log = "us-east-1", "lab", "arn:i", slog.New(slog.DiscardHandler)
	c.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "secret"}, nil
	})
	c.Timing = session.Timing{BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond}
	cl, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = cl.Run(ctx) }() // it ends with ctx, and says so
	t.Cleanup(func() { cancel(); <-done })
	return cl
}

func endpoint(s *service) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return s.URL, nil }
}

func TestChunks(t *testing.T) {
	s := newService(t)
	start(t, Config{Endpoint: endpoint(s), Source: &source{tasks: 25}, Interval: time.Hour})
	s.wait(t, 3)
	got := s.requests()
	for i, want := range []int{10, 10, 5} {
		m := got[i].Metadata
		if len(got[i].TaskMetrics) != want || m.Fin != (i == 2) || m.Idle || m.MessageID != got[0].Metadata.MessageID {
			t.Errorf("request %d: %d tasks, %+v", i, len(got[i].TaskMetrics), m)
		}
	}
	if h := s.heads[0]; !strings.HasPrefix(h, "Authorization: AWS4-HMAC-SHA256 ") || !strings.Contains(h, "\r\nHost: ") || !strings.Contains(h, "\r\nX-Amz-Date: ") {
		t.Errorf("header block %q", h)
	}
}

func TestChunksBySize(t *testing.T) {
	s := newService(t)
	start(t, Config{Endpoint: endpoint(s), Source: &source{tasks: 4, big: 400 << 10}, Interval: time.Hour})
	s.wait(t, 2)
	if n := len(s.requests()[0].TaskMetrics); n != 2 {
		t.Errorf("%d tasks of 400 KiB in a request of at most 1 MiB", n)
	}
}

func TestIdle(t *testing.T) {
	s := newService(t)
	start(t, Config{Endpoint: endpoint(s), Source: &source{}, Interval: time.Hour})
	s.wait(t, 1)
	if m := s.requests()[0].Metadata; !m.Idle || !m.Fin {
		t.Errorf("%+v", m)
	}
}

// An outage makes no gap: what was measured meanwhile comes afterwards, in order and with
// its own times.
func TestOutage(t *testing.T) {
	s := newService(t)
	var mu sync.Mutex
	down := true
	src := &source{tasks: 1, asked: make(chan struct{}, 10_000)}
	start(t, Config{Source: src, Interval: 2 * time.Millisecond, Endpoint: func(context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if down {
			return "", fmt.Errorf("down")
		}
		return s.URL, nil
	}})
	for range 40 {
		<-src.asked
	}
	mu.Lock()
	down = false
	mu.Unlock()
	s.wait(t, 60)
	got := s.requests()
	for i, r := range got[:60] {
		if want := fmt.Sprintf("task-%d-0", i+1); r.TaskMetrics[0].TaskARN != want {
			t.Fatalf("request %d is %s, want %s", i, r.TaskMetrics[0].TaskARN, want)
		}
		if i > 0 && r.Timestamp.Before(got[i-1].Timestamp.Time) {
			t.Errorf("request %d goes back in time", i)
		}
	}
}

func TestUnacknowledgedIsSentAgain(t *testing.T) {
	s := newService(t)
	s.mute = true
	start(t, Config{Endpoint: endpoint(s), Source: &source{tasks: 1}, Interval: time.Hour})
	s.wait(t, 1)
	s.mu.Lock()
	s.mute = false
	s.conns[0].CloseNow() //nolint:errcheck // the point is that it breaks
	s.mu.Unlock()
	s.wait(t, 1)
	got := s.requests()
	if got[0].Metadata.MessageID != got[1].Metadata.MessageID {
		t.Error("another request came instead")
	}
}

func TestBufferIsBounded(t *testing.T) {
	cl, err := New(Config{
		Endpoint: func(context.Context) (string, error) { return "", nil }, Region: "r", Source: &source{tasks: 1, big: 1000}, Buffer: 10_000, Log: slog.New(slog.DiscardHandler),
		Credentials: aws.AnonymousCredentials{},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		cl.collect(time.Now())
	}
	waiting, dropped := cl.Waiting()
	if cl.bytes > 10_000 || waiting+dropped != 100 || waiting < 5 {
		t.Errorf("%d bytes, %d requests wait, %d dropped", cl.bytes, waiting, dropped)
	}
}

// full is a source of many containers whose numbers are not alike.
type full struct {
	source
	containers int
}

func (f *full) Metrics() ([]wire.TaskMetric, bool) {
	var out []wire.TaskMetric
	long := func() *wire.LongSet {
		v := rand.Uint64N(1 << 40)
		return wire.NewLongSet(v, v+rand.Uint64N(1<<20), 20*v, 20)
	}
	set := func() *wire.Set {
		v := rand.Float64() * 100
		return &wire.Set{Min: v / 2, Max: v, Sum: 20 * v / 3, SampleCount: 20}
	}
	for i := range f.containers {
		none := wire.NewLongSet(0, 0, 0, 20)
		out = append(out, wire.TaskMetric{
			TaskARN: fmt.Sprintf("arn:aws:ecs:us-east-1:000000000000:task/default/%032x", i*7919), TaskDefinitionFamily: "family", TaskDefinitionVersion: "7",
			ContainerMetrics: []wire.ContainerMetric{{
				ContainerName: "main", CPU: set(), Memory: set(), Storage: &wire.Storage{ReadSizeBytes: long(), WriteSizeBytes: long()},
				Network: &wire.Network{
					RxBytes: long(), RxPackets: long(), RxErrors: none, RxDropped: none, RxBytesPerSecond: set(),
					TxBytes: long(), TxPackets: long(), TxErrors: none, TxDropped: none, TxBytesPerSecond: set(),
				},
			}},
		})
	}
	return out, false
}

// What 500 containers used in ten minutes, and more, waits in the buffer, even if none of
// their numbers are alike.
func TestBufferHoldsAnOutageOfAFullHost(t *testing.T) {
	cl, err := New(Config{
		Endpoint: func(context.Context) (string, error) { return "", nil }, Region: "r", Source: &full{containers: 500}, Log: slog.New(slog.DiscardHandler),
		Credentials: aws.AnonymousCredentials{},
	})
	if err != nil {
		t.Fatal(err)
	}
	const cycles = 5
	for range cycles {
		cl.collect(time.Now())
	}
	cl.pack()
	each := cl.bytes / cycles
	lasts := time.Duration(buffer/each) * interval
	t.Logf("a cycle of 500 containers takes %d KiB; the buffer lasts %v", each>>10, lasts)
	if lasts < 20*time.Minute {
		t.Errorf("the buffer lasts %v", lasts)
	}
	for i := range cl.waiting {
		frame, err := cl.waiting[i].plain()
		if err != nil {
			t.Fatal(err)
		}
		if m, err := wire.Decode(frame); err != nil || len(m.(*wire.PublishMetricsRequest).TaskMetrics) != wire.MaxTasks {
			t.Fatalf("request %d is %T (%v)", i, m, err)
		}
	}
}
