package tuf

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

const minimumRSA = 2048 // bits

// Key is a public key with its scheme (TUF section 4.2).
type Key struct {
	ID     string // SHA-256 of the canonical form, in hex
	Public crypto.PublicKey
	signed *metadata.Key
}

// NewKey returns the key of a public key: RSA (rsassa-pss-sha256), P-256 or P-384 (ecdsa-sha2-nistp256 and -nistp384).
// It fails with Unsupported for others.
func NewKey(public crypto.PublicKey) (*Key, error) {
	k := &metadata.Key{}
	switch public := public.(type) {
	case *rsa.PublicKey:
		if public.N.BitLen() < minimumRSA {
			return nil, failure.New(failure.Unsupported, "cannot sign tag metadata with an RSA key of %d bits",
				public.N.BitLen()).WithHint("use RSA of 2048 bits or more, P-256 or P-384")
		}
		k.Type, k.Scheme = metadata.KeyTypeRSASSA_PSS_SHA256, metadata.KeySchemeRSASSA_PSS_SHA256
	case *ecdsa.PublicKey:
		k.Type = metadata.KeyTypeECDSA_SHA2_P256 // "ecdsa", of either curve
		switch public.Curve {
		case elliptic.P256():
			k.Scheme = metadata.KeySchemeECDSA_SHA2_P256
		case elliptic.P384():
			k.Scheme = metadata.KeySchemeECDSA_SHA2_P384
		default:
			return nil, failure.New(failure.Unsupported, "cannot sign tag metadata with a key on %s",
				public.Curve.Params().Name).WithHint("use RSA of 2048 bits or more, P-256 or P-384")
		}
	default:
		return nil, failure.New(failure.Unsupported, "cannot sign tag metadata with a key of type %T", public).
			WithHint("use RSA of 2048 bits or more, P-256 or P-384")
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, invalid("cannot encode the public key: %w", err)
	}
	k.Value.PublicKey = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	return readKey(k)
}

// readKey returns the key of metadata. It fails for schemes that NewKey does not make.
func readKey(k *metadata.Key) (*Key, error) {
	id, err := k.ID()
	if err != nil {
		return nil, invalid("cannot read a key of the metadata: %w", err)
	}
	public, err := k.ToPublicKey()
	if err != nil {
		return nil, invalid("cannot read key %.12s of the metadata: %w", id, err)
	}
	return &Key{ID: id, Public: public, signed: k}, nil
}

// hash returns the hash of the key's scheme, and its padding for RSA.
func (k *Key) hash() crypto.SignerOpts {
	switch k.signed.Scheme {
	case metadata.KeySchemeRSASSA_PSS_SHA256:
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	case metadata.KeySchemeECDSA_SHA2_P384:
		return crypto.SHA384
	}
	return crypto.SHA256
}

// Signer signs metadata with a private key in a module.
type Signer struct {
	*Key
	sign func(ctx context.Context, payload []byte) ([]byte, error)
}

// NewSigner returns the signer of a private key.
func NewSigner(private keystore.Key) (*Signer, error) {
	return NewSignerOf(private.Public(), private.SignMessage)
}

// NewSignerOf returns the signer of a public key whose private half a function signs with. The function gets what is to
// be signed itself, and the padding and the hash of the key's scheme; its signatures are in ASN.1 DER for ECDSA.
func NewSignerOf(public crypto.PublicKey,
	sign func(ctx context.Context, payload []byte, opts crypto.SignerOpts) ([]byte, error)) (*Signer, error) {
	k, err := NewKey(public)
	if err != nil {
		return nil, err
	}
	return &Signer{Key: k, sign: func(ctx context.Context, payload []byte) ([]byte, error) {
		return sign(ctx, payload, k.hash())
	}}, nil
}

// Sign returns a signature of a role's canonical metadata (TUF section 4.2): ASN.1 DER for ECDSA.
func (s *Signer) Sign(ctx context.Context, payload []byte) ([]byte, error) {
	return s.sign(ctx, bytes.Clone(payload))
}

// Role returns which of the names a key of the role has.
func (k *Key) in(ids []string) bool {
	for _, id := range ids {
		if id == k.ID {
			return true
		}
	}
	return false
}
