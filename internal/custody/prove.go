package custody

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// prove has a key make a real signature, and verifies it under a public key as any verifier would. What is signed is text that no
// envelope could hold.
func prove(k keystore.Key, public crypto.PublicKey) error {
	spec, err := key.SpecOf(public)
	if err != nil {
		return err
	}
	message := []byte("notation-hsm test signature " + rand.Text())
	signature, err := crypto.SignMessage(k, nil, message, spec.SignerOpts())
	if err != nil {
		return err
	}
	h := spec.Hash.New()
	h.Write(message)
	good := false
	switch p := public.(type) {
	case *rsa.PublicKey:
		good = rsa.VerifyPSS(p, spec.Hash, h.Sum(nil), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	case *ecdsa.PublicKey:
		good = ecdsa.VerifyASN1(p, h.Sum(nil), signature)
	}
	if !good {
		return failure.New(failure.Internal, "check that the public key or certificate belongs to this key; if it does, the module made a wrong signature",
			"a test signature does not verify")
	}
	return nil
}
