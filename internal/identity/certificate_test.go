package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// authority is a CA of callers' certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "callers"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{certificate, key}
}

// issue issues a client certificate.
func (a authority) issue(t *testing.T, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(0xabc), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(30 * time.Minute), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func uris(texts ...string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		for _, text := range texts {
			u, err := url.Parse(text)
			if err != nil {
				panic(err)
			}
			c.URIs = append(c.URIs, u)
		}
	}
}

func subject(name pkix.Name) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject = name }
}

func both(first, second func(*x509.Certificate)) func(*x509.Certificate) {
	return func(c *x509.Certificate) { first(c); second(c) }
}

// answer is what an Authenticator made of a request.
type answer struct {
	caller Caller
	err    error
}

// serve starts a server whose requests an Authenticator sees, and returns a function that makes one with a client
// certificate; nil sends none.
func serve(t *testing.T, a *Authenticator, clientAuth tls.ClientAuthType, ca authority) (
	request func(certificate *tls.Certificate, token string) answer) {
	t.Helper()
	answers := make(chan answer, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		caller, err := a.Caller(r)
		answers <- answer{caller, err}
	}))
	pool := x509.NewCertPool()
	pool.AddCert(ca.certificate)
	server.TLS = &tls.Config{ClientAuth: clientAuth, ClientCAs: pool, MinVersion: tls.VersionTLS13}
	server.StartTLS()
	t.Cleanup(server.Close)
	return func(certificate *tls.Certificate, token string) answer {
		t.Helper()
		transport := server.Client().Transport.(*http.Transport).Clone()
		defer transport.CloseIdleConnections()
		if certificate != nil {
			transport.TLSClientConfig.Certificates = []tls.Certificate{*certificate}
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return <-answers
	}
}

func newAuthenticator(t *testing.T, config Config, administrators ...Administrator) *Authenticator {
	t.Helper()
	a, err := New(config, administrators)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func TestClientCertificates(t *testing.T) {
	ca := newAuthority(t)
	a := newAuthenticator(t, Config{MTLS: &MTLS{}}, Administrator{MTLS: "spiffe://example.com/ops"})
	request := serve(t, a, tls.RequireAndVerifyClientCert, ca)
	name := pkix.Name{CommonName: "ci,runner", Organization: []string{"Example"}, OrganizationalUnit: []string{"a", "b"}}
	for label, test := range map[string]struct {
		change func(*x509.Certificate)
		want   string
		admin  bool
	}{
		"SPIFFE ID":     {uris("spiffe://example.com/ci/runner"), "spiffe://example.com/ci/runner", false},
		"administrator": {uris("spiffe://example.com/ops"), "spiffe://example.com/ops", true},
		"subject":       {subject(name), `CN=ci\,runner,OU=a+OU=b,O=Example`, false},
		"subject, another URI": {both(uris("https://ci.example.com"), subject(name)),
			`CN=ci\,runner,OU=a+OU=b,O=Example`, false},
		"SPIFFE ID and subject": {both(uris("spiffe://example.com/ci"), subject(name)), "spiffe://example.com/ci", false},
	} {
		t.Run(label, func(t *testing.T) {
			certificate := ca.issue(t, test.change)
			got := request(&certificate, "")
			if got.err != nil {
				t.Fatal(got.err)
			}
			if got.caller.Issuer != IssuerMTLS || got.caller.Subject != test.want || got.caller.Admin != test.admin ||
				got.caller.Token != nil {
				t.Errorf("caller is %+v, want subject %s", got.caller, test.want)
			}
		})
	}
	certificate := ca.issue(t, func(c *x509.Certificate) {
		uris("https://ci.example.com")(c)
		subject(name)(c)
		c.DNSNames = []string{"ci.example.com"}
	})
	want := `map[common_name:ci,runner organization:[Example] organizational_unit:[a b] san_dns:[ci.example.com] ` +
		`san_uri:[https://ci.example.com] serial:abc subject:CN=ci\,runner,OU=a+OU=b,O=Example]`
	if got := request(&certificate, ""); fmt.Sprint(got.caller.Claims) != want {
		t.Errorf("claims are %v, want %s", got.caller.Claims, want)
	}
}

func TestRefusedClientCertificates(t *testing.T) {
	ca := newAuthority(t)
	request := serve(t, newAuthenticator(t, Config{MTLS: &MTLS{}}), tls.RequireAndVerifyClientCert, ca)
	for label, test := range map[string]struct {
		change func(*x509.Certificate)
		want   string
	}{
		"two SPIFFE IDs":       {uris("spiffe://example.com/a", "spiffe://example.com/b"), "a SPIFFE ID and another URI"},
		"SPIFFE ID twice":      {uris("spiffe://example.com/a", "spiffe://example.com/a"), "a SPIFFE ID and another URI"},
		"SPIFFE ID and URI":    {uris("https://example.com", "spiffe://example.com/a"), "a SPIFFE ID and another URI"},
		"trust domain":         {uris("spiffe://example.com"), "so it is a trust domain's"},
		"SPIFFE ID with query": {uris("spiffe://example.com/a?b"), "its SPIFFE ID is malformed"},
		"no name":              {func(*x509.Certificate) {}, "neither a SPIFFE ID nor a subject"},
		"CA": {func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid = true, true
			subject(pkix.Name{CommonName: "x"})(c)
		}, "it is a CA's"},
		"subject with newline": {subject(pkix.Name{CommonName: "a\nb"}), "control characters"},
		"long subject":         {subject(pkix.Name{CommonName: strings.Repeat("a", maxSubject)}), "too long"},
		"many names": {func(c *x509.Certificate) { c.DNSNames = slices.Repeat([]string{"a.example.com"}, maxNames+1) },
			"more than 64 names"},
	} {
		t.Run(label, func(t *testing.T) {
			certificate := ca.issue(t, test.change)
			checkFailure(t, request(&certificate, "").err, failure.Denied, test.want)
		})
	}
}

