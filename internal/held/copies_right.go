package held

import (
	"context"
	"crypto"
	"crypto/x509"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// RightByChain returns a function that reports whether a public key is that of a certificate in a PEM file; nil without
// a file. Certificates of CAs do not count, and a file without others takes every key.
func RightByChain(path string) func(crypto.PublicKey) (bool, error) {
	if path == "" {
		return nil
	}
	return func(public crypto.PublicKey) (bool, error) {
		known, err := certs.ReadFile(path)
		if err != nil {
			return false, err
		}
		leaves := slices.DeleteFunc(known, func(c *x509.Certificate) bool { return c.IsCA })
		return len(leaves) == 0 || certs.LeafOf(public, leaves, time.Now()) != nil, nil
	}
}

// Public returns the public half of the key.
func (c *Copies) Public(ctx context.Context) (crypto.PublicKey, error) {
	if err := c.decide(ctx); err != nil {
		return nil, err
	}
	if len(c.all) == 1 {
		found, err := c.find(ctx, c.all[0])
		if err != nil {
			return nil, err
		}
		return found.Public, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.public, nil
}

// decide waits until it is known which public key the key has. Before the first use, all copies are looked up at once.
// If nobody knows which is right, it is that of the first in the list: of a later one only if those before it have
// failed, or have not answered in time. It does not change as long as the broker runs.
func (c *Copies) decide(ctx context.Context) error {
	for {
		c.mu.Lock()
		if c.public != nil || len(c.all) == 1 {
			c.mu.Unlock()
			return nil
		}
		if !c.looking {
			c.looking = true
			for _, r := range c.all {
				go c.lookFirst(r) //nolint:gosec // it serves all callers, and outlives this one
			}
			time.AfterFunc(c.first, func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.late = true
				c.tell()
			})
		}
		changed := c.changed
		waiting := slices.ContainsFunc(c.all, func(r *replica) bool { return !r.looked })
		c.mu.Unlock()
		if !waiting {
			return c.noneLeft()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lookFirst looks a copy up before the first use.
func (c *Copies) lookFirst(r *replica) {
	_, err := c.find(context.Background(), r)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && !r.looked && !c.keys.isClosed() { // else a use knows better
		c.leaveOut(r, err)
	}
	r.looked = true
	c.tell()
}

// tell has those go on who wait for copies, and decides which public key is right if that is known now. The caller
// holds the lock.
func (c *Copies) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
	for _, r := range c.all {
		if c.public != nil || !r.looked && !c.late {
			break
		}
		if r.failed == nil {
			c.public = r.public
		}
	}
	for _, r := range c.all {
		if c.public != nil && r.public != nil && r.failed == nil && !equal(r.public, c.public) {
			r.other = true
			c.leaveOut(r, c.otherKey(r))
		}
	}
}

// check fails with Conflict unless a copy has the public key that is right.
func (c *Copies) check(r *replica, public crypto.PublicKey) error {
	if len(c.all) == 1 {
		return nil
	}
	c.mu.Lock()
	same := r.failed == nil && c.public != nil && equal(public, r.public)
	c.mu.Unlock()
	if same {
		return nil
	}
	is := true
	if c.right != nil {
		var err error
		if is, err = c.right(public); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.public = public
	if r.other = !is || c.public != nil && !equal(public, c.public); r.other {
		return c.otherKey(r)
	}
	return nil
}

// otherKey returns the failure of a copy that is none.
func (c *Copies) otherKey(r *replica) error {
	return failure.New(failure.Conflict, "the module has another key as %s: its public key is not that of key %q",
		r.reference.Key, c.name).WithHint("restore the key on that token, or remove its URI from the key")
}

// noneLeft returns why no copy can be used.
func (c *Copies) noneLeft() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.all {
		if r.failed != nil {
			return r.failed
		}
	}
	return failure.New(failure.Unavailable, "no module has answered for key %q", c.name).WithHint("try again")
}
