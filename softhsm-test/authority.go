package softhsmtest

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// Authority is a CA of notation-hsm on a token of its own, and the folder that its lists are published in.
type Authority struct {
	Program, Name string
	WWW           string
}

// Init makes a CA's key and the CA, and returns the file with its certificate and issuers.
func (a Authority) Init(t testing.TB, token, spec string, arguments ...string) string {
	t.Helper()
	uri := NewCAKey(t, a.Program, token, spec, a.Name)
	file := filepath.Join(t.TempDir(), a.Name+".pem")
	Write(t, file, Run(t, a.Program, append(
		[]string{"ca", "init", a.Name, "--key", uri, "--subject", "CN=" + a.Name + ",O=Example,C=CH,ST=Zurich"},
		arguments...)...))
	return file
}

// NewCAKey makes a key on a token, without a certificate, and returns its URI.
func NewCAKey(t testing.TB, program, token, spec, label string) string {
	t.Helper()
	return strings.TrimSpace(Run(t, program, "key", "generate", "--token", token, "--spec", spec, "--label", label))
}

// Publish signs a list that holds for a while and puts it where the certificates say.
func (a Authority) Publish(t testing.TB, next string) {
	t.Helper()
	Run(t, a.Program, "ca", "crl", "--ca", a.Name, "--next-update", next, "--out", filepath.Join(a.WWW, a.Name+".crl"))
}

// Issued is what 'ca show' says of a CA.
type Issued struct {
	Issued []struct{ Serial, State, Subject, Reason string }
}

// Show returns what 'ca show' says.
func (a Authority) Show(t testing.TB) (s Issued) {
	t.Helper()
	if err := json.Unmarshal([]byte(Run(t, a.Program, "ca", "show", "--json", a.Name)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// Serials returns the serial numbers, in hex.
func (s Issued) Serials() []string {
	serials := make([]string, len(s.Issued))
	for i, e := range s.Issued {
		serials[i] = e.Serial
	}
	return serials
}

// Serve serves a folder over HTTP on a loopback port, and returns the folder and its address.
func Serve(t testing.TB) (dir, address string) {
	dir = t.TempDir()
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return dir, server.URL
}

// TrustWithTSA makes a root and a TSA's root the only ones that signatures verify under.
func TrustWithTSA(t testing.TB, n *Notation, root, tsa string) {
	t.Helper()
	Run(t, n.Program, "cert", "add", "--type", "ca", "--store", "ours", root)
	Run(t, n.Program, "cert", "add", "--type", "tsa", "--store", "ours", tsa)
	policy := filepath.Join(t.TempDir(), "trustpolicy.json")
	Write(t, policy,
		`{"version": "1.0", "trustPolicies": [{"name": "test", "registryScopes": ["*"], "trustedIdentities": ["*"],
		"signatureVerification": {"level": "strict"}, "trustStores": ["ca:ours", "tsa:ours"]}]}`)
	Run(t, n.Program, "policy", "import", "--force", policy)
}
