package events

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/prometheus/client_golang/prometheus"

	"berth.dev/berth/cluster/store"
)

const (
	// DefaultKeep is how many events are kept: at some KiB each, some ten MiB.
	DefaultKeep = 4096
	// DefaultFileSize and DefaultFiles bound the events in files to 128 MiB.
	DefaultFileSize = 16 << 20
	DefaultFiles    = 8
	// maxReaders is how many clients may follow the stream at once.
	maxReaders = 256
	// batch is how many events a follower takes at once.
	batch = 256
)

// Config says of what and to whom a Stream tells. Empty members mean their default.
type Config struct {
	Store           *store.Store
	Region, Account string
	// Instance shows an instance with what is left of its resources.
	Instance func(r store.Reader, i *store.Instance) types.ContainerInstance
	// Keep is how many events are kept for those who come back or are slow.
	Keep int
	// File gets the events as lines of JSON; empty means none.
	File string
	// FileSize is the size in bytes at which the file is rotated.
	FileSize int64
	// Webhooks are URLs that every event is posted to.
	Webhooks []string
	// WebhookKey signs what is posted; nil means unsigned.
	WebhookKey []byte
	// Metrics may be nil.
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// A Stream follows the records. Make one with Open.
type Stream struct {
	config Config
	log    *slog.Logger
	counts *counts

	mu      sync.Mutex
	ring    []*Event // of number i at i modulo its length
	first   uint64   // number of the oldest event that is kept
	next    uint64   // number of the next event
	floor   Position // the newest that is not kept any more, or was before us
	wake    chan struct{}
	last    Position // of the newest event
	readers int
	ended   bool // there will be no more events

	closing chan struct{} // closed when clients of the stream are to go
	close   sync.Once
	work    sync.WaitGroup
}

// counts are what is told of a stream itself.
type counts struct {
	events *prometheus.CounterVec // by detail type
	sent   *prometheus.CounterVec // by way
	lost   *prometheus.CounterVec // by way
}

func newCounts(r prometheus.Registerer) *counts {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	c := &counts{
		events: vec("berth_events_total", "State changes of tasks and container instances by detail type.", "type"),
		sent:   vec("berth_events_sent_total", "Events handed on by way: stream, file or webhook.", "way"),
		lost:   vec("berth_events_lost_total", "Events not handed on by way: refused, given up, or followed too slowly.", "way"),
	}
	if r != nil {
		r.MustRegister(c.events, c.sent, c.lost)
	}
	return c
}

// Open starts to follow the store and returns when no later change is missed. It ends
// when the store is closed.
func Open(ctx context.Context, c Config) (*Stream, error) {
	if c.Keep <= 0 {
		c.Keep = DefaultKeep
	}
	if c.FileSize <= 0 {
		c.FileSize = DefaultFileSize
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Stream{
		config: c, log: c.Log, ring: make([]*Event, c.Keep), wake: make(chan struct{}), closing: make(chan struct{}),
		counts: newCounts(c.Metrics),
	}
	sinks, err := s.sinks()
	if err != nil {
		return nil, err
	}
	for _, k := range sinks {
		s.work.Go(func() { s.follow(context.WithoutCancel(ctx), k) })
	}
	ready := make(chan error, 1)
	s.work.Go(func() {
		s.watch(context.WithoutCancel(ctx), ready)
		s.end()
	})
	if err := <-ready; err != nil {
		s.work.Wait()
		return nil, err
	}
	return s, nil
}

// watch follows the records until they are closed. The first time that it does, or
// cannot, is told to ready.
func (s *Stream) watch(ctx context.Context, ready chan<- error) {
	revision, n := int64(-1), 0
	for {
		err := s.config.Store.WatchFrom(ctx, func(r store.Reader) {
			s.begin(store.Revision(r))
			select {
			case ready <- nil:
			default:
			}
		}, func(c store.Change) {
			e := eventOf(c, s.view)
			if e == nil {
				return
			}
			if n++; c.Revision != revision {
				revision, n = c.Revision, 0
			}
			e.Position = Position{revision, n}
			s.add(e)
		})
		if !errors.Is(err, store.ErrLagged) {
			select {
			case ready <- err:
			default:
			}
			return
		}
		s.log.Error("changes came faster than events could be made of them; some events are lost", "err", err)
	}
}

func (s *Stream) view(i *store.Instance) (out types.ContainerInstance) {
	s.config.Store.View(func(r store.Reader) { out = s.config.Instance(r, i) })
	return out
}

// begin starts at a revision. Whoever has followed until now has missed something.
func (s *Stream) begin(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.floor = Position{revision, math.MaxInt32}
	clear(s.ring)
	if s.next > 0 {
		s.next++
	}
	s.first = s.next
}

func (s *Stream) add(e *Event) {
	e.at, e.region, e.account = time.Now(), s.config.Region, s.config.Account
	s.counts.events.WithLabelValues(e.Kind).Inc()
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := &s.ring[s.next%uint64(len(s.ring))]
	if *slot != nil {
		s.floor = (*slot).Position
		s.first++
	}
	*slot, s.last = e, e.Position
	s.next++
	s.rouse()
}

func (s *Stream) rouse() {
	close(s.wake)
	s.wake = make(chan struct{})
}

func (s *Stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.rouse()
}

// A cursor is a follower's place.
type cursor struct {
	at uint64 // number of the next event
	// past is what the follower had of another process that was ahead of this one.
	past Position
}

// place is where a follower goes on that has had everything up to after, and whether it
// has missed something. nil means one that wants what comes.
func (s *Stream) place(after *Position) (c cursor, missed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if after == nil {
		return cursor{at: s.next}, false
	}
	// Events of records that were read again need not be in order, so all are looked at.
	c, missed = cursor{at: s.next}, after.compare(s.floor) < 0
	for i := s.first; i < s.next; i++ {
		switch p := s.ring[i%uint64(len(s.ring))].Position.compare(*after); {
		case p == 0:
			return cursor{at: i + 1}, false
		case p > 0 && c.at == s.next:
			c.at = i
		}
	}
	if c.at == s.next {
		c.past = *after
	}
	return c, missed
}

// take returns the next events of a follower and moves its place. lost is how many it was
// too slow for. If there are none, wake is closed when to look again, and nil at the end.
func (s *Stream) take(c *cursor) (list []*Event, lost uint64, wake <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.at < s.first {
		lost, c.at = s.first-c.at, s.first
	}
	for ; c.at < s.next && len(list) < batch; c.at++ {
		e := s.ring[c.at%uint64(len(s.ring))]
		if e.Position.compare(c.past) <= 0 {
			continue
		}
		c.past = Position{}
		list = append(list, e)
	}
	if len(list) == 0 && lost == 0 && s.ended {
		return nil, 0, nil
	}
	if c.at < s.next || s.ended { // look again at once
		at := make(chan struct{})
		close(at)
		return list, lost, at
	}
	return list, lost, s.wake
}

// EndReaders has the clients of the stream go.
func (s *Stream) EndReaders() { s.close.Do(func() { close(s.closing) }) }

// Wait returns when everything of a closed store has been told, or given up.
func (s *Stream) Wait() { s.work.Wait() }
