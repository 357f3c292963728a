package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const token, label = "signing", "release"

var payload = []byte(`{"targetArtifact":{}}`)

// A fixture is a module in memory with a key, and a CA that issues certificates for it.
type fixture struct {
	t         testing.TB
	module    *keystoretest.Module
	spec      key.Spec
	private   crypto.Signer
	reference *keystore.Reference
	root, ca  *softhsmtest.CA
}

func newFixture(t testing.TB, spec string) *fixture {
	t.Helper()
	f := &fixture{t: t, module: keystoretest.New(token)}
	var err error
	if f.spec, err = key.ParseSpec(spec); err != nil {
		t.Fatal(err)
	}
	if f.private, err = keystoretest.NewKey(f.spec); err != nil {
		t.Fatal(err)
	}
	f.reference = f.module.Key(t, token, label, f.private, key.Sign)
	f.root = softhsmtest.NewCA(t, "root", nil)
	f.ca = softhsmtest.NewCA(t, "ca", f.root)
	return f
}

// leaf issues a certificate for the key, after a change of what Notation accepts.
func (f *fixture) leaf(change func(*x509.Certificate)) *x509.Certificate {
	f.t.Helper()
	return f.leafOf(f.private.Public(), change)
}

func (f *fixture) leafOf(public crypto.PublicKey, change func(*x509.Certificate)) *x509.Certificate {
	f.t.Helper()
	template := softhsmtest.Template("release")
	if change != nil {
		change(template)
	}
	return f.ca.Issue(f.t, template, public)
}

// store puts certificates on the token: the first beside the key, under its label.
func (f *fixture) store(chain ...*x509.Certificate) {
	f.t.Helper()
	for i, cert := range chain {
		at := label
		if i > 0 {
			at = "issuer " + cert.Subject.CommonName
		}
		f.module.Certificate(f.t, token, at, cert)
	}
}

// file has certificate-chain name a file with these certificates.
func (f *fixture) file(chain ...*x509.Certificate) {
	f.t.Helper()
	f.reference.CertificateChain = filepath.Join(f.t.TempDir(), "chain.pem")
	if err := os.WriteFile(f.reference.CertificateChain, []byte(softhsmtest.PEM(chain...)), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) sign() (*Signature, error) {
	return Sign(f.t.Context(), f.reference, f.spec, payload)
}

// mustSign signs and checks the signature, with the form that Notation prescribes, and the chain.
func (f *fixture) mustSign(chain ...*x509.Certificate) {
	f.t.Helper()
	made, err := f.sign()
	if err != nil {
		f.t.Fatal(err)
	}
	h := f.spec.Hash.New()
	h.Write(payload)
	digest := h.Sum(nil)
	switch public := f.private.Public().(type) {
	case *rsa.PublicKey:
		options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		if err := rsa.VerifyPSS(public, f.spec.Hash, digest, made.Raw, options); err != nil {
			f.t.Error(err)
		}
	case *ecdsa.PublicKey:
		size := (f.spec.Bits + 7) / 8
		if len(made.Raw) != 2*size {
			f.t.Fatalf("the signature has %d bytes, not %d", len(made.Raw), 2*size)
		}
		r, s := new(big.Int).SetBytes(made.Raw[:size]), new(big.Int).SetBytes(made.Raw[size:])
		if !ecdsa.Verify(public, digest, r, s) {
			f.t.Error("the signature does not verify")
		}
	}
	if made.Spec != f.spec || !slices.EqualFunc(made.Chain, chain, (*x509.Certificate).Equal) {
		f.t.Errorf("it is a signature of %s with %d certificates", made.Spec.Name, len(made.Chain))
	}
	f.closed()
}

// mustFail fails to sign, with a failure of a kind that says some words, after so many signatures of the module.
func (f *fixture) mustFail(kind failure.Kind, words string, signatures int) {
	f.t.Helper()
	made, err := f.sign()
	if made != nil || !failure.Is(err, kind) || !strings.Contains(err.Error(), words) {
		f.t.Errorf("%v, %v is not a failure of kind %v with %q", made, err, kind, words)
	}
	if n := f.module.Calls("Sign"); n != signatures {
		f.t.Errorf("the key signed %d times, not %d", n, signatures)
	}
	f.closed()
}

func (f *fixture) closed() {
	f.t.Helper()
	if n := f.module.OpenStores(); n != 0 {
		f.t.Errorf("%d stores are open", n)
	}
}

// TestSign signs with each spec that Notation knows, with the chain on the token, whose certificates are not all read.
func TestSign(t *testing.T) {
	t.Parallel()
	for _, spec := range key.Specs {
		t.Run(string(spec.Name), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, string(spec.Name))
			leaf := f.leaf(nil)
			f.store(leaf, f.root.Cert, f.ca.Cert)
			f.mustSign(leaf, f.ca.Cert, f.root.Cert)
			if f.module.Calls("Certificates") != 0 || f.module.Calls("ReadPublic") != 0 || f.module.Calls("Key") != 1 {
				t.Error("it took more calls than needed")
			}
			if described, err := Describe(t.Context(), f.reference); described != spec || err != nil {
				t.Errorf("it is described as %s, %v", described.Name, err)
			}
			f.closed()
		})
	}
}

