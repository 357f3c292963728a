package approval

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// Sizes of RSA moduli, in bits. The largest bounds what a hostile key costs.
const (
	minRSA = 2048
	maxRSA = 8192
)

// pss is how an RSA key in a module signs.
var pss = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}

// verifyKey verifies the signature of a DSSE of a document under a SubjectPublicKeyInfo in DER.
func verifyKey(public []byte, payloadType string, document, signature []byte) error {
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return err
	}
	hash, err := hashOf(parsed)
	if err != nil {
		return err
	}
	digest := dsse.PAE(payloadType, document)
	if hash != 0 {
		hasher := hash.New()
		hasher.Write(digest)
		digest = hasher.Sum(nil)
	}
	verified := false
	switch key := parsed.(type) {
	case *ecdsa.PublicKey:
		verified = ecdsa.VerifyASN1(key, digest, signature)
	case *rsa.PublicKey:
		verified = rsa.VerifyPSS(key, hash, digest, signature, pss) == nil
	case ed25519.PublicKey:
		verified = ed25519.Verify(key, digest, signature)
	}
	if !verified {
		return errors.New("its signature is not that of the key")
	}
	return nil
}

// hashOf returns the hash that signatures of a key are over; 0 for Ed25519, which hashes by itself. It fails for a key
// that cannot sign approvals.
func hashOf(public crypto.PublicKey) (crypto.Hash, error) {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return crypto.SHA256, nil
		case elliptic.P384():
			return crypto.SHA384, nil
		case elliptic.P521():
			return crypto.SHA512, nil
		}
		return 0, fmt.Errorf("keys on the curve %s cannot sign approvals", key.Curve.Params().Name)
	case *rsa.PublicKey:
		return crypto.SHA256, checkRSA(key.N.BitLen())
	case ed25519.PublicKey:
		return 0, nil
	}
	return 0, fmt.Errorf("keys of type %T cannot sign approvals", public)
}

// checkRSA fails for an RSA key of a size, in bits, that cannot sign approvals.
func checkRSA(bits int) error {
	if bits < minRSA || bits > maxRSA {
		return fmt.Errorf("an RSA key of %d bits cannot sign approvals; it needs %d to %d", bits, minRSA, maxRSA)
	}
	return nil
}
