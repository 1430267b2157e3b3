// Package tcs is the agent's side of the telemetry service: every 20 s it takes what the
// containers used, their health and the result of the agent's own checks, and has them
// sent over a session that agent/session keeps open (agent protocol, "TCS websocket").
//
// What could not be sent waits, with the time at which it was measured, and goes out when
// there is a session again. A request counts as sent when the cluster has acknowledged
// it; one that was not is sent again in the next session.
package tcs

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"golang.org/x/time/rate"

	"berth.dev/berth/agent/session"
	wire "berth.dev/berth/wire/tcs"
)

// Source has what is published. Its methods are called one at a time.
type Source interface {
	// Metrics takes what was used since the last call, a task at a time; idle says that no
	// container of any task runs.
	Metrics() (tasks []wire.TaskMetric, idle bool)
	// Health is the present health of every container that has a health check.
	Health() []wire.TaskHealth
	// Status takes the results of the agent's own checks that were not taken yet.
	Status() []wire.InstanceStatus
}

// Config is what a Client is made of.
type Config struct {
	Endpoint    func(ctx context.Context) (string, error)
	Credentials aws.CredentialsProvider
	Region      string

	Cluster      string
	InstanceARN  string
	AgentVersion string
	AgentHash    string
	UserAgent    string

	Source        Source
	NoHealth      bool          // ECS_DISABLE_DOCKER_HEALTH_CHECK
	NoMetrics     bool          // ECS_DISABLE_METRICS
	Interval      time.Duration // between two publishings; 0 means 20 s (agent protocol, TCS cadence)
	Buffer        int           // bytes of requests that wait at most, compressed; 0 means 16 MiB
	Timing        session.Timing
	TLS           *tls.Config
	Proxy         func(*http.Request) (*url.URL, error)
	DialContext   func(ctx context.Context, network, addr string) (net.Conn, error) // nil dials as usual
	Log           *slog.Logger
	ObserveDialed func(connected bool)
}

const (
	interval  = 20 * time.Second
	buffer    = 16 << 20
	unacked   = 16 // requests on their way at most
	signLimit = 30 * time.Second
)

// Client publishes.
type Client struct {
	c     Config
	s     *session.Client
	noise rate.Sometimes

	mu      sync.Mutex
	waiting []request // in the order of their making; the first ones are on their way
	bytes   int
	sent    int           // how many of the first ones are on their way
	news    chan struct{} // something waits, or was acknowledged
	dropped int           // requests given up for want of room
	told    int           // of them, those that were logged
}

// request is one request that waits for its acknowledgement.
type request struct {
	ack    string // the name of its acknowledgement
	frame  []byte
	packed bool // frame is compressed
}

// pack compresses the frame, to less than a tenth.
func (r *request) pack() error {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	if err == nil {
		_, err = w.Write(r.frame)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		r.frame, r.packed = bytes.Clone(b.Bytes()), true
	}
	return err
}

// plain is the frame as it is sent.
func (r *request) plain() ([]byte, error) {
	if !r.packed {
		return r.frame, nil
	}
	return io.ReadAll(flate.NewReader(bytes.NewReader(r.frame)))
}

// New makes a client. It does nothing until Run.
func New(c Config) (*Client, error) {
	if c.Source == nil || c.Log == nil {
		return nil, errors.New("tcs: Source and Log are needed")
	}
	if c.Interval == 0 {
		c.Interval = interval
	}
	if c.Buffer == 0 {
		c.Buffer = buffer
	}
	// The delays of this service differ from those of ACS.
	if c.Timing.BackoffMin == 0 {
		c.Timing.BackoffMin, c.Timing.BackoffMax, c.Timing.BackoffFactor = time.Second, time.Minute, 2
	}
	cl := &Client{c: c, news: make(chan struct{}, 1), noise: rate.Sometimes{First: 3, Interval: time.Minute}}
	var err error
	cl.s, err = session.New(session.Config{
		Service: "TCS", Endpoint: c.Endpoint, Query: cl.query, Credentials: c.Credentials, Region: c.Region, UserAgent: c.UserAgent,
		MaxFrame: wire.MaxFrame, Frame: cl.frame, Opened: cl.opened, Refusal: refusal, Observe: cl.observe,
		TLS: c.TLS, Proxy: c.Proxy, DialContext: c.DialContext, Timing: c.Timing, Log: c.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("tcs: %w", err)
	}
	return cl, nil
}

// Run publishes until ctx ends, and returns then.
func (cl *Client) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { cl.publish(ctx) })
	err := cl.s.Run(ctx)
	wg.Wait()
	return err
}