// TestChainFromFile signs with a chain in a file, in part or as a whole.
func TestChainFromFile(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "EC-256")
	leaf, renewed := f.leaf(nil), f.leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Hour) })
	f.file(f.root.Cert, f.ca.Cert, leaf)
	if spec, err := Describe(t.Context(), f.reference); spec != f.spec || err != nil || f.module.Calls("Open") != 0 {
		t.Errorf("it is described as %s, %v", spec.Name, err)
	}
	f.mustSign(leaf, f.ca.Cert, f.root.Cert)
	if f.module.Calls("Issuers") != 0 || f.module.Calls("Leaf") != 0 {
		t.Error("the token was searched for certificates")
	}
	// Of two leaves of the key, such as after a renewal, it is the one that ends last; another key's does not matter.
	f.file(leaf, renewed, f.leafOf(f.root.Key.Public(), nil), f.ca.Cert, f.root.Cert)
	f.mustSign(renewed, f.ca.Cert, f.root.Cert)
	// The leaf is in the file and its issuers are on the token, or the other way round.
	f.file(leaf)
	f.store(renewed, f.ca.Cert, f.root.Cert)
	f.mustSign(leaf, f.ca.Cert, f.root.Cert)
	f.file(f.ca.Cert, f.root.Cert)
	f.mustSign(renewed, f.ca.Cert, f.root.Cert)
}

// TestRefusedBeforeModule refuses what is wrong with the file before the module is loaded.
func TestRefusedBeforeModule(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "EC-256")
	for words, chain := range map[string][]*x509.Certificate{
		"asks for a signature of an EC-256 key": {softhsmtest.NewCA(t, "ca", nil).Issue(t, softhsmtest.Template("rsa"),
			newFixture(t, "RSA-2048").private.Public())},
		"expired": {f.leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), f.ca.Cert, f.root.Cert},
	} {
		f.file(chain...)
		f.mustFail(failure.Invalid, words, 0)
	}
	f.reference.CertificateChain = filepath.Join(t.TempDir(), "missing.pem")
	if _, err := f.sign(); err == nil {
		t.Error("it signed without the file")
	}
	if _, err := Describe(t.Context(), f.reference); err == nil {
		t.Error("the key was described without the file")
	}
	if n := f.module.Calls("Open"); n != 0 {
		t.Errorf("the module was opened %d times", n)
	}
}

// TestRefusedChain never signs with a chain that Notation refuses, wherever its certificates are.
func TestRefusedChain(t *testing.T) {
	t.Parallel()
	for words, change := range map[string]func(*x509.Certificate){
		"expired":       func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
		"not yet valid": func(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) },
		"usage":         func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment },
		"purpose":       func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping} },
	} {
		t.Run(words, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, "EC-256")
			f.store(f.leaf(change), f.ca.Cert, f.root.Cert)
			f.mustFail(failure.Invalid, "Notation does not accept", 0)
			f.file(f.leaf(change), f.leafOf(f.root.Key.Public(), nil), f.ca.Cert, f.root.Cert)
			f.mustFail(failure.Invalid, "Notation does not accept", 0)
		})
	}
	t.Run("no root", func(t *testing.T) {
		t.Parallel()
		f := newFixture(t, "EC-256")
		f.store(f.leaf(nil), f.ca.Cert)
		f.mustFail(failure.Invalid, "is missing", 0)
		f.file(f.leaf(nil))
		f.mustFail(failure.Invalid, "is missing", 0)
	})
}

