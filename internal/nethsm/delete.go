package nethsm

import (
	"context"
	"crypto/x509"
	"net/http"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Delete removes a key; its certificates go with it. What is gone already is no failure.
func (s *Store) Delete(ctx context.Context, of keystore.Key, _ []*x509.Certificate) error {
	k := of.(*Key) // keys of this store are its own
	delete(s.chains, k.id)
	_, err := s.change(ctx, request{what: "deleting key nethsm:" + k.id, method: http.MethodDelete, path: keyPath(k.id)},
		http.StatusNoContent, http.StatusNotFound)
	return err
}

// Discard is for what is left of a key whose making was cut short. A NetHSM makes a key whole or not at all, so a key
// of that name is somebody's.
func (s *Store) Discard(ctx context.Context) error {
	id, err := s.id()
	if err != nil {
		return err
	}
	there, err := (&Key{store: s, id: id}).exists(ctx, s.ask)
	if err == nil && there {
		return failure.New(failure.Denied, "the key nethsm:%s is there, and does not work for user %s", id, s.reader.user).
			WithHint("see whose it is with 'notation-hsm key show', and delete it or choose another name")
	}
	return err
}
