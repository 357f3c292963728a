package trust

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOneNameOfARepository verifies that a manifest has one name for a repository, in whichever case it was given.
func TestOneNameOfARepository(t *testing.T) {
	path := manifest(t)
	grant := func(scopes ...string) error {
		_, err := Add(t.Context(), path, Grant{Name: "alice", Scopes: scopes})
		return err
	}
	if err := grant("REGISTRY.Example.com:5000/app", "registry.example.com:5000/app"); err != nil {
		t.Fatal(err)
	}
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(m.Signers[0].Scopes, " "); got != app+" registry.example.com:5000/app" {
		t.Errorf("the scopes are %s", got)
	}
	for _, scopes := range [][]string{{"registry.example.com:443/team/one", "registry.example.com/team/one"},
		{"index.docker.io/library/alpine", "docker.io/library/alpine"}} {
		if err := grant(scopes...); err == nil || !strings.Contains(err.Error(), "are the same repository") {
			t.Errorf("%v: %v", scopes, err)
		}
	}
	for _, scope := range []string{"registry.example.com./app", "127.1:5000/app"} {
		if err := grant(scope); err == nil || !strings.Contains(err.Error(), "is not a repository") {
			t.Errorf("%s: %v", scope, err)
		}
	}
	// A manifest that was written by hand, and a statement of someone else's.
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err = parse([]byte(strings.ReplaceAll(string(data), "registry.example.com:5000", "REGISTRY.example.com:05000")))
	if err != nil || m.Signers[0].Scopes[1] != "registry.example.com:5000/app" {
		t.Errorf("%+v, %v", m, err)
	}
	to := t.TempDir()
	if err := os.WriteFile(filepath.Join(to, "trustpolicy.json"),
		[]byte(`{"version": "1.0", "trustPolicies": [{"name": "mine", `+
			`"registryScopes": ["REGISTRY.example.com:5000/app"], "signatureVerification": {"level": "skip"}}]}`),
		0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), path, to); err == nil ||
		!strings.Contains(err.Error(), `is in the statement "mine"`) {
		t.Errorf("beside another's statement: %v", err)
	}
	if gone, err := Remove(t.Context(), path, "alice", []string{"Registry.Example.com:5000/app"}); gone || err != nil {
		t.Errorf("removed: %v, %v", gone, err)
	}
}
