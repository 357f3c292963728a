package repository

import (
	"context"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const (
	remembered  = 5 * time.Minute // how long a success counts
	maxSuccess  = 1000            // successes that are remembered
	maxUnderWay = 256             // checks that run or wait for a slot
)

// flights joins simultaneous checks of the same artifact, and remembers successes. Failures are not remembered: an
// image may be pushed, or a registry come back, at any time.
type flights struct {
	mutex    sync.Mutex
	underWay map[artifact]*flight
	success  map[artifact]success
	order    []artifact // keys of success, oldest first
	now      func() time.Time
}

// flight is a check that runs.
type flight struct {
	waiting int // callers; the check is cancelled when the last has gone
	cancel  context.CancelFunc
	done    chan struct{} // closed once claims and err are set
	claims  *Claims
	err     error
}

type success struct {
	claims *Claims
	until  time.Time
}

func newFlights() flights {
	return flights{underWay: map[artifact]*flight{}, success: map[artifact]success{}, now: time.Now}
}

// do returns the remembered result for an artifact, or that of check, which it calls at most once at a time.
func (f *flights) do(ctx context.Context, a artifact, check func(context.Context) (*Claims, error)) (*Claims, error) {
	f.mutex.Lock()
	if s, ok := f.success[a]; ok && f.now().Before(s.until) {
		f.mutex.Unlock()
		return s.claims.clone(), nil
	}
	one := f.underWay[a]
	if one == nil {
		if len(f.underWay) >= maxUnderWay {
			f.mutex.Unlock()
			return nil, failure.New(failure.Throttled, "cannot check repository %s: %d checks are under way", a.repository,
				maxUnderWay).WithHint("try again later")
		}
		one = f.start(ctx, a, check)
	}
	one.waiting++
	f.mutex.Unlock()

	select {
	case <-one.done:
		return one.claims.clone(), one.err
	case <-ctx.Done():
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if one.waiting--; one.waiting == 0 {
		one.cancel()
		f.end(a, one)
	}
	return nil, failure.New(failure.Timeout, "stopped waiting for repository %s: %w", a.repository, ctx.Err()).
		WithHint("try again later")
}

// start begins a check, which has the values of ctx and a deadline of its own. f.mutex is locked.
func (f *flights) start(ctx context.Context, a artifact, check func(context.Context) (*Claims, error)) *flight {
	one := &flight{done: make(chan struct{})}
	ctx, one.cancel = context.WithTimeout(context.WithoutCancel(ctx), timeout)
	f.underWay[a] = one
	go func() {
		defer one.cancel()
		one.claims, one.err = check(ctx)
		f.mutex.Lock()
		defer f.mutex.Unlock()
		if one.err == nil {
			f.remember(a, one.claims)
		}
		f.end(a, one)
		close(one.done)
	}()
	return one
}

// end forgets a flight, unless another has begun for the same artifact.
func (f *flights) end(a artifact, one *flight) {
	if f.underWay[a] == one {
		delete(f.underWay, a)
	}
}

// remember adds a success, in place of the oldest one if there are too many.
func (f *flights) remember(a artifact, claims *Claims) {
	if _, known := f.success[a]; !known {
		f.order = append(f.order, a)
	}
	f.success[a] = success{claims, f.now().Add(remembered)}
	if len(f.order) > maxSuccess {
		delete(f.success, f.order[0])
		f.order = f.order[1:]
	}
}
