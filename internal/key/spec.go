// Package key holds what every room knows about a key: its spec in Notation's terms and what its module says of it.
package key

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"strings"

	// The three hashes that Spec.Hash returns have to be linked in.
	_ "crypto/sha256"
	_ "crypto/sha512"

	"github.com/notaryproject/notation-plugin-framework-go/plugin"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Spec is one of the six keys that Notation signs with, and all that follows from the choice
// (Notary Project signature specification, "Algorithm Selection").
type Spec struct {
	Name      plugin.KeySpec
	Bits      int // modulus length, or the curve's field size
	Hash      crypto.Hash
	HashName  plugin.HashAlgorithm
	Algorithm plugin.SignatureAlgorithm
}

// Specs lists the six in the order of Notation's specification.
var Specs = []Spec{
	{plugin.KeySpecRSA2048, 2048, crypto.SHA256, plugin.HashAlgorithmSHA256, plugin.SignatureAlgorithmRSASSA_PSS_SHA256},
	{plugin.KeySpecRSA3072, 3072, crypto.SHA384, plugin.HashAlgorithmSHA384, plugin.SignatureAlgorithmRSASSA_PSS_SHA384},
	{plugin.KeySpecRSA4096, 4096, crypto.SHA512, plugin.HashAlgorithmSHA512, plugin.SignatureAlgorithmRSASSA_PSS_SHA512},
	{plugin.KeySpecEC256, 256, crypto.SHA256, plugin.HashAlgorithmSHA256, plugin.SignatureAlgorithmECDSA_SHA256},
	{plugin.KeySpecEC384, 384, crypto.SHA384, plugin.HashAlgorithmSHA384, plugin.SignatureAlgorithmECDSA_SHA384},
	{plugin.KeySpecEC521, 521, crypto.SHA512, plugin.HashAlgorithmSHA512, plugin.SignatureAlgorithmECDSA_SHA512},
}

// IsRSA reports whether keys of this spec are RSA keys; the others are elliptic curve keys.
func (s Spec) IsRSA() bool { return strings.HasPrefix(string(s.Name), "RSA") }

// SignerOpts returns the scheme Notation prescribes for the spec: RSASSA-PSS with a salt as long as the digest, or
// plain ECDSA with the curve's hash.
func (s Spec) SignerOpts() crypto.SignerOpts {
	if s.IsRSA() {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.Hash}
	}
	return s.Hash
}

// ParseSpec returns the spec of a name such as "EC-256"; any other name is a failure that lists the six.
func ParseSpec(name string) (Spec, error) {
	for _, s := range Specs {
		if strings.EqualFold(string(s.Name), name) {
			return s, nil
		}
	}
	return Spec{}, failure.New(failure.Invalid, "%q is not a key spec", name).WithHint("use one of " + specNames())
}

// SpecOf returns the spec of a public key, or a failure if Notation can't sign with such a key.
func SpecOf(public crypto.PublicKey) (Spec, error) {
	isRSA, bits, what := false, 0, "this type"
	switch p := public.(type) {
	case *rsa.PublicKey:
		isRSA, bits, what = true, p.N.BitLen(), "RSA"
	case *ecdsa.PublicKey:
		bits, what = p.Params().BitSize, p.Params().Name
	}
	for _, s := range Specs {
		if bits == s.Bits && isRSA == s.IsRSA() {
			return s, nil
		}
	}
	if isRSA {
		return Spec{}, failure.New(failure.Invalid, "Notation does not sign with %d-bit RSA keys",
			bits).
			WithHint("use one of " + specNames())
	}
	return Spec{}, failure.New(failure.Invalid, "Notation does not sign with keys of %s", what).
		WithHint("use one of " + specNames())
}

func specNames() string {
	names := make([]string, len(Specs))
	for i, s := range Specs {
		names[i] = string(s.Name)
	}
	return strings.Join(names, ", ")
}
