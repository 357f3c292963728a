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

// prove has a key make a real signature, and verifies it under a public key as any verifier would. What is signed is
// text that no envelope could hold.
func prove(ctx context.Context, k keystore.Key, public crypto.PublicKey) error {
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
	good := false
	switch p := public.(type) {
	case *rsa.PublicKey:
		good = rsa.VerifyPSS(p, spec.Hash, h.Sum(nil), signature,
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(p, h.Sum(nil), signature)
	}
	if !good {
		return failure.New(failure.Internal, "a test signature does not verify").
			WithHint("check that the public key or certificate belongs to this key; if it does, the module made a wrong " +
				"signature")
	}
	return nil
}

// proveOpens has a recipient's key open something that was made for its public half.
func proveOpens(ctx context.Context, k keystore.Key, public crypto.PublicKey) error {
	var want, got []byte
	var err error
	switch p := public.(type) {
	case *rsa.PublicKey:
		want = []byte("notation-hsm " + rand.Text())
		var sealed []byte
		if sealed, err = rsa.EncryptOAEP(sha1.New(), rand.Reader, p, want, nil); err == nil { //nolint:gosec // all tokens know it, and OAEP needs no more of a hash
			got, err = k.Decrypt(ctx, sealed, &rsa.OAEPOptions{Hash: crypto.SHA1})
		}
	case *ecdsa.PublicKey:
		want, got, err = agree(ctx, k, p)
	default:
		err = failure.New(failure.Invalid, "keys of type %T open nothing", public).
			WithHint("use an RSA or elliptic curve key")
	}
	if err == nil && !bytes.Equal(want, got) {
		err = failure.New(failure.Internal, "the key does not open what its public half closed").
			WithHint("check that the public key or certificate belongs to this key")
	}
	return err
}

// agree returns what two sides of a key agreement come to: ours, with a new key, and the module's.
func agree(ctx context.Context, k keystore.Key, p *ecdsa.PublicKey) (ours, theirs []byte, err error) {
	public, err := p.ECDH()
	if err != nil {
		return nil, nil, err
	}
	other, err := public.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if ours, err = other.ECDH(public); err != nil {
		return nil, nil, err
	}
	theirs, err = k.ECDH(ctx, other.PublicKey())
	return ours, theirs, err
}
