package pkcs11

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Backend reaches keys in PKCS#11 modules for a keystore.
type Backend struct{}

// New returns a Backend with no module loaded.
func New() *Backend { return &Backend{} }

// Scheme returns "pkcs11:".
func (*Backend) Scheme() string { return config.Scheme }

// Open loads the module, finds the one token that the settings name and opens a session on it.
func (*Backend) Open(ctx context.Context, s *config.Settings) (keystore.Store, error) {
	t, err := Open(ctx, s)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Tokens lists the tokens of the module that the settings name.
func (*Backend) Tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	return tokens(ctx, s)
}

// Generate makes a key inside the module: sensitive, not extractable unless the request says so, and for its usage alone.
func (*Backend) Generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	return generateKey(ctx, s, r)
}

// ImportWrapping stores a trusted wrapping key on the token, as its security officer, whose PIN comes from soPINSource.
func (*Backend) ImportWrapping(ctx context.Context, s *config.Settings, soPINSource string, w key.WrappingKey,
	value []byte) error {
	return importWrapping(ctx, s, soPINSource, w, value)
}

// Matches reports whether a token is one that a URI names; what the URI leaves out matches any.
func (*Backend) Matches(want config.URI, token key.Token) bool { return matches(want, token) }

// Close does nothing yet: each store finalises its module.
func (*Backend) Close() error { return nil }
