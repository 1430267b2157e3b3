package acs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/coder/websocket"
	"golang.org/x/time/rate"

	"berth.dev/berth/cluster/store"
	"berth.dev/berth/wire/acs"
)

const (
	// writeTimeout is how long one frame may take to be written.
	writeTimeout = 30 * time.Second
	// closeTimeout is how long the peer may take to answer a close frame.
	closeTimeout = time.Second
	// inbound is how many messages of an agent may wait for the session.
	inbound = 256
)

// everything says which tasks a session has to look at besides those that changed.
type everything int

const (
	nothing everything = iota
	allOwed            // what the agent has not been told or not been heard of
	allLive            // also what it runs: it has just started
)

// session is one agent's connection. run owns it; look, lookAll and end may be called
// from anywhere.
type session struct {
	server     *Server
	conn       *websocket.Conn
	id         string // of the instance
	instance   string // its ARN
	cluster    string
	clusterARN string
	version    *version
	newProcess bool   // it is the first session of the agent's process
	nth        uint64 // of the instance's sessions; set once, when it takes its place
	log        *slog.Logger

	// Owned by run.
	queue     *queue
	manifests int
	manifest  string // message id of the last manifest, until it was answered
	held      []acs.Message
	left      int64  // bytes until the connection is cut; 0 is never
	policy    []byte // the security groups as they were sent last, encoded
	update    updates
	pool      []byte // the orders for the volume pool, likewise

	mu sync.Mutex
	// policyDue says that the security groups have to be looked at, and groups which the
	// ones sent last depend on.
	policyDue bool
	updateDue bool // the update of the agent has to be looked at
	groups    map[string]bool
	poolDue   bool // the orders for the volume pool have to be looked at
	changed   []string
	all       everything
	wake      chan struct{}
	ended     chan struct{}
	code      websocket.StatusCode
	reason    string
}

func newSession(s *Server, inst *store.Instance, q url.Values) *session {
	ss := &session{
		server: s, id: inst.ID, instance: aws.ToString(inst.Instance.ContainerInstanceArn),
		cluster: inst.ClusterName, clusterARN: clusterARN(aws.ToString(inst.Instance.ContainerInstanceArn), inst.ClusterName),
		version: versionOf(q), log: s.Log.With("instance", inst.ID),
		queue: newQueue(s.AckTimeout), all: allOwed, policyDue: true, updateDue: true, poolDue: true,
		wake: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	if q.Get("sendCredentials") == "true" {
		ss.all, ss.newProcess = allLive, true
	}
	if f := s.Faults.DropAfter; f != nil {
		ss.left = f(ss.instance)
	}
	return ss
}

// look says that a task of the instance has changed.
func (ss *session) look(id string) {
	ss.mu.Lock()
	ss.changed = append(ss.changed, id)
	ss.mu.Unlock()
	ss.signal()
}

func (ss *session) lookAll() {
	ss.mu.Lock()
	ss.all = max(ss.all, allOwed)
	ss.policyDue, ss.updateDue, ss.poolDue = true, true, true
	ss.mu.Unlock()
	ss.signal()
}

func (ss *session) signal() {
	select {
	case ss.wake <- struct{}{}:
	default:
	}
}

// end makes run return; the first reason counts.
func (ss *session) end(code websocket.StatusCode, reason string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.reason != "" {
		return
	}
	ss.code, ss.reason = code, reason
	close(ss.ended)
}

func (ss *session) why() string {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.reason
}

// run serves the session until one side ends it.
func (ss *session) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	in := make(chan acs.Message, inbound)
	var helpers sync.WaitGroup
	helpers.Go(func() { ss.read(ctx, in) })
	helpers.Go(func() { ss.ping(ctx) })
	ss.log.Info("agent connected", "version", ss.version.agent)
	if err := ss.serve(ctx, in); err != nil {
		ss.end(websocket.StatusInternalError, err.Error())
	}
	ss.hangUp()
	cancel()
	helpers.Wait()
	ss.log.Info("agent disconnected", "err", ss.why())
}

// hangUp says why, if the peer still listens.
func (ss *session) hangUp() {
	ss.mu.Lock()
	code, reason := ss.code, ss.reason
	ss.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		ss.conn.Close(code, reason[:min(len(reason), 120)]) //nolint:errcheck // the connection may be gone already
	}()
	t := time.NewTimer(closeTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		ss.conn.CloseNow() //nolint:errcheck // as above
		<-done
	}
}