// TestAnotherLeaf passes over a certificate beside the key that is another key's, or that Notation refuses, and takes
// the one with the key's public half.
func TestAnotherLeaf(t *testing.T) {
	t.Parallel()
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }
	for name, beside := range map[string]func(*fixture) *x509.Certificate{
		"another key's": func(f *fixture) *x509.Certificate { return f.leafOf(f.root.Key.Public(), nil) },
		"of another spec": func(f *fixture) *x509.Certificate {
			return f.leafOf(newFixture(f.t, "EC-384").private.Public(), nil)
		},
		"expired":              func(f *fixture) *x509.Certificate { return f.leaf(expired) },
		"beside no key's leaf": func(*fixture) *x509.Certificate { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, "EC-256")
			if cert := beside(f); cert != nil {
				f.store(cert)
			}
			leaf := f.leaf(nil)
			for _, cert := range []*x509.Certificate{leaf, f.ca.Cert, f.root.Cert} {
				f.module.Certificate(t, token, "other "+cert.Subject.CommonName, cert)
			}
			f.mustSign(leaf, f.ca.Cert, f.root.Cert)
		})
	}
}

// TestIssuersInFile finds the leaf on the token without its label, and its issuers in the file.
func TestIssuersInFile(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "EC-256")
	leaf := f.leaf(nil)
	f.module.Certificate(t, token, "other", leaf)
	f.file(f.root.Cert, f.ca.Cert)
	f.mustSign(leaf, f.ca.Cert, f.root.Cert)
}

// TestOtherSpec signs for no other spec than the one of the request.
func TestOtherSpec(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "EC-384")
	f.store(f.leaf(nil), f.ca.Cert, f.root.Cert)
	f.spec, _ = key.ParseSpec("EC-256")
	f.mustFail(failure.Invalid, "asks for a signature of an EC-256 key", 0)
}

// TestNoCertificate says where the certificate was looked for.
func TestNoCertificate(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "EC-256")
	f.mustFail(failure.NotFound, "on the token", 0)
	f.file(f.leafOf(f.root.Key.Public(), nil), f.leafOf(f.ca.Key.Public(), nil), f.ca.Cert, f.root.Cert)
	f.mustFail(failure.NotFound, "chain.pem or on the token", 0)
	if _, err := f.sign(); failure.From(err).Hint == "" {
		t.Error("it has no hint")
	}
}

// TestFileOfAnotherKey says that the leaf in the file is another key's.
func TestFileOfAnotherKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "EC-256")
	f.file(f.leafOf(f.root.Key.Public(), nil), f.ca.Cert, f.root.Cert)
	f.mustFail(failure.Invalid, "belongs to another key", 1)
}

// A liar is a key of a module that makes wrong signatures: valid ones of another private key, or of another scheme.
type liar struct {
	crypto.Signer
	other crypto.Signer
	opts  crypto.SignerOpts // in the place of those that it is called with, unless nil
}

func (l liar) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if l.opts != nil {
		opts = l.opts
	}
	return l.other.Sign(random, digest, opts)
}

// TestWrongSignature returns no signature that does not verify with the leaf, wherever the leaf is.
func TestWrongSignature(t *testing.T) {
	t.Parallel()
	for name, wrong := range map[string]struct {
		spec     string
		otherKey bool
		opts     crypto.SignerOpts
	}{
		"another EC key":     {"EC-256", true, nil},
		"another RSA key":    {"RSA-2048", true, nil},
		"PKCS #1 v1.5":       {"RSA-2048", false, crypto.SHA256},
		"a salt of 20 bytes": {"RSA-2048", false, &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, wrong.spec)
			chain := []*x509.Certificate{f.leaf(nil), f.ca.Cert, f.root.Cert}
			other := f.private
			if wrong.otherKey {
				other = newFixture(t, wrong.spec).private
			}
			f.module = keystoretest.New(token)
			f.reference = f.module.Key(t, token, label, liar{f.private, other, wrong.opts}, key.Sign)
			f.file(chain...)
			f.mustFail(failure.Internal, "does not verify", 1)
			f.reference.CertificateChain = ""
			f.store(chain...)
			f.mustFail(failure.Internal, "does not verify", 3) // with the leaf beside the key, then with the key's own
		})
	}
}

