package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
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
	root := softhsmtest.NewCA(t, "Root", nil)
	gone := softhsmtest.NewCA(t, "Gone", nil)
	intermediate := softhsmtest.NewCA(t, "Intermediate", root)
	crossTemplate := softhsmtest.Template("Intermediate")
	crossTemplate.IsCA, crossTemplate.KeyUsage, crossTemplate.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
	cross := gone.Issue(t, crossTemplate, &intermediate.Key.PublicKey)
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
	// More is asked only for what is not known, and what it finds is used.
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

// TestCircle ends, although two CAs certify each other.
func TestCircle(t *testing.T) {
	one, two := softhsmtest.NewCA(t, "One", nil), softhsmtest.NewCA(t, "Two", nil)
	ca := func(name string) *x509.Certificate {
		template := softhsmtest.Template(name)
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		return template
	}
	oneByTwo := two.Issue(t, ca("One"), &one.Key.PublicKey)
	twoByOne := one.Issue(t, ca("Two"), &two.Key.PublicKey)
	leaf := one.Issue(t, softhsmtest.Template("leaf"), &newKey(t).PublicKey)
	if chain, err := Chain(leaf, []*x509.Certificate{oneByTwo, twoByOne}, nil, time.Now()); err == nil ||
		!strings.Contains(err.Error(), "missing") {
		t.Errorf("%v, %v", chain, err)
	}
}

func TestLeafOf(t *testing.T) {
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
			t.Errorf("%v is not the leaf that was wanted, of %v", got, c.certs)
		}
	}
}

// TestChainOf passes over a certificate of the key that leads to no root, although it ends later.
func TestChainOf(t *testing.T) {
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

// subjectCost is what reading a subject may allocate.
var subjectCost = boundtest.Budget{Bytes: 16 << 10, BytesPerByte: 128}

// FuzzSubject holds that no subject crashes, and that an accepted one has a common name.
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
// renewed with the same key, in whichever order they are known.
func TestRenewedIssuer(t *testing.T) {
	root := softhsmtest.NewCA(t, "Root", nil)
	intermediate := softhsmtest.NewCA(t, "Intermediate", root)
	template := softhsmtest.Template("Intermediate")
	template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
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
			t.Errorf("of those that a token has: %v, %v", chain, err)
		}
	}
	// With the expired one alone, the chain is whole and Check says what is wrong with it.
	chain, err := Chain(leaf, []*x509.Certificate{expired, root.Cert}, nil, time.Now())
	if err != nil || len(chain) != 3 {
		t.Fatalf("%v, %v", chain, err)
	}
	if err := Check(chain, time.Now()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Error(err)
	}
}

// TestManyIssuers ends its search after a fixed number of signatures, however many certificates have the names of
// issuers.
func TestManyIssuers(t *testing.T) {
	const names, each = 4, 6
	keys := make([]*softhsmtest.CA, names)
	for i := range keys {
		keys[i] = softhsmtest.NewCA(t, string(rune('A'+i)), nil)
	}
	var known []*x509.Certificate
	for i, subject := range keys {
		for _, issuer := range keys {
			for range each {
				template := softhsmtest.Template(string(rune('A' + i)))
				template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
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
