package key

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestSpecs holds the table of Notation's specification: key, hash and signature scheme belong together.
func TestSpecs(t *testing.T) {
	t.Parallel()
	modulus := func(bits uint) *rsa.PublicKey {
		return &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int), int(bits-1), 1), E: 65537}
	}
	for _, c := range []struct {
		name      string
		public    crypto.PublicKey
		hash      crypto.Hash
		hashName  string
		algorithm string
	}{
		{"RSA-2048", modulus(2048), crypto.SHA256, "SHA-256", "RSASSA-PSS-SHA-256"},
		{"RSA-3072", modulus(3072), crypto.SHA384, "SHA-384", "RSASSA-PSS-SHA-384"},
		{"RSA-4096", modulus(4096), crypto.SHA512, "SHA-512", "RSASSA-PSS-SHA-512"},
		{"EC-256", &ecdsa.PublicKey{Curve: elliptic.P256()}, crypto.SHA256, "SHA-256", "ECDSA-SHA-256"},
		{"EC-384", &ecdsa.PublicKey{Curve: elliptic.P384()}, crypto.SHA384, "SHA-384", "ECDSA-SHA-384"},
		{"EC-521", &ecdsa.PublicKey{Curve: elliptic.P521()}, crypto.SHA512, "SHA-512", "ECDSA-SHA-512"},
	} {
		spec, err := SpecOf(c.public)
		if err != nil || string(spec.Name) != c.name || spec.Hash != c.hash || string(spec.HashName) != c.hashName ||
			string(spec.Algorithm) != c.algorithm || !spec.Hash.Available() {
			t.Errorf("%s: %+v, %v", c.name, spec, err)
		}
		if parsed, err := ParseSpec(strings.ToLower(c.name)); err != nil || parsed != spec {
			t.Errorf("%s: %+v, %v", c.name, parsed, err)
		}
		opts := spec.SignerOpts()
		pss, isPSS := opts.(*rsa.PSSOptions)
		if opts.HashFunc() != c.hash || isPSS != strings.HasPrefix(c.name, "RSA") ||
			isPSS && pss.SaltLength != rsa.PSSSaltLengthEqualsHash {
			t.Errorf("%s signs with %+v", c.name, opts)
		}
	}
}

// TestOtherKeys refuses keys that Notation does not sign with, and names them.
func TestOtherKeys(t *testing.T) {
	t.Parallel()
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	agreement, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, public := range map[string]crypto.PublicKey{
		"RSA-1024": &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int), 1023, 1), E: 65537},
		"RSA-256":  &rsa.PublicKey{N: new(big.Int).SetBit(new(big.Int), 255, 1), E: 65537},
		"P-224":    &ecdsa.PublicKey{Curve: elliptic.P224()},
		"ed25519":  edwards.Public(),
		"ecdh":     agreement.Public(),
		"nil":      nil,
	} {
		if _, err := SpecOf(public); !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), name) ||
			!strings.Contains(failure.From(err).Hint, "EC-521") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnknownNames lists what is known.
func TestUnknownNames(t *testing.T) {
	t.Parallel()
	if _, err := ParseSpec("RSA-1024"); !failure.Is(err, failure.Invalid) ||
		!strings.Contains(failure.From(err).Hint, "RSA-2048, RSA-3072, RSA-4096, EC-256, EC-384, EC-521") {
		t.Error(err)
	}
	for _, name := range []string{"sign", "decrypt"} {
		if usage, err := ParseUsage(name); err != nil || string(usage) != name {
			t.Errorf("%q, %v", usage, err)
		}
	}
	for _, name := range []string{"", "derive", "Sign"} {
		if _, err := ParseUsage(name); !failure.Is(err, failure.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
