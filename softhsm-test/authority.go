package softhsmtest

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// An authority is a CA of notation-hsm on a token of its own, and the folder that its lists are published in.
type authority struct {
	program, name string
	www           string
}

// init makes a CA's key and the CA, and returns the file with its certificate and issuers.
func (a authority) init(t testing.TB, token, spec string, arguments ...string) string {
	t.Helper()
	uri := newCAKey(t, a.program, token, spec, a.name)
	file := filepath.Join(t.TempDir(), a.name+".pem")
	write(t, file, Run(t, a.program, append(
		[]string{"ca", "init", a.name, "--key", uri, "--subject", "CN=" + a.name + ",O=Example,C=CH,ST=Zurich"},
		arguments...)...))
	return file
}

func newCAKey(t testing.TB, program, token, spec, label string) string {
	t.Helper()
	return strings.TrimSpace(Run(t, program, "key", "generate", "--token", token, "--spec", spec, "--label", label))
}

// publish signs a list that holds for a while and puts it where the certificates say.
func (a authority) publish(t testing.TB, next string) {
	t.Helper()
	Run(t, a.program, "ca", "crl", "--ca", a.name, "--next-update", next, "--out", filepath.Join(a.www, a.name+".crl"))
}

// issued is what 'ca show' says of a CA.
type issued struct {
	Issued []struct{ Serial, State, Subject, Reason string }
}

func (a authority) show(t testing.TB) (s issued) {
	t.Helper()
	if err := json.Unmarshal([]byte(Run(t, a.program, "ca", "show", "--json", a.name)), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s issued) serials() []string {
	serials := make([]string, len(s.Issued))
	for i, e := range s.Issued {
		serials[i] = e.Serial
	}
	return serials
}

// serve serves a folder over HTTP on a loopback port, and returns the folder and its address.
func serve(t testing.TB) (dir, address string) {
	dir = t.TempDir()
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(server.Close)
	return dir, server.URL
}

// trustWithTSA makes a root and a TSA's root the only ones that signatures verify under.
func trustWithTSA(t testing.TB, n *Notation, root, tsa string) {
	t.Helper()
	Run(t, n.Program, "cert", "add", "--type", "ca", "--store", "ours", root)
	Run(t, n.Program, "cert", "add", "--type", "tsa", "--store", "ours", tsa)
	policy := filepath.Join(t.TempDir(), "trustpolicy.json")
	write(t, policy, `{"version": "1.0", "trustPolicies": [{"name": "test", "registryScopes": ["*"], "trustedIdentities": ["*"],
		"signatureVerification": {"level": "strict"}, "trustStores": ["ca:ours", "tsa:ours"]}]}`)
	Run(t, n.Program, "policy", "import", "--force", policy)
}
