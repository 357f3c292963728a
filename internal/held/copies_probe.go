package held

import (
	"context"
	"crypto"
	"log/slog"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// leaveOut leaves a copy out until a use or a probe of it succeeds. The caller holds the lock.
func (c *Copies) leaveOut(r *replica, err error) {
	if r.failed == nil && len(c.all) > 1 {
		slog.Error("a module is left out", "key", c.name, "module", r.reference.Key.String(), "error", err)
	}
	r.failed, r.trial = err, false
	if !r.probing {
		r.probing = true
		go c.probe(r)
	}
}

// probe asks the module of a copy that is left out for its key, time and again, until it has it. It logs in, but not
// with a PIN that the token has refused.
func (c *Copies) probe(r *replica) {
	for {
		c.mu.Lock()
		// The wait begins anew when a use succeeds, not when a probe does: a module may find a key that it cannot use.
		r.wait = min(max(2*r.wait, c.wait), c.most)
		pause := time.After(r.wait)
		c.mu.Unlock()
		select {
		case <-pause:
		case <-c.stop:
			return
		case <-c.keys.done:
			return
		}
		c.mu.Lock()
		back := r.failed == nil // a use has succeeded meanwhile
		r.probing = !back
		c.mu.Unlock()
		if back || c.look(r) {
			return
		}
	}
}

// look asks the module of a copy that is left out for its key, and reports whether it can be used.
func (c *Copies) look(r *replica) bool {
	public, err := c.keys.ask(context.Background(), r.reference)
	if err == nil {
		err = c.check(r, public)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		r.failed = err
		return false
	}
	r.failed, r.trial, r.probing = nil, true, false
	c.tell()
	return true
}

// ask returns the public half of a key as the module has it now.
func (k *Keys) ask(ctx context.Context, reference *keystore.Reference) (crypto.PublicKey, error) {
	found, err := k.Find(ctx, reference)
	if err != nil {
		return nil, err
	}
	now, err := found.store.Key(ctx, nil)
	if gone(err) || err == nil && !equal(now.Public(), found.Public) {
		k.drop(found)
	}
	if err != nil {
		return nil, k.Cause(err)
	}
	return now.Public(), nil
}

// isClosed reports whether Close was called.
func (k *Keys) isClosed() bool {
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}
