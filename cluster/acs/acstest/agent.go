// Package acstest is a container instance without a host: an agent that speaks the
// protocol and runs nothing. Tests, load tests and demonstrations use it to stand for
// machines, a thousand of them in one process if need be.
package acstest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/coder/websocket"

	"berth.dev/berth/wire/acs"
)

// Config says what an agent is. Only Endpoint, Region and Credentials are needed.
type Config struct {
	Endpoint    string // base URL of the cluster
	Region      string
	Credentials aws.CredentialsProvider
	Cluster     string // empty means default
	ARN         string // of an instance that was registered before; empty registers a new one

	CPU        int32 // units [4096]
	Memory     int32 // MiB [8192]
	Ports      []string
	Attributes map[string]string
	Version    string // of the agent [1.0.0]

	// Life says how a task goes on after it is RUNNING: it ends by itself after the
	// duration with the exit code, or not before it is stopped if the duration is
	// negative. Nil means the latter.
	Life func(t *acs.Task) (time.Duration, int32)
	// FailStart gives the reason why a task cannot be started; empty starts it. May be
	// nil.
	FailStart func(t *acs.Task) string
	// Receive sees every message before the agent acts on it; false makes the agent
	// ignore it. May be nil.
	Receive func(m acs.Message) bool

	HTTP *http.Client // nil means one of its own
	Log  *slog.Logger // may be nil
}

// Agent is a simulated container instance. It remembers its tasks while it lives, also
// over lost connections.
type Agent struct {
	Config
	client *ecs.Client
	arn    string
	stop   context.CancelFunc
	work   sync.WaitGroup
	opened chan struct{} // closed with the first session

	mu       sync.Mutex
	conn     *websocket.Conn
	tasks    map[string]*entry // by ARN
	timeline int64
	first    bool // no session yet: credentials are wanted
	sessions int
}

// entry is one task of the agent.
type entry struct {
	task    *acs.Task
	desired string
	last    string
	exit    chan int32 // asks a running task to end
}

const (
	running = "RUNNING"
	stopped = "STOPPED"
	// killed is the exit code of a process that a SIGTERM ends.
	killed = 143
)

// Start registers the instance, opens its session, and keeps it open until Close.
func Start(ctx context.Context, c Config) (*Agent, error) {
	if c.CPU == 0 {
		c.CPU = 4096
	}
	if c.Memory == 0 {
		c.Memory = 8192
	}
	if c.HTTP == nil {
		c.HTTP = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	a := &Agent{Config: c, tasks: make(map[string]*entry), opened: make(chan struct{}), first: true}
	a.client = ecs.New(ecs.Options{
		Region: c.Region, BaseEndpoint: aws.String(c.Endpoint), Credentials: c.Credentials, HTTPClient: c.HTTP,
	})
	if err := a.register(ctx); err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	a.stop = stop
	a.work.Go(func() { a.keepSession(life) })
	select {
	case <-a.opened:
		return a, nil
	case <-ctx.Done():
		a.Close()
		return nil, ctx.Err()
	}
}

// ARN is the instance's.
func (a *Agent) ARN() string { return a.arn }

// Close ends the agent as a crash would: nothing is reported.
func (a *Agent) Close() {
	a.stop()
	a.work.Wait()
	a.HTTP.CloseIdleConnections()
}

// Disconnect cuts the session; the agent opens another at once.
func (a *Agent) Disconnect() {
	a.mu.Lock()
	conn := a.conn
	a.mu.Unlock()
	if conn != nil {
		conn.CloseNow() //nolint:errcheck // cutting it is the purpose
	}
}

// Sessions counts the sessions that were opened so far.
func (a *Agent) Sessions() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sessions
}

// Tasks gives the status of every task the agent has been told of, by ARN.
func (a *Agent) Tasks() map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[string]string, len(a.tasks))
	for arn, e := range a.tasks {
		out[arn] = e.last
	}
	return out
}

// Exit makes a running task end by itself.
func (a *Agent) Exit(taskARN string, code int32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.tasks[taskARN]
	if !ok || e.last == stopped {
		return fmt.Errorf("task %s does not run here", taskARN)
	}
	select {
	case e.exit <- code:
	default:
	}
	return nil
}

// Send writes a message of the agent to its session.
func (a *Agent) Send(ctx context.Context, m acs.Message) error {
	frame, err := acs.Encode(m)
	if err != nil {
		return err
	}
	return a.SendRaw(ctx, frame)
}

// SendRaw writes any bytes as a frame.
func (a *Agent) SendRaw(ctx context.Context, frame []byte) error {
	a.mu.Lock()
	conn := a.conn
	a.mu.Unlock()
	if conn == nil {
		return errors.New("no session")
	}
	return conn.Write(ctx, websocket.MessageText, frame)
}

