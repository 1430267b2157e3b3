package acs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	wire "berth.dev/berth/wire/acs"
)

const (
	expiredText = "ConnectionExpired: Reconnect to continue" // agent protocol, "Liveness and reconnect numbers"
	queueLength = 256                                        // answers that wait to be written
	leaveLimit  = time.Second                                // for the farewell when the agent ends
)

// session is one open websocket.
type session struct {
	cl      *Client
	conn    *websocket.Conn
	queue   chan []byte
	done    chan struct{} // closed when the session has ended
	end     func()        // closes done, once
	expired atomic.Bool   // it was ended for its age
	noise   rate.Sometimes
}

func newSession(cl *Client, conn *websocket.Conn) *session {
	done := make(chan struct{})
	return &session{
		cl: cl, conn: conn, queue: make(chan []byte, queueLength), done: done, end: sync.OnceFunc(func() { close(done) }),
		noise: rate.Sometimes{First: 10, Interval: time.Second},
	}
}

// Send takes a message for sending. It is the session's wire.Responder.
func (s *session) Send(ctx context.Context, m wire.Message) error {
	frame, err := wire.Encode(m)
	if err != nil {
		return err
	}
	select {
	case <-s.done:
		return errEnded
	default:
	}
	select {
	case s.queue <- frame:
		return nil
	case <-s.done:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

var errEnded = errors.New("the ACS session has ended")

// run serves the session until it ends.
func (s *session) run(ctx context.Context) ending {
	var wg sync.WaitGroup
	wg.Go(func() { s.write(context.WithoutCancel(ctx)) })
	stop := context.AfterFunc(ctx, s.leave)
	err := s.read(ctx)
	s.end()
	stop()
	_ = s.conn.CloseNow() // it has ended; there is nobody left to tell
	wg.Wait()
	return s.ending(err)
}

// leave says goodbye when the agent ends.
func (s *session) leave() {
	t := time.AfterFunc(leaveLimit, func() { _ = s.conn.CloseNow() })
	defer t.Stop()
	if err := s.conn.Close(websocket.StatusGoingAway, "agent stops"); err != nil {
		s.cl.c.Log.Debug("ACS session was not closed in good order", "err", err)
	}
}

// ending sorts the error that ended the session.
func (s *session) ending(err error) ending {
	if s.expired.Load() {
		return ending{err: errors.New("the session had reached its age"), clean: true}
	}
	switch code := websocket.CloseStatus(err); code {
	case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusAbnormalClosure, websocket.StatusInternalError:
		return ending{err: fmt.Errorf("closed by the cluster with code %d", code), clean: true}
	case -1:
	default:
		return ending{err: fmt.Errorf("closed by the cluster with code %d", code)}
	}
	// A connection that just breaks is what the protocol numbers 1006.
	broken := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, net.ErrClosed)
	return ending{err: err, clean: broken}
}

// write sends what is queued, one frame at a time, and ends the session at its age.
func (s *session) write(ctx context.Context) {
	t := s.cl.c.Timing
	age := time.NewTimer(t.Lifetime + t.Random(t.LifetimeJitter))
	defer age.Stop()
	for {
		select {
		case frame := <-s.queue:
			if !s.writeFrame(ctx, frame) {
				return
			}
		case <-age.C:
			s.expire(ctx)
			return
		case <-s.done:
			return
		}
	}
}

// writeFrame writes one frame. When that fails it ends the session, for whoever reads
// and for whoever waits to have something sent.
func (s *session) writeFrame(ctx context.Context, frame []byte) bool {
	ctx, cancel := context.WithTimeout(ctx, s.cl.c.Timing.Write)
	defer cancel()
	if err := s.conn.Write(ctx, websocket.MessageText, frame); err != nil {
		s.cl.c.Log.Warn("ACS answer was not sent", "err", err)
		s.end()
		_ = s.conn.CloseNow() // wakes the reader
		return false
	}
	return true
}

// expire sends what is left and closes the session.
func (s *session) expire(ctx context.Context) {
	for {
		select {
		case frame := <-s.queue:
			if !s.writeFrame(ctx, frame) {
				return
			}
			continue
		default:
		}
		break
	}
	s.expired.Store(true)
	if err := s.conn.Close(websocket.StatusNormalClosure, expiredText); err != nil {
		s.cl.c.Log.Debug("ACS session was not closed in good order", "err", err)
	}
}

// read reads frames and has them handled until the session ends. Silence ends it.
func (s *session) read(ctx context.Context) error {
	t := s.cl.c.Timing
	patience := t.Inactivity + t.Random(t.InactivityJitter)
	for {
		frame, err := s.readFrame(context.WithoutCancel(ctx), patience)
		if err != nil {
			return err
		}
		m, err := wire.Decode(frame)
		if err != nil {
			s.noise.Do(func() { s.cl.c.Log.Warn("ACS frame ignored", "err", err, "size", len(frame)) })
			continue
		}
		if err := s.dispatch(ctx, m); err != nil && ctx.Err() == nil {
			s.noise.Do(func() { s.cl.c.Log.Warn("ACS message not answered", "type", m.TypeName(), "err", err) })
		}
	}
}

// readFrame reads one frame. The end of the agent does not interrupt it: leave closes
// the connection in good order.
func (s *session) readFrame(ctx context.Context, patience time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, frame, err := s.conn.Read(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("no message of the cluster for %s", patience.Round(time.Millisecond))
	}
	return frame, err
}

// dispatch hands a message to the handler. Messages that only agents send, and those
// that ask for nothing, are passed over; all count as a sign of life.
func (s *session) dispatch(ctx context.Context, m wire.Message) error {
	h := s.cl.c.Handler
	switch m := m.(type) {
	case *wire.PayloadMessage:
		return h.Payload(ctx, m, s)
	case *wire.HeartbeatMessage:
		return h.Heartbeat(ctx, m, s)
	case *wire.IAMRoleCredentialsMessage:
		return h.Credentials(ctx, m, s)
	case *wire.TaskManifestMessage:
		return h.Manifest(ctx, m, s)
	case *wire.TaskStopVerificationAck:
		return h.StopVerified(ctx, m)
	case wire.AttachMessage:
		return h.Attach(ctx, m, s)
	case error:
		s.cl.c.Log.Warn("the cluster reports an error", "err", m)
	case *wire.StageUpdateMessage, *wire.PerformUpdateMessage:
		// An agent on containerd may ignore updates (agent protocol, PerformUpdateMessage).
		s.cl.c.Log.Info("update message ignored", "type", m.TypeName())
	case *wire.CloseMessage, *wire.ErrorMessage:
		s.cl.c.Log.Info("message of the cluster", "type", m.TypeName())
	default:
		return fmt.Errorf("%s is not for agents", m.TypeName())
	}
	return nil
}
