package store

import (
	"context"
	"sync"
)

// watchQueue is how many changes a watch may be behind before it is ended:
// some seconds of the busiest cluster.
const watchQueue = 1 << 16

// watch is one receiver of changes.
type watch struct {
	mu     sync.Mutex
	queue  []Change
	reason error
	wake   chan struct{} // holds one token when there is something to take
}

func newWatch() *watch { return &watch{wake: make(chan struct{}, 1)} }

// offer adds a change; it never blocks.
func (w *watch) offer(c Change) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reason != nil {
		return
	}
	if len(w.queue) >= watchQueue {
		w.queue, w.reason = nil, ErrLagged
	} else {
		w.queue = append(w.queue, c)
	}
	w.signal()
}

func (w *watch) end(reason error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.reason == nil {
		w.reason = reason
	}
	w.signal()
}

func (w *watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// take returns what is queued, or why there will be no more.
func (w *watch) take() ([]Change, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	q := w.queue
	w.queue = nil
	if len(q) > 0 {
		return q, nil
	}
	return nil, w.reason
}

// Watch calls fn for every change in commit order until ctx ends. It blocks
// and returns the reason: the context's error, ErrLagged or ErrClosed.
func (s *Store) Watch(ctx context.Context, fn func(Change)) error {
	return s.WatchFrom(ctx, func(Reader) {}, fn)
}

// WatchFrom is Watch with a look at the state before the first change: start
// runs on the mirror as in View, and fn then gets every later change and no
// earlier one.
func (s *Store) WatchFrom(ctx context.Context, start func(r Reader), fn func(Change)) error {
	w := newWatch()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.watches[w] = struct{}{}
	start(s.m)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watches, w)
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wake:
		}
		for {
			changes, err := w.take()
			if err != nil {
				return err
			}
			if len(changes) == 0 {
				break
			}
			for _, c := range changes {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				fn(c)
			}
		}
	}
}
