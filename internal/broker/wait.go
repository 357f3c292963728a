package broker

import (
	"context"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// waiters are those who wait for a change of a request.
type waiters struct {
	mu sync.Mutex
	of map[string]map[chan struct{}]bool
}

// add returns a channel that is closed at the next change of a request, and a function that ends the wait.
func (w *waiters) add(id string) (<-chan struct{}, func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = map[string]map[chan struct{}]bool{}
	}
	if w.of[id] == nil {
		w.of[id] = map[chan struct{}]bool{}
	}
	c := make(chan struct{})
	w.of[id][c] = true
	return c, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if delete(w.of[id], c); len(w.of[id]) == 0 {
			delete(w.of, id)
		}
	}
}

// wake ends the waits for some requests.
func (w *waiters) wake(ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		for c := range w.of[id] {
			close(c)
		}
		delete(w.of, id)
	}
}

// wakeAll ends all waits.
func (w *waiters) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, of := range w.of {
		for c := range of {
			close(c)
		}
	}
	clear(w.of)
}

// Wait returns a request of a caller once it is settled, or after a time.
func (b *Broker) Wait(ctx context.Context, caller identity.Caller, id string, atMost time.Duration) (
	*brokerapi.Request, error) {
	end := time.NewTimer(atMost)
	defer end.Stop()
	for {
		changed, done := b.waiters.add(id)
		r, err := b.Request(ctx, caller, id)
		if err != nil || r.State.Settled() || atMost <= 0 {
			done()
			return r, err
		}
		due := untilDue(r, b.time())
		select {
		case <-changed:
		case <-due.C:
		case <-end.C:
			atMost = 0
		case <-b.running.Done():
			atMost = 0
		case <-ctx.Done():
			done()
			return nil, context.Cause(ctx)
		}
		due.Stop()
		done()
	}
}

// untilDue returns a timer for when a request changes by itself: its time lock ends, or it expires.
func untilDue(r *brokerapi.Request, now time.Time) *time.Timer {
	next := time.Hour
	for _, at := range []*time.Time{r.NotBefore, r.NotAfter} {
		if at != nil {
			next = min(next, at.Sub(now))
		}
	}
	return time.NewTimer(max(next, time.Second))
}

// waitUntilSettled returns the state of a request that is being signed, once that has ended.
func (b *Broker) waitUntilSettled(ctx context.Context, id string) (state brokerapi.State, err error) {
	var stopping <-chan struct{} // a replica that ends hears no more of what others sign
	if b.replica != nil {
		stopping = b.running.Done()
	}
	for {
		changed, done := b.waiters.add(id)
		err := b.do(ctx, func(d *decision) error {
			state = brokerapi.Lost
			if r := d.Requests[id]; r != nil {
				state = r.State
			}
			return nil
		})
		if err != nil || state != brokerapi.Signing {
			done()
			return state, err
		}
		select {
		case <-changed:
		case <-stopping:
			done()
			return state, errStopping()
		case <-ctx.Done():
			done()
			return state, context.Cause(ctx)
		}
		done()
	}
}