func (a *Agent) register(ctx context.Context) error {
	integer := func(name string, n int32) types.Resource {
		return types.Resource{Name: aws.String(name), Type: aws.String("INTEGER"), IntegerValue: n}
	}
	in := &ecs.RegisterContainerInstanceInput{
		TotalResources: []types.Resource{
			integer("CPU", a.CPU), integer("MEMORY", a.Memory),
			{Name: aws.String("PORTS"), Type: aws.String("STRINGSET"), StringSetValue: append([]string{"22"}, a.Ports...)},
			{Name: aws.String("PORTS_UDP"), Type: aws.String("STRINGSET"), StringSetValue: []string{}},
		},
		Attributes: []types.Attribute{
			{Name: aws.String("ecs.os-type"), Value: aws.String("linux")},
			{Name: aws.String("ecs.os-family"), Value: aws.String("LINUX")},
			{Name: aws.String("ecs.cpu-architecture"), Value: aws.String("x86_64")},
			{Name: aws.String("com.amazonaws.ecs.capability.docker-remote-api.1.18")},
			{Name: aws.String("com.amazonaws.ecs.capability.docker-remote-api.1.24")},
		},
	}
	if a.Cluster != "" {
		in.Cluster = aws.String(a.Cluster)
	}
	if a.Config.ARN != "" {
		in.ContainerInstanceArn = aws.String(a.Config.ARN)
	}
	for name, value := range a.Attributes {
		in.Attributes = append(in.Attributes, types.Attribute{Name: aws.String(name), Value: aws.String(value)})
	}
	out, err := a.client.RegisterContainerInstance(ctx, in)
	if err != nil {
		return err
	}
	a.arn = aws.ToString(out.ContainerInstance.ContainerInstanceArn)
	return nil
}

// keepSession opens one session after the other until ctx ends.
func (a *Agent) keepSession(ctx context.Context) {
	for delay := time.Duration(0); ctx.Err() == nil; {
		before := a.Sessions()
		err := a.session(ctx)
		if ctx.Err() != nil {
			return
		}
		a.Log.Debug("session ended", "instance", a.arn, "err", err)
		if a.Sessions() > before {
			delay = 0
		}
		switch websocket.CloseStatus(err) {
		case websocket.StatusNormalClosure, websocket.StatusGoingAway:
			delay = time.Millisecond
		default:
			delay = min(max(10*time.Millisecond, 2*delay), time.Second)
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// session opens one session and serves it to its end.
func (a *Agent) session(ctx context.Context) error {
	out, err := a.client.DiscoverPollEndpoint(ctx, &ecs.DiscoverPollEndpointInput{ContainerInstance: &a.arn})
	if err != nil {
		return err
	}
	conn, err := a.dial(ctx, aws.ToString(out.Endpoint))
	if err != nil {
		return err
	}
	defer conn.CloseNow() //nolint:errcheck // it is over
	conn.SetReadLimit(acs.MaxFrame)
	a.mu.Lock()
	a.conn, a.first = conn, false
	a.sessions++
	if a.sessions == 1 {
		close(a.opened)
	}
	a.mu.Unlock()
	for {
		_, frame, err := conn.Read(ctx)
		if err != nil {
			return err
		}
		m, err := acs.Decode(frame)
		if err != nil {
			continue // as agents do
		}
		if a.Receive != nil && !a.Receive(m) {
			continue
		}
		if err := a.handle(ctx, m); err != nil {
			return err
		}
	}
}

func (a *Agent) dial(ctx context.Context, endpoint string) (*websocket.Conn, error) {
	cluster := a.Cluster
	if cluster == "" {
		cluster = "default"
	}
	a.mu.Lock()
	first := a.first
	a.mu.Unlock()
	q := url.Values{
		"agentHash": {"00000000"}, "agentVersion": {cmp.Or(a.Version, "1.0.0")}, "clusterArn": {cluster}, "containerInstanceArn": {a.arn},
		"dockerVersion": {"containerd"}, "protocolVersion": {"2"}, "seqNum": {"1"}, "sendCredentials": {fmt.Sprint(first)},
	}
	u := strings.Replace(strings.TrimSuffix(endpoint, "/"), "http", "ws", 1) + "/ws?" + q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	creds, err := a.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, err
	}
	empty := sha256.Sum256(nil)
	if err := v4.NewSigner().SignHTTP(ctx, creds, req, hex.EncodeToString(empty[:]), "ecs", a.Region, time.Now()); err != nil {
		return nil, err
	}
	conn, _, err := websocket.Dial(ctx, u, &websocket.DialOptions{HTTPClient: a.HTTP, HTTPHeader: req.Header})
	return conn, err
}
