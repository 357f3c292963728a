package nethsm

import (
	"crypto"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// unwrappable is the answer to everything that takes keys out of a NetHSM one by one.
func unwrappable() error {
	return failure.New(failure.Invalid, "a NetHSM wraps no keys: a key never leaves it by itself").
		WithHint("back up the NetHSM as a whole, with 'notation-hsm nethsm backup FILE'")
}

// WrappingKey, Wrap, Unwrap, Authenticate and Verify fail: NetHSM has nothing like it.
func (s *Store) WrappingKey(config.URI) (key.WrappingKey, error) {
	return key.WrappingKey{}, unwrappable()
}

// Wrap fails.
func (s *Store) Wrap(*Key, config.URI) (key.Wrapped, error) { return key.Wrapped{}, unwrappable() }

// Unwrap fails.
func (s *Store) Unwrap(key.Wrapped, key.Usage, string, []byte, crypto.PublicKey) error {
	return unwrappable()
}

// Authenticate fails.
func (s *Store) Authenticate([]byte, string, key.WrappingKey) (key.MAC, error) {
	return key.MAC{}, unwrappable()
}

// Verify fails.
func (s *Store) Verify([]byte, key.MAC, string, key.WrappingKey) error { return unwrappable() }

// ImportWrapping fails.
func ImportWrapping() error { return unwrappable() }