// serve is the session's one loop: nothing else writes messages.
func (ss *session) serve(ctx context.Context, in <-chan acs.Message) error {
	heartbeat := time.NewTicker(ss.server.Heartbeat)
	defer heartbeat.Stop()
	manifest := time.NewTimer(ss.server.Settle)
	defer manifest.Stop()
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	credentials := time.NewTimer(ss.firstRefresh())
	defer credentials.Stop()
	ss.signal()
	for {
		var err error
		select {
		case <-ctx.Done():
			ss.end(websocket.StatusGoingAway, "the cluster is shutting down")
			return nil
		case <-ss.ended:
			return nil
		case m := <-in:
			err = ss.receive(ctx, m)
		case <-ss.wake:
			err = ss.flush(ctx)
		case <-retry.C:
			if err = ss.retry(ctx); err == nil {
				err = ss.flush(ctx)
			}
		case <-credentials.C:
			err = ss.refresh(ctx)
			credentials.Reset(ss.server.Refresh)
		case <-heartbeat.C:
			err = ss.write(ctx, &acs.HeartbeatMessage{Healthy: true, MessageID: newMessageID()})
		case <-manifest.C:
			err = ss.sendManifest(ctx)
			manifest.Reset(ss.server.Manifest)
		}
		// The first manifest goes out as soon as the agent has everything.
		if err == nil && ss.manifests == 0 && ss.queue.idle() && !ss.pending() {
			err = ss.sendManifest(ctx)
			manifest.Reset(ss.server.Manifest)
		}
		if err != nil {
			return err
		}
		retry.Stop()
		if at := ss.queue.next(); !at.IsZero() {
			retry.Reset(max(0, time.Until(at)))
		}
	}
}

func (ss *session) pending() bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return len(ss.changed) > 0 || ss.all != nothing
}

// read decodes what the agent sends. Frames without meaning are passed over, as the
// protocol asks, but not for ever.
func (ss *session) read(ctx context.Context, in chan<- acs.Message) {
	limit := rate.NewLimiter(framesPerSecond, frameBurst)
	for bad := 0; ; {
		_, frame, err := ss.conn.Read(ctx)
		if err != nil {
			ss.end(websocket.StatusNormalClosure, fmt.Sprintf("read: %s", closeText(err)))
			return
		}
		if !limit.Allow() {
			ss.end(websocket.StatusPolicyViolation, "too many messages")
			return
		}
		m, err := acs.Decode(frame)
		if err != nil {
			bad++
			level := slog.LevelDebug // one line tells that there is a fault
			if bad == 1 {
				level = slog.LevelWarn
			}
			ss.log.Log(ctx, level, "frame of the agent is passed over", "size", len(frame), "err", err)
			if bad > maxBadFrames {
				ss.end(websocket.StatusPolicyViolation, "too many frames that are not messages of the protocol")
				return
			}
			continue
		}
		select {
		case in <- m:
		case <-ctx.Done():
			return
		}
	}
}

func closeText(err error) string {
	var c websocket.CloseError
	switch {
	case errors.As(err, &c):
		return fmt.Sprintf("closed by the agent with code %d", c.Code)
	case errors.Is(err, websocket.ErrMessageTooBig):
		return fmt.Sprintf("frame larger than %d bytes", maxFrame)
	}
	return err.Error()
}

// ping finds connections that are dead without having been closed.
func (ss *session) ping(ctx context.Context) {
	for wait(ctx, ss.server.Ping) {
		limited, cancel := context.WithTimeout(ctx, ss.server.Ping)
		err := ss.conn.Ping(limited)
		cancel()
		if err != nil {
			ss.end(websocket.StatusPolicyViolation, "no answer to a ping")
			return
		}
	}
}

// write sends one message, with the faults that are switched on.
func (ss *session) write(ctx context.Context, m acs.Message) error {
	frame, err := acs.Encode(m)
	if err != nil {
		return err
	}
	return ss.writeFrame(ctx, m, frame)
}

func (ss *session) writeFrame(ctx context.Context, m acs.Message, frame []byte) error {
	f := ss.server.Faults
	times := 1
	if f.Duplicate != nil {
		times += f.Duplicate(m)
	}
	ss.server.record(entryOf(EntrySent, ss.instance, m))
	if f.Drop != nil && f.Drop(m) {
		return nil
	}
	if f.Reorder != nil && f.Reorder(m) {
		ss.held = append(ss.held, m)
		return nil
	}
	for range times {
		if err := ss.writeBytes(ctx, frame); err != nil {
			return err
		}
	}
	held := ss.held
	ss.held = nil
	for _, h := range held {
		late, err := acs.Encode(h)
		if err != nil {
			return err
		}
		if err := ss.writeBytes(ctx, late); err != nil {
			return err
		}
	}
	return nil
}

func (ss *session) writeBytes(ctx context.Context, frame []byte) error {
	if ss.left > 0 {
		if ss.left -= int64(len(frame)); ss.left <= 0 {
			ss.conn.CloseNow() //nolint:errcheck // this is the fault that was asked for
			return errors.New("connection cut after the number of bytes asked for")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	if err := ss.conn.Write(ctx, websocket.MessageText, frame); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}
