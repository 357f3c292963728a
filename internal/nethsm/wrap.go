package nethsm

import (
	"context"
	"crypto"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// errNoWrapping returns the failure of every operation that wraps keys.
func errNoWrapping() error {
	return failure.New(failure.Unsupported, "a NetHSM does not support key wrapping").
		WithHint("back up the NetHSM as a whole, with 'notation-hsm nethsm backup FILE'")
}

// WrappingKey fails with Unsupported.
func (s *Store) WrappingKey(context.Context, config.URI) (key.WrappingKey, error) {
	return key.WrappingKey{}, errNoWrapping()
}

// Wrap fails with Unsupported.
func (s *Store) Wrap(context.Context, keystore.Key, config.URI) (key.Wrapped, error) {
	return key.Wrapped{}, errNoWrapping()
}

// Unwrap fails with Unsupported.
func (s *Store) Unwrap(context.Context, key.Wrapped, key.Usage, string, []byte, crypto.PublicKey) error {
	return errNoWrapping()
}

// Authenticate fails with Unsupported.
func (s *Store) Authenticate(context.Context, []byte, string, key.WrappingKey) (key.MAC, error) {
	return key.MAC{}, errNoWrapping()
}

// Verify fails with Unsupported.
func (s *Store) Verify(context.Context, []byte, key.MAC, string, key.WrappingKey) error {
	return errNoWrapping()
}
