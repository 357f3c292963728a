package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestCrossSigned takes the path that ends in a root, when the issuer's name has two certificates and only one of them
// leads there.
func TestCrossSigned(t *testing.T) {
	t.Parallel()
	root := softhsmtest.NewCA(t, "Root", nil)
	gone := softhsmtest.NewCA(t, "Gone", nil)
	intermediate := softhsmtest.NewCA(t, "Intermediate", root)
	cross := gone.Issue(t, caTemplate("Intermediate"), &intermediate.Key.PublicKey)
	leaf := intermediate.Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	for _, known := range [][]*x509.Certificate{{cross, intermediate.Cert, root.Cert},
		{root.Cert, intermediate.Cert, cross}} {
		chain, err := Chain(leaf, known, nil, time.Now())
		if err != nil || len(chain) != 3 || !chain[2].Equal(root.Cert) {
			t.Errorf("%v, %v", chain, err)
		}
		if err := Check(chain, time.Now()); err != nil {
			t.Error(err)
		}
	}
	// Only an issuer that is not known is looked up.
	asked := 0
	chain, err := Chain(leaf, []*x509.Certificate{intermediate.Cert},
		func(*x509.Certificate) ([]*x509.Certificate, error) {
			asked++
			return []*x509.Certificate{root.Cert}, nil
		}, time.Now())
	if err != nil || len(chain) != 3 || asked != 1 {
		t.Errorf("%v, %v, asked %d times", chain, err, asked)
	}
}

// TestIssuerByKey matches an issuer by its key, and not by its name alone.
func TestIssuerByKey(t *testing.T) {
	t.Parallel()
	root := softhsmtest.NewCA(t, "Root", nil)
	intermediate, impostor := softhsmtest.NewCA(t, "Intermediate", root), softhsmtest.NewCA(t, "Intermediate", root)
	fake := softhsmtest.NewCA(t, "Root", nil)
	leaf := intermediate.Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	for name, known := range map[string][]*x509.Certificate{
		"another intermediate of this name": {impostor.Cert, root.Cert},
		"another root of this name":         {intermediate.Cert, fake.Cert},
		"both":                              {impostor.Cert, fake.Cert},
	} {
		if chain, err := Chain(leaf, known, nil, time.Now()); !failure.Is(err, failure.Invalid) ||
			!strings.Contains(err.Error(), "is missing") {
			t.Errorf("%s: %v, %v", name, chain, err)
		}
		for _, all := range [][]*x509.Certificate{append(slices.Clone(known), intermediate.Cert, root.Cert),
			append([]*x509.Certificate{root.Cert, intermediate.Cert}, known...)} {
			chain, err := Chain(leaf, all, nil, time.Now())
			if err != nil || len(chain) != 3 || !chain[1].Equal(intermediate.Cert) || !chain[2].Equal(root.Cert) {
				t.Errorf("%s, and the right ones: %v, %v", name, chain, err)
			}
		}
	}
	// The key of the issuer under another name is not the issuer either.
	template := caTemplate("Other")
	alias := root.Issue(t, template, &intermediate.Key.PublicKey)
	if chain, err := Chain(leaf, []*x509.Certificate{alias, root.Cert}, nil, time.Now()); err == nil {
		t.Errorf("an issuer of another name: %v", chain)
	}
	// A certificate whose issuer has the same name, but another key, is not a root.
	renewed := newKey(t)
	next := root.Issue(t, caTemplate("Root"), &renewed.PublicKey)
	leaf = (&softhsmtest.CA{Cert: next, Key: renewed}).Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	if chain, err := Chain(leaf, []*x509.Certificate{next}, nil, time.Now()); err == nil {
		t.Errorf("a chain without a root: %v", chain)
	}
	if chain, err := Chain(leaf, []*x509.Certificate{next, root.Cert}, nil, time.Now()); err != nil || len(chain) != 3 {
		t.Errorf("%v, %v", chain, err)
	}
}

// caTemplate is the template of a CA's certificate.
func caTemplate(name string) *x509.Certificate {
	template := softhsmtest.Template(name)
	template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
	return template
}

// TestLongChain follows a chain of maxChain certificates, and no longer one.
func TestLongChain(t *testing.T) {
	t.Parallel()
	issuer := softhsmtest.NewCA(t, "Root", nil)
	known := []*x509.Certificate{issuer.Cert}
	for range maxChain - 2 {
		issuer = softhsmtest.NewCA(t, "Intermediate", issuer)
		known = append(known, issuer.Cert)
	}
	leaf := issuer.Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	if chain, err := Chain(leaf, known, nil, time.Now()); err != nil || len(chain) != maxChain {
		t.Errorf("%d certificates, %v", len(chain), err)
	}
	longer := softhsmtest.NewCA(t, "Last", issuer)
	leaf = longer.Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	if chain, err := Chain(leaf, append(known, longer.Cert), nil, time.Now()); err == nil {
		t.Errorf("%d certificates", len(chain))
	}
}

