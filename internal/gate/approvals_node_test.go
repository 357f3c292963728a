package gate

import (
	"crypto/elliptic"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"

	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// manifest writes a trust manifest in which the forger may sign in a scope, and people may approve.
func (c *council) manifest(by *oci.Forger, scope string, people ...*prooftest.Person) (path string) {
	c.t.Helper()
	path = filepath.Join(c.t.TempDir(), "trust.yaml")
	if _, err := trust.Init(c.t.Context(), path); err != nil {
		c.t.Fatal(err)
	}
	file := filepath.Join(c.t.TempDir(), "cert.pem")
	put(c.t, file, string(by.PEM()), 0o600)
	cert, err := trust.FromFile(file, "")
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := trust.Add(c.t.Context(), path, trust.Grant{Name: "alice", Scopes: []string{scope}, Cert: cert}); err != nil {
		c.t.Fatal(err)
	}
	var exported []any
	for _, p := range people {
		exported = append(exported, map[string]any{"name": p.Name, "id": p.ID, "credentials": [][]byte{p.Document()}})
	}
	data, err := json.Marshal(exported)
	if err != nil {
		c.t.Fatal(err)
	}
	approvers, err := trust.ParseApprovers(data)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := trust.AddApprovers(c.t.Context(), path, approvers, false); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// require writes into a manifest that two of these people have to approve signatures in a scope.
func (c *council) require(path, scope string, people ...*prooftest.Person) {
	c.t.Helper()
	group := trust.ApprovalGroup{Name: "release-managers", Quorum: 2, Kinds: []string{"key", "ssh"}}
	for _, p := range people {
		group.Members = append(group.Members, p.Name)
	}
	if err := trust.AddApprovals(c.t.Context(), path, trust.Approvals{Scope: scope, Groups: []trust.ApprovalGroup{group},
		Log: []string{c.log.Verifier().String()}}, true); err != nil {
		c.t.Fatal(err)
	}
}

// TestNodeApprovals verifies that containerd's gate demands the approvals of an exported trust manifest.
func TestNodeApprovals(t *testing.T) {
	g := newGuarded(t) // for its registry
	c := g.council
	cem := prooftest.KeyPerson(t, "cem", prooftest.Key(elliptic.P256(), 3))
	name := localName(g.Hostile) + "/app"
	manifest := c.manifest(g.alice, name, c.ann, c.ben, cem)
	node := Node{Options: Options{TrustDir: filepath.Join(t.TempDir(), "notation")}, StateDir: t.TempDir(),
		Timeout: time.Minute}
	export := func() {
		t.Helper()
		if _, err := trust.Export(t.Context(), manifest, node.TrustDir); err != nil {
			t.Fatal(err)
		}
	}
	s := g.sign(t, jws.MediaTypeEnvelope, time.Now())
	export()
	if d := ask(t, node, name+":1", g.image); !d.Passed() || d.Approvals != nil {
		t.Errorf("where nothing is demanded: %+v", d)
	}
	c.require(manifest, name, c.ann, c.ben)
	export()
	want := "the trust manifest demands approvals for " + name
	if d := ask(t, node, name+":1", g.image); d.Passed() || !strings.Contains(d.Reason, want+", and the image has no bundle") {
		t.Errorf("without a bundle: %+v", d)
	}
	g.attach(t, c.bundle(g.both(), s), s.Payload, true)
	if d := ask(t, node, name+":1", g.image); !d.Passed() || d.Approvals == nil {
		t.Errorf("with a bundle: %+v", d)
	}
	log := readLog(t, node.LogFile())
	if last := log[len(log)-1]; !slices.Equal(last.Approvers, []string{"ann", "ben"}) || last.Request != "request-1" {
		t.Errorf("the log has %+v", last)
	}
	c.require(manifest, name, c.ann, cem)
	if err := trust.RemoveApprover(t.Context(), manifest, "ben"); err != nil {
		t.Fatal(err)
	}
	export()
	if d := ask(t, node, name+":1", g.image); d.Passed() || !strings.Contains(d.Reason, "1 of 2 people") {
		t.Errorf("after an approver was removed: %+v", d)
	}
	put(t, filepath.Join(node.TrustDir, "approvals.json"), "{", 0o600)
	if d := ask(t, node, name+":1", g.image); d.Passed() || !strings.Contains(d.Reason, "approvals") {
		t.Errorf("with a file that cannot be read: %+v", d)
	}
}
