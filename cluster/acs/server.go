package acs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	"berth.dev/berth/cluster/api"
	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

// Bounds of what a peer can make the server do.
const (
	// maxFrame is the largest frame an agent may send, in bytes. Agents send only
	// acknowledgements and lists of tasks.
	maxFrame = 1 << 20
	// framesPerSecond and frameBurst bound an agent's messages.
	framesPerSecond, frameBurst = 500, 5000
	// maxBadFrames is how many frames without meaning a session survives.
	maxBadFrames = 32
	// opensPerSecond and openBurst bound the sessions that one instance opens. Agents
	// reconnect at once after a clean end (agent protocol, "ACS").
	opensPerSecond, openBurst = 5, 20
)

// Config says what a server works with. Durations of zero mean the default in brackets.
type Config struct {
	Store *store.Store
	// Authenticate verifies the signature of the request that opens a session and
	// tells who signed it. Its refusal is an *api.Error.
	Authenticate func(r *http.Request, body []byte, service string) (api.Caller, error)
	// Fail ends a task that cannot be sent, with the reason.
	Fail func(ctx context.Context, cluster, id, reason string) error
	// Credentials issues what a task's containers and its agent may use in its name;
	// either may be nil. It is asked whenever the task is sent. May be nil.
	Credentials func(ctx context.Context, t *store.Task) (task, execution *acs.IAMRoleCredentials, err error)
	// Refresh is how often the credentials of running tasks are sent anew [20 min]:
	// less than half of the hour for which roles at AWS usually give keys.
	Refresh time.Duration
	// Node names this process among those on the same store; it stays the same from one
	// start to the next.
	Node string

	// PackageURL is where an agent fetches a package; nil means that none is updated.
	PackageURL func(file string) string

	Heartbeat  time.Duration // between heartbeats [30 s]
	Ping       time.Duration // between pings, and the limit for each answer [10 s]
	AckTimeout time.Duration // until a payload is repeated, doubled each time [5 s]
	Manifest   time.Duration // between task manifests [5 min]
	Settle     time.Duration // at most, from a session's start to its first manifest [30 s]
	Grace      time.Duration // without a session until agentConnected is false [1 s]

	Faults *Faults
	Ledger func(Entry)
	Log    *slog.Logger
}

func (c *Config) setDefaults() {
	or := func(d *time.Duration, usual time.Duration) {
		if *d == 0 {
			*d = usual
		}
	}
	or(&c.Heartbeat, 30*time.Second)
	or(&c.Refresh, 20*time.Minute)
	or(&c.Ping, 10*time.Second)
	or(&c.AckTimeout, 5*time.Second)
	or(&c.Manifest, 5*time.Minute)
	or(&c.Settle, 30*time.Second)
	or(&c.Grace, time.Second)
	if c.Faults == nil {
		c.Faults = &Faults{}
	}
	if c.Ledger == nil {
		c.Ledger = func(Entry) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// Server holds the sessions of the agents. It is the http.Handler of /ws.
type Server struct {
	Config
	seq sequence
	// nodeGone holds one token when a node has gone.
	nodeGone chan struct{}

	// One lock, never held across I/O or a call of the store.
	mu       sync.Mutex
	ctx      context.Context // of Run; nil before and after
	sessions map[string]*session
	opened   map[string]uint64        // how many sessions an instance has had, by instance id
	opens    map[string]*rate.Limiter // by instance id; only of instances that exist
	work     sync.WaitGroup
}

// New makes a server. It takes sessions once Run runs.
func New(c Config) *Server {
	c.setDefaults()
	return &Server{Config: c, nodeGone: make(chan struct{}, 1), sessions: make(map[string]*session), opened: make(map[string]uint64), opens: make(map[string]*rate.Limiter)}
}

// Run keeps the sessions in step with the records until ctx ends, and then ends them.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.ctx = nil
		s.mu.Unlock()
		cancel()
		s.work.Wait()
	}()
	s.work.Go(func() { s.sweep(ctx) })
	for {
		err := s.Store.WatchFrom(ctx, func(store.Reader) { s.lookAgain() }, s.dispatch)
		if !errors.Is(err, store.ErrLagged) {
			return err
		}
		s.Log.Warn("sessions lag behind the records, looking at all tasks again")
	}
}

