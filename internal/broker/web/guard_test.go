package web

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// wanted are the headers that every answer has.
var wanted = map[string]string{
	"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; " +
		"connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
	"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
	"Permissions-Policy": "publickey-credentials-get=(self), publickey-credentials-create=(self), camera=(), " +
		"geolocation=(), microphone=(), payment=(), usb=()",
	"Referrer-Policy": "no-referrer", "Strict-Transport-Security": "max-age=31536000",
	"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
}

// TestHeaders sets the headers of security on every answer: pages, files, answers to the script, and failures.
func TestHeaders(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := f.add(1)
	p := f.signIn("alice")
	for _, path := range []string{"/", "/signin", "/requests", "/requests/" + r.ID, "/requests/" + r.ID + "/proof",
		"/keys", "/keys/release/block", "/policy", "/approvers", "/log", "/enrol", "/enrol/done", "/favicon.ico", "/nothing",
		f.web.pages.named["style.css"], f.web.pages.named["passkey.js"], "/static/x", "//evil", "/requests/"} {
		answer, body := p.do(p.request(http.MethodGet, path, "", nil))
		for name, value := range wanted {
			want := value
			if name == "Cache-Control" && answer.StatusCode == http.StatusOK && strings.HasPrefix(path, "/static/") {
				want = "public, max-age=31536000, immutable"
			}
			if got := answer.Header.Get(name); got != want {
				t.Errorf("%s: %s: %s", path, name, got)
			}
		}
		if answer.StatusCode >= http.StatusInternalServerError && !strings.HasSuffix(path, "/proof") {
			t.Errorf("%s: status %d: %s", path, answer.StatusCode, body)
		}
	}
	answer, _ := p.do(p.request(http.MethodPost, "/signin/begin", "application/json", []byte("{}")))
	for name, value := range wanted {
		if got := answer.Header.Get(name); got != value {
			t.Errorf("the script: %s: %s", name, got)
		}
	}
}

// TestOtherOrigins refuses what a browser sends for a page of another site.
func TestOtherOrigins(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := f.signIn("alice")
	for name, value := range map[string]string{"Origin": "https://evil.example.com", "Sec-Fetch-Site": "cross-site"} {
		for _, path := range []string{"/signin/begin", "/signout", "/keys/release/block"} {
			r := p.request(http.MethodPost, path, "application/json", []byte("{}"))
			r.Header.Set(name, value)
			if answer, body := p.do(r); answer.StatusCode != http.StatusForbidden || !strings.Contains(body, "another site") {
				t.Errorf("%s with %s: %d: %s", path, name, answer.StatusCode, body)
			}
		}
	}
	r := p.request(http.MethodPost, "/signin/begin", "application/json", []byte("{}"))
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if answer, _ := p.do(r); answer.StatusCode != http.StatusOK {
		t.Errorf("the page itself: %d", answer.StatusCode)
	}
}

// TestBounds refuses bodies that are too long, methods and paths that no page has, and JSON that the script does not
// send.
func TestBounds(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := f.signIn("alice")
	large := bytes.Repeat([]byte("a"), maxBody+1)
	for name, c := range map[string]struct {
		request *http.Request
		status  int
	}{
		"long":      {p.request(http.MethodPost, "/signin/begin", "application/json", large), 413},
		"long form": {p.request(http.MethodPost, "/signout", "application/x-www-form-urlencoded", large), 413},
		"method":    {p.request(http.MethodDelete, "/keys", "", nil), 405},
		"post":      {p.request(http.MethodPost, "/keys", "", nil), 405},
		"get":       {p.request(http.MethodGet, "/signin/begin", "", nil), 405},
		"path":      {p.request(http.MethodGet, "/v2", "", nil), 404},
		"no JSON":   {p.request(http.MethodPost, "/signin/begin", "application/json", []byte("[]")), 400},
		"more":      {p.request(http.MethodPost, "/signin/begin", "application/json", []byte(`{"a":1}`)), 400},
		"a form":    {p.request(http.MethodPost, "/signin/begin", "application/x-www-form-urlencoded", []byte("a=b")), 415},
		"no key":    {p.request(http.MethodGet, "/keys/other/block", "", nil), 404},
		"no change": {p.request(http.MethodGet, "/keys/release/delete", "", nil), 404},
		"no state":  {p.request(http.MethodGet, "/requests?state=open", "", nil), 400},
		"long text": {p.request(http.MethodGet, "/requests?q="+strings.Repeat("a", 400), "", nil), 400},
		"request":   {p.request(http.MethodGet, "/requests/x", "", nil), 404},
		"removed":   {p.request(http.MethodGet, "/credentials/sha256:00/remove", "", nil), 404},
	} {
		t.Run(name, func(t *testing.T) {
			if answer, body := p.do(c.request); answer.StatusCode != c.status {
				t.Errorf("status %d, want %d: %s", answer.StatusCode, c.status, body)
			}
		})
	}
}

// TestPanic answers a request on which the broker fails, and says nothing of the cause.
func TestPanic(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := f.signIn("alice")
	f.web.options.Checkpoint = nil
	answer, body := p.do(p.request(http.MethodGet, "/log", "", nil))
	if answer.StatusCode != http.StatusInternalServerError || strings.Contains(body, "nil pointer") ||
		!strings.Contains(body, "the operator of the broker") {
		t.Errorf("%d: %s", answer.StatusCode, body)
	}
}

// TestLocalhost does not have browsers ask other servers of the same machine by TLS alone.
func TestLocalhost(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := f.signIn("alice")
	f.web.options.RPID = "localhost"
	answer, _ := p.do(p.request(http.MethodGet, "/", "", nil))
	if got := answer.Header.Get("Strict-Transport-Security"); got != "" {
		t.Error(got)
	}
}
