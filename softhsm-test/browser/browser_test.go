package browser

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const head = `<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Test</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>body {background: white; color: black} @media (prefers-color-scheme: dark) {body {color: #999}}</style>
</head><body><main><h1>Test</h1>`

// script registers a passkey and signs with it, as the page of a broker does.
const script = `const say = text => document.getElementById("said").textContent = text
const key = {challenge: new Uint8Array(32), rpId: "localhost", userVerification: "required"}
document.getElementById("register").addEventListener("click", async () => {
	const made = await navigator.credentials.create({publicKey: {challenge: new Uint8Array(32),
		rp: {id: "localhost", name: "test"}, user: {id: new Uint8Array(8), name: "alice", displayName: "Alice"},
		pubKeyCredParams: [{type: "public-key", alg: -7}], attestation: "direct",
		authenticatorSelection: {residentKey: "required", userVerification: "required"}}})
	say(new TextDecoder().decode(made.response.attestationObject))
})
document.getElementById("sign").addEventListener("click", () => navigator.credentials.get({publicKey: key}).then(
	got => say("signed " + got.response.signature.byteLength), error => say("refused " + error.name)))
`

var pages = map[string]string{
	"/": head + `<p id="said" role="status">nothing</p><button id="register">Register</button>
		<button id="sign">Sign</button><a href="/form">Form</a></main><script src="/script.js"></script></body></html>`,
	"/form": head + `<form method="post" action="/form"><label>Reason <input name="reason"></label>
		<button>Send</button></form></main></body></html>`,
	"/barrier":   head + `<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw="></main></body></html>`,
	"/elsewhere": head + `<img alt="" src="https://127.0.0.1:1/x.png"></main></body></html>`,
	"/inline":    head + `<p id="said">nothing</p></main><script>said.textContent = "ran"</script></body></html>`,
}

// serve serves the pages at https://localhost with a strict Content-Security-Policy, and returns their URL.
func serve(t *testing.T, ca *softhsmtest.CA) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := softhsmtest.Template("localhost")
	template.DNSNames, template.ExtKeyUsage = []string{"localhost"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server := httptest.NewUnstartedServer(http.HandlerFunc(answer))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{PrivateKey: key,
		Certificate: [][]byte{ca.Issue(t, template, key.Public()).Raw}}}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return strings.Replace(server.URL, "127.0.0.1", "localhost", 1)
}

func answer(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; "+
		"img-src data: https://127.0.0.1:1")
	switch page, exists := pages[r.URL.Path]; {
	case r.Method == http.MethodPost:
		known := "nobody"
		if cookie, err := r.Cookie("person"); err == nil {
			known = cookie.Value
		}
		http.SetCookie(w, &http.Cookie{Name: "person", Value: r.FormValue("reason"), Secure: true, HttpOnly: true})
		fmt.Fprintf(w, "%s<p>%s gave %q</p></main></body></html>", head, known, r.FormValue("reason"))
	case r.URL.Path == "/script.js":
		w.Header().Set("Content-Type", "text/javascript")
		fmt.Fprint(w, script)
	case exists:
		fmt.Fprint(w, page)
	default:
		http.NotFound(w, r)
	}
}

// TestPage has two people use a page: what the tests of the broker's pages rely on is what a browser does.
func TestPage(t *testing.T) {
	t.Parallel()
	ca := softhsmtest.NewCA(t, "test", nil)
	url := serve(t, ca)
	file := filepath.Join(t.TempDir(), "ca.pem")
	softhsmtest.Write(t, file, ca.PEM())
	b := Start(t, file)
	alice, bob := b.Person(t), b.Person(t, SecurityKey)
	for _, p := range []*Page{alice, bob} {
		if status := p.Open(url + "/"); status != http.StatusOK {
			t.Fatalf("the status is %d", status)
		}
	}

	// Passkeys: each person has their own, and it signs for its user alone.
	bob.Click("Sign")
	bob.WaitText("refused NotAllowedError")
	alice.Click("Register")
	alice.WaitText("fmtfpacked") // the attestation is the authenticator's own
	alice.Click("Sign")
	alice.WaitText("signed 7")
	alice.Verified(false)
	alice.Click("Sign")
	alice.WaitText("refused NotAllowedError")
	if a, b := len(alice.Passkeys()), len(bob.Passkeys()); a != 1 || b != 0 {
		t.Errorf("the people have %d and %d passkeys", a, b)
	}

	// The keyboard, forms, cookies, and links.
	alice.Press(kb.Tab)
	if focused := alice.Focused(); focused != "Form" {
		t.Errorf("the focus is on %q", focused)
	}
	alice.Press(kb.Enter)
	alice.WaitURL("/form")
	alice.Press(kb.Tab)
	if focused := alice.Focused(); focused != "Reason" {
		t.Errorf("the focus is on %q", focused)
	}
	alice.Press("because" + kb.Enter)
	alice.WaitText(`gave "because"`)
	for p, words := range map[*Page]string{alice: `because gave "why"`, bob: `nobody gave "why"`} {
		p.Open(url + "/form")
		p.Fill("input", "why")
		p.Click("Send")
		p.WaitText(words)
	}
	if alice.Has("Register") || bob.Has("gone") {
		t.Error("a button is there that is not")
	}

	findings(t, alice, url)
	origins(t, b, alice, bob, url)
}

// findings checks that axe finds what is there, in each look, and nothing else.
func findings(t *testing.T, p *Page, url string) {
	t.Helper()
	for _, look := range Looks {
		p.Look(look)
		for path, want := range map[string][]string{"/form": nil, "/barrier": {"image-alt"}} {
			if look.Dark {
				want = append(want, "color-contrast")
			}
			p.Open(url + path)
			var found []string
			for _, finding := range p.Axe() {
				found = append(found, finding.Rule)
			}
			slices.Sort(found)
			slices.Sort(want)
			if !slices.Equal(found, want) {
				t.Errorf("%s, %s: axe finds %q, not %q", path, look.Name, found, want)
			}
		}
		picture := filepath.Join(t.TempDir(), look.Name+".png")
		p.Screenshot(picture)
		if data := softhsmtest.Read(t, picture); !strings.HasPrefix(data, "\x89PNG") {
			t.Errorf("the picture begins with %q", data[:min(len(data), 8)])
		}
	}
}

// origins checks that certificates count, that requests to other origins are seen, and that a page's own policy holds.
func origins(t *testing.T, b *Browser, alice, bob *Page, url string) {
	t.Helper()
	if errors := bob.Errors(); len(errors) != 0 {
		t.Errorf("the console shows %q", errors)
	}
	if others := alice.Elsewhere(url); len(others) != 0 {
		t.Errorf("requests to %q", others)
	}
	alice.Open(url + "/elsewhere")
	if others := alice.Elsewhere(url); !slices.Equal(others, []string{"https://127.0.0.1:1/x.png"}) {
		t.Errorf("requests to %q", others)
	}
	bob.Open(url + "/inline")
	if errors := bob.Errors(); bob.Text() != "Test\n\nnothing" || len(errors) != 1 ||
		!strings.Contains(errors[0], "Content Security Policy") {
		t.Errorf("the page shows %q, and the console %q", bob.Text(), errors)
	}
	stranger := serve(t, softhsmtest.NewCA(t, "test", nil))
	carol := b.Person(t)
	if err := chromedp.Do(carol.ctx, chromedp.Navigate(stranger)); err == nil ||
		!strings.Contains(err.Error(), "ERR_CERT_AUTHORITY_INVALID") {
		t.Errorf("a server of another CA: %v", err)
	}
}