// dispatch tells the session of a changed task's instance. It is called in commit order
// and must not block.
func (s *Server) dispatch(c store.Change) {
	switch c.Table {
	case store.Tasks.Name():
		t, ok := c.New.(*store.Task)
		if !ok {
			t, ok = c.Old.(*store.Task)
		}
		if ok && t.InstanceID != "" {
			if ss := s.session(t.InstanceID); ss != nil {
				ss.look(t.ID)
			}
		}
	case store.Nodes.Name():
		if c.New == nil {
			select {
			case s.nodeGone <- struct{}{}:
			default:
			}
		}
	case store.SecurityGroupRules.Name(), store.Interfaces.Name():
		s.dispatchPolicy(c)
	case store.Volumes.Name(), store.Snapshots.Name():
		s.dispatchPool(c)
	case store.Instances.Name():
		i, ok := c.New.(*store.Instance)
		if ok && aws.ToString(i.Instance.Status) != "INACTIVE" {
			s.moved(c.Old, i)
			if ss := s.session(i.ID); ss != nil && i.Update != nil {
				ss.lookUpdate()
			}
			return
		}
		if old, had := c.Old.(*store.Instance); had {
			if !ok {
				s.forget(old.ID)
			}
			if ss := s.session(old.ID); ss != nil {
				ss.end(websocket.StatusPolicyViolation, "the container instance was deregistered")
			}
		}
	}
}

// moved ends the session of an agent that has come to another node since: the connection
// here is dead and has not been noticed.
func (s *Server) moved(before any, now *store.Instance) {
	old, ok := before.(*store.Instance)
	if !ok || old.Node != s.Node || now.Node == s.Node || !now.Instance.AgentConnected {
		return
	}
	if ss := s.session(now.ID); ss != nil {
		ss.end(websocket.StatusPolicyViolation, "replaced by a newer session with another node")
	}
}

// forget drops what is remembered of an instance whose record is gone.
func (s *Server) forget(instanceID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.opens, instanceID)
	if s.sessions[instanceID] == nil {
		delete(s.opened, instanceID)
	}
}

// lookAgain makes all sessions work out anew what they owe.
func (s *Server) lookAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ss := range s.sessions {
		ss.lookAll()
	}
}

func (s *Server) session(instanceID string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[instanceID]
}

// Connected tells whether the agent of an instance has a session here.
func (s *Server) Connected(instanceID string) bool { return s.session(instanceID) != nil }

// ServeHTTP opens a session, or refuses it with a typed error: a JSON object of the
// exception's name and its message (agent protocol, "Connecting").
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ss, err := s.admit(r)
	if err != nil {
		s.refuse(w, r, err)
		return
	}
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		s.Log.Debug("websocket handshake failed", "instance", ss.instance, "err", err)
		return // Accept has answered
	}
	conn.SetReadLimit(maxFrame)
	ss.conn = conn
	ctx, err := s.open(ss)
	if err != nil {
		conn.Close(websocket.StatusTryAgainLater, err.Error()) //nolint:errcheck // the session never began
		return
	}
	defer s.work.Done()
	ss.run(ctx)
	s.close(ss)
}

// admit checks who asks for a session, and for what.
func (s *Server) admit(r *http.Request) (*session, error) {
	if r.Method != http.MethodGet {
		return nil, &acs.BadRequestException{Message: "a session is opened by a GET request"}
	}
	caller, err := s.Authenticate(r, nil, "ecs")
	if err != nil {
		var refused *api.Error
		if errors.As(err, &refused) {
			return nil, &acs.AccessDeniedException{Message: refused.Error()}
		}
		return nil, err
	}
	q := r.URL.Query()
	arn := q.Get("containerInstanceArn")
	id := arn[strings.LastIndexByte(arn, '/')+1:]
	var inst *store.Instance
	s.Store.View(func(rd store.Reader) {
		store.Lookup(rd, store.InstancesByID, id, func(_ string, i *store.Instance) bool {
			if aws.ToString(i.Instance.ContainerInstanceArn) == arn {
				inst = i
			}
			return inst == nil
		})
	})
	switch {
	case inst == nil:
		return nil, &acs.InvalidInstanceException{Message: "The container instance is not registered."}
	case caller.Kind == api.Role: // a task that has got hold of its host's address is no agent
		return nil, &acs.AccessDeniedException{Message: "Sessions are opened with the key of a container instance."}
	case caller.Kind == api.Instance && caller.InstanceARN != arn,
		inst.KeyID != "" && inst.KeyID != caller.AccessKeyID:
		return nil, &acs.AccessDeniedException{Message: "This key belongs to another container instance."}
	case !names(q.Get("clusterArn"), inst.ClusterName):
		return nil, &acs.InvalidClusterException{Message: "The container instance is not part of this cluster."}
	case aws.ToString(inst.Instance.Status) == "INACTIVE":
		return nil, &acs.InactiveInstanceException{Message: "The container instance was deregistered."}
	case !s.mayOpen(inst.ID):
		return nil, &acs.ServerException{Message: "The container instance opens sessions too often."}
	}
	return newSession(s, inst, q), nil
}