func TestListedCertificates(t *testing.T) {
	ca := newAuthority(t)
	listed, other := ca.issue(t, uris("spiffe://example.com/ci")), ca.issue(t, uris("spiffe://example.com/ci/other"))
	named := ca.issue(t, subject(pkix.Name{CommonName: "ci", Organization: []string{"Example"}}))
	operator := ca.issue(t, subject(pkix.Name{CommonName: "operator"}))
	for label, test := range map[string]struct {
		config *MTLS
		good   []tls.Certificate
		bad    []tls.Certificate
	}{
		"some": {&MTLS{Allow: []string{"spiffe://example.com/ci", "CN=ci,O=Example"}},
			[]tls.Certificate{listed, named, operator}, []tls.Certificate{other}},
		"all":  {&MTLS{}, []tls.Certificate{listed, named, other, operator}, nil},
		"none": {nil, []tls.Certificate{operator}, []tls.Certificate{listed, named, other}},
	} {
		t.Run(label, func(t *testing.T) {
			a := newAuthenticator(t, Config{MTLS: test.config}, Administrator{MTLS: "CN=operator"})
			request := serve(t, a, tls.RequireAndVerifyClientCert, ca)
			for _, certificate := range test.good {
				if got := request(&certificate, ""); got.err != nil {
					t.Error(got.err)
				} else if got.caller.Admin != (got.caller.Subject == "CN=operator") {
					t.Errorf("caller is %+v", got.caller)
				}
			}
			for _, certificate := range test.bad {
				checkFailure(t, request(&certificate, "").err, failure.Denied, "is not listed")
			}
		})
	}
}

// TestUnverifiedCertificates verifies that a certificate which the TLS server did not verify is refused, even if it
// has the name of an administrator.
func TestUnverifiedCertificates(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	a := newAuthenticator(t, Config{MTLS: &MTLS{}}, Administrator{MTLS: "spiffe://example.com/ops"})
	request := serve(t, a, tls.RequireAnyClientCert, ca)
	certificate := stranger.issue(t, uris("spiffe://example.com/ops"))
	checkFailure(t, request(&certificate, "").err, failure.Denied, "no client CA of the broker issued it")
}

// TestCertificateThatExpires verifies that a connection does not outlive its certificate, nor the CA's.
func TestCertificateThatExpires(t *testing.T) {
	ca := newAuthority(t)
	a := newAuthenticator(t, Config{MTLS: &MTLS{}})
	request := serve(t, a, tls.RequireAndVerifyClientCert, ca)
	certificate := ca.issue(t, func(c *x509.Certificate) {
		uris("spiffe://example.com/ci")(c)
		c.NotAfter = ca.certificate.NotAfter.Add(time.Hour)
	})
	c := &clock{now: ca.certificate.NotAfter}
	a.now = c.time
	if got := request(&certificate, ""); got.err != nil {
		t.Error(got.err)
	}
	c.add(time.Second)
	checkFailure(t, request(&certificate, "").err, failure.Denied, "it, or its CA, is not valid now")
	c.add(-3 * time.Hour)
	checkFailure(t, request(&certificate, "").err, failure.Denied, "it, or its CA, is not valid now")
}

func TestOneCredential(t *testing.T) {
	b := newBench(t, nil)
	b.mtls.all = true
	ca := newAuthority(t)
	request := serve(t, b.Authenticator, tls.VerifyClientCertIfGiven, ca)
	certificate := ca.issue(t, uris("spiffe://example.com/ci"))
	token := b.mint(t, nil)
	if got := request(&certificate, ""); got.err != nil {
		t.Error(got.err)
	}
	if got := request(nil, token); got.err != nil || got.caller.Issuer != b.issuer.URL {
		t.Errorf("token alone: %+v", got)
	}
	got := request(&certificate, token)
	checkFailure(t, got.err, failure.Denied, "a token and a client certificate")
	checkSecret(t, got.err, token)
	checkFailure(t, request(nil, "").err, failure.Denied, "no credential")

	twice := bearerRequest(t.Context(), token)
	twice.Header.Add("Authorization", "Bearer "+token)
	_, err := b.Caller(twice)
	checkFailure(t, err, failure.Denied, "2 Authorization headers")
	checkSecret(t, err, token)
	for _, scheme := range []string{"Basic ", "", "Bearer\t", "DPoP "} {
		r := bearerRequest(t.Context(), token)
		r.Header.Set("Authorization", scheme+token)
		_, err := b.Caller(r)
		checkFailure(t, err, failure.Denied, "is not Bearer")
		checkSecret(t, err, token)
	}
	r := bearerRequest(t.Context(), token)
	r.Header.Set("Authorization", "bEARER "+token)
	if _, err := b.Caller(r); err != nil {
		t.Errorf("the scheme in another case was refused: %v", err)
	}
}

// TestConnContext verifies that a connection over TCP is no peer.
func TestConnContext(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	if _, ok := peerOf(ConnContext(t.Context(), server)); ok {
		t.Error("a pipe has a peer")
	}
}
