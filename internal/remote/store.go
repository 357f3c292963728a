package remote

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// store is what a broker said of the key that was asked for, or of all its keys.
type store struct {
	client *client
	name   string // of the key; "" for all
	token  key.Token
	keys   []*remoteKey
}

// describe sets the token from its URI. It fails for a URI that does not parse. A broker of a team has keys of several
// tokens, and need not name one.
func (s *store) describe(token string) error {
	if token == "" && s.client.credentials != nil {
		s.token = key.Token{URI: config.BrokerScheme, Initialized: true, PIN: key.PINNotTold}
		return nil
	}
	u, err := config.ParseURI(token)
	if err != nil {
		return s.client.invalid("token", err)
	}
	u.Object, u.ID = "", nil
	s.token = key.Token{URI: u.String(), Label: u.Token, Serial: u.Serial, Manufacturer: u.Manufacturer, Model: u.Model,
		Initialized: true, PIN: key.PINNotTold}
	return nil
}

// add adds a key that the broker has described. name is what the broker is asked for.
func (s *store) add(name string, described brokerapi.Key) error {
	if len(s.keys) == 0 {
		if err := s.describe(described.Token); err != nil {
			return err
		}
	}
	found, err := newKey(s.client, name, described)
	s.keys = append(s.keys, found)
	return err
}

// one returns the key that was asked for.
func (s *store) one() (*remoteKey, error) {
	if s.name == "" || len(s.keys) != 1 {
		return nil, failure.New(failure.Invalid, "no key of the broker is named").
			WithHint("name it like broker:release")
	}
	return s.keys[0], nil
}

// Describe returns the token of the broker's keys.
func (s *store) Describe() key.Token { return s.token }

// Login does nothing: the broker has logged in.
func (s *store) Login(context.Context) error { return nil }

// Close ends the connection, unless another store uses it.
func (s *store) Close() error {
	s.client.release()
	return nil
}

// Key returns the key that was asked for. It fails with Invalid if public is another key's.
func (s *store) Key(_ context.Context, public crypto.PublicKey) (keystore.Key, error) {
	found, err := s.one()
	if err != nil {
		return nil, err
	}
	if public != nil && !found.public.Equal(public) {
		return nil, failure.New(failure.Invalid, "the certificate belongs to another key than the broker's key %q", s.name).
			WithHint("name the certificate that was issued for this key")
	}
	return found, nil
}

// Keys returns all keys that the broker listed.
func (s *store) Keys(context.Context) (all []keystore.Key, err error) {
	for _, k := range s.keys {
		all = append(all, k)
	}
	return all, nil
}

// Public returns the key's public half.
func (s *store) Public(context.Context) (crypto.PublicKey, error) {
	k, err := s.one()
	if err != nil {
		return nil, err
	}
	return k.Public(), nil
}

// Receives returns what the broker said of the key as a recipient's.
func (s *store) Receives(context.Context, crypto.PublicKey) (key.Receives, error) {
	k, err := s.one()
	if err != nil {
		return key.Receives{}, err
	}
	return k.receives(), nil
}

// Leaf returns the leaf of the key's chain, or nil.
func (s *store) Leaf(context.Context) (*x509.Certificate, error) {
	k, err := s.one()
	if err != nil || len(k.chain) == 0 {
		return nil, err
	}
	return k.chain[0], nil
}

// Issuers returns those certificates of the chain whose subject is cert's issuer.
func (s *store) Issuers(_ context.Context, cert *x509.Certificate) (issuers []*x509.Certificate, err error) {
	for _, k := range s.keys {
		for _, one := range k.chain {
			if bytes.Equal(one.RawSubject, cert.RawIssuer) {
				issuers = append(issuers, one)
			}
		}
	}
	return issuers, nil
}

// Certificates returns the chains of the keys that were asked for.
func (s *store) Certificates(context.Context) (all []*x509.Certificate, err error) {
	for _, k := range s.keys {
		all = append(all, k.chain...)
	}
	return all, nil
}

// Import fails, as do all that change keys.
func (s *store) Import(context.Context, keystore.Key, []*x509.Certificate) (int, error) {
	return 0, unsupported("stores no certificates")
}

// Delete fails.
func (s *store) Delete(context.Context, keystore.Key, []*x509.Certificate) error {
	return unsupported("deletes no keys")
}

// Discard fails.
func (s *store) Discard(context.Context) error { return unsupported("deletes no keys") }

// Taken fails.
func (s *store) Taken(context.Context, config.URI) (bool, error) {
	return false, unsupported("generates no keys")
}

// WrappingKey fails.
func (s *store) WrappingKey(context.Context, config.URI) (key.WrappingKey, error) {
	return key.WrappingKey{}, unsupported("wraps no keys")
}

// Wrap fails.
func (s *store) Wrap(context.Context, keystore.Key, config.URI) (key.Wrapped, error) {
	return key.Wrapped{}, unsupported("wraps no keys")
}

// Unwrap fails.
func (s *store) Unwrap(context.Context, key.Wrapped, key.Usage, string, []byte, crypto.PublicKey) error {
	return unsupported("unwraps no keys")
}

// Authenticate fails.
func (s *store) Authenticate(context.Context, []byte, string, key.WrappingKey) (key.MAC, error) {
	return key.MAC{}, unsupported("authenticates no backups")
}

// Verify fails.
func (s *store) Verify(context.Context, []byte, key.MAC, string, key.WrappingKey) error {
	return unsupported("authenticates no backups")
}
