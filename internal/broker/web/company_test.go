package web

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
)

// provider is a company's provider.
type provider struct {
	*identitytest.Issuer
	t      *testing.T
	claims map[string]any // of the next token
	sent   url.Values     // to its token endpoint
	status int
}

func newProvider(t *testing.T) *provider {
	p := &provider{Issuer: identitytest.New(t), t: t, status: http.StatusOK}
	p.Answer("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys",
			"authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token",
			"id_token_signing_alg_values_supported": []string{"ES256"}})
	})
	p.Answer("/token", func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		p.sent = r.PostForm
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(p.status)
		_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "x", "token_type": "Bearer",
			"id_token": p.Mint(t, p.claims)})
	})
	return p
}

// client reaches the provider.
func (p *provider) client() *http.Client {
	p.t.Helper()
	data, err := os.ReadFile(p.CA)
	if err != nil {
		p.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(data)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	p.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second}
}

// companyFixture is a page whose people sign in at a provider as well: alice is alice-1 there.
func companyFixture(t *testing.T) (*fixture, *provider) {
	p := newProvider(t)
	f := newFixture(t, func(o *Options) {
		o.OIDC = &OIDC{Issuer: p.URL, ClientID: "broker", Client: p.client()}
	})
	f.broker.known = func(issuer, subject string) string {
		if issuer == p.URL && subject == "alice-1" {
			return "alice"
		}
		return ""
	}
	return f, p
}

// begin signs in with the passkey, and returns the cookie of the ticket and where the provider is asked.
func (p *person) begin(t *testing.T) (*http.Cookie, url.Values) {
	t.Helper()
	asked := read[question](p.fixture, p.script("/signin/begin", struct{}{}, http.StatusOK))
	answer, body := p.do(p.request(http.MethodPost, "/signin/finish", "application/json", mustJSON(p.answer(asked))))
	if answer.StatusCode != http.StatusOK || !strings.Contains(body, companyPath) || p.cookie != nil {
		t.Fatalf("%d: %s", answer.StatusCode, body)
	}
	var set *http.Cookie
	for _, c := range answer.Cookies() {
		if c.Name == ticketCookie {
			set = c
		}
	}
	if set == nil || !set.Secure || !set.HttpOnly || set.SameSite != http.SameSiteLaxMode {
		t.Fatalf("the ticket: %+v", set)
	}
	r := p.request(http.MethodGet, companyPath, "", nil)
	r.AddCookie(set)
	answer, body = p.do(r)
	to, err := url.Parse(answer.Header.Get("Location"))
	if err != nil || answer.StatusCode != http.StatusSeeOther {
		t.Fatalf("%d: %s", answer.StatusCode, body)
	}
	return set, to.Query()
}

// back comes back from the provider.
func (p *person) back(set *http.Cookie, query url.Values) (*http.Response, string) {
	p.Helper()
	r := p.request(http.MethodGet, callbackPath+"?"+query.Encode(), "", nil)
	if set != nil {
		r.AddCookie(set)
	}
	return p.do(r)
}

// TestCompany begins a session after both sign-ins, of the same person, once.
func TestCompany(t *testing.T) {
	t.Parallel()
	f, provider := companyFixture(t)
	p := f.enrol("alice")
	set, asked := p.begin(t)
	if asked.Get("client_id") != "broker" || asked.Get("redirect_uri") != base+callbackPath ||
		asked.Get("response_type") != "code" || asked.Get("scope") != "openid" ||
		asked.Get("code_challenge_method") != "S256" {
		t.Errorf("asked: %v", asked)
	}
	provider.claims = map[string]any{"sub": "alice-1", "aud": "broker", "nonce": asked.Get("nonce")}
	query := url.Values{"code": {"the code"}, "state": {asked.Get("state")}}
	answer, body := p.back(set, query)
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Refresh") != "0; url=/" || p.cookie == nil {
		t.Fatalf("%d: %s", answer.StatusCode, body)
	}
	checkPage(t, callbackPath, body)
	if oauth2.S256ChallengeFromVerifier(provider.sent.Get("code_verifier")) != asked.Get("code_challenge") ||
		provider.sent.Get("code") != "the code" {
		t.Errorf("sent: %v", provider.sent)
	}
	contains(t, p.get("/"), "Signed in as <strong>alice</strong>")
	p.cookie = nil
	if answer, _ := p.back(set, query); answer.StatusCode != http.StatusConflict || p.cookie != nil {
		t.Errorf("twice: %d", answer.StatusCode)
	}
}

