package image

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"time"

	"berth.dev/berth/agent/runtime"
)

// CleanConfig says which images are removed from the host, and when (agent protocol,
// "Cleanup" and "Configuration").
type CleanConfig struct {
	Interval   time.Duration // between cycles; 0 means never
	MinimumAge time.Duration // since its pull, of an image that the agent pulled
	PerCycle   int           // most images removed in one cycle

	// Foreign are images that the agent did not pull. Those that were loaded from an
	// archive are among them: nobody could pull them again.
	Foreign           bool
	ForeignMinimumAge time.Duration

	Keep []string // names that are never removed, as in a task definition

	// DiskPercent is how full the disk may be; beyond it, unused images go whatever their
	// age and number, the least recently used first, until DiskLow percent. 0 means never.
	DiskPercent int

	// InUse lists the images that tasks of the agent refer to, as in their definitions.
	InUse func() []string
	// Disk is how full the disk of the images is, in percent; for tests.
	Disk func(ctx context.Context) (int, error)
}

// Numbers of cleaning up by disk pressure.
const (
	diskLow     = 5 // percent points below DiskPercent, at which it ends
	diskCheck   = time.Minute
	touchEach   = 10 * time.Minute // how exactly the last use is remembered
	cleanedOnce = 64               // images removed for the disk in one go
)

// Cleaner is what cleaning up needs of agent/runtime.
type Cleaner interface {
	StoredImages(ctx context.Context) ([]runtime.StoredImage, error)
	UsedImages(ctx context.Context) (map[string]bool, error)
	RemoveImage(ctx context.Context, i runtime.StoredImage) error
	DiskUse(ctx context.Context) (percent int, err error)
}

// Clean removes images that nothing uses, until ctx ends.
func (s *Images) Clean(ctx context.Context, rt Cleaner, c CleanConfig) {
	if c.Interval <= 0 || s.cfg.Policy == PreferCached {
		// With prefer-cached images are there to stay (agent protocol, "Pull behaviour").
		return
	}
	if c.Disk == nil {
		c.Disk = rt.DiskUse
	}
	cycle, disk := time.NewTicker(c.Interval), time.NewTicker(diskCheck)
	defer cycle.Stop()
	defer disk.Stop()
	for {
		var n int
		var err error
		select {
		case <-ctx.Done():
			return
		case <-cycle.C:
			n, err = s.cleanByAge(ctx, rt, c, time.Now())
		case <-disk.C:
			n, err = s.cleanForDisk(ctx, rt, c)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("images could not be cleaned up", "removed", n, "err", err)
		}
	}
}

// cleanByAge removes what has been unused for long enough, up to the number of a cycle:
// first the agent's own images, the least recently used first, then foreign ones, the
// smallest first.
func (s *Images) cleanByAge(ctx context.Context, rt Cleaner, c CleanConfig, now time.Time) (int, error) {
	own, foreign, err := s.unused(ctx, rt, c)
	if err != nil {
		return 0, err
	}
	own = slices.DeleteFunc(own, func(i runtime.StoredImage) bool { return now.Sub(i.Changed) < c.MinimumAge })
	foreign = slices.DeleteFunc(foreign, func(i runtime.StoredImage) bool { return now.Sub(i.Created) < c.ForeignMinimumAge })
	slices.SortFunc(foreign, func(a, b runtime.StoredImage) int { return cmp.Compare(a.Size, b.Size) })
	return s.removeImages(ctx, rt, c, append(own, foreign...), c.PerCycle, func() (bool, error) { return true, nil })
}

// cleanForDisk makes room when the disk is too full.
func (s *Images) cleanForDisk(ctx context.Context, rt Cleaner, c CleanConfig) (int, error) {
	if c.DiskPercent <= 0 {
		return 0, nil
	}
	percent, err := c.Disk(ctx)
	if err != nil || percent < c.DiskPercent {
		return 0, err
	}
	own, foreign, err := s.unused(ctx, rt, c)
	if err != nil {
		return 0, err
	}
	n, err := s.removeImages(ctx, rt, c, append(own, foreign...), cleanedOnce, func() (bool, error) {
		now, err := c.Disk(ctx)
		return now > c.DiskPercent-diskLow, err
	})
	s.log.Info("made room on the disk of images", "percent", percent, "removed", n)
	return n, err
}

// unused lists what may be removed, the least recently used first.
func (s *Images) unused(ctx context.Context, rt Cleaner, c CleanConfig) (own, foreign []runtime.StoredImage, err error) {
	all, err := rt.StoredImages(ctx)
	if err != nil {
		return nil, nil, err
	}
	used, err := s.inUse(ctx, rt, c)
	if err != nil {
		return nil, nil, err
	}
	for _, i := range all {
		switch {
		case i.Pinned || used[i.Name] || kept(c.Keep, i.Name):
		case i.Pulled:
			own = append(own, i)
		case c.Foreign:
			foreign = append(foreign, i)
		}
	}
	byUse := func(a, b runtime.StoredImage) int { return a.Used.Compare(b.Used) }
	slices.SortFunc(own, byUse)
	slices.SortFunc(foreign, byUse)
	return own, foreign, nil
}

// inUse is the names of the images that containers or tasks refer to.
func (s *Images) inUse(ctx context.Context, rt Cleaner, c CleanConfig) (map[string]bool, error) {
	used, err := rt.UsedImages(ctx)
	if err != nil {
		return nil, err
	}
	if c.InUse != nil {
		for _, ref := range c.InUse() {
			used[ref] = true
			if name, err := runtime.NormalizeRef(ref); err == nil {
				used[name] = true
			}
		}
	}
	return used, nil
}

// kept reports whether a name is in the list of those that are never removed; a pattern
// of path.Match may stand for several.
func kept(keep []string, name string) bool {
	return slices.ContainsFunc(keep, func(k string) bool {
		full, err := runtime.NormalizeRef(k)
		if k == name || err == nil && full == name {
			return true
		}
		match, err := path.Match(k, name)
		return err == nil && match
	})
}

// removeImages removes up to n images for as long as more says so. An image that has come
// into use meanwhile stays: nothing can begin to use it while it is looked at.
func (s *Images) removeImages(ctx context.Context, rt Cleaner, c CleanConfig, list []runtime.StoredImage, n int, more func() (bool, error)) (removed int, err error) {
	for _, i := range list {
		if removed >= n {
			break
		}
		if yes, err := more(); !yes || err != nil {
			return removed, err
		}
		gone, err := s.removeUnused(ctx, rt, c, i)
		if err != nil {
			return removed, fmt.Errorf("image %s: %w", i.Name, err)
		}
		if gone {
			removed++
			s.log.Info("image removed", "image", i.Name, "digest", i.Digest, "lastUsed", i.Used)
		}
	}
	return removed, nil
}

func (s *Images) removeUnused(ctx context.Context, rt Cleaner, c CleanConfig, i runtime.StoredImage) (bool, error) {
	s.using.Lock()
	defer s.using.Unlock()
	if s.busy[i.Name] > 0 {
		return false, nil
	}
	used, err := s.inUse(ctx, rt, c)
	if err != nil || used[i.Name] {
		return false, err
	}
	return true, rt.RemoveImage(ctx, i)
}

// use marks an image as being looked for or pulled until the returned function is called.
func (s *Images) use(ref string) (done func()) {
	s.using.Lock()
	defer s.using.Unlock()
	s.busy[ref]++
	return func() {
		s.using.Lock()
		defer s.using.Unlock()
		if s.busy[ref]--; s.busy[ref] == 0 {
			delete(s.busy, ref)
		}
	}
}
