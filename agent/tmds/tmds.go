// Package tmds serves the task metadata endpoints: what a task can ask about itself, the
// credentials of its role, task protection and fault injection (agent protocol, "Task
// metadata server").
//
// # Who asks
//
// Each network namespace of a task has a listener of its own, opened inside it, at the
// well-known address 169.254.170.2. Who connects there is the task; nothing in a request
// can say otherwise, and an id of another task opens nothing. The listener takes only what
// comes over the namespace's loopback device, so not even a neighbour on the same bridge
// that sends frames of its own making reaches it. It listens on a port that the task does
// not want, with a rule that rewrites port 80 without connection tracking, because a
// listener on port 80 would keep the task's own server from port 80 of all addresses.
//
// Tasks in the host's namespace share one listener on a loopback address. There the random
// id in the path says which task asks, and credentials take a token besides, from a file
// that only the task's containers have.
//
// # Life
//
// An endpoint is a resource of its task (task.KindEndpoint), named as the network that it
// serves. It lives in the agent; its socket is kept by the service manager as well (package
// fdstore), so that who asks while no agent runs waits for the next. A new agent takes the
// sockets up with Adopt, or opens others, as soon as it has read its state, before it has
// reached the cluster or containerd. What was kept for tasks that it does not know is
// dropped then.
package tmds

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"berth.dev/berth/agent/creds"
	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/task"
	"berth.dev/berth/wire/tmds"
)

// Tasks is what is known of tasks.
type Tasks interface {
	// View returns the task with this ARN.
	View(arn string) (engine.View, bool)
}

// Credentials holds the credentials of tasks (see package creds).
type Credentials interface {
	Get(id, taskARN string) (creds.Credentials, error)
	Of(taskARN string, r creds.Role) (creds.Credentials, error)
	Drop(taskARN string)
}

// Stats measures containers.
type Stats interface {
	// Stats returns what a container uses now; an error if that is not known.
	Stats(ctx context.Context, taskARN, container string) (*tmds.Stats, error)
}

// Cluster is what the endpoints ask of the ECS API.
type Cluster interface {
	// Tags lists the tags of a resource with the agent's own credentials.
	Tags(ctx context.Context, arn string) (map[string]string, error)
	// Protection reads the protection of a task with the credentials of its role, or
	// changes it when set is given.
	Protection(ctx context.Context, c creds.Credentials, taskARN string, set *tmds.ProtectionRequest) (*tmds.ProtectionResponse, error)
}

// Kept keeps listeners while no agent runs.
type Kept interface {
	// Take returns the listener that an agent before this one gave to be kept.
	Take(key string) (net.Listener, bool)
	Keep(key string, l net.Listener) error
	// Drop ends what Keep began, whether it was taken or not.
	Drop(key string) error
	// Retain drops all that was not taken, except under these keys.
	Retain(keys []string) (dropped int, err error)
}

// unkept keeps nothing.
type unkept struct{}

func (unkept) Take(string) (net.Listener, bool) { return nil, false }
func (unkept) Keep(string, net.Listener) error  { return nil }
func (unkept) Drop(string) error                { return nil }
func (unkept) Retain([]string) (int, error)     { return 0, nil }

// Instance is who the agent is for the cluster; its members are empty before it has
// registered.
type Instance struct{ Cluster, ARN, Zone string }

// Config is what a Server is made of.
type Config struct {
	Dir         string // for tokens; on a file system in memory
	Tasks       Tasks
	Credentials Credentials
	Stats       Stats
	Cluster     Cluster
	Instance    func() Instance
	// Storage is how much a task has used of its limited storage, and the limit, in bytes;
	// ok is false for a task without one. It may be nil.
	Storage func(ctx context.Context, t *task.Task) (used, limit uint64, ok bool)

	Rate, Burst int  // requests a second of one task (ECS_TASK_METADATA_RPS_LIMIT)
	HostRoles   bool // credentials for tasks in the host's network (ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST)
	HideZone    bool // ECS_DISABLE_TASK_METADATA_AZ
	// HostAddress is where tasks in the host's network reach their endpoint.
	HostAddress string
	Files       *Files // metadata files; nil if there are none (ECS_ENABLE_CONTAINER_METADATA)
	Audit       *Audit // nil if nothing is recorded
	Kept        Kept   // nil keeps no listener
	Log         *slog.Logger
}

// DefaultHostAddress is the loopback address of the reference agent.
const DefaultHostAddress = "127.0.0.1:51679"

// Limits of what is served.
const (
	ioTimeout   = 5 * time.Second // read and write (agent protocol, "Server")
	callTimeout = 4 * time.Second // calls of the ECS API for an answer
	endTimeout  = 3 * time.Second // for the answers that are on their way when the agent ends
	maxHeaders  = 16 << 10        // bytes
	maxBody     = 64 << 10        // bytes
	maxConns    = 256             // open connections of one listener
	// overLimit delays what is refused for its rate, so that a task that asks without
	// end takes little of the processor.
	overLimit = 50 * time.Millisecond
)

// Server serves the endpoints of all tasks. It is an engine.Resource of kind
// task.KindEndpoint.
type Server struct {
	c    Config
	log  *slog.Logger
	host *hostListener

	mu        sync.Mutex
	endpoints map[string]*endpoint // by task id and name
	ids       map[string]subject   // by the id in the path
	tasks     map[string]*guest    // by task id
	closed    bool
}

// subject is what an id in a path stands for.
type subject struct{ taskID, container string }

// New makes a server that serves nothing yet.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.HostAddress == "" {
		c.HostAddress = DefaultHostAddress
	}
	if c.Kept == nil {
		c.Kept = unkept{}
	}
	return &Server{
		c: c, log: c.Log, host: &hostListener{kept: c.Kept, log: c.Log},
		endpoints: make(map[string]*endpoint), ids: make(map[string]subject), tasks: make(map[string]*guest),
	}
}

// Close closes all listeners, after what was asked has been answered. Tasks find them
// closed until an agent opens them again, or wait if they are kept.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	servers := s.host.close()
	for key, e := range s.endpoints {
		if e.http != nil {
			servers = append(servers, e.http)
		}
		delete(s.endpoints, key)
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, h := range servers {
		wg.Go(func() { end(ctx, h) })
	}
	wg.Wait()
}

// end ends a server, giving it until ctx ends to answer what it was asked.
func end(ctx context.Context, h *http.Server) {
	if h.Shutdown(ctx) != nil {
		h.Close() //nolint:errcheck // nobody is left to tell
	}
}

// server is an HTTP server with the limits of this package.
func server(h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: ioTimeout, ReadTimeout: ioTimeout, WriteTimeout: 2 * ioTimeout,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: maxHeaders,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
}
