package approvals

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/browser"
)

// misledPolicy has a rule that passkeys are enough for, and one that asks for keys whose tools show what they sign.
const misledPolicy = `version: 1
people:
  alice: [{issuer: mtls, subject: "CN=alice"}]
  bob: [{issuer: mtls, subject: "CN=bob"}]
groups:
  signers: [alice, bob]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: any
      when: caller.claims.ref == "refs/heads/any"
      approvals: [{group: signers, quorum: 1}]
    - name: tools
      when: caller.claims.ref == "refs/heads/tools"
      approvals: [{group: signers, quorum: 1, kinds: [key, ssh]}]
`

// misled is added to the page and to the API of a broker that lies.
const misled = `
import (
	"os"
	"strings"
)

// misled returns the ID of another request than the one that a person looks at, as a file says.
func misled(id string) string {
	data, _ := os.ReadFile(os.Getenv("TEST_MISLED"))
	if shown, signed, found := strings.Cut(string(data), " "); found && shown == id {
		return signed
	}
	return id
}
`

// misleads is a broker that has people sign another request than the one that it shows: its page asks for a signature
// of the other one's challenge, and its API answers with the other one's evidence.
var misleads = liar{
	changes: map[string][]string{
		"internal/broker/web/decide.go": {`r.PathValue("id")`, `misled(r.PathValue("id"))`,
			`if statement := approval.Hash(evidence.Statement); statement != body.Statement {`,
			`if body.Statement = approval.Hash(evidence.Statement); body.Statement == "" {`},
		"internal/broker/api/approvals.go": {`r.PathValue("id")`, `misled(r.PathValue("id"))`},
	},
	added: map[string]string{
		"internal/broker/web/misled.go": "package web\n" + misled,
		"internal/broker/api/misled.go": "package api\n" + misled,
	},
}

// TestMisledByThePage has a broker whose page shows one request, and has a passkey sign another. The person cannot see
// it, as the page on threats says. A rule that asks for keys and SSH keys holds: their tools show what is signed, and
// refuse a statement of another request than the one that was asked for.
func TestMisledByThePage(t *testing.T) {
	softhsmtest.Parallel(t)
	file := filepath.Join(t.TempDir(), "misled")
	softhsmtest.Setenv(t, "TEST_MISLED", file)
	s := start(t, options{policy: misledPolicy, program: misleads.build(t),
		people: []person{{name: "alice", kind: "passkey"}, {name: "bob", kind: "ssh"}}})
	honest := softhsmtest.Build(t, "hsm-broker")
	s.enrol(browser.Start(t, s.CA), "alice")
	s.signIn("alice", "/")
	pair := func(ref string) (shown, signed string) {
		shown, signed = s.asks(ref, "release", "good of "+ref), s.asks(ref, "release", "bad of "+ref)
		softhsmtest.Write(t, file, shown+" "+signed)
		return shown, signed
	}

	const open, held = "refs/heads/any", "refs/heads/tools"
	good, bad := artifact("good of "+open).Digest, artifact("bad of "+open).Digest
	shown, _ := pair(open)
	s.open("alice", "/requests/"+shown)
	page := s.people["alice"].page
	if text := page.Text(); !strings.Contains(text, good) || strings.Contains(text, bad) {
		t.Fatalf("the page does not show %s alone:\n%s", good, text)
	}
	s.approve("alice", shown)
	if state := s.show("alice", shown).State; state != brokerapi.Pending {
		t.Errorf("the request that the page has shown is %s", state)
	}
	if refusal, ok := s.signature(open, "release", "bad of "+open); !ok {
		t.Errorf("the passkey has not signed the other request: the test misleads nobody: %s", refusal)
	}

	// With the rule for tools, a passkey's owner is not asked. Misled by a request that asks for passkeys, the owner signs
	// an approval that does not count.
	shown, signed := pair(held)
	good, bad = artifact("good of "+held).Digest, artifact("bad of "+held).Digest
	if s.open("alice", "/requests/"+shown); page.Has("Approve") {
		t.Error("the page takes the approval of a kind that does not count")
	}
	bait := s.asks(open, "release", "bait")
	softhsmtest.Write(t, file, bait+" "+signed)
	s.open("alice", "/requests/"+bait)
	page.Click("Approve")
	page.WaitText("it is by passkey")
	softhsmtest.Write(t, file, shown+" "+signed)
	// The tool is given the evidence of the other request, and the ID of the other request.
	for id, words := range map[string]string{shown: "the statement is of request", signed: bad} {
		stdout, stderr, code := s.run(s.variables(), honest, append([]string{"approve", id, "--offline"},
			s.people["bob"].flags()...)...)
		if code == 0 || !strings.Contains(stdout+stderr, words) || strings.Contains(stdout+stderr, good) {
			t.Errorf("the tool ends with exit code %d, and does not show %q:\n%s%s", code, words, stdout, stderr)
		}
	}
	if refusal, ok := s.signature(held, "release", "bad of "+held); ok {
		t.Errorf("a request that nobody has seen is signed: %s", refusal)
	}
	// An honest approval of what the tool has shown counts.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.decide("bob", shown, approval.Approve)
	if refusal, ok := s.signature(held, "release", "good of "+held); !ok {
		t.Error(refusal)
	}
}
