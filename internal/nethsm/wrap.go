package nethsm

import (
	"context"
	"crypto"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// unwrappable is the answer to everything that takes keys out of a NetHSM one by one.
func unwrappable() error {
	return failure.New(failure.Invalid, "a NetHSM wraps no keys: a key never leaves it by itself").
		WithHint("back up the NetHSM as a whole, with 'notation-hsm nethsm backup FILE'")
}

// WrappingKey, Wrap, Unwrap, Authenticate and Verify fail: NetHSM has nothing like it.
func (s *Store) WrappingKey(context.Context, config.URI) (key.WrappingKey, error) {
	return key.WrappingKey{}, unwrappable()
}

// Wrap fails.
func (s *Store) Wrap(context.Context, keystore.Key, config.URI) (key.Wrapped, error) {
	return key.Wrapped{}, unwrappable()
}

// Unwrap fails.
func (s *Store) Unwrap(context.Context, key.Wrapped, key.Usage, string, []byte, crypto.PublicKey) error {
	return unwrappable()
}

// Authenticate fails.
func (s *Store) Authenticate(context.Context, []byte, string, key.WrappingKey) (key.MAC, error) {
	return key.MAC{}, unwrappable()
}

// Verify fails.
func (s *Store) Verify(context.Context, []byte, key.MAC, string, key.WrappingKey) error {
	return unwrappable()
}
