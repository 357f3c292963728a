// Package key defines what all packages say about a key: its spec in Notation's terms, its attributes, the token that
// it is on, and the request to generate it.
package key

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"strings"

	// Link the hashes of Spec.Hash.
	_ "crypto/sha256"
	_ "crypto/sha512"

	"github.com/notaryproject/notation-plugin-framework-go/plugin"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Spec is one of the six key specs that Notation signs with, and the hash and algorithm that follow from it (Notary
// Project signature specification, "Algorithm Selection").
type Spec struct {
	Name      plugin.KeySpec
	Bits      int // of the modulus, or of the curve's field
	Hash      crypto.Hash
	HashName  plugin.HashAlgorithm
	Algorithm plugin.SignatureAlgorithm
}

// Specs lists the specs in the order of Notation's specification.
var Specs = []Spec{
	{plugin.KeySpecRSA2048, 2048, crypto.SHA256, plugin.HashAlgorithmSHA256, plugin.SignatureAlgorithmRSASSA_PSS_SHA256},
	{plugin.KeySpecRSA3072, 3072, crypto.SHA384, plugin.HashAlgorithmSHA384, plugin.SignatureAlgorithmRSASSA_PSS_SHA384},
	{plugin.KeySpecRSA4096, 4096, crypto.SHA512, plugin.HashAlgorithmSHA512, plugin.SignatureAlgorithmRSASSA_PSS_SHA512},
	{plugin.KeySpecEC256, 256, crypto.SHA256, plugin.HashAlgorithmSHA256, plugin.SignatureAlgorithmECDSA_SHA256},
	{plugin.KeySpecEC384, 384, crypto.SHA384, plugin.HashAlgorithmSHA384, plugin.SignatureAlgorithmECDSA_SHA384},
	{plugin.KeySpecEC521, 521, crypto.SHA512, plugin.HashAlgorithmSHA512, plugin.SignatureAlgorithmECDSA_SHA512},
}

// IsRSA reports whether keys of the spec are RSA keys. All others are elliptic curve keys.
func (s Spec) IsRSA() bool { return strings.HasPrefix(string(s.Name), "RSA") }

// SignerOpts returns the signature scheme that Notation prescribes for the spec: RSASSA-PSS with a salt as long as the
// digest, or ECDSA.
func (s Spec) SignerOpts() crypto.SignerOpts {
	if s.IsRSA() {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: s.Hash}
	}
	return s.Hash
}

// ParseSpec returns the spec of a name such as "EC-256", in any case.
func ParseSpec(name string) (Spec, error) {
	for _, s := range Specs {
		if strings.EqualFold(string(s.Name), name) {
			return s, nil
		}
	}
	return Spec{}, failure.New(failure.Invalid, "unknown key spec %q", name).WithHint("use one of " + specNames())
}

// SpecOf returns the spec of a public key. It fails with kind Invalid if Notation does not sign with such a key.
func SpecOf(public crypto.PublicKey) (Spec, error) {
	isRSA, bits, kind := false, 0, fmt.Sprintf("type %T", public)
	switch p := public.(type) {
	case *rsa.PublicKey:
		isRSA, bits, kind = true, p.N.BitLen(), fmt.Sprintf("RSA-%d", p.N.BitLen())
	case *ecdsa.PublicKey:
		bits, kind = p.Params().BitSize, p.Params().Name
	}
	for _, s := range Specs {
		if bits == s.Bits && isRSA == s.IsRSA() {
			return s, nil
		}
	}
	return Spec{}, failure.New(failure.Invalid, "Notation does not sign with %s keys", kind).
		WithHint("use one of " + specNames())
}

func specNames() string {
	names := make([]string, len(Specs))
	for i, s := range Specs {
		names[i] = string(s.Name)
	}
	return strings.Join(names, ", ")
}
