package attach

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/task"
)

// disks is a host with block volumes.
type disks struct {
	mu       sync.Mutex
	fail     error
	staged   []string
	unstaged []string
	told     []string
	held     map[string]bool
}

func (d *disks) Stage(_ context.Context, id string, v *task.Volume) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail == nil {
		d.staged = append(d.staged, id+" "+v.Block.ID)
	}
	return d.fail
}

func (d *disks) Unstage(_ context.Context, id string, v *task.Volume) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := id + " " + v.Block.ID
	if v.Block.Delete {
		text += " deleted"
	}
	d.unstaged = append(d.unstaged, text)
	return nil
}

func (d *disks) submit(_ context.Context, arn string, s task.AttachmentStatus) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.told = append(d.told, arn+" "+s.String())
	return nil
}

func (d *disks) isHeld(arn string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.held[arn]
}

func (d *disks) set(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
}

func (d *disks) keeper(t *testing.T, w *world) (*Keeper, context.CancelFunc) {
	t.Helper()
	k, err := New(t.Context(), Config{Store: w, Devices: w, Volumes: d, Known: w.known, Held: d.isHeld, Submit: d.submit})
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
	synctest.Wait()
	return k, func() { cancel(); <-done }
}

func (d *disks) want(t *testing.T, what string, staged, told, unstaged []string) {
	t.Helper()
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, diff := range []string{cmp.Diff(staged, d.staged), cmp.Diff(told, d.told), cmp.Diff(unstaged, d.unstaged)} {
		if diff != "" {
			t.Errorf("%s (-want +got): %s", what, diff)
		}
	}
}

func volumeAttachment() []task.Attachment {
	return []task.Attachment{{
		ARN: "x", TaskARN: "arn:task/t", Expires: time.Now().Add(time.Minute),
		Volume: &task.Volume{Name: "v", Type: task.VolumeBlock, Block: &task.BlockVolume{ID: "vol-1"}},
	}}
}

func TestVolumeIsStagedAndReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(), &disks{held: map[string]bool{}, fail: task.Failf(task.Unavailable, "", "not yet")}
		k, stop := d.keeper(t, w)
		if err := k.Accept(t.Context(), volumeAttachment()); err != nil {
			t.Fatal(err)
		}
		d.want(t, "before it is there", nil, nil, nil)
		d.set(func() { d.fail = nil })
		time.Sleep(time.Second)
		d.want(t, "it came", []string{"t vol-1"}, []string{"x ATTACHED"}, nil)
		// Its task comes, and goes; what it had goes with it.
		d.set(func() { d.held["arn:task/t"] = true })
		w.mu.Lock()
		w.desired["arn:task/t"] = task.StatusStopped
		w.mu.Unlock()
		time.Sleep(10 * time.Minute)
		d.want(t, "while its task is here", []string{"t vol-1"}, []string{"x ATTACHED"}, nil)
		d.set(func() { delete(d.held, "arn:task/t") })
		time.Sleep(time.Minute)
		d.want(t, "after its task", []string{"t vol-1"}, []string{"x ATTACHED"}, []string{"t vol-1"})
		w.want(t, "after its task", nil, nil, nil, 0)
		if got := k.Interfaces(); len(got) > 0 {
			t.Errorf("a volume counts as an interface: %v", got)
		}
		stop()
	})
}

func TestVolumeThatCannotBeStagedEndsItsTask(t *testing.T) {
	for name, c := range map[string]struct {
		fail error
		want string
	}{
		"for ever":    {task.Failf(task.Unclassified, task.ResourceInitialization, "volume v: the pool is full"), "ResourceInitializationError: volume v: the pool is full"},
		"not in time": {task.Failf(task.Unavailable, task.ResourceInitialization, "volume v: no disk"), "ResourceInitializationError: volume v: no disk"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, d := newWorld(), &disks{held: map[string]bool{}, fail: c.fail}
				k, stop := d.keeper(t, w)
				if err := k.Accept(t.Context(), volumeAttachment()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Minute)
				d.want(t, "given up", nil, nil, []string{"t vol-1 deleted"})
				stop()
				if len(w.ended) != 1 || w.ended[0] != "STOPPED "+c.want {
					t.Errorf("reported %q, want %q", w.ended, c.want)
				}
				if len(w.stored) != 0 {
					t.Errorf("stored: %v", w.stored)
				}
			})
		})
	}
}

func TestVolumeIsTakenUpAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newWorld(), &disks{held: map[string]bool{}, fail: task.Failf(task.Unavailable, "", "not yet")}
		k, stop := d.keeper(t, w)
		if err := k.Accept(t.Context(), volumeAttachment()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		stop()
		d.set(func() { d.fail = nil })
		_, stop = d.keeper(t, w)
		d.want(t, "after a restart", []string{"t vol-1"}, []string{"x ATTACHED"}, nil)
		if len(w.ended) != 0 {
			t.Errorf("a restart ended the task: %v", w.ended)
		}
		stop()
	})
}
