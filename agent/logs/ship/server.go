package ship

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/logs/grant"
	"berth.dev/berth/agent/logs/link"
	"berth.dev/berth/agent/logs/sink"
	"berth.dev/berth/agent/socket"
)

const (
	shippedByte = link.Shipped
	atEndByte   = link.AtEnd
)

// Bounds of what streams hold in memory, in bytes: all together, and each.
const (
	budgetAll = 32 << 20
	budgetMin = 64 << 10
	budgetMax = 1 << 20
)

// maxSpec bounds a stream file in bytes.
const maxSpec = 1 << 20

// Config is what a Server needs.
type Config struct {
	Run  string // directory of the sockets; it must be on this host and owned by root
	Logs string // directory of the logs: Logs/<task>/<container>
	// Idle is how long a server without streams goes on; 0 means 5 s.
	Idle        time.Duration
	JournalPath string // of the journal's socket; "" means the system's
	Log         *slog.Logger
}

// ErrRunning is returned by Run when another shipper serves the directory.
var ErrRunning = errors.New("another shipper is running")

// Server is the shipper of one host.
type Server struct {
	c      Config
	agent  *grant.Client
	lock   *os.File
	closed bool

	mu      sync.Mutex
	streams map[string]*stream
	ended   chan struct{} // a stream has ended
	running sync.WaitGroup
}

// New makes a server.
func New(c Config) *Server {
	if c.Idle <= 0 {
		c.Idle = 5 * time.Second
	}
	return &Server{
		c: c, agent: grant.NewClient(filepath.Join(c.Run, link.AgentSocket)), streams: map[string]*stream{}, ended: make(chan struct{}, 1),
	}
}

// Run serves until ctx ends, or until there has been nothing to send for a while.
func (s *Server) Run(ctx context.Context) error {
	l, err := s.listen(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.recover(ctx)
	conns := make(chan error, 1)
	go func() { conns <- s.accept(ctx, l) }()
	s.untilIdle(ctx)
	cancel()
	// The socket goes before the lock, so that nobody finds a socket without a server.
	err = errors.Join(l.Close(), <-conns)
	s.running.Wait()
	return errors.Join(err, s.lock.Close())
}

// listen takes the lock of the directory and makes the socket. A server that is about
// to end is waited for.
func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	lock, err := os.Open(s.c.Run)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if c, err := net.Dial("unix", s.socket()); err == nil {
			return nil, errors.Join(ErrRunning, c.Close(), lock.Close())
		}
		if try == 100 || !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", s.c.Run, err), lock.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), lock.Close())
		case <-time.After(50 * time.Millisecond):
		}
	}
	s.lock = lock
	l, err := socket.Listen(s.socket())
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return l, nil
}

func (s *Server) socket() string { return filepath.Join(s.c.Run, link.Socket) }

// recover takes up the logs that an earlier server has left unfinished.
func (s *Server) recover(ctx context.Context) {
	files, err := filepath.Glob(filepath.Join(s.c.Logs, "*", "*", logs.StreamFile))
	if err != nil {
		s.c.Log.Error("look for logs", "err", err)
	}
	for _, f := range files {
		if p, err := ReadPlace(filepath.Dir(f)); err == nil && p.Done {
			continue
		}
		if _, err := s.stream(ctx, filepath.Dir(f), nil); err != nil {
			s.c.Log.Warn("a log cannot be sent", "dir", filepath.Dir(f), "err", err)
		}
	}
}

// untilIdle waits until ctx ends or there has been nothing to do for a while.
func (s *Server) untilIdle(ctx context.Context) {
	idle := time.NewTimer(s.c.Idle)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.ended:
			idle.Reset(s.c.Idle)
		case <-idle.C:
			s.mu.Lock()
			if len(s.streams) == 0 {
				s.closed = true // from here on nobody is taken who would be forgotten
				s.mu.Unlock()
				return
			}
			s.mu.Unlock()
			idle.Reset(s.c.Idle)
		}
	}
}

func (s *Server) accept(ctx context.Context, l net.Listener) error {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			s.c.Log.Warn("accept", "err", err)
			select { // out of descriptors, say
			case <-ctx.Done():
				return nil
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		open.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() }) //nolint:errcheck // it ends the reading
			defer stop()
			s.serve(ctx, c)
		})
	}
}

// logger is the connection of one logger.
type logger struct{ conn net.Conn }

// tell sends one byte. A logger that does not read, as none does, loses it.
func (l *logger) tell(b byte) {
	if err := l.conn.SetWriteDeadline(time.Now().Add(time.Second)); err == nil {
		_, _ = l.conn.Write([]byte{b}) // a broken connection is noticed by its reader
	}
}

