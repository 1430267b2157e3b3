package daemon

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// told collects what systemd is told, with the time since the start.
type told struct {
	mu     sync.Mutex
	start  time.Time
	states []string
	last   time.Duration // of the last WATCHDOG=1
}

func (s *told) notify(state string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == "WATCHDOG=1" {
		s.last = time.Since(s.start)
		return nil
	}
	s.states = append(s.states, state)
	return nil
}

func TestWatchdogIsFedOnlyWhileTheLoopsTurn(t *testing.T) {
	const watchdog = 30 * time.Second
	for _, c := range []struct {
		name  string
		check func(ctx context.Context, end <-chan struct{}) error // from the first minute on
		last  time.Duration                                        // of feeding within 5 min, at most
	}{
		{"all turn", func(context.Context, <-chan struct{}) error { return nil }, 5 * time.Minute},
		{"one says that it hangs", func(context.Context, <-chan struct{}) error { return errors.New("hangs") }, time.Minute},
		{"one does not answer in time", func(ctx context.Context, _ <-chan struct{}) error { <-ctx.Done(); return ctx.Err() }, time.Minute},
		{"one never answers", func(_ context.Context, end <-chan struct{}) error { <-end; return nil }, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out told
				out.start = time.Now()
				end := make(chan struct{})
				check := func(ctx context.Context) error {
					if time.Since(out.start) < time.Minute {
						return nil
					}
					return c.check(ctx, end)
				}
				ctx, cancel := context.WithCancel(t.Context())
				s := supervisor{watchdog: watchdog, notify: out.notify, check: check, status: func() string { return "fine" }, log: slog.New(slog.DiscardHandler)}
				done := make(chan struct{})
				go func() { s.run(ctx); close(done) }()
				time.Sleep(5*time.Minute + time.Second) // of the test's own clock
				cancel()
				<-done
				close(end)
				synctest.Wait()
				if out.last > c.last || out.last < c.last-watchdog/3 {
					t.Errorf("fed last after %v; want within %v of %v", out.last, watchdog/3, c.last)
				}
				if d := cmp.Diff([]string{"STATUS=fine"}, out.states); d != "" {
					t.Errorf("states (-want +got):\n%s", d)
				}
			})
		})
	}
}

func TestStatusIsToldWhenItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out told
		changed := make(chan struct{})
		line := "starting"
		ctx, cancel := context.WithCancel(t.Context())
		s := supervisor{
			notify: out.notify, check: func(context.Context) error { return nil }, status: func() string { return line },
			changed: changed, log: slog.New(slog.DiscardHandler),
		}
		done := make(chan struct{})
		go func() { s.run(ctx); close(done) }()
		synctest.Wait()
		changed <- struct{}{}
		synctest.Wait()
		line = "1 tasks"
		changed <- struct{}{}
		synctest.Wait()
		cancel()
		<-done
		if d := cmp.Diff([]string{"STATUS=starting", "STATUS=1 tasks"}, out.states); d != "" {
			t.Errorf("states (-want +got):\n%s", d)
		}
		if out.last != 0 {
			t.Error("a watchdog was fed that there is not")
		}
	})
}