// TestRefuseCompany begins no session when the provider does not say that it is the same person, in this very sign-in.
func TestRefuseCompany(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*fixture, *provider, url.Values, **http.Cookie){
		"other person": func(_ *fixture, p *provider, _ url.Values, _ **http.Cookie) { p.claims["sub"] = "bob-1" },
		"other nonce":  func(_ *fixture, p *provider, _ url.Values, _ **http.Cookie) { p.claims["nonce"] = "x" },
		"no nonce":     func(_ *fixture, p *provider, _ url.Values, _ **http.Cookie) { delete(p.claims, "nonce") },
		"audience":     func(_ *fixture, p *provider, _ url.Values, _ **http.Cookie) { p.claims["aud"] = "another" },
		"issuer": func(_ *fixture, p *provider, _ url.Values, _ **http.Cookie) {
			p.claims["iss"] = "https://example.com"
		},
		"expired": func(_ *fixture, p *provider, _ url.Values, _ **http.Cookie) {
			p.claims["exp"] = testTime.Add(-time.Hour).Unix()
		},
		"code":     func(_ *fixture, p *provider, _ url.Values, _ **http.Cookie) { p.status = http.StatusBadRequest },
		"state":    func(_ *fixture, _ *provider, q url.Values, _ **http.Cookie) { q.Set("state", "x") },
		"no state": func(_ *fixture, _ *provider, q url.Values, _ **http.Cookie) { q.Del("state") },
		"error":    func(_ *fixture, _ *provider, q url.Values, _ **http.Cookie) { q.Set("error", "access_denied") },
		"late":     func(f *fixture, _ *provider, _ url.Values, _ **http.Cookie) { f.pass(ticketTime) },
		"no ticket": func(_ *fixture, _ *provider, _ url.Values, set **http.Cookie) {
			*set = nil
		},
		"own ticket": func(f *fixture, _ *provider, _ url.Values, set **http.Cookie) {
			(*set).Value = "e30." + f.web.seal(forSignIn, "", []byte("{}"), ticketTime)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, provider := companyFixture(t)
			p := f.enrol("alice")
			set, asked := p.begin(t)
			provider.claims = map[string]any{"sub": "alice-1", "aud": "broker", "nonce": asked.Get("nonce")}
			query := url.Values{"code": {"the code"}, "state": {asked.Get("state")}}
			change(f, provider, query, &set)
			answer, body := p.back(set, query)
			if answer.StatusCode != http.StatusForbidden && answer.StatusCode != http.StatusUnauthorized || p.cookie != nil {
				t.Errorf("%d: %s", answer.StatusCode, body)
			}
			checkPage(t, callbackPath, body)
		})
	}
}

// TestCompanyDown says that the provider is away, and finds it once it is back.
func TestCompanyDown(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(o *Options) {
		o.OIDC = &OIDC{Issuer: "https://127.0.0.1:1", ClientID: "broker", Client: newProvider(t).client()}
	})
	p := f.enrol("alice")
	asked := read[question](f, p.script("/signin/begin", struct{}{}, http.StatusOK))
	answer, _ := p.do(p.request(http.MethodPost, "/signin/finish", "application/json", mustJSON(p.answer(asked))))
	provider := newProvider(t)
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusSeeOther} {
		r := p.request(http.MethodGet, companyPath, "", nil)
		r.AddCookie(answer.Cookies()[0])
		if got, body := p.do(r); got.StatusCode != status {
			t.Errorf("status %d, want %d: %s", got.StatusCode, status, body)
		}
		f.pass(again)
		f.web.options.OIDC = &OIDC{Issuer: provider.URL, ClientID: "broker", Client: provider.client()}
	}
}
