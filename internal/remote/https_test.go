package remote

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestTLS refuses brokers that do not authenticate themselves, and sends them nothing.
func TestTLS(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*x509.Certificate)
		ca     bool // of the fake itself
		text   string
	}{
		"another name":  {func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = nil, nil }, true, "127.0.0.1"},
		"expired":       {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, true, "expired"},
		"another CA":    {nil, false, "unknown authority"},
		"system's only": {nil, false, "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newTLSFake(t, c.change)
			s := f.settings()
			if !c.ca {
				s.Credentials.CA = newTLSFake(t, nil).ca
			}
			if name == "system's only" {
				s.Credentials.CA = ""
			}
			token(t, s, "eyJ.a.b")
			_, err := New().Open(t.Context(), s)
			failsWith(t, err, failure.Denied, "cannot verify the TLS certificate of the broker at "+f.server.URL)
			failsWith(t, err, failure.Denied, c.text)
			if len(f.sent(http.MethodGet)) > 0 {
				t.Error("a request was sent")
			}
		})
	}
	f := newTLSFake(t, nil)
	f.server.TLS.MaxVersion = 0
	if store, err := New().Open(t.Context(), f.settings()); err != nil {
		t.Error(err)
	} else {
		store.Close()
	}
}

// TestOldTLS refuses TLS 1.2, and what does not speak TLS.
func TestOldTLS(t *testing.T) {
	t.Parallel()
	f := newTLSFake(t, nil)
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.Config.ErrorLog = f.server.Config.ErrorLog
	old.TLS = &tls.Config{Certificates: f.server.TLS.Certificates, MaxVersion: tls.VersionTLS12} //nolint:gosec // a test
	old.StartTLS()
	defer old.Close()
	s := f.settings()
	s.Broker = old.URL
	_, err := New().Open(t.Context(), s)
	failsWith(t, err, failure.Denied, "protocol version")
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	s.Broker = strings.Replace(plain.URL, "http:", "https:", 1)
	_, err = New().Open(t.Context(), s)
	failsWith(t, err, failure.Unavailable, "does not speak TLS")
}

