// Package trusttest writes trust manifests that demand approvals, for tests.
package trusttest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

// Manifest writes a trust manifest in which the holder of a self-signed certificate may sign in a scope, and that knows
// people.
func Manifest(t testing.TB, scope string, pem []byte, people ...*prooftest.Person) (path string) {
	t.Helper()
	folder := t.TempDir()
	path = filepath.Join(folder, "trust.yaml")
	_, err := trust.Init(t.Context(), path)
	check(t, err)
	file := filepath.Join(folder, "cert.pem")
	check(t, os.WriteFile(file, pem, 0o600))
	cert, err := trust.FromFile(file, "")
	check(t, err)
	_, err = trust.Add(t.Context(), path, trust.Grant{Name: "release", Scopes: []string{scope}, Cert: cert})
	check(t, err)
	if len(people) == 0 {
		return path
	}
	var exported []any
	for _, p := range people {
		exported = append(exported, map[string]any{"name": p.Name, "id": p.ID, "credentials": [][]byte{p.Document()}})
	}
	data, err := json.Marshal(exported)
	check(t, err)
	approvers, err := trust.ParseApprovers(data)
	check(t, err)
	check(t, trust.AddApprovers(t.Context(), path, approvers, false))
	return path
}

// Require writes into a manifest that a quorum of people has to approve signatures in a scope, in a log.
func Require(t testing.TB, path, scope string, log *prooftest.Log, quorum int, people ...*prooftest.Person) {
	t.Helper()
	group := trust.ApprovalGroup{Name: "release-managers", Quorum: quorum, Kinds: []string{"key", "ssh"}}
	for _, p := range people {
		group.Members = append(group.Members, p.Name)
	}
	check(t, trust.AddApprovals(t.Context(), path, trust.Approvals{Scope: scope, Groups: []trust.ApprovalGroup{group},
		Log: []string{log.Verifier().String()}}, true))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
