package state

import (
	"slices"
	"sync"
	"time"
)

// memory mirrors a bucket of things to remember for a while, so that looking one up
// reads no disk. It is changed only after a transaction has succeeded.
type memory struct {
	max int
	age time.Duration

	mu    sync.RWMutex
	at    map[string]time.Time
	order []dated // in the order of arrival; head is the oldest
}

type dated struct {
	key string
	at  time.Time
}

func newMemory(max int, age time.Duration) *memory {
	return &memory{max: max, age: age, at: make(map[string]time.Time)}
}

func (m *memory) load(key string, at time.Time) {
	m.at[key] = at
	m.order = append(m.order, dated{key, at})
}

func (m *memory) sort() {
	slices.SortStableFunc(m.order, func(a, b dated) int { return a.at.Compare(b.at) })
}

func (m *memory) add(key string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.load(key, at)
}

// has reports whether key is remembered and not too old.
func (m *memory) has(key string, now time.Time) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	at, ok := m.at[key]
	return ok && now.Sub(at) < m.age
}

// due returns the oldest entries that are too old or too many, at most limit. An entry
// that was added again since is listed as stale: it leaves the order and not the bucket.
func (m *memory) due(now time.Time, limit int) (keys []string, entries int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	over := len(m.at) - m.max
	for _, d := range m.order {
		if len(keys) == limit {
			break
		}
		if !m.at[d.key].Equal(d.at) {
			entries++
			continue
		}
		if over <= 0 && now.Sub(d.at) < m.age {
			break
		}
		over--
		keys = append(keys, d.key)
		entries++
	}
	return keys, entries
}

// drop forgets the oldest entries, as due has counted them.
func (m *memory) drop(entries int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.order[:entries] {
		if m.at[d.key].Equal(d.at) {
			delete(m.at, d.key)
		}
	}
	m.order = m.order[entries:]
}

func (m *memory) len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.at)
}
