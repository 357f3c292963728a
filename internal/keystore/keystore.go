// Package keystore is the only door to a private key: from the settings that name one to a crypto.Signer whose private
// half stays in its module. Everything above speaks crypto and x509, and knows no module by name.
package keystore

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/x509"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/nethsm"
)

// Key is a private key in a module. It signs through crypto.Signer, or crypto.MessageSigner where the caller has the
// whole message; the latter also reaches modules that insist on hashing themselves. Whether it may sign, decrypt or
// derive is the module's to say; each fails with Denied where it may not.
type Key interface {
	crypto.Signer
	crypto.MessageSigner

	// Decrypt opens an RSA ciphertext: RSAES-OAEP without a label (*rsa.OAEPOptions) or RSAES-PKCS1-v1_5
	// (*rsa.PKCS1v15DecryptOptions).
	crypto.Decrypter
	// ECDH returns the x coordinate shared with a public key on the same curve, as long as the curve's field.
	ECDH(remote *ecdh.PublicKey) ([]byte, error)

	// ReadPublic asks the module for the public half, even if the key was opened with one.
	ReadPublic() (crypto.PublicKey, error)
	// Info returns what the module says of the key.
	Info() (key.Info, error)
}

// Store is the place that holds the key of the settings it was opened with: a token with a session open.
type Store interface {
	// Describe returns what the token says of itself, the state of its PIN among it.
	Describe() key.Token
	// Login logs in, once: a PIN that did not work is not tried again. What needs a login calls it by itself.
	Login() error

	// Key logs in and finds the private key. public is its public half if known from a certificate; nil has the module
	// asked.
	Key(public crypto.PublicKey) (Key, error)
	// Public returns the key's public half, without a login where the module allows that.
	Public() (crypto.PublicKey, error)
	// Receives returns what is told of the key as a recipient's; public is its public half. A PKCS#11 module is asked
	// without a login.
	Receives(public crypto.PublicKey) (key.Receives, error)
	// Keys logs in and returns all private keys that the settings match.
	Keys() ([]Key, error)

	// Leaf returns the one certificate that is filed under the key's own label and id, or nil. It may be another key's.
	Leaf() (*x509.Certificate, error)
	// Issuers returns the certificates there whose subject is cert's issuer.
	Issuers(cert *x509.Certificate) ([]*x509.Certificate, error)
	// Certificates returns all certificates there. It is slow.
	Certificates() ([]*x509.Certificate, error)
	// Import stores a chain, leaf first, beside the key and returns how many certificates were not there before.
	Import(k Key, chain []*x509.Certificate) (int, error)

	// Delete removes a key with its public half and those of the certificates that are there. What is gone already is no
	// failure.
	Delete(k Key, certificates []*x509.Certificate) error

	// WrappingKey returns the one trusted wrapping key that the reference names, or, when it is empty, the only one there.
	WrappingKey(reference config.URI) (key.WrappingKey, error)
	// Wrap has the module encrypt a private key under that wrapping key.
	Wrap(k Key, reference config.URI) (key.Wrapped, error)
	// Unwrap makes the key again, under the wrapping key that wrapped it.
	Unwrap(wrapped key.Wrapped, usage key.Usage, label string, id []byte, public crypto.PublicKey) error

	// Authenticate returns a MAC of data under a wrapping key of the token.
	Authenticate(data []byte, mechanism string, by key.WrappingKey) (key.MAC, error)
	// Verify fails unless Authenticate made the MAC of this data under that wrapping key. It makes nothing on the token.
	Verify(data []byte, mac key.MAC, mechanism string, by key.WrappingKey) error

	// Discard removes what there is of the key that the settings name by label and id, when its making was cut short.
	Discard() error
	// Taken reports whether a key there has this label, or this id.
	Taken(name config.URI) (bool, error)

	// Close ends the session and, with it, the login.
	Close() error
}

// Open opens the store that the settings name. ctx bounds its whole life.
func Open(ctx context.Context, s *config.Settings) (Store, error) {
	if s.NetHSM != nil {
		return openNetHSM(ctx, s)
	}
	return openPKCS11(ctx, s)
}

// WithKey opens the key that the settings name, for as long as do takes.
func WithKey(ctx context.Context, s *config.Settings, do func(Store, Key) error) error {
	store, err := Open(ctx, s)
	if err != nil {
		return err
	}
	defer store.Close()
	k, err := store.Key(nil)
	if err != nil {
		return err
	}
	return do(store, k)
}

// Tokens lists the tokens of the module that the settings name.
func Tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	if s.NetHSM != nil {
		return nethsm.Tokens(ctx, s)
	}
	return tokensPKCS11(ctx, s)
}

// Matches reports whether a token is one that a reference names.
func Matches(want config.URI, token key.Token) bool {
	if isNetHSM := strings.HasPrefix(token.URI, config.NetHSMScheme); isNetHSM || want.NetHSM {
		return isNetHSM && want.NetHSM
	}
	return matchesPKCS11(want, token)
}

// ImportWrapping puts a trusted wrapping key on the token, as its security officer.
func ImportWrapping(ctx context.Context, s *config.Settings, soPINSource string, w key.WrappingKey,
	value []byte) error {
	if s.NetHSM != nil {
		return nethsm.ImportWrapping()
	}
	return importWrappingPKCS11(ctx, s, soPINSource, w, value)
}

// Generate makes a key inside the module: sensitive, not extractable unless the request says so, for its usage alone.
func Generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	if s.NetHSM != nil {
		return nethsm.Generate(ctx, s, r)
	}
	return generatePKCS11(ctx, s, r)
}
