package broker

import (
	"bytes"
	"slices"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// TestRuleDocuments has requests share the documents of their rules until a credential is enrolled or removed, or the
// policy changes.
func TestRuleDocuments(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	image := 0
	rules := func() (hashes []string, text []byte) { // of a new request
		t.Helper()
		image++
		e, err := f.Evidence(t.Context(), identity.Approver("alice"), f.waits("pipeline", image).ID)
		if err != nil {
			t.Fatal(err)
		}
		for hash, document := range e.Rules {
			hashes, text = append(hashes, hash), append(text, document...)
			rule, _, err := approval.DecodeRule(document)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rule.Open(e.Names[rule.Names]); err != nil {
				t.Errorf("its names do not open the rule %s: %v", document, err)
			}
		}
		slices.Sort(hashes)
		return hashes, text
	}
	first, text := rules()
	for _, name := range []string{"alice", "bob", "carol", "dave", "caller.", "issuer"} {
		if bytes.Contains(text, []byte(name)) {
			t.Errorf("the rules have %s:\n%s", name, text)
		}
	}
	if again, _ := rules(); !slices.Equal(again, first) || len(first) != 2 {
		t.Errorf("%v, then %v", first, again)
	}
	enrol, err := f.Enrol(t.Context(), caller("admin"), "dave", *keyCredential(t, generate(t)), "")
	if err != nil {
		t.Fatal(err)
	}
	f.approves(enrol.ID, "alice", "bob")
	credential := []byte(enrol.Credential)
	if more, text := rules(); slices.Equal(more, first) || !bytes.Contains(text, credential) {
		t.Error("the rules are without the new credential")
	}
	remove, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeRemove, Credential: enrol.Credential})
	if err != nil {
		t.Fatal(err)
	}
	f.approves(remove.ID, "alice", "bob")
	if after, _ := rules(); !slices.Equal(after, first) {
		t.Errorf("%v, then without the credential %v", first, after)
	}
	f.stop()
	f.start()
	if after, _ := rules(); !slices.Equal(after, first) {
		t.Errorf("%v, then after a start %v", first, after)
	}
}
