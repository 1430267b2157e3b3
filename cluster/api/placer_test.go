package api

import (
	"testing"
	"testing/synctest"
	"time"

	"berth.dev/berth/cluster/store"
)

// TestFeedWait: a decision that was overtaken is made again as soon as the change that
// overtook it has come, and not on what was known before.
func TestFeedWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, states := newFeed(), newPlacement(nil)
		f.add(store.Change{})
		f.drain(states)
		waited := func() time.Duration {
			begin := time.Now()
			f.wait(t.Context())
			return time.Since(begin)
		}
		if d := waited(); d != feedLimit {
			t.Errorf("without a change since the last look it waits %v, want %v", d, feedLimit)
		}
		const later = feedLimit / 4
		time.AfterFunc(later, func() { f.add(store.Change{}) })
		if d := waited(); d != later {
			t.Errorf("with a change after %v it waits %v", later, d)
		}
		f.drain(states)
		f.add(store.Change{})
		if d := waited(); d != 0 {
			t.Errorf("with a change that is there it waits %v", d)
		}
	})
}
