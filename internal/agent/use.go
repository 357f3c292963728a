package agent

import (
	"context"
	"crypto"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// use uses a key. One that the token does not know any more is looked up again, once: it fails with Conflict if another
// key has its name now, since the caller has asked for a use of the one from before.
func (s *session) use(ctx context.Context, h *held, do func(keystore.Key) ([]byte, error)) ([]byte, error) {
	result, err := s.useOnce(h, do)
	if !gone(err) {
		return result, s.met(err)
	}
	s.drop(h)
	again, err := s.look(ctx, h.reference, false)
	if err != nil {
		return nil, err
	}
	if !equal(again.public, h.public) {
		return nil, h.replaced()
	}
	result, err = s.useOnce(again, do)
	if gone(err) {
		s.drop(again)
	}
	return result, s.met(err)
}

func (s *session) useOnce(h *held, do func(keystore.Key) ([]byte, error)) ([]byte, error) {
	s.mu.Lock()
	if s.closed { // a backend may still have what it takes to use the key
		s.mu.Unlock()
		return nil, errLocked()
	}
	if h.dropped {
		s.mu.Unlock()
		return nil, h.replaced()
	}
	h.users++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		h.users--
		last := h.dropped && h.users == 0
		s.mu.Unlock()
		if last {
			h.store.Close()
		}
	}()
	return do(h.key)
}

// drop lets no use of a key begin any more, and closes its store when the last has ended.
func (s *session) drop(h *held) {
	s.mu.Lock()
	id := h.reference.Key.String()
	if now := s.held[id]; now != nil && now.opened == h.opened {
		delete(s.held, id)
	}
	last := !h.dropped && h.users == 0
	h.dropped = true
	s.mu.Unlock()
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
func (h *held) replaced() error {
	return failure.New(failure.Conflict, "the key %s was replaced by another on the token", h.reference.Key).
		WithHint("run it again, which uses the key that is there now")
}

func equal(a, b crypto.PublicKey) bool {
	own, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && own.Equal(b)
}