// names tells whether a cluster parameter, a name or an ARN or nothing, means a cluster.
func names(ref, cluster string) bool {
	return ref == cluster || ref == "" && cluster == "default" ||
		strings.HasPrefix(ref, "arn:") && strings.HasSuffix(ref, ":cluster/"+cluster)
}

func (s *Server) mayOpen(instanceID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.opens[instanceID]
	if !ok {
		l = rate.NewLimiter(opensPerSecond, openBurst)
		s.opens[instanceID] = l
	}
	return l.Allow()
}

func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var m acs.Message
	switch e := err.(type) { //nolint:errorlint // admit wraps nothing
	case *acs.BadRequestException:
		m = e
	case *acs.AccessDeniedException:
		m = e
	case *acs.InvalidInstanceException:
		m = e
	case *acs.InvalidClusterException:
		m = e
	case *acs.InactiveInstanceException:
		m = e
	case *acs.ServerException:
		m = e
	default:
		s.Log.Error("session cannot be checked", "err", err)
		m = &acs.ServerException{Message: "The cluster cannot check the request."}
	}
	text := strings.TrimPrefix(err.Error(), m.TypeName()+": ")
	s.Log.Info("session refused", "remote", r.RemoteAddr, "exception", m.TypeName(), "err", text)
	s.record(Entry{Kind: EntryRefused, Instance: clip(r.URL.Query().Get("containerInstanceArn")), Type: m.TypeName(), Detail: text})
	body, err := json.Marshal(map[string]string{m.TypeName(): text})
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	w.Write(body) //nolint:errcheck // the peer may be gone
}

func clip(s string) string { return s[:min(len(s), 256)] }

func (s *Server) record(e Entry) {
	e.At = time.Now()
	s.Ledger(e)
}

// open puts a session in its instance's place; one that is there is replaced. Two
// agents with one key fight for the place, and the close code makes the loser back off.
func (s *Server) open(ss *session) (context.Context, error) {
	s.mu.Lock()
	if s.ctx == nil {
		s.mu.Unlock()
		return nil, errors.New("the cluster is shutting down")
	}
	ctx := s.ctx
	s.work.Add(1)
	old := s.sessions[ss.id]
	s.sessions[ss.id] = ss
	s.opened[ss.id]++
	ss.nth = s.opened[ss.id]
	s.mu.Unlock()
	if old != nil {
		old.end(websocket.StatusPolicyViolation, "replaced by a newer session")
	}
	s.record(Entry{Kind: EntryOpened, Instance: ss.instance})
	s.work.Go(func() {
		s.settleUpdate(ctx, ss)
		s.settleConnected(ctx, ss.id, ss.version)
	})
	return ctx, nil
}

func (s *Server) close(ss *session) {
	s.mu.Lock()
	if s.sessions[ss.id] == ss {
		delete(s.sessions, ss.id)
	}
	ctx := s.ctx
	if ctx != nil {
		s.work.Add(1)
	}
	s.mu.Unlock()
	s.record(Entry{Kind: EntryClosed, Instance: ss.instance, Detail: ss.why()})
	if ctx == nil {
		return // shutting down; the next start of this node finds out who comes back
	}
	go func() {
		defer s.work.Done()
		if wait(ctx, s.Grace) && s.isLatest(ss) {
			s.settleConnected(ctx, ss.id, nil)
		}
	}()
}

// isLatest tells whether no session came after this one. The end of a later one has a
// grace of its own.
func (s *Server) isLatest(ss *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened[ss.id] == ss.nth
}

// SendRaw writes bytes as a frame to an instance's session: a knob for tests.
func (s *Server) SendRaw(ctx context.Context, instanceID string, frame []byte) error {
	ss := s.session(instanceID)
	if ss == nil {
		return errors.New("no session of instance " + instanceID)
	}
	return ss.conn.Write(ctx, websocket.MessageText, frame)
}

// wait returns false when ctx ends first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func newMessageID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: the program ends instead
	return hex.EncodeToString(b[:])
}

// versionOf reads what the agent says of itself in its query.
func versionOf(q url.Values) *version {
	v := &version{agent: q.Get("agentVersion"), hash: q.Get("agentHash"), runtime: q.Get("dockerVersion")}
	if len(v.agent)+len(v.hash)+len(v.runtime) > 1024 {
		return &version{}
	}
	return v
}
