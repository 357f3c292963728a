package session

import (
	"context"
	"sync"
	"time"
)

// Uses remembers what was used, so that nobody can use it again: a Memory for one process, and the store for replicas
// that share it.
type Uses interface {
	// Once reports whether something is used for the first time, and remembers it until a time, from which on the caller
	// refuses it by itself.
	Once(ctx context.Context, id [32]byte, until time.Time) (bool, error)
	// Used reports whether something was used, at a time before the one that Once was called with.
	Used(ctx context.Context, id [32]byte) (bool, error)
}

// Memory is the Uses of one process. It is safe for concurrent use, and never fails.
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

// Once implements Uses. It reports false as well while the memory is full.
func (m *Memory) Once(_ context.Context, id [32]byte, until time.Time) (bool, error) {
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
		return false, nil
	}
	m.used[id] = until
	return true, nil
}

// Used implements Uses.
func (m *Memory) Used(_ context.Context, id [32]byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, used := m.used[id]
	return used, nil
}
