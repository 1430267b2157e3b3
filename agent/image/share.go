package image

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"berth.dev/berth/agent/runtime"
	"berth.dev/berth/agent/task"
)

// flight is one pull that several tasks wait for.
type flight struct {
	cancel  context.CancelFunc
	waiting int
	done    chan struct{}
	img     runtime.Image
	err     error
}

// share pulls r, or joins a pull of the same image that is under way. When the last
// one that waits gives up, the pull is cancelled.
func (s *Images) share(ctx context.Context, r runtime.Remote) (runtime.Image, error) {
	key := r.Name + "@" + r.Digest
	s.mu.Lock()
	f := s.flights[key]
	if f == nil {
		pctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{cancel: cancel, done: make(chan struct{})}
		s.flights[key] = f
		go func() {
			f.img, f.err = s.pull(pctx, r)
			s.mu.Lock()
			if s.flights[key] == f {
				delete(s.flights, key)
			}
			s.mu.Unlock()
			cancel()
			close(f.done)
		}()
	}
	f.waiting++
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.img, f.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f.waiting--
	if f.waiting == 0 {
		f.cancel()
		if s.flights[key] == f {
			delete(s.flights, key) // a new one must not meet the cancelled pull
		}
	}
	return runtime.Image{}, task.Fail(task.Canceled, task.CannotPullContainer, ctx.Err())
}

// errStalled says that a pull made no progress for too long.
var errStalled = errors.New("no progress")

// pull makes one attempt, bounded in all and without progress.
func (s *Images) pull(ctx context.Context, r runtime.Remote) (runtime.Image, error) {
	start := time.Now()
	tctx, cancelAll := context.WithTimeout(ctx, s.cfg.PullTimeout)
	defer cancelAll()
	pctx, cancel := context.WithCancelCause(tctx)
	defer cancel(nil)

	var bytes, open atomic.Int64
	ended := make(chan struct{})
	defer close(ended)
	go s.watch(&bytes, &open, cancel, ended)
	img, err := s.cfg.Runtime.Pull(pctx, r, func(p runtime.Progress) {
		bytes.Store(p.Bytes)
		open.Store(p.Open)
	})
	if err == nil {
		s.log.Info("image pulled", "image", r.Name, "digest", r.Digest, "bytes", bytes.Load(), "dur", time.Since(start))
		return img, nil
	}
	switch {
	case ctx.Err() != nil:
		return runtime.Image{}, task.Fail(task.Canceled, task.CannotPullContainer, ctx.Err())
	case tctx.Err() != nil:
		return runtime.Image{}, timedOut("pulled", s.cfg.PullTimeout, start, nil)
	case errors.Is(context.Cause(pctx), errStalled):
		return runtime.Image{}, task.Fail(task.Unavailable, task.CannotPullContainer,
			fmt.Errorf("pulling %s: %w after %d bytes", r.Name, context.Cause(pctx), bytes.Load()))
	}
	return runtime.Image{}, err
}

// watch cancels a pull whose downloads stall. While layers are only unpacked nothing
// can be seen, and only the limit for the whole pull holds.
func (s *Images) watch(bytes, open *atomic.Int64, cancel context.CancelCauseFunc, ended <-chan struct{}) {
	t := time.NewTimer(firstProgress)
	defer t.Stop()
	check := time.NewTicker(s.cfg.Inactivity / 10)
	defer check.Stop()
	for last := int64(0); ; {
		select {
		case <-ended:
			return
		case <-t.C:
			cancel(errStalled)
			return
		case <-check.C:
			if n := bytes.Load(); n != last || n > 0 && open.Load() == 0 {
				last = n
				t.Reset(s.cfg.Inactivity)
			}
		}
	}
}
