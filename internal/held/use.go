package held

import (
	"context"
	"crypto"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Use uses a key. One that the token does not know any more is looked up again, once: it fails with Conflict if another
// key has its name now, since the caller has asked for a use of the one from before.
func (h *Key) Use(ctx context.Context, do func(keystore.Key) ([]byte, error)) ([]byte, error) {
	k := h.keys
	result, err := h.useOnce(do)
	if !gone(err) {
		return result, k.Cause(err)
	}
	k.drop(h)
	again, err := k.look(ctx, h.reference, false)
	if err != nil {
		return nil, err
	}
	if !equal(again.Public, h.Public) {
		return nil, h.replaced()
	}
	result, err = again.useOnce(do)
	if gone(err) {
		k.drop(again)
	}
	return result, k.Cause(err)
}

func (h *Key) useOnce(do func(keystore.Key) ([]byte, error)) ([]byte, error) {
	k := h.keys
	k.mu.Lock()
	if k.closed { // a backend may still have what it takes to use the key
		k.mu.Unlock()
		return nil, k.closedBy
	}
	if h.dropped {
		k.mu.Unlock()
		return nil, h.replaced()
	}
	h.users++
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		h.users--
		last := h.dropped && h.users == 0
		k.mu.Unlock()
		if last {
			h.store.Close()
		}
	}()
	return do(h.key)
}

// drop lets no use of a key begin any more, and closes its store when the last has ended.
func (k *Keys) drop(h *Key) {
	k.mu.Lock()
	id := identify(h.reference)
	if now := k.held[id]; now != nil && now.opened == h.opened {
		delete(k.held, id)
	}
	last := !h.dropped && h.users == 0
	h.dropped = true
	k.mu.Unlock()
	if last {
		h.store.Close()
	}
}

// gone reports whether a key failed since the token does not have it any more, or another under its name.
func gone(err error) bool {
	if err == nil {
		return false
	}
	f := failure.From(err)
	return f.Kind == failure.NotFound || f.Kind == failure.Conflict || f.CKR == "CKR_KEY_HANDLE_INVALID" ||
		f.CKR == "CKR_OBJECT_HANDLE_INVALID"
}

// replaced returns the failure of a use of a key whose name another key has now.
func (h *Key) replaced() error {
	return failure.New(failure.Conflict, "the key %s was replaced by another on the token", h.reference.Key).
		WithHint("run it again, which uses the key that is there now")
}

func equal(a, b crypto.PublicKey) bool {
	own, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(b)
}
