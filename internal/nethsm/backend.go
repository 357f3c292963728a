package nethsm

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Backend reaches keys on a NetHSM for a keystore.
type Backend struct{}

// Scheme returns "nethsm:".
func (Backend) Scheme() string { return config.NetHSMScheme }

// Open prepares for the NetHSM that the settings name. It sends nothing.
func (Backend) Open(_ context.Context, s *config.Settings) (keystore.Store, error) {
	store, err := Open(s)
	if err != nil {
		return nil, err
	}
	return store, nil
}

// Tokens describes the NetHSM of the settings, once an instance has said that it is operational.
func (Backend) Tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	return tokens(ctx, s)
}

// Generate makes a key, as the administrator, with the label as its ID, for one usage and the mechanisms of its spec
// alone. Another id is not kept: a key of a NetHSM has one name.
func (Backend) Generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	return generate(ctx, s, r)
}

// ImportWrapping fails with Invalid: a NetHSM wraps no keys.
func (Backend) ImportWrapping(context.Context, *config.Settings, string, key.WrappingKey, []byte) error {
	return unwrappable()
}

// Matches reports true: settings name one NetHSM.
func (Backend) Matches(config.URI, key.Token) bool { return true }

// Close does nothing: each store has its own connections.
func (Backend) Close() error { return nil }
