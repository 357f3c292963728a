package nethsm

import (
	"context"
	"crypto/x509"
	"net/http"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Delete deletes a key with its certificates. It succeeds if the key does not exist.
func (s *Store) Delete(ctx context.Context, k keystore.Key, _ []*x509.Certificate) error {
	id := own(k).id
	defer s.forget(id)
	_, err := s.change(ctx, request{what: "deleting key nethsm:" + id, method: http.MethodDelete, path: keyPath(id)},
		http.StatusNoContent, http.StatusNotFound)
	return err
}

// Discard deletes nothing: a NetHSM generates a key in one step, so an interrupted Generate leaves no objects behind.
// It fails with Conflict if the key of the settings exists.
func (s *Store) Discard(ctx context.Context) error {
	id, err := s.id()
	if err != nil {
		return err
	}
	exists, err := s.key(id).exists(ctx, s.ask)
	if err == nil && exists {
		return failure.New(failure.Conflict, "key nethsm:%s exists, and user %s cannot use it", id, s.reader.user).
			WithHint("see its restrictions with 'notation-hsm key show'; delete it, or choose another name")
	}
	return err
}
