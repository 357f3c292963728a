package keystore

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/x509"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// Key is a private key in a module. The module decides whether it may sign, decrypt or derive; each fails with Denied
// where it may not. A key is safe for concurrent use, until its store is closed.
type Key interface {
	// Public returns the public half that the key was opened with or that the module showed.
	Public() crypto.PublicKey
	// Sign signs a digest: RSASSA-PSS with *rsa.PSSOptions (RFC 8017 section 8.1; the salt is as long as the digest), PKCS
	// #1 v1.5 or ECDSA with a crypto.Hash. An ECDSA signature is ASN.1 DER (RFC 3279 section 2.2.3).
	Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error)
	// SignMessage is Sign for a whole message; it also reaches modules that insist on hashing themselves.
	SignMessage(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error)
	// Decrypt decrypts an RSA ciphertext: RSAES-OAEP without a label (*rsa.OAEPOptions) or RSAES-PKCS1-v1_5
	// (*rsa.PKCS1v15DecryptOptions).
	Decrypt(ctx context.Context, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error)
	// ECDH returns the x coordinate shared with a public key on the same curve, as long as the curve's field.
	ECDH(ctx context.Context, remote *ecdh.PublicKey) ([]byte, error)

	// ReadPublic asks the module for the public half, even if the key was opened with one.
	ReadPublic(ctx context.Context) (crypto.PublicKey, error)
	// Info returns the attributes that the module shows of the key.
	Info(ctx context.Context) (key.Info, error)
}

// Store is a token with a session, reached for the key that its settings name. Rooms take the part that they use.
type Store interface {
	// Describe returns the description of the token at the time it was opened, with the state of its PIN.
	Describe() key.Token
	// Login logs in, once: a PIN that was refused is not tried again. What needs a login calls it by itself.
	Login(ctx context.Context) error
	// Close ends the session and, with the last one, the login.
	Close() error

	Finder
	Certificates
	Manager
	Wrapper
}

// Finder finds keys on a token.
type Finder interface {
	// Key logs in and finds the private key. public is its public half if known from a certificate; nil has the module
	// asked.
	Key(ctx context.Context, public crypto.PublicKey) (Key, error)
	// Keys logs in and returns all private keys that the settings match.
	Keys(ctx context.Context) ([]Key, error)
	// Public returns the key's public half, without a login where the module allows that.
	Public(ctx context.Context) (crypto.PublicKey, error)
	// Receives returns what the token says of the key as a recipient's; public is its public half. A PKCS#11 module is
	// asked without a login.
	Receives(ctx context.Context, public crypto.PublicKey) (key.Receives, error)
}

// Certificates reads the certificates on a token.
type Certificates interface {
	// Leaf returns the one certificate with the key's own label and id, or nil. It may be another key's.
	Leaf(ctx context.Context) (*x509.Certificate, error)
	// Issuers returns the certificates whose subject is cert's issuer.
	Issuers(ctx context.Context, cert *x509.Certificate) ([]*x509.Certificate, error)
	// Certificates returns all certificates. It is slow.
	Certificates(ctx context.Context) ([]*x509.Certificate, error)
}

// Manager changes what is on a token.
type Manager interface {
	// Import stores a chain, leaf first, beside the key and returns how many certificates were not there before.
	Import(ctx context.Context, k Key, chain []*x509.Certificate) (int, error)
	// Delete removes a key with its public half and those of the certificates that are there. What is gone already is no
	// failure.
	Delete(ctx context.Context, k Key, certificates []*x509.Certificate) error
	// Discard deletes the objects that an interrupted Generate left behind, by the label and id of the settings.
	Discard(ctx context.Context) error
	// Taken reports whether a key on the token has this label, or this id.
	Taken(ctx context.Context, name config.URI) (bool, error)
}

// Wrapper encrypts private keys under a trusted wrapping key of the token, and makes them again.
type Wrapper interface {
	// WrappingKey returns the one trusted wrapping key that the reference names, or, when it is empty, the only one.
	WrappingKey(ctx context.Context, reference config.URI) (key.WrappingKey, error)
	// Wrap has the module encrypt a private key under that wrapping key.
	Wrap(ctx context.Context, k Key, reference config.URI) (key.Wrapped, error)
	// Unwrap makes the key again, under the wrapping key that wrapped it.
	Unwrap(ctx context.Context, wrapped key.Wrapped, usage key.Usage, label string, id []byte,
		public crypto.PublicKey) error
	// Authenticate returns a MAC of data under a wrapping key of the token.
	Authenticate(ctx context.Context, data []byte, mechanism string, by key.WrappingKey) (key.MAC, error)
	// Verify fails unless Authenticate made the MAC of this data under that wrapping key. It makes nothing on the token.
	Verify(ctx context.Context, data []byte, mac key.MAC, mechanism string, by key.WrappingKey) error
}
