package session

import (
	"sync"
	"time"
)

// Memory remembers what was used, so that nobody can use it again. It is safe for concurrent use.
type Memory struct {
	most int
	now  func() time.Time

	mu    sync.Mutex
	used  map[[32]byte]time.Time // until when it is remembered
	swept time.Time
}

// NewMemory returns a Memory of at most so many uses at once.
func NewMemory(most int, now func() time.Time) *Memory {
	return &Memory{most: most, now: now, used: map[[32]byte]time.Time{}}
}

// sweepInterval is how often uses that are over are forgotten.
const sweepInterval = time.Second

// Once reports whether something is used for the first time, and remembers it until a time, from which on the caller
// refuses it by itself. It reports false as well while the memory is full.
func (m *Memory) Once(id [32]byte, until time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if passed := now.Sub(m.swept); passed >= sweepInterval || passed < 0 {
		for old, ends := range m.used {
			if !now.Before(ends) {
				delete(m.used, old)
			}
		}
		m.swept = now
	}
	if _, again := m.used[id]; again || len(m.used) >= m.most || !now.Before(until) {
		return false
	}
	m.used[id] = until
	return true
}
