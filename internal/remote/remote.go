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
type Backend struct{ connections connections }

// New returns a Backend without connections.
func New() *Backend { return &Backend{} }

// Scheme returns that of keys of a broker.
func (b *Backend) Scheme() string { return config.BrokerScheme }

// Matches reports whether a token may be one that a URI names. broker:NAME does not tell which token the broker holds,
// so that it may be any.
func (b *Backend) Matches(want config.URI, _ key.Token) bool { return want.Broker }

// Close ends idle connections.
func (b *Backend) Close() error {
	b.connections.close()
	return nil
}

// Open asks the broker for the key that the settings name, or for all its keys if they name a token.
func (b *Backend) Open(ctx context.Context, s *config.Settings) (keystore.Store, error) {
	c, err := b.connections.to(s)
	if err != nil {
		return nil, err
	}
	opened, err := open(ctx, c, s.Key)
	if err != nil {
		c.release()
		return nil, err
	}
	return opened, nil
}

func open(ctx context.Context, c *client, named config.URI) (*store, error) {
	s := &store{client: c, name: nameOf(named)}
	if s.name != "" {
		var described brokerapi.Key
		if err := c.get(ctx, brokerapi.KeyPath(s.name), &described); err != nil {
			return nil, err
		}
		return s, s.add(s.name, described)
	}
	var all brokerapi.Keys
	if err := c.get(ctx, brokerapi.KeysPath, &all); err != nil {
		return nil, err
	}
	if err := s.describe(all.Token); err != nil {
		return nil, err
	}
	if !holds(named, s.token) {
		return nil, failure.New(failure.NotFound, "the broker at %s does not hold the token %s", c.address, named).
			WithHint("name its token, " + s.token.URI + "; or unset NOTATION_HSM_BROKER to use the module directly")
	}
	for _, described := range all.Keys {
		name := described.URI
		if c.credentials != nil { // a broker of a team knows its keys by the names of its policy
			name = described.Name
		}
		if err := s.add(name, described); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// holds reports whether a token of a broker is one that a reference names. It is none that a slot names: a broker does
// not tell its slots.
func holds(named config.URI, t key.Token) bool {
	same := func(want, is string) bool { return want == "" || want == is }
	return named.Broker || named.NetHSM == (t.URI == config.NetHSMScheme) && named.SlotID == nil &&
		same(named.Token, t.Label) && same(named.Serial, t.Serial) && same(named.Manufacturer, t.Manufacturer) &&
		same(named.Model, t.Model)
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
