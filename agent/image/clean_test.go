package image

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"berth.dev/berth/agent/engine"
	"berth.dev/berth/agent/runtime"
)

// disk is an image store. Each image takes 10 percent of the disk.
type disk struct {
	images  []runtime.StoredImage
	used    []string
	removed []string
}

func (h *disk) StoredImages(context.Context) ([]runtime.StoredImage, error) { return h.images, nil }

func (h *disk) UsedImages(context.Context) (map[string]bool, error) {
	out := map[string]bool{}
	for _, n := range h.used {
		out[n] = true
	}
	return out, nil
}

func (h *disk) RemoveImage(_ context.Context, i runtime.StoredImage) error {
	h.removed = append(h.removed, strings.TrimSuffix(strings.TrimPrefix(i.Name, "docker.io/library/"), ":latest"))
	return nil
}

func (h *disk) DiskUse(context.Context) (int, error) { return 95 - 10*len(h.removed), nil }

// stored is an image that the agent pulled three hours ago.
func stored(name string, used time.Duration, edit func(i *runtime.StoredImage)) runtime.StoredImage {
	now := time.Now()
	i := runtime.StoredImage{
		Name: "docker.io/library/" + name + ":latest", Digest: "sha256:" + name, Pulled: true,
		Created: now.Add(-3 * time.Hour), Changed: now.Add(-3 * time.Hour), Used: now.Add(-used),
	}
	if edit != nil {
		edit(&i)
	}
	return i
}

func foreign(size int64) func(i *runtime.StoredImage) {
	return func(i *runtime.StoredImage) { i.Pulled, i.Size = false, size }
}

func TestCleaning(t *testing.T) {
	all := func() []runtime.StoredImage {
		return []runtime.StoredImage{
			stored("recent", 2*time.Minute, nil),
			stored("old", 2*time.Hour, nil),
			stored("older", 3*time.Hour, nil),
			stored("young", 4*time.Hour, func(i *runtime.StoredImage) { i.Changed = time.Now().Add(-time.Minute) }),
			stored("running", 3*time.Hour, nil),
			stored("waiting", 3*time.Hour, nil),
			stored("pinned", 3*time.Hour, func(i *runtime.StoredImage) { i.Pinned = true }),
			stored("kept", 3*time.Hour, nil),
			stored("large", 3*time.Hour, foreign(1000)),
			stored("small", time.Hour, foreign(10)),
		}
	}
	base := CleanConfig{
		Interval: 30 * time.Minute, MinimumAge: time.Hour, ForeignMinimumAge: time.Hour, PerCycle: 5, Keep: []string{"kept"},
		InUse: func() []string { return []string{"waiting"} },
	}
	for _, tc := range []struct {
		name   string
		change func(c *CleanConfig)
		policy Policy
		after  time.Duration
		want   []string
	}{
		{"the least recently used first", nil, "", 31 * time.Minute, []string{"older", "old", "recent"}},
		{"a number in a cycle", func(c *CleanConfig) { c.PerCycle = 2 }, "", 31 * time.Minute, []string{"older", "old"}},
		{"foreign ones when asked for, the smallest first", func(c *CleanConfig) { c.Foreign = true }, "", 31 * time.Minute, []string{"older", "old", "recent", "small", "large"}},
		{"foreign ones only as far as the number goes", func(c *CleanConfig) { c.Foreign, c.PerCycle = true, 4 }, "", 31 * time.Minute, []string{"older", "old", "recent", "small"}},
		{"patterns are kept", func(c *CleanConfig) { c.Keep = append(c.Keep, "docker.io/library/old*") }, "", 31 * time.Minute, []string{"recent"}},
		{"never", func(c *CleanConfig) { c.Interval = 0 }, "", 31 * time.Minute, nil},
		{"not with prefer-cached", nil, PreferCached, 31 * time.Minute, nil},
		{"a full disk makes room at once, whatever the age", func(c *CleanConfig) { c.DiskPercent = 85 }, "", 90 * time.Second, []string{"young", "older"}},
		{"a disk that is not full does not", func(c *CleanConfig) { c.DiskPercent = 96 }, "", 90 * time.Second, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &disk{images: all(), used: []string{"docker.io/library/running:latest"}}
				c := base
				if tc.change != nil {
					tc.change(&c)
				}
				s := images(t, Config{Runtime: &fakeRuntime{}, Policy: tc.policy, Log: slog.New(slog.DiscardHandler)})
				ctx, cancel := context.WithTimeout(t.Context(), tc.after)
				defer cancel()
				s.Clean(ctx, h, c)
				if d := cmp.Diff(tc.want, h.removed); d != "" {
					t.Errorf("removed (-want +got):\n%s", d)
				}
			})
		})
	}
}

// An image that a task is about to use is not removed under it.
func TestAnImageThatIsBeingPulledStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		rt := &fakeRuntime{resolve: found("d"), pull: func(context.Context, int64, func(runtime.Progress)) (runtime.Image, error) {
			<-release
			return runtime.Image{Digest: "d"}, nil
		}}
		s := images(t, Config{Runtime: rt, Log: slog.New(slog.DiscardHandler)})
		go func() {
			if _, err := s.Ensure(t.Context(), oneTask("old"), "c", engine.Deps{}); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		h := &disk{images: []runtime.StoredImage{stored("old", 2*time.Hour, nil)}}
		c := CleanConfig{PerCycle: 5}
		if n, err := s.cleanByAge(t.Context(), h, c, time.Now()); n != 0 || err != nil {
			t.Error(n, err)
		}
		close(release)
		synctest.Wait()
		if n, err := s.cleanByAge(t.Context(), h, c, time.Now()); n != 1 || err != nil {
			t.Error(n, err)
		}
		if len(s.busy) != 0 {
			t.Error(fmt.Sprint(s.busy))
		}
	})
}
