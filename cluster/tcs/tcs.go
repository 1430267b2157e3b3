// Package tcs is the cluster's side of the telemetry websocket (agent
// protocol, "TCS websocket").
//
// A session is opened by a signed request of the instance's own key. Frames
// of the agent are acknowledged and passed to Config.Received; frames of the
// cluster are acknowledgements and heartbeats. The signed headers that the
// agent puts before every frame are not looked at: the session itself is
// authenticated.
package tcs

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"berth.dev/berth/cluster/api"
	wire "berth.dev/berth/wire/tcs"
)

const (
	// heartbeat is the time between heartbeats; agents wait at least 60 s.
	heartbeat = 30 * time.Second
	// silence is how long a session may be without a frame of the agent.
	silence = 3 * time.Minute
	// writeTimeout bounds one frame to the agent.
	writeTimeout = 10 * time.Second
	// maxBadFrames is how many frames without meaning a session survives.
	maxBadFrames = 16
)

// Config says what a server works with.
type Config struct {
	// Authenticate verifies the signature of the opening request.
	Authenticate func(r *http.Request, body []byte, service string) (api.Caller, error)
	// Received gets every request; it may be nil. A request that it fails on is answered
	// with a ServerException, and the agent's next one counts.
	Received func(ctx context.Context, instanceARN string, m wire.Message) error
	Log      *slog.Logger
}

// Server holds the telemetry sessions. It is the http.Handler of /tcs/ws.
type Server struct {
	Config
	mu       sync.Mutex
	closed   bool
	sessions map[string]*session // by instance ARN
	work     sync.WaitGroup
}

type session struct {
	instance string
	conn     *websocket.Conn
	cancel   context.CancelCauseFunc
}

// New makes a server.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{Config: c, sessions: make(map[string]*session)}
}

// Sessions is the number of open sessions.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Close ends all sessions and takes no more.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for _, ss := range s.sessions {
		ss.cancel(errClosed)
	}
	s.mu.Unlock()
	s.work.Wait()
}

var (
	errClosed   = errors.New("the cluster is stopping")
	errReplaced = errors.New("another session of the container instance replaced this one")
)

// ackOf names the answer to a message of the agent; "" stands for none, and known is false
// for what only clusters send.
func ackOf(m wire.Message) (ack string, known bool) {
	switch m.(type) {
	case *wire.PublishMetricsRequest:
		return wire.AckMetric, true
	case *wire.PublishHealthRequest:
		return wire.AckHealth, true
	case *wire.PublishInstanceStatusRequest:
		return wire.AckInstanceStatus, true
	case *wire.StartTelemetrySessionRequest:
		return "", true
	default:
		return "", false
	}
}

// ServeHTTP opens a session.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	caller, err := s.Authenticate(r, nil, "ecs")
	instance := r.URL.Query().Get("containerInstance")
	switch {
	case err != nil:
		refuse(w, http.StatusForbidden, "AccessDeniedException", err.Error())
		return
	case instance == "":
		refuse(w, http.StatusBadRequest, "InvalidParameterException", "The query has no containerInstance.")
		return
	case caller.Kind == api.Instance && caller.InstanceARN != instance:
		refuse(w, http.StatusForbidden, "AccessDeniedException", "This key belongs to another container instance.")
		return
	}
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		s.Log.Debug("telemetry handshake failed", "instance", instance, "err", err)
		return // Accept has answered
	}
	conn.SetReadLimit(wire.MaxFrame)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(r.Context()))
	ss := &session{instance, conn, cancel}
	if !s.open(ss) {
		cancel(errClosed)
		ss.end(websocket.StatusGoingAway, errClosed)
		return
	}
	defer s.work.Done()
	defer s.close(ss)
	var beats sync.WaitGroup
	beats.Go(func() { ss.beat(ctx) })
	err = s.read(ctx, ss)
	cancel(err)
	beats.Wait()
	ss.end(websocket.StatusNormalClosure, context.Cause(ctx))
	s.Log.Debug("telemetry session ended", "instance", instance, "err", context.Cause(ctx))
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	b, err := json.Marshal(map[string]string{"__type": code, "message": message})
	if err != nil {
		b = nil
	}
	w.Header().Set("X-Amzn-Errortype", code)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b) //nolint:errcheck // the peer is gone then
}

func (s *Server) open(ss *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if old := s.sessions[ss.instance]; old != nil {
		old.cancel(errReplaced)
	}
	s.sessions[ss.instance] = ss
	s.work.Add(1)
	return true
}

func (s *Server) close(ss *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[ss.instance] == ss {
		delete(s.sessions, ss.instance)
	}
}

// end closes the connection without waiting for the peer for long.
func (ss *session) end(code websocket.StatusCode, reason error) {
	text := ""
	if errors.Is(reason, errClosed) || errors.Is(reason, errReplaced) {
		text = reason.Error()
	}
	ss.conn.Close(code, text) //nolint:errcheck // it is over either way
}

// read handles frames until the session ends.
func (s *Server) read(ctx context.Context, ss *session) error {
	for bad := 0; bad < maxBadFrames; {
		data, err := ss.next(ctx)
		if err != nil {
			return err
		}
		m, err := wire.Decode(data)
		ack, known := ackOf(m)
		switch {
		case err == nil && known:
			err = s.take(ctx, ss, m, ack)
		case err == nil:
			bad++
			err = ss.send(ctx, wire.BadRequest, m.TypeName()+" is not for clusters.")
		default:
			bad++
			err = ss.send(ctx, wire.BadRequest, "The frame is not understood: "+err.Error())
		}
		if err != nil {
			return err
		}
	}
	return errors.New("too many frames without meaning")
}

// take has a request taken in and answers it.
func (s *Server) take(ctx context.Context, ss *session, m wire.Message, ack string) error {
	if s.Received != nil {
		if err := s.Received(ctx, ss.instance, m); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.Log.Warn("telemetry was not taken in", "instance", ss.instance, "type", m.TypeName(), "err", err)
			return ss.send(ctx, wire.ServerFault, "The request could not be taken in.")
		}
	}
	if ack == "" {
		return nil
	}
	return ss.send(ctx, ack, "")
}

func (ss *session) next(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	_, data, err := ss.conn.Read(ctx)
	return data, err
}

// beat sends heartbeats until the session ends.
func (ss *session) beat(ctx context.Context) {
	t := time.NewTicker(heartbeat)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if err := ss.write(ctx, []byte(`{"type":"HeartbeatMessage","message":{"healthy":true}}`)); err != nil {
				ss.cancel(err)
				return
			}
		}
	}
}

func (ss *session) send(ctx context.Context, name, words string) error {
	data, err := wire.Encode(&wire.Notice{Name: name, Message: words})
	if err != nil {
		return err
	}
	return ss.write(ctx, data)
}

func (ss *session) write(ctx context.Context, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return ss.conn.Write(ctx, websocket.MessageText, data)
}