// TestRefusedChains returns the first chain when none passes Check.
func TestRefusedChains(t *testing.T) {
	t.Parallel()
	root := softhsmtest.NewCA(t, "Root", nil)
	first := softhsmtest.NewCA(t, "First", root)
	second := softhsmtest.NewCA(t, "Second", first)
	leaf := second.Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	var expired []*x509.Certificate
	for range 3 {
		template := caTemplate("Root")
		template.NotAfter = time.Now().Add(-time.Minute)
		expired = append(expired, root.Issue(t, template, &root.Key.PublicKey))
	}
	chain, err := Chain(leaf, append([]*x509.Certificate{second.Cert, first.Cert}, expired...), nil, time.Now())
	if err != nil || len(chain) != 4 || !chain[3].Equal(expired[0]) {
		t.Errorf("%v, %v", chain, err)
	}
}

// BenchmarkChain searches the chain of a leaf with two intermediates, among its issuers alone and among 100
// certificates, of which 60 have the names of its issuers.
func BenchmarkChain(b *testing.B) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	root := softhsmtest.NewCA(b, "Root", nil)
	first := softhsmtest.NewCA(b, "First", root)
	second := softhsmtest.NewCA(b, "Second", first)
	leaf := second.Issue(b, softhsmtest.Template("leaf"), &k.PublicKey)
	issuers := []*x509.Certificate{root.Cert, first.Cert, second.Cert}
	var many []*x509.Certificate
	for i := range 97 {
		many = append(many, softhsmtest.NewCA(b, []string{"Root", "First", "Second", "Other", "Another"}[i%5], nil).Cert)
	}
	for _, c := range []struct {
		name  string
		known []*x509.Certificate
	}{{"issuers", issuers}, {"100", append(many, issuers...)}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if chain, err := Chain(leaf, c.known, nil, time.Now()); err != nil || len(chain) != 4 {
					b.Fatal(chain, err)
				}
			}
		})
	}
}

// TestCircle ends, although two CAs certify each other.
func TestCircle(t *testing.T) {
	t.Parallel()
	one, two := softhsmtest.NewCA(t, "One", nil), softhsmtest.NewCA(t, "Two", nil)
	oneByTwo := two.Issue(t, caTemplate("One"), &one.Key.PublicKey)
	twoByOne := one.Issue(t, caTemplate("Two"), &two.Key.PublicKey)
	leaf := one.Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	if chain, err := Chain(leaf, []*x509.Certificate{oneByTwo, twoByOne}, nil, time.Now()); err == nil ||
		!strings.Contains(err.Error(), "missing") {
		t.Errorf("%v, %v", chain, err)
	}
}

// TestLeafOf prefers a leaf that is valid and expires last.
func TestLeafOf(t *testing.T) {
	t.Parallel()
	root, k := softhsmtest.NewCA(t, "Root", nil), newKey(t)
	at := func(from, to time.Duration) *x509.Certificate {
		template := softhsmtest.Template("leaf")
		template.NotBefore, template.NotAfter = time.Now().Add(from), time.Now().Add(to)
		return root.Issue(t, template, &k.PublicKey)
	}
	old, now, later, longer := at(-2*time.Hour, -time.Hour), at(-time.Hour, time.Hour), at(time.Hour, 9*time.Hour),
		at(-time.Hour, 2*time.Hour)
	for _, c := range []struct {
		certs []*x509.Certificate
		want  *x509.Certificate
	}{
		{[]*x509.Certificate{old, now, later}, now},
		{[]*x509.Certificate{later, longer, now, old}, longer},
		{[]*x509.Certificate{root.Cert}, nil},
	} {
		if got := LeafOf(&k.PublicKey, c.certs, time.Now()); got != c.want {
			t.Errorf("of %v it is %v", c.certs, got)
		}
	}
}

// TestChainOf skips a certificate of the key that leads to no root, although it expires later.
func TestChainOf(t *testing.T) {
	t.Parallel()
	root, gone, k := softhsmtest.NewCA(t, "Root", nil), softhsmtest.NewCA(t, "Vendor", nil), newKey(t)
	template := softhsmtest.Template("attestation")
	template.NotAfter = time.Now().Add(1000 * time.Hour)
	attestation := gone.Issue(t, template, &k.PublicKey)
	leaf := root.Issue(t, softhsmtest.Template("leaf"), &k.PublicKey)
	chain, err := ChainOf(&k.PublicKey, []*x509.Certificate{attestation, root.Cert, leaf}, nil, time.Now())
	if err != nil || len(chain) != 2 || !chain[0].Equal(leaf) {
		t.Errorf("%v, %v", chain, err)
	}
	if chain, err := ChainOf(&k.PublicKey, []*x509.Certificate{attestation, root.Cert}, nil, time.Now()); err == nil ||
		!strings.Contains(err.Error(), "Vendor") {
		t.Errorf("%v, %v", chain, err)
	}
	if chain, err := ChainOf(&k.PublicKey, []*x509.Certificate{root.Cert}, nil, time.Now()); chain != nil || err != nil {
		t.Errorf("%v, %v", chain, err)
	}
}