// TestModuleRefuses returns the module's failure, and does not sign again with another certificate.
func TestModuleRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t, "EC-256")
	f.module = keystoretest.New(token)
	f.reference = f.module.Key(t, token, label, f.private, key.Decrypt)
	f.store(f.leaf(nil), f.ca.Cert, f.root.Cert)
	f.mustFail(failure.Denied, "may not", 1)
	f.reference.PIN = "0000"
	f.mustFail(failure.Denied, "CKR_PIN_INCORRECT", 1)
	if n := f.module.Calls("Login"); n != 2 {
		t.Errorf("%d logins for one signature and one wrong PIN", n)
	}
	for _, operation := range []string{"Open", "Leaf", "Issuers", "Key"} {
		f.reference.PIN = keystoretest.PIN
		f.module.Fail(operation, failure.New(failure.Unavailable, "no %s", operation))
		f.mustFail(failure.Unavailable, "no "+operation, 1)
		f.module.Fail(operation, nil)
	}
}

// TestDescribeOther refuses a key that Notation does not sign with.
func TestDescribeOther(t *testing.T) {
	t.Parallel()
	private, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	module := keystoretest.New(token)
	reference := module.Key(t, token, label, private, key.Sign)
	if _, err := Describe(t.Context(), reference); !failure.Is(err, failure.Invalid) || module.OpenStores() != 0 {
		t.Errorf("a P-224 key: %v", err)
	}
	if _, err := Describe(t.Context(), module.Reference(token, "missing")); !failure.Is(err, failure.NotFound) {
		t.Errorf("a missing key: %v", err)
	}
}

// BenchmarkSign is one signature with the chain on the token, whose keys are in memory.
func BenchmarkSign(b *testing.B) {
	for _, spec := range []string{"RSA-2048", "EC-256"} {
		b.Run(spec, func(b *testing.B) {
			f := newFixture(b, spec)
			f.store(f.leaf(nil), f.ca.Cert, f.root.Cert)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.sign(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestChain returns the chain that Sign signs with, wherever the certificates are.
func TestChain(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(f *fixture, leaf, renewed *x509.Certificate){
		"in the file":            func(f *fixture, leaf, _ *x509.Certificate) { f.file(leaf, f.ca.Cert, f.root.Cert) },
		"two leaves in the file": func(f *fixture, leaf, renewed *x509.Certificate) { f.file(leaf, renewed, f.ca.Cert, f.root.Cert) },
		"on the token":           func(f *fixture, leaf, _ *x509.Certificate) { f.store(leaf, f.ca.Cert, f.root.Cert) },
		"issuers on the token":   func(f *fixture, leaf, _ *x509.Certificate) { f.file(leaf); f.store(f.ca.Cert, f.root.Cert) },
		"the older one in a file": func(f *fixture, leaf, renewed *x509.Certificate) {
			f.file(leaf)
			f.store(renewed, f.ca.Cert, f.root.Cert)
		},
		"the older one beside the key": func(f *fixture, leaf, renewed *x509.Certificate) {
			f.store(leaf, f.ca.Cert, f.root.Cert)
			f.module.Certificate(f.t, token, "other", renewed)
		},
		"another key's beside the key": func(f *fixture, leaf, _ *x509.Certificate) {
			f.store(f.leafOf(f.root.Key.Public(), nil), f.ca.Cert, f.root.Cert)
			f.module.Certificate(f.t, token, "other", leaf)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, "EC-256")
			prepare(f, f.leaf(nil), f.leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(2 * time.Hour) }))
			made, err := f.sign()
			if err != nil {
				t.Fatal(err)
			}
			chain, err := Chain(t.Context(), f.reference)
			if err != nil || !slices.EqualFunc(made.Chain, chain, (*x509.Certificate).Equal) {
				t.Errorf("the chain has %d certificates, %v", len(chain), err)
			}
			f.closed()
		})
	}
	if _, err := Chain(t.Context(), newFixture(t, "EC-256").reference); !failure.Is(err, failure.NotFound) {
		t.Errorf("without a certificate: %v", err)
	}
}
