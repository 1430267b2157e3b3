package acs

import (
	"sync"
	"time"
)

// sequence gives numbers that only grow, also from one start of the cluster to the next,
// without a write: milliseconds of the clock, or one more than the last. Should the
// clock go back over a restart, agents ignore manifests until it has caught up, and
// nothing else.
type sequence struct {
	mu   sync.Mutex
	last int64
}

func (s *sequence) next(now time.Time) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = max(s.last+1, now.UnixMilli())
	return s.last
}
