package gate

import (
	"crypto/elliptic"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"

	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/trust/trusttest"
)

// TestNodeApprovals verifies that containerd's gate demands the approvals of an exported trust manifest.
func TestNodeApprovals(t *testing.T) {
	g := newGuarded(t) // for its registry
	c := g.council
	cem := prooftest.KeyPerson(t, "cem", prooftest.Key(elliptic.P256(), 3))
	name := localName(g.Hostile) + "/app"
	manifest := trusttest.Manifest(t, name, g.alice.PEM(), c.ann, c.ben, cem)
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
	trusttest.Require(t, manifest, name, c.log, 2, c.ann, c.ben)
	export()
	want := "the trust manifest demands approvals for " + name
	if d := ask(t, node, name+":1", g.image); d.Passed() || !strings.Contains(d.Reason,
		want+", and the image has no bundle") {
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
	trusttest.Require(t, manifest, name, c.log, 2, c.ann, cem)
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
