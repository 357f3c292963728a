package keystore

import (
	"context"
	"crypto"
	"crypto/x509"
	"io"
)

// Signer returns the key for the standard library, whose calls take no context: each is made with ctx.
func Signer(ctx context.Context, k Key) crypto.Signer { return signer{ctx: ctx, key: k} }

// signer is a key for the standard library. It holds a context because crypto.Signer has no place for one.
type signer struct {
	ctx context.Context
	key Key
}

// Public returns the public half.
func (s signer) Public() crypto.PublicKey { return s.key.Public() }

// Sign is Key.Sign; the module has its own source of randomness.
func (s signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.key.Sign(s.ctx, digest, opts)
}

// SignMessage is Key.SignMessage, as crypto.MessageSigner has it.
func (s signer) SignMessage(_ io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.key.SignMessage(s.ctx, message, opts)
}

// IssuerLookup returns a function that asks a token for the issuers of a certificate, for callers that take no context.
func IssuerLookup(ctx context.Context, on Certificates) func(*x509.Certificate) ([]*x509.Certificate, error) {
	return func(cert *x509.Certificate) ([]*x509.Certificate, error) { return on.Issuers(ctx, cert) }
}
