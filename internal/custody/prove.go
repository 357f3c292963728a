package custody

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // for OAEP, which is safe with it

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

const checkPublicHint = "check that the public key or certificate belongs to this key; if it does, report the module " +
	"to its vendor"

// proveSigning makes a signature with a key and verifies it under a public key. The signed text is no payload of any
// signature format.
func proveSigning(ctx context.Context, k keystore.Key, public crypto.PublicKey) error {
	spec, err := key.SpecOf(public)
	if err != nil {
		return err
	}
	message := []byte("notation-hsm test signature " + rand.Text())
	signature, err := k.SignMessage(ctx, message, spec.SignerOpts())
	if err != nil {
		return err
	}
	h := spec.Hash.New()
	h.Write(message)
	verifies := false
	switch p := public.(type) {
	case *rsa.PublicKey:
		verifies = rsa.VerifyPSS(p, spec.Hash, h.Sum(nil), signature,
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case *ecdsa.PublicKey:
		verifies = ecdsa.VerifyASN1(p, h.Sum(nil), signature)
	}
	if !verifies {
		return failure.New(failure.Internal, "a test signature does not verify").WithHint(checkPublicHint)
	}
	return nil
}

// proveDecryption has a recipient's key decrypt, or agree on, a secret that is made for a public key.
func proveDecryption(ctx context.Context, k keystore.Key, public crypto.PublicKey) error {
	var want, got []byte
	var err error
	switch p := public.(type) {
	case *rsa.PublicKey:
		want = []byte("notation-hsm " + rand.Text())
		var sealed []byte
		// SHA-1 is the one hash that all tokens have for OAEP, which needs no collision resistance.
		if sealed, err = rsa.EncryptOAEP(sha1.New(), rand.Reader, p, want, nil); err == nil { //nolint:gosec // see above
			got, err = k.Decrypt(ctx, sealed, &rsa.OAEPOptions{Hash: crypto.SHA1})
		}
	case *ecdsa.PublicKey:
		want, got, err = agree(ctx, k, p)
	default:
		err = failure.New(failure.Unsupported, "cannot encrypt to keys of type %T", public).
			WithHint("use an RSA or elliptic curve key")
	}
	if err == nil && !bytes.Equal(want, got) {
		err = failure.New(failure.Internal, "the key does not decrypt what is encrypted to its public half").
			WithHint(checkPublicHint)
	}
	return err
}

// agree returns the ECDH secret of a new key and a public key, computed with the new key and by the module.
func agree(ctx context.Context, k keystore.Key, p *ecdsa.PublicKey) (own, module []byte, err error) {
	public, err := p.ECDH()
	if err != nil {
		return nil, nil, err
	}
	other, err := public.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if own, err = other.ECDH(public); err != nil {
		return nil, nil, err
	}
	module, err = k.ECDH(ctx, other.PublicKey())
	return own, module, err
}