// subjectCost is what parsing a subject may allocate.
var subjectCost = boundtest.Budget{Bytes: 16 << 10, BytesPerByte: 128}

// FuzzSubject parses any subject without a crash. An accepted one has a common name.
func FuzzSubject(f *testing.F) {
	for _, seed := range []string{"CN=release,O=Example,C=CH,ST=Zurich", `CN=a\,b\=c`, "=", ",", `CN=\`,
		"C=Switzerland,CN=a", "CN = x , O = y"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var name pkix.Name
		var err error
		subjectCost.Check(t, len(text), func() { name, err = ParseSubject(text) })
		if err == nil && name.CommonName == "" {
			t.Errorf("%q has no common name", text)
		}
	})
}

// chainPEM is a self-signed certificate, as a seed.
const chainPEM = `-----BEGIN CERTIFICATE-----
MIIBcjCCARmgAwIBAgIUIZcxzAtrkUusrPbDGsFic3jaxGgwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEc2VlZDAeFw0yNjExMjEyMTUzNThaFw0zNjExMTgyMTUzNTha
MA8xDTALBgNVBAMMBHNlZWQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARLYhPl
rBq6yzhoQNzQ/iqJyYeNUR8hVY6wgHT5Sd2ujp7ONhWQBYadVtmcUAbpFn46yB3o
G9Mpiv0d/9b9JWwlo1MwUTAdBgNVHQ4EFgQUAx7oscqSVaW2OqND+50t3BHfM7Qw
HwYDVR0jBBgwFoAUAx7oscqSVaW2OqND+50t3BHfM7QwDwYDVR0TAQH/BAUwAwEB
/zAKBggqhkjOPQQDAgNHADBEAiAXrFvAjjOAcS3ffQ5XspgG5A5CqFRmqUOX7XYH
HSP6+AIgJj6KyXA9bw1wCn8fXp7PUuiBwrGp/jmHA5B7sRvoGNo=
-----END CERTIFICATE-----
`

// TestRenewedIssuer takes the path that is valid now, when an issuer has an expired certificate and one that was
// renewed with the same key, in either order.
func TestRenewedIssuer(t *testing.T) {
	t.Parallel()
	root := softhsmtest.NewCA(t, "Root", nil)
	intermediate := softhsmtest.NewCA(t, "Intermediate", root)
	template := caTemplate("Intermediate")
	template.NotBefore, template.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	expired := root.Issue(t, template, &intermediate.Key.PublicKey)
	leaf := intermediate.Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	for _, known := range [][]*x509.Certificate{{expired, intermediate.Cert, root.Cert},
		{root.Cert, intermediate.Cert, expired}} {
		chain, err := Chain(leaf, known, nil, time.Now())
		if err != nil || len(chain) != 3 || !chain[1].Equal(intermediate.Cert) {
			t.Fatalf("%v, %v", chain, err)
		}
		asked := func(*x509.Certificate) ([]*x509.Certificate, error) { return known, nil }
		if chain, err = Chain(leaf, nil, asked, time.Now()); err != nil || !chain[1].Equal(intermediate.Cert) {
			t.Errorf("by a lookup: %v, %v", chain, err)
		}
	}
	// With the expired one only, the chain is complete and Check says what is wrong with it.
	chain, err := Chain(leaf, []*x509.Certificate{expired, root.Cert}, nil, time.Now())
	if err != nil || len(chain) != 3 {
		t.Fatalf("%v, %v", chain, err)
	}
	if err := Check(chain, time.Now()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
}

// TestManyIssuers ends the search after a fixed number of signatures, however many certificates have the names of
// issuers.
func TestManyIssuers(t *testing.T) {
	t.Parallel()
	const names, each = 4, 6
	keys := make([]*softhsmtest.CA, names)
	for i := range keys {
		keys[i] = softhsmtest.NewCA(t, string(rune('A'+i)), nil)
	}
	var known []*x509.Certificate
	for i, subject := range keys {
		for _, issuer := range keys {
			for range each {
				template := caTemplate(string(rune('A' + i)))
				if issuer != subject {
					known = append(known, issuer.Issue(t, template, &subject.Key.PublicKey))
				}
			}
		}
	}
	leaf := keys[0].Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	s := search{known: known, now: time.Now()}
	if chain, _, err := s.extend([]*x509.Certificate{leaf}); chain != nil || err != nil || s.checks != maxChecks+1 {
		t.Errorf("%v, %v after %d signatures", chain, err, s.checks)
	}
	if _, err := Chain(leaf, known, nil, time.Now()); err == nil ||
		!strings.Contains(err.Error(), "too many certificates") {
		t.Error(err)
	}
}
