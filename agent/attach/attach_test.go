package attach

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
)

// world is a store and a host, both in memory.
type world struct {
	mu        sync.Mutex
	stored    map[string]task.Attachment
	reported  []string
	present   map[string]chan struct{} // closed when the device is there
	prepared  []string
	abandoned []string
	desired   map[string]task.Status
	failures  int      // of Prepare
	ended     []string // tasks that were reported as stopped
}

func newWorld() *world {
	return &world{stored: map[string]task.Attachment{}, present: map[string]chan struct{}{}, desired: map[string]task.Status{}}
}

func (w *world) Commit(_ context.Context, c task.Commit) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for arn, a := range c.Attachments {
		if a == nil {
			delete(w.stored, arn)
		} else {
			w.stored[arn] = *a
		}
	}
	for _, b := range c.Batches {
		for _, ch := range b.Changes {
			if len(ch.Attachments) == 0 {
				w.ended = append(w.ended, ch.Status.String()+" "+ch.Reason)
			}
			for _, a := range ch.Attachments {
				w.reported = append(w.reported, a.ARN+" "+a.Status.String())
			}
		}
	}
	return nil
}

func (w *world) Attachments(context.Context) ([]task.Attachment, error) {
	return slices.Collect(maps.Values(w.stored)), nil
}

func (w *world) Prepare(_ context.Context, i *task.Interface) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failures > 0 {
		w.failures--
		return errors.New("not now")
	}
	w.prepared = append(w.prepared, i.MAC)
	return nil
}

func (w *world) Await(ctx context.Context, i *task.Interface) error {
	w.mu.Lock()
	there := w.present[i.MAC]
	w.mu.Unlock()
	select {
	case <-there:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *world) Abandon(_ context.Context, i *task.Interface) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abandoned = append(w.abandoned, i.MAC)
	return nil
}

func (w *world) known(arn string) (task.Status, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.desired[arn]
	return s, ok
}

func (w *world) keeper(t *testing.T) (*Keeper, context.CancelFunc) {
	t.Helper()
	k, err := New(t.Context(), Config{Store: w, Devices: w, Known: w.known})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := k.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	}()
	return k, func() { cancel(); <-done }
}

func attachment(expires time.Time) task.Attachment {
	return task.Attachment{ARN: "x", TaskARN: "arn:task/t", Interface: task.Interface{ID: "eni-1", MAC: "m"}, Expires: expires}
}

func (w *world) want(t *testing.T, what string, reported, prepared, abandoned []string, stored int) {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range []string{cmp.Diff(reported, w.reported), cmp.Diff(prepared, w.prepared), cmp.Diff(abandoned, w.abandoned)} {
		if d != "" {
			t.Errorf("%s (-want +got): %s", what, d)
		}
	}
	if len(w.stored) != stored {
		t.Errorf("%s: %d stored, want %d", what, len(w.stored), stored)
	}
}

func TestDeviceComesAndIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.failures = 2
		w.present["m"] = make(chan struct{})
		k, stop := w.keeper(t)
		if err := k.Accept(t.Context(), []task.Attachment{attachment(time.Now().Add(time.Minute))}); err != nil {
			t.Fatal(err)
		}
		w.want(t, "announced", nil, nil, nil, 1)
		time.Sleep(time.Second)
		w.want(t, "after retries", nil, []string{"m"}, nil, 1)
		stop() // and another agent goes on
		k, stop = w.keeper(t)
		defer stop()
		close(w.present["m"])
		w.want(t, "there", []string{"x ATTACHED"}, []string{"m", "m"}, nil, 1)
		if err := k.Accept(t.Context(), []task.Attachment{attachment(time.Now().Add(time.Minute))}); err != nil {
			t.Fatal(err)
		}
		w.want(t, "announced again", []string{"x ATTACHED", "x ATTACHED"}, []string{"m", "m", "m"}, nil, 1)
		w.mu.Lock()
		w.desired["arn:task/t"] = task.StatusRunning
		w.mu.Unlock()
		time.Sleep(time.Hour)
		w.want(t, "in use", []string{"x ATTACHED", "x ATTACHED"}, []string{"m", "m", "m"}, nil, 1)
		w.mu.Lock()
		w.desired["arn:task/t"] = task.StatusStopped
		w.mu.Unlock()
		time.Sleep(2 * sweepEvery)
		w.want(t, "no longer needed", []string{"x ATTACHED", "x ATTACHED"}, []string{"m", "m", "m"}, []string{"m"}, 0)
	})
}

func TestDeviceThatDoesNotComeIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.present["m"] = make(chan struct{})
		k, stop := w.keeper(t)
		defer stop()
		if err := k.Accept(t.Context(), []task.Attachment{attachment(time.Now().Add(time.Minute))}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + 3*sweepEvery)
		w.want(t, "expired", nil, []string{"m"}, []string{"m"}, 0)
	})
}
