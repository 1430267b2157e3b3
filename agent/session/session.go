package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

const (
	expiredText = "ConnectionExpired: Reconnect to continue" // agent protocol, "Liveness and reconnect numbers"
	queueLength = 256                                        // answers that wait to be written
	leaveLimit  = time.Second                                // for the farewell when the agent ends
)

// Session is one open websocket.
type Session struct {
	cl      *Client
	conn    *websocket.Conn
	url     *url.URL
	queue   chan []byte
	done    chan struct{} // closed when the session has ended
	end     func()        // closes done, once
	expired atomic.Bool   // it was ended for its age
}

func newSession(cl *Client, conn *websocket.Conn, u *url.URL) *Session {
	done := make(chan struct{})
	return &Session{cl: cl, conn: conn, url: u, queue: make(chan []byte, queueLength), done: done, end: sync.OnceFunc(func() { close(done) })}
}

// URL is the address that the session was opened with.
func (s *Session) URL() *url.URL { return s.url }

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Send takes a frame for sending; frames are written in the order of their sending.
func (s *Session) Send(ctx context.Context, frame []byte) error {
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

// Fail ends the session because it is of no use any more.
func (s *Session) Fail(err error) {
	s.cl.c.Log.Debug("session given up", "service", s.cl.c.Service, "err", err)
	s.end()
	_ = s.conn.CloseNow() // wakes the reader
}

var errEnded = errors.New("the session has ended")

// run serves the session until it ends.
func (s *Session) run(ctx context.Context) ending {
	var wg sync.WaitGroup
	wg.Go(func() { s.write(context.WithoutCancel(ctx)) })
	if s.cl.c.Opened != nil {
		open, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-s.done:
				cancel()
			case <-open.Done():
			}
		}()
		wg.Go(func() { s.cl.c.Opened(open, s) })
	}
	stop := context.AfterFunc(ctx, s.leave)
	err := s.read(ctx)
	s.end()
	stop()
	_ = s.conn.CloseNow() // it has ended; there is nobody left to tell
	wg.Wait()
	return s.ending(err)
}

// leave says goodbye when the agent ends.
func (s *Session) leave() {
	t := time.AfterFunc(leaveLimit, func() { _ = s.conn.CloseNow() })
	defer t.Stop()
	if err := s.conn.Close(websocket.StatusGoingAway, "agent stops"); err != nil {
		s.cl.c.Log.Debug("session was not closed in good order", "service", s.cl.c.Service, "err", err)
	}
}

// ending sorts the error that ended the session.
func (s *Session) ending(err error) ending {
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
func (s *Session) write(ctx context.Context) {
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
func (s *Session) writeFrame(ctx context.Context, frame []byte) bool {
	ctx, cancel := context.WithTimeout(ctx, s.cl.c.Timing.Write)
	defer cancel()
	if err := s.conn.Write(ctx, websocket.MessageText, frame); err != nil {
		s.cl.c.Log.Warn("frame was not sent", "service", s.cl.c.Service, "err", err)
		s.end()
		_ = s.conn.CloseNow() // wakes the reader
		return false
	}
	return true
}

// expire sends what is left and closes the session.
func (s *Session) expire(ctx context.Context) {
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
		s.cl.c.Log.Debug("session was not closed in good order", "service", s.cl.c.Service, "err", err)
	}
}

// read reads frames and has them handled, one at a time, until the session ends. Silence
// ends it.
func (s *Session) read(ctx context.Context) error {
	t := s.cl.c.Timing
	patience := t.Inactivity + t.Random(t.InactivityJitter)
	for {
		frame, err := s.readFrame(context.WithoutCancel(ctx), patience)
		if err != nil {
			return err
		}
		s.cl.c.Frame(ctx, s, frame)
	}
}

// readFrame reads one frame. The end of the agent does not interrupt it: leave closes
// the connection in good order.
func (s *Session) readFrame(ctx context.Context, patience time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, frame, err := s.conn.Read(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("no message of the cluster for %s", patience.Round(time.Millisecond))
	}
	return frame, err
}
