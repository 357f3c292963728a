package repository

import (
	"context"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const (
	remembered  = 5 * time.Minute // how long a success of a check counts
	maxSuccess  = 1000            // successes of checks that are remembered
	maxUnderWay = 256             // flights that run or wait for a slot
)

// flights joins simultaneous questions for the same artifact, and remembers answers. Failures are not remembered: an
// image may be pushed, or a registry come back, at any time.
type flights[K comparable, V any] struct {
	timeout    time.Duration  // of a flight, waiting for a slot included
	remembered time.Duration  // how long an answer counts
	most       int            // answers that are remembered
	name       func(K) string // of the repository that is asked
	clone      func(V) V      // returns a copy that shares nothing
	now        func() time.Time

	mutex    sync.Mutex
	underWay map[K]*flight[V]
	answers  map[K]answer[V]
	order    []K // keys of answers, oldest first
}

// flight is a question that is being answered.
type flight[V any] struct {
	waiting int // callers; the flight is cancelled when the last has gone
	cancel  context.CancelFunc
	done    chan struct{} // closed once value and err are set
	value   V
	err     error
}

type answer[V any] struct {
	value V
	until time.Time
}

func newFlights[K comparable, V any](timeout, remembered time.Duration, most int,
	name func(K) string, clone func(V) V) *flights[K, V] {
	return &flights[K, V]{timeout: timeout, remembered: remembered, most: most, name: name,
		clone: clone, now: time.Now, underWay: map[K]*flight[V]{}, answers: map[K]answer[V]{}}
}

// do returns the remembered answer for a key, or that of ask, which it calls at most once at a time.
func (f *flights[K, V]) do(ctx context.Context, key K, ask func(context.Context) (V, error)) (V, error) {
	var none V
	f.mutex.Lock()
	if a, ok := f.answers[key]; ok && f.now().Before(a.until) {
		f.mutex.Unlock()
		return f.clone(a.value), nil
	}
	one := f.underWay[key]
	if one == nil {
		if len(f.underWay) >= maxUnderWay {
			f.mutex.Unlock()
			return none, failure.New(failure.Throttled, "cannot check repository %s: %d checks are under way", f.name(key),
				maxUnderWay).WithHint("try again later")
		}
		one = f.start(ctx, key, ask)
	}
	one.waiting++
	f.mutex.Unlock()

	select {
	case <-one.done:
		if one.err != nil {
			return none, one.err
		}
		return f.clone(one.value), nil
	case <-ctx.Done():
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if one.waiting--; one.waiting == 0 {
		one.cancel()
		f.end(key, one)
	}
	return none, failure.New(failure.Timeout, "stopped waiting for repository %s: %w", f.name(key), ctx.Err()).
		WithHint("try again later")
}

// start begins a flight, which has the values of ctx and a deadline of its own. f.mutex is locked.
func (f *flights[K, V]) start(ctx context.Context, key K, ask func(context.Context) (V, error)) *flight[V] {
	one := &flight[V]{done: make(chan struct{})}
	ctx, one.cancel = context.WithTimeout(context.WithoutCancel(ctx), f.timeout)
	f.underWay[key] = one
	go func() {
		defer one.cancel()
		one.value, one.err = ask(ctx)
		f.mutex.Lock()
		defer f.mutex.Unlock()
		if one.err == nil {
			f.remember(key, one.value)
		}
		f.end(key, one)
		close(one.done)
	}()
	return one
}

// end forgets a flight, unless another has begun for the same key.
func (f *flights[K, V]) end(key K, one *flight[V]) {
	if f.underWay[key] == one {
		delete(f.underWay, key)
	}
}

// remember adds an answer, in place of the oldest one if there are too many.
func (f *flights[K, V]) remember(key K, value V) {
	if _, known := f.answers[key]; !known {
		f.order = append(f.order, key)
	}
	f.answers[key] = answer[V]{value, f.now().Add(f.remembered)}
	if len(f.order) > f.most {
		delete(f.answers, f.order[0])
		f.order = f.order[1:]
	}
}