// serve hears one logger out.
func (s *Server) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	r := bufio.NewReaderSize(c, link.MaxPath+1)
	line, err := r.ReadSlice('\n')
	if err != nil {
		return
	}
	dir := strings.TrimSuffix(string(line), "\n")
	l := &logger{c}
	st, err := s.stream(ctx, dir, l)
	if errors.Is(err, errEnding) {
		return // the logger finds the next shipper, or starts it
	}
	if err != nil {
		s.c.Log.Warn("a log cannot be sent", "dir", dir, "err", err)
		l.tell(link.Known) // the logger need not wait
		_, _ = io.Copy(io.Discard, r)
		return
	}
	defer st.leave(l)
	l.tell(link.Known)
	r = bufio.NewReaderSize(r, 16)
	for {
		b, err := r.ReadByte()
		if err != nil {
			return
		}
		switch b {
		case link.Grown:
			st.poke()
		case link.Mark:
			st.mark(l)
		}
	}
}

// errEnding is of a shipper that takes no more logs.
var errEnding = errors.New("the shipper is ending")

// stream finds or starts the stream of a log directory, and adds a logger to it.
func (s *Server) stream(ctx context.Context, dir string, l *logger) (*stream, error) {
	rel, err := filepath.Rel(s.c.Logs, dir)
	if err != nil || strings.HasPrefix(rel, "..") || strings.Count(rel, "/") != 1 {
		return nil, fmt.Errorf("%q is not below %s", dir, s.c.Logs)
	}
	spec, err := readSpec(dir)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errEnding
	}
	st := s.streams[dir]
	if st == nil {
		at, err := ReadPlace(dir)
		if err != nil {
			s.c.Log.Warn("it is not known how far a log was sent; it is sent from its start", "err", err)
		}
		at.Done = false
		st = newStream(dir, spec, at)
		st.open, st.budget, st.log = s.open, s.budget, s.c.Log
		s.streams[dir] = st
		s.running.Go(func() { s.run(ctx, st) })
	}
	if l != nil {
		st.join(l)
	}
	return st, nil
}

// run runs a stream until it is over. One that gets a logger in its last moment, when a
// container is restarted, is run again.
func (s *Server) run(ctx context.Context, st *stream) {
	for {
		over := st.run(ctx)
		s.mu.Lock()
		if ctx.Err() == nil && over && st.live() && !st.gone() {
			s.mu.Unlock()
			at := st.place
			at.Done = false
			st.place = at
			continue
		}
		delete(s.streams, st.dir)
		s.mu.Unlock()
		select {
		case s.ended <- struct{}{}:
		default:
		}
		return
	}
}

// budget is how much one stream may hold, so that all hold a bounded amount together.
func (s *Server) budget() int {
	s.mu.Lock()
	n := len(s.streams)
	s.mu.Unlock()
	return min(budgetMax, max(budgetMin, budgetAll/max(1, n)))
}

func readSpec(dir string) (*logs.Stream, error) {
	f, err := os.Open(filepath.Join(dir, logs.StreamFile))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	spec := &logs.Stream{}
	if err := json.NewDecoder(io.LimitReader(f, maxSpec)).Decode(spec); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return spec, nil
}

// open makes the sink of a stream, with what the agent has to give.
func (s *Server) open(ctx context.Context, spec *logs.Stream) (sink.Sink, error) {
	ask := grant.Ask{TaskID: spec.TaskID, Container: spec.Container, Execution: spec.Execution}
	options := spec.Options
	region := ""
	if len(spec.Secrets) > 0 || spec.Driver == logs.Awslogs && options["awslogs-region"] == "" {
		first := ask
		first.Secrets = len(spec.Secrets) > 0
		g, err := s.agent.Get(ctx, first)
		if err != nil {
			return nil, err
		}
		region = g.Region
		merged := make(map[string]string, len(options)+len(g.Options))
		for _, o := range []map[string]string{options, g.Options} {
			for k, v := range o {
				merged[k] = v
			}
		}
		options = merged
	}
	return sink.New(sink.Config{
		Stream: spec, Options: options, Region: region, JournalPath: s.c.JournalPath, Log: s.c.Log,
		Credentials: func(ctx context.Context) (sink.Credentials, error) {
			a := ask
			a.Credentials = true
			g, err := s.agent.Get(ctx, a)
			return sink.Credentials{AccessKeyID: g.AccessKeyID, SecretAccessKey: g.SecretAccessKey, SessionToken: g.SessionToken, Expires: g.Expires}, err
		},
	})
}
