package brokerapi

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// hashes are the hashes of algorithms, by the end of their names.
var hashes = map[string]crypto.Hash{"SHA-256": crypto.SHA256, "SHA-384": crypto.SHA384, "SHA-512": crypto.SHA512}

const (
	pss   = "RSASSA-PSS-"
	pkcs1 = "RSASSA-PKCS1-v1_5-"
	curve = "ECDSA-"
)

// AlgorithmOf returns the name of the algorithm that a key signs with by options of crypto.Signer: RSASSA-PSS with a
// salt as long as the hash for *rsa.PSSOptions. It fails with Unsupported for a key or a hash without a name.
func AlgorithmOf(public crypto.PublicKey, opts crypto.SignerOpts) (string, error) {
	scheme := ""
	switch public.(type) {
	case *rsa.PublicKey:
		scheme = pkcs1
		if _, ok := opts.(*rsa.PSSOptions); ok {
			scheme = pss
		}
	case *ecdsa.PublicKey:
		scheme = curve
	}
	for name, hash := range hashes {
		if hash == opts.HashFunc() && scheme != "" {
			return scheme + name, nil
		}
	}
	return "", failure.New(failure.Unsupported, "a broker does not sign with %T and %s", public, opts.HashFunc()).
		WithHint("use an RSA or EC key, and SHA-256, SHA-384 or SHA-512")
}

// Options returns the options of crypto.Signer for an algorithm. It fails with Invalid for a name that is no
// algorithm's, and for one that the key does not sign with.
func Options(public crypto.PublicKey, algorithm string) (crypto.SignerOpts, error) {
	var isRSA bool
	switch public.(type) {
	case *rsa.PublicKey:
		isRSA = true
	case *ecdsa.PublicKey:
	default:
		return nil, failure.New(failure.Unsupported, "a broker does not sign with a key of type %T", public).
			WithHint("use an RSA or EC key")
	}
	for name, hash := range hashes {
		switch scheme, ok := strings.CutSuffix(algorithm, name); {
		case !ok:
		case scheme == pss && isRSA:
			return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}, nil
		case scheme == pkcs1 && isRSA, scheme == curve && !isRSA:
			return hash, nil
		}
	}
	return nil, failure.New(failure.Invalid, "the key does not sign with the algorithm %q", algorithm).
		WithHint("use RSASSA-PSS-SHA-256, RSASSA-PKCS1-v1_5-SHA-256 or ECDSA-SHA-256, or one with SHA-384 or SHA-512")
}

// Verify reports whether a signature of a message verifies. opts are those of Options.
func Verify(public crypto.PublicKey, message, signature []byte, opts crypto.SignerOpts) bool {
	hash := opts.HashFunc().New()
	hash.Write(message)
	digest := hash.Sum(nil)
	switch p := public.(type) {
	case *rsa.PublicKey:
		if o, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(p, o.Hash, digest, signature, o) == nil
		}
		return rsa.VerifyPKCS1v15(p, opts.HashFunc(), digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, digest, signature)
	}
	return false
}