func (cl *Client) observe(s session.State, _ error) {
	if cl.c.ObserveDialed != nil {
		cl.c.ObserveDialed(s == session.Connected)
	}
}

// query is what is asked of the service (agent protocol, TCS "Connecting").
func (cl *Client) query(bool) url.Values {
	return url.Values{
		"agentHash":         {cl.c.AgentHash},
		"agentVersion":      {cl.c.AgentVersion},
		"cluster":           {cl.c.Cluster},
		"containerInstance": {cl.c.InstanceARN},
	}
}

// refusal is the exception in the body of a refused connection: framed, or an object of
// its name and words.
func refusal(body []byte) error {
	if m, err := wire.Decode(body); err == nil {
		named, _ := m.(error)
		return named
	}
	var named map[string]string
	if err := json.Unmarshal(body, &named); err != nil {
		return nil // it has no name that the protocol knows
	}
	if name, ok := named["__type"]; ok {
		return &wire.Notice{Name: name, Message: named["message"]}
	}
	if len(named) != 1 {
		return nil
	}
	for name, words := range named {
		return &wire.Notice{Name: name, Message: words}
	}
	return nil
}

// publish makes requests at once and then every interval.
func (cl *Client) publish(ctx context.Context) {
	tick := time.NewTicker(cl.c.Interval)
	defer tick.Stop()
	for {
		cl.collect(time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// collect makes the requests of one cycle.
func (cl *Client) collect(now time.Time) {
	cl.pack()
	at := wire.Time{Time: now}
	var reqs []wire.Message
	if !cl.c.NoMetrics {
		reqs = append(reqs, cl.metrics(at)...)
	}
	if !cl.c.NoHealth {
		reqs = append(reqs, cl.health(at)...)
	}
	if statuses := cl.c.Source.Status(); len(statuses) > 0 {
		reqs = append(reqs, &wire.PublishInstanceStatusRequest{
			Metadata: wire.InstanceStatusMetadata{Cluster: cl.c.Cluster, ContainerInstance: cl.c.InstanceARN, RequestID: newID()},
			Statuses: statuses, Timestamp: at,
		})
	}
	for _, m := range reqs {
		frame, err := wire.Encode(m)
		if err != nil {
			cl.noise.Do(func() { cl.c.Log.Error("telemetry cannot be encoded", "type", m.TypeName(), "err", err) })
			continue
		}
		cl.enqueue(request{ack: ackOf(m), frame: frame})
	}
}

// pack compresses what could not be sent since the last cycle.
func (cl *Client) pack() {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for i := cl.sent; i < len(cl.waiting); i++ {
		r := &cl.waiting[i]
		if r.packed {
			continue
		}
		size := len(r.frame)
		if err := r.pack(); err != nil {
			cl.noise.Do(func() { cl.c.Log.Error("telemetry that waits was not compressed", "err", err) })
			return
		}
		cl.bytes += len(r.frame) - size
	}
}

func ackOf(m wire.Message) string {
	switch m.(type) {
	case *wire.PublishMetricsRequest:
		return wire.AckMetric
	case *wire.PublishHealthRequest:
		return wire.AckHealth
	default:
		return wire.AckInstanceStatus
	}
}

// metrics cuts what was used into requests of at most 10 tasks and 1 MiB.
func (cl *Client) metrics(at wire.Time) []wire.Message {
	tasks, idle := cl.c.Source.Metrics()
	if len(tasks) == 0 && !idle {
		return nil // containers run, but there is nothing to tell of them yet
	}
	id := newID()
	var out []wire.Message
	var last *wire.PublishMetricsRequest
	size := 0
	for i := range tasks {
		n := sizeOf(&tasks[i])
		if last == nil || len(last.TaskMetrics) == wire.MaxTasks || size+n > wire.MaxBody {
			last = cl.metricsRequest(id, at)
			out = append(out, last)
			size = sizeOf(last)
		}
		last.TaskMetrics = append(last.TaskMetrics, tasks[i])
		size += n
	}
	if last == nil {
		last = cl.metricsRequest(id, at)
		last.Metadata.Idle = true
		out = append(out, last)
	}
	last.Metadata.Fin = true
	return out
}

func (cl *Client) metricsRequest(id string, at wire.Time) *wire.PublishMetricsRequest {
	return &wire.PublishMetricsRequest{
		Metadata:  wire.MetricsMetadata{Cluster: cl.c.Cluster, ContainerInstance: cl.c.InstanceARN, MessageID: id},
		Timestamp: at, TaskMetrics: []wire.TaskMetric{},
	}
}

func (cl *Client) health(at wire.Time) []wire.Message {
	tasks := cl.c.Source.Health()
	id := newID()
	var out []wire.Message
	for len(tasks) > 0 {
		n := min(len(tasks), wire.MaxTasks)
		out = append(out, &wire.PublishHealthRequest{
			Metadata: wire.HealthMetadata{Cluster: cl.c.Cluster, ContainerInstance: cl.c.InstanceARN, MessageID: id, Fin: n == len(tasks)},
			Tasks:    tasks[:n], Timestamp: at,
		})
		tasks = tasks[n:]
	}
	return out
}

// sizeOf is the length in JSON, and a comma. What cannot be encoded counts as nothing
// here and is reported where the whole request is encoded.
func sizeOf(v any) int {
	b, err := json.Marshal(v)
	if err != nil {
		return 0
	}
	return len(b) + 1
}

// newID is a random UUID (RFC 9562, version 4).
func newID() string {
	var b [16]byte
	rand.Read(b[:]) //nolint:errcheck // it cannot fail
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// enqueue has a request wait. The oldest that is not on its way gives place.
func (cl *Client) enqueue(r request) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.waiting = append(cl.waiting, r)
	cl.bytes += len(r.frame)
	for cl.bytes > cl.c.Buffer && len(cl.waiting) > cl.sent+1 {
		cl.bytes -= len(cl.waiting[cl.sent].frame)
		cl.waiting = append(cl.waiting[:cl.sent], cl.waiting[cl.sent+1:]...)
		cl.dropped++
	}
	cl.ring()
}

func (cl *Client) ring() {
	select {
	case cl.news <- struct{}{}:
	default:
	}
}

// opened sends what waits for as long as a session is open.
func (cl *Client) opened(ctx context.Context, s *session.Session) {
	cl.mu.Lock()
	cl.sent = 0 // what was on its way in the last session is sent again
	if n := cl.dropped - cl.told; n > 0 {
		cl.c.Log.Warn("telemetry was dropped while the cluster could not be reached", "requests", n)
		cl.told = cl.dropped
	}
	cl.mu.Unlock()
	for {
		r, ok := cl.next()
		if !ok {
			select {
			case <-cl.news:
				continue
			case <-ctx.Done():
				return
			}
		}
		frame, err := r.plain()
		if err == nil {
			err = cl.send(ctx, s, frame)
		}
		if err != nil {
			if ctx.Err() == nil {
				cl.noise.Do(func() { cl.c.Log.Warn("telemetry was not sent", "err", err) })
				s.Fail(err)
			}
			return
		}
	}
}

// next is the request to send now: the first that is not on its way, unless too many are.
func (cl *Client) next() (request, bool) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.sent >= len(cl.waiting) || cl.sent >= unacked {
		return request{}, false
	}
	cl.sent++
	return cl.waiting[cl.sent-1], true
}

// send signs a frame and sends it.
func (cl *Client) send(ctx context.Context, s *session.Session, frame []byte) error {
	sign, cancel := context.WithTimeout(ctx, signLimit)
	defer cancel()
	h, err := cl.s.Sign(sign, s.URL(), frame)
	if err != nil {
		return err
	}
	return s.Send(ctx, wire.WithHeaders(h, s.URL().Host, frame))
}

// frame takes a message of the cluster.
func (cl *Client) frame(_ context.Context, _ *session.Session, data []byte) {
	m, err := wire.Decode(data)
	if err != nil {
		cl.noise.Do(func() { cl.c.Log.Warn("TCS frame ignored", "err", err, "size", len(data)) })
		return
	}
	n, ok := m.(*wire.Notice)
	if !ok {
		return // a heartbeat: it counts as a sign of life, and that is all
	}
	switch n.Name {
	case wire.AckMetric, wire.AckHealth, wire.AckInstanceStatus:
		cl.settle(n.Name)
	case wire.StopSession:
		cl.c.Log.Info("the cluster ends the telemetry session", "err", n.Message)
	default:
		// The answer to the oldest request on its way: sent again it would be refused again.
		cl.noise.Do(func() { cl.c.Log.Warn("the cluster refuses telemetry", "err", n) })
		cl.settle("")
	}
}

// settle forgets the oldest request on its way that this acknowledges; "" stands for any.
func (cl *Client) settle(ack string) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for i := range cl.sent {
		if ack == "" || cl.waiting[i].ack == ack {
			cl.bytes -= len(cl.waiting[i].frame)
			cl.waiting = append(cl.waiting[:i], cl.waiting[i+1:]...)
			cl.sent--
			cl.ring()
			return
		}
	}
}

// Waiting is how many requests wait to be sent or acknowledged, and how many were given
// up for want of room.
func (cl *Client) Waiting() (waiting, dropped int) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return len(cl.waiting), cl.dropped
}
