// Package remote is a keystore backend that uses keys through a broker, over the HTTP API of internal/brokerapi. This
// process needs no PIN and no module.
//
// A broker signs what it understands: it gets the whole message, never a hash. It changes no keys.
package remote

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Backend reaches keys through brokers.
type Backend struct{ clients clients }

// New returns a Backend without connections.
func New() *Backend { return &Backend{} }

// Scheme returns that of keys of a broker.
func (b *Backend) Scheme() string { return config.BrokerScheme }

// Matches reports whether a token of a broker is one that a URI names. broker: names the broker's, whichever it is.
func (b *Backend) Matches(want config.URI, _ key.Token) bool { return want.Broker }

// Close ends idle connections.
func (b *Backend) Close() error {
	b.clients.close()
	return nil
}

// Open asks the broker for the key that the settings name.
func (b *Backend) Open(ctx context.Context, s *config.Settings) (keystore.Store, error) {
	c := b.clients.of(s)
	store := &store{client: c, name: nameOf(s.Key)}
	if store.name == "" {
		return store, c.get(ctx, brokerapi.KeysPath, &store.all)
	}
	var described brokerapi.Key
	if err := c.get(ctx, brokerapi.KeyPath(store.name), &described); err != nil {
		return nil, err
	}
	store.all.Keys = []brokerapi.Key{described}
	return store, nil
}

// nameOf returns the name by which a broker is asked for a key; "" for a reference to a token.
func nameOf(u config.URI) string {
	switch {
	case u.Object == "" && len(u.ID) == 0:
		return ""
	case u.Broker:
		return u.Object
	}
	return u.String()
}

// Tokens fails: a broker lists no tokens.
func (b *Backend) Tokens(context.Context, *config.Settings) ([]key.Token, error) {
	return nil, unsupported("lists no tokens")
}

// Generate fails: a broker makes no keys.
func (b *Backend) Generate(context.Context, *config.Settings, key.Request) (key.Info, error) {
	return key.Info{}, unsupported("generates no keys")
}

// ImportWrapping fails: a broker stores no keys.
func (b *Backend) ImportWrapping(context.Context, *config.Settings, string, key.WrappingKey, []byte) error {
	return unsupported("stores no keys")
}

// unsupported returns the failure of what no broker does.
func unsupported(what string) error {
	return failure.New(failure.Unsupported, "a broker %s", what).
		WithHint("name the key by the URI that it has in its module, and unset NOTATION_HSM_BROKER")
}
