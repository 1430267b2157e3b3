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
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"berth.dev/berth/cluster/api"
)

const (
	// heartbeat is the time between heartbeats; agents wait at least 60 s.
	heartbeat = 30 * time.Second
	// silence is how long a session may be without a frame of the agent.
	silence = 3 * time.Minute
	// writeTimeout bounds one frame to the agent.
	writeTimeout = 10 * time.Second
	// maxFrame is a metrics request of 1 MiB and its headers.
	maxFrame = 1<<20 + 64<<10
	// maxBadFrames is how many frames without meaning a session survives.
	maxBadFrames = 16
)

// Config says what a server works with.
type Config struct {
	// Authenticate verifies the signature of the opening request.
	Authenticate func(r *http.Request, body []byte, service string) (api.Caller, error)
	// Received gets every message by its type, such as
	// PublishMetricsRequest; it may be nil. It must not keep message.
	Received func(instanceARN, kind string, message json.RawMessage)
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

// frame is a message in either direction.
type frame struct {
	Type    string          `json:"type"`
	Message json.RawMessage `json:"message"`
}

// acks name the answer to each message of the agent.
var acks = map[string]string{
	"PublishMetricsRequest":        "AckPublishMetric",
	"PublishHealthRequest":         "AckPublishHealth",
	"PublishInstanceStatusRequest": "AckPublishInstanceStatus",
	"StartTelemetrySessionRequest": "",
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
	conn.SetReadLimit(maxFrame)
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
		f, err := ss.next(ctx)
		var malformed *malformedError
		switch {
		case errors.As(err, &malformed):
			bad++
			err = ss.send(ctx, "BadRequestException", malformed.Error())
		case err == nil:
			if s.Received != nil {
				s.Received(ss.instance, f.Type, f.Message)
			}
			if ack := acks[f.Type]; ack != "" {
				err = ss.send(ctx, ack, "")
			}
		}
		if err != nil {
			return err
		}
	}
	return errors.New("too many frames without meaning")
}

// malformedError is a frame that cannot be understood.
type malformedError struct{ what string }

func (e *malformedError) Error() string { return "The frame is not understood: " + e.what }

func (ss *session) next(ctx context.Context) (*frame, error) {
	ctx, cancel := context.WithTimeout(ctx, silence)
	defer cancel()
	_, data, err := ss.conn.Read(ctx)
	if err != nil {
		return nil, err
	}
	return parse(data)
}

// parse takes the JSON of a frame from behind its header block, which not
// every agent sends.
func parse(data []byte) (*frame, error) {
	if !bytes.HasPrefix(bytes.TrimLeft(data, " \r\n\t"), []byte("{")) {
		_, body, ok := bytes.Cut(data, []byte("\r\n\r\n"))
		if !ok {
			return nil, &malformedError{"no end of the header block"}
		}
		data = body
	}
	f := new(frame)
	if err := json.Unmarshal(data, f); err != nil {
		return nil, &malformedError{"invalid JSON"}
	}
	if _, known := acks[f.Type]; !known {
		return nil, &malformedError{"unknown message type"}
	}
	return f, nil
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

func (ss *session) send(ctx context.Context, kind, message string) error {
	text, err := json.Marshal(map[string]string{"message": message})
	if err != nil {
		return err
	}
	data, err := json.Marshal(frame{kind, text})
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
