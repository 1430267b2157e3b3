package ship

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth.dev/berth/agent/logs"
	"berth.dev/berth/agent/logs/sink"
	"berth.dev/berth/agent/runtime/logfile"
)

const (
	// saveEach is how often positions are written down while a log is sent. After the
	// death of the shipper that much is sent again.
	saveEach = time.Second
	// lookEach is how often a log is looked at although its logger said nothing.
	lookEach = 5 * time.Second
	// Delays after failures.
	retryMin = 200 * time.Millisecond
	retryMax = 30 * time.Second
	// maxRecords of one Send (CloudWatch Logs takes 10,000).
	maxRecords = 10000
)

// stream sends the log of one container.
type stream struct {
	dir    string
	spec   *logs.Stream
	open   func(ctx context.Context, s *logs.Stream) (sink.Sink, error)
	budget func() int // bytes that one stream may hold
	log    *slog.Logger

	sink   sink.Sink
	cursor *logfile.Cursor
	place  Place
	saved  Place
	at     time.Time // when it was saved
	parts  map[string]*sink.Part
	batch  []sink.Record
	ends   []logfile.Position // where in the log each record of the batch ends
	size   int

	wake chan struct{} // something was written, or a logger came or went

	mu      sync.Mutex
	loggers map[*logger]bool
	joined  bool      // a logger has come since look
	marks   []*logger // to be answered when the end of the log has been sent
}

func newStream(dir string, spec *logs.Stream, at Place) *stream {
	return &stream{
		dir: dir, spec: spec, place: at, saved: at, cursor: logfile.NewCursor(filepath.Join(dir, logfile.Name), at.Position),
		parts: map[string]*sink.Part{}, wake: make(chan struct{}, 1), loggers: map[*logger]bool{},
	}
}

func (s *stream) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// join adds a logger, leave takes it away again, mark has one told when all that is in
// the log now has been sent.
func (s *stream) join(l *logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loggers[l], s.joined = true, true
	s.poke()
}

func (s *stream) leave(l *logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.loggers, l)
	s.poke()
}

func (s *stream) mark(l *logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks = append(s.marks, l)
	s.poke()
}

// live reports whether more may be written, or a logger has come since look: one may come,
// write and leave between two looks.
func (s *stream) live() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.loggers) > 0 || s.joined
}

// look reports whether there is a logger. The log has to be read after it.
func (s *stream) look() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.joined = false
	return len(s.loggers) > 0
}

// run sends until the log has ended and all is sent, the log is removed, or ctx ends.
// It reports whether the stream is over.
func (s *stream) run(ctx context.Context) bool {
	defer s.close()
	for {
		live := s.look() // asked before the log is read: what is written before it goes is seen
		n := s.marked()
		end, err := s.fill()
		switch {
		case err != nil:
			s.trouble(err)
			if !s.sleep(ctx, lookEach) {
				return false
			}
			continue
		case s.gone():
			return true
		}
		if end && live && s.linger(ctx) {
			continue
		}
		idle := len(s.batch) == 0
		if !idle && !s.send(ctx, !end) {
			return ctx.Err() == nil
		}
		s.save(false)
		if !end {
			continue
		}
		s.answer(n)
		if !live && !idle {
			continue // sending takes its time: a logger may have come and gone meanwhile
		}
		if !live && !s.live() {
			s.place.Done = true
			s.save(true)
			return true
		}
		s.tellEnd()
		if !s.sleep(ctx, lookEach) {
			return false
		}
	}
}

// marked is how many marks there are now: they are all about what is in the log already.
func (s *stream) marked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.marks)
}

// answer tells the loggers of the first n marks that their output has been sent.
func (s *stream) answer(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.marks[:n] {
		l.tell(shippedByte)
	}
	s.marks = append(s.marks[:0], s.marks[n:]...)
}

func (s *stream) tellEnd() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for l := range s.loggers {
		l.tell(atEndByte)
	}
}

// linger waits for more to send at once, if that is worth it and nobody is waiting.
// True means that the log is to be looked at again.
func (s *stream) linger(ctx context.Context) bool {
	if len(s.batch) == 0 || s.sink == nil || s.marked() > 0 {
		return false
	}
	left := s.sink.Linger() - time.Since(s.batch[0].Time)
	if left <= 0 {
		return false
	}
	s.tellEnd()
	s.sleep(ctx, left)
	return ctx.Err() == nil
}

// sleep waits until something happens, or for a while; false means that ctx has ended.
func (s *stream) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-s.wake:
	case <-t.C:
	}
	return true
}