// TestClientCertificate shows the certificate that the settings name, and refuses a key that others can read.
func TestClientCertificate(t *testing.T) {
	t.Parallel()
	f := newTLSFake(t, nil)
	f.server.TLS.ClientAuth = tls.RequireAnyClientCert
	s := f.settings()
	_, err := New().Open(t.Context(), s)
	if !failure.Is(err, failure.Denied) && !failure.Is(err, failure.Unavailable) { // the latter if the alert got lost
		t.Errorf("without a certificate: %v", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(f.private)
	if err != nil {
		t.Fatal(err)
	}
	s.Credentials.Certificate, s.Credentials.Key = f.ca, filepath.Join(t.TempDir(), "key.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(s.Credentials.Key, text, 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := New().Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	store.Close()
	if says, err := New().Credentials(t.Context(), s); err != nil || !strings.Contains(says, f.ca) {
		t.Errorf("%q, %v", says, err)
	}
	if err := os.Chmod(s.Credentials.Key, 0o604); err != nil {
		t.Fatal(err)
	}
	_, err = New().Open(t.Context(), s)
	failsWith(t, err, failure.Denied, "others can read it")
	s.Credentials.Key = f.ca
	_, err = New().Open(t.Context(), s)
	failsWith(t, err, failure.Invalid, "cannot use broker-certificate")
	s.Credentials.CA = filepath.Join(t.TempDir(), "none")
	_, err = New().Open(t.Context(), s)
	failsWith(t, err, failure.NotFound, "cannot use broker-ca")
}

// token makes a file the source of a token.
func token(t *testing.T, s *config.Settings, text string) {
	t.Helper()
	if s.Credentials.Token.File == "" {
		s.Credentials.Token.File = filepath.Join(t.TempDir(), "token")
	}
	if err := os.WriteFile(s.Credentials.Token.File, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

const secret = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzZWNyZXQifQ.c2VjcmV0"

// TestTokens sends the token that its source has at the time of each request.
func TestTokens(t *testing.T) {
	f := newTLSFake(t, nil)
	s := f.settings()
	_, err := New().Credentials(t.Context(), s)
	failsWith(t, err, failure.NotFound, "neither a token nor a certificate")
	token(t, s, secret+"\n")
	k := f.openWith(t, New(), s)
	token(t, s, "second.token")
	if _, err := k.SignMessage(t.Context(), []byte("message"), crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	s.Credentials.Token = config.TokenSource{Variable: "BROKER_TEST_TOKEN"}
	t.Setenv("BROKER_TEST_TOKEN", "third.token")
	f.openWith(t, New(), s)
	var all []string
	for _, r := range f.requests {
		all = append(all, r.Header.Get("Authorization"))
	}
	if !slices.Equal(all, []string{"Bearer " + secret, "Bearer second.token", "Bearer third.token"}) {
		t.Errorf("sent were %q", all)
	}
}

// TestNoTokens names the source, and not what it has.
func TestNoTokens(t *testing.T) {
	f := newTLSFake(t, nil)
	s := f.settings()
	fails := func(kind failure.Kind, text string) {
		t.Helper()
		_, err := New().Open(t.Context(), s)
		failsWith(t, err, kind, text)
		if err != nil && (strings.Contains(err.Error(), "secret") || failure.From(err).Hint == "") {
			t.Errorf("the error is %v, with hint %q", err, failure.From(err).Hint)
		}
	}
	s.Credentials.Token = config.TokenSource{Variable: "BROKER_TEST_TOKEN"}
	t.Setenv("BROKER_TEST_TOKEN", "")
	fails(failure.NotFound, "(gitlab:BROKER_TEST_TOKEN): the variable BROKER_TEST_TOKEN is not set")
	for _, wrong := range []string{"secret\r\nX-Header: a", "secret secret", "secret\x01", "secret" +
		strings.Repeat("x", tokenLimit)} {
		t.Setenv("BROKER_TEST_TOKEN", strings.ReplaceAll(wrong, "\x00", ""))
		fails(failure.Invalid, "no token")
	}
	s.Credentials.Token = config.TokenSource{File: filepath.Join(t.TempDir(), "none")}
	fails(failure.NotFound, "no such file")
	token(t, s, "secret secret")
	fails(failure.Invalid, "no token")
	token(t, s, strings.Repeat("secret", tokenLimit))
	fails(failure.Invalid, "")
	// A broker that repeats the token does not get it into a log.
	token(t, s, "eyJ.secret.x")
	f.answers[brokerapi.KeyPath("release")] = func(w http.ResponseWriter, r *http.Request) {
		problem(w, http.StatusForbidden, "denied", "not with "+r.Header.Get("Authorization"))
	}
	fails(failure.Internal, "it repeats the token")
}

func problem(w http.ResponseWriter, status int, kind, detail string) {
	w.Header().Set("Content-Type", brokerapi.ProblemType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(brokerapi.Problem{Status: status, Kind: kind, Detail: detail})
}

// gitHub is GitHub's endpoint for tokens as documented: GET with an audience, a bearer token, and JSON with a value
// (https://docs.github.com/en/actions/reference/security/oidc#methods-for-requesting-the-oidc-token). Its tokens are
// numbered.
type gitHub struct {
	server *httptest.Server
	given  int
	asked  []string // audiences
	fail   func(http.ResponseWriter) bool
}

func newGitHubFake(t *testing.T) *gitHub {
	t.Helper()
	g := &gitHub{}
	g.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.Header.Get("Authorization") != "Bearer request-secret" ||
			r.URL.Query().Get("api-version") != "2.0" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		g.asked = append(g.asked, r.URL.Query().Get("audience"))
		if g.fail != nil && g.fail(w) {
			return
		}
		g.given++
		answer(w, map[string]any{"count": 100, "value": fmt.Sprintf("github.token.%d", g.given)})
	}))
	t.Cleanup(g.server.Close)
	t.Setenv(githubURL, g.server.URL+"/_apis/token?api-version=2.0")
	t.Setenv(githubToken, "request-secret")
	return g
}

// backend returns one that trusts the endpoint.
func (g *gitHub) backend() *Backend {
	b := New()
	b.connections.github = newGitHub()
	pool := x509.NewCertPool()
	pool.AddCert(g.server.Certificate())
	b.connections.github.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool} //nolint:gosec // a test
	return b
}

// TestGitHub gets a token for each request and each try, with the broker as its audience.
func TestGitHub(t *testing.T) {
	f, g := newTLSFake(t, nil), newGitHubFake(t)
	s := f.settings()
	s.Credentials.Token.GitHub = true
	k := f.openWith(t, g.backend(), s)
	lost := 2
	f.answers[brokerapi.SignaturesPath("release")] = func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil && lost > 0 {
			lost--
			panic(http.ErrAbortHandler)
		}
		problem(w, http.StatusForbidden, "denied", "no rule")
	}
	_, err := k.SignMessage(t.Context(), []byte("message"), crypto.SHA256)
	failsWith(t, err, failure.Denied, "no rule")
	var tokens, keys []string
	for _, r := range f.requests {
		tokens = append(tokens, r.Header.Get("Authorization"))
	}
	for _, r := range f.sent(http.MethodPost) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
	}
	if want := []string{"Bearer github.token.1", "Bearer github.token.2", "Bearer github.token.3",
		"Bearer github.token.4"}; !slices.Equal(tokens, want) {
		t.Errorf("sent were %q", tokens)
	}
	if len(keys) != 3 || keys[0] != keys[1] || keys[1] != keys[2] || len(keys[0]) != 66 {
		t.Errorf("the idempotency keys are %q", keys)
	}
	for _, audience := range g.asked {
		if audience != f.server.URL {
			t.Errorf("a token was asked for %q", audience)
		}
	}
}

// TestGitHubFails tries again when GitHub is busy, and not when it refuses.
func TestGitHubFails(t *testing.T) {
	f, g := newTLSFake(t, nil), newGitHubFake(t)
	s := f.settings()
	s.Credentials.Token.GitHub = true
	status := func(code, times int, body string) func(http.ResponseWriter) bool {
		return func(w http.ResponseWriter) bool {
			if times--; times < 0 {
				return false
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
			return true
		}
	}
	for name, c := range map[string]struct {
		fail  func(http.ResponseWriter) bool
		asked int
		text  string // "" if it works
	}{
		"busy":       {status(503, 2, "secret"), 3, ""},
		"refused":    {status(403, 9, "secret"), 1, "HTTP status 403"},
		"no JSON":    {status(200, 9, "secret"), 1, "it is not JSON"},
		"no value":   {status(200, 9, `{"secret": 1}`), 1, "its answer has no value"},
		"long":       {status(200, 9, `{"value": "`+strings.Repeat("x", 2*tokenLimit)+`"}`), 1, "GitHub gives no token"},
		"no token":   {status(200, 9, `{"value": "secret secret"}`), 1, "no token"},
		"a redirect": {status(302, 9, ""), 1, "HTTP status 302"},
	} {
		g.fail, g.asked = c.fail, nil
		store, err := g.backend().Open(t.Context(), s)
		if len(g.asked) != c.asked {
			t.Errorf("%s: asked %d times", name, len(g.asked))
		}
		switch {
		case c.text == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.text == "":
			store.Close()
		case err == nil || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "secret"):
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, url := range map[string]string{"none": "", "no TLS": "http://127.0.0.1:1/", "no URL": "::"} {
		t.Setenv(githubURL, url)
		_, err := g.backend().Open(t.Context(), s)
		if !failure.Is(err, failure.NotFound) || !strings.Contains(failure.From(err).Hint, "id-token: write") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRedirected sends a token to no other address.
func TestRedirected(t *testing.T) {
	t.Parallel()
	f, other := newTLSFake(t, nil), newTLSFake(t, nil)
	s := f.settings()
	token(t, s, secret)
	for _, code := range []int{301, 302, 307, 308} {
		f.mu.Lock()
		f.answers[brokerapi.KeyPath("release")] = func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, other.server.URL+r.URL.Path, code)
		}
		f.mu.Unlock()
		_, err := New().Open(t.Context(), s)
		failsWith(t, err, failure.Internal, fmt.Sprint(code))
	}
	if len(other.requests) > 0 || len(f.requests) != 4 {
		t.Errorf("%d and %d requests", len(f.requests), len(other.requests))
	}
}