// fill reads what fits into the batch and reports whether that was all there is.
func (s *stream) fill() (bool, error) {
	limit := s.budget()
	buf := readBuffers.Get().(*[]byte) //nolint:forcetypeassert // the pool has nothing else
	defer readBuffers.Put(buf)
	for s.size < limit && len(s.batch) < maxRecords {
		err := s.cursor.Read(*buf, func(e logfile.Entry, end logfile.Position) bool {
			if s.size >= limit || len(s.batch) >= maxRecords {
				return false
			}
			if n := s.cursor.Lost(); n > 0 {
				s.lost(n, end)
			}
			s.add(e, end)
			return true
		})
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

var readBuffers = sync.Pool{New: func() any { b := make([]byte, logfile.ReadSize); return &b }}

// recordOverhead is about what a record takes besides its text, in bytes.
const recordOverhead = 160

// add puts an entry into the batch.
func (s *stream) add(e logfile.Entry, end logfile.Position) {
	line, whole := strings.CutSuffix(e.Log, "\n")
	r := sink.Record{Line: line, Stream: e.Stream, Time: e.Time}
	if p := s.parts[e.Stream]; p != nil || !whole && len(e.Log) > logfile.MaxLine-8 {
		if p == nil {
			p = &sink.Part{ID: strconv.FormatUint(rand.Uint64(), 36)} //nolint:gosec // a name, not a secret
		}
		next := &sink.Part{ID: p.ID, Ordinal: p.Ordinal + 1, Last: whole}
		r.Part = next
		s.parts[e.Stream] = next
		if whole {
			delete(s.parts, e.Stream)
		}
	}
	s.put(r, end)
}

func (s *stream) put(r sink.Record, end logfile.Position) {
	s.batch, s.ends = append(s.batch, r), append(s.ends, end)
	s.size += len(r.Line) + recordOverhead
}

// take removes the first n records of the batch, which are settled.
func (s *stream) take(n int) {
	if n == 0 {
		return
	}
	s.place.Position = s.ends[n-1]
	for _, r := range s.batch[:n] {
		s.size -= len(r.Line) + recordOverhead
	}
	k := copy(s.batch, s.batch[n:])
	clear(s.batch[k:])
	s.batch, s.ends = s.batch[:k], append(s.ends[:0], s.ends[n:]...)
	if k == 0 && cap(s.batch) > smallBatch {
		s.batch, s.ends = nil, nil
	}
}

// smallBatch is how many records a stream keeps room for that has nothing to send.
const smallBatch = 64

// lost notes that entries were rotated away before they were sent.
func (s *stream) lost(n uint64, end logfile.Position) {
	s.place.Lost += n
	s.log.Warn("part of a container's output was not sent", "task", s.spec.TaskID, "container", s.spec.Container, "lines", n)
	s.put(sink.Record{
		Line:   fmt.Sprintf("berth-shipper: %d lines were not sent: the destination did not take them in time", n),
		Stream: logfile.StreamNote, Time: time.Now(),
	}, end)
}

// send sends the batch, again and again until it is taken; what belongs together with
// what follows stays in it. False means that ctx has ended or the log is gone.
func (s *stream) send(ctx context.Context, more bool) bool {
	for delay := retryMin; len(s.batch) > 0; {
		n, err := s.try(ctx, s.batch, more)
		s.take(min(n, len(s.batch)))
		var refused *sink.Refused
		if errors.As(err, &refused) && len(s.batch) > 0 {
			k := min(max(1, refused.N), len(s.batch))
			s.place.Lost += uint64(k)
			s.log.Warn("the destination refuses lines of a container's output", "task", s.spec.TaskID, "container", s.spec.Container, "lines", k, "err", err)
			s.take(k)
			continue
		}
		if err == nil {
			s.healthy()
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		s.trouble(err)
		if n > 0 {
			delay = retryMin
		}
		t := time.NewTimer(delay/2 + rand.N(delay/2+1)) //nolint:gosec // spreads load
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
		}
		delay = min(2*delay, retryMax)
		if s.gone() {
			return false
		}
	}
	return true
}

func (s *stream) try(ctx context.Context, batch []sink.Record, more bool) (int, error) {
	if s.sink == nil {
		k, err := s.open(ctx, s.spec)
		if err != nil {
			return 0, err
		}
		s.sink = k
	}
	return s.sink.Send(ctx, batch, more)
}

// trouble writes down why nothing is sent, for people.
func (s *stream) trouble(err error) {
	text := strings.ToValidUTF8(err.Error(), "?")
	text = text[:min(len(text), maxError)]
	if s.place.Error == "" {
		s.place.Since = time.Now().UTC().Truncate(time.Second)
	}
	if s.place.Error != text {
		s.place.Error = text
		s.log.Warn("the output of a container cannot be sent; it is tried again", "task", s.spec.TaskID, "container", s.spec.Container, "driver", s.spec.Driver, "err", err)
		s.save(true)
	}
}

func (s *stream) healthy() {
	if s.place.Error == "" {
		return
	}
	s.log.Info("the output of a container is sent again", "task", s.spec.TaskID, "container", s.spec.Container, "driver", s.spec.Driver)
	s.place.Error, s.place.Since = "", time.Time{}
}

// save writes down how far the log was sent, now and then or at once.
func (s *stream) save(now bool) {
	if s.place == s.saved || !now && time.Since(s.at) < saveEach && s.place.Error == s.saved.Error {
		return
	}
	if err := writePlace(s.dir, s.place); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("how far a log was sent could not be written down", "task", s.spec.TaskID, "container", s.spec.Container, "err", err)
		}
		return
	}
	s.saved, s.at = s.place, time.Now()
}

// gone reports whether the log was removed.
func (s *stream) gone() bool {
	_, err := os.Lstat(filepath.Join(s.dir, logs.StreamFile))
	return errors.Is(err, fs.ErrNotExist)
}

func (s *stream) close() {
	s.save(true)
	s.cursor.Close()
	if s.sink != nil {
		if err := s.sink.Close(); err != nil {
			s.log.Debug("close the destination", "task", s.spec.TaskID, "container", s.spec.Container, "err", err)
		}
	}
}
