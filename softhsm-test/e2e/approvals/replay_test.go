package approvals

import (
	"bytes"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/browser"
)

// replayPolicy asks three people for their approval, who have a credential of another kind each.
const replayPolicy = `version: 1
people:
  alice: [{issuer: mtls, subject: "CN=alice"}]
  bob: [{issuer: mtls, subject: "CN=bob"}]
  carol: [{issuer: mtls, subject: "CN=carol"}]
groups:
  signers: [alice, bob, carol]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: all
      when: caller.claims.repository == "example/app"
      approvals: [{group: signers, quorum: 3}]
      timeout: 72h
    modify: [{when: caller.subject == "CN=operator"}]
  other:
    key: pkcs11:token=prod;object=other
    formats: [notation]
    use:
    - name: all
      when: caller.claims.repository == "example/app"
      approvals: [{group: signers, quorum: 3}]
      timeout: 72h
    modify: [{when: caller.subject == "CN=operator"}]
`

// TestReplay gives approvals of one request to others: of another artifact, of another key, of the same artifact, of
// the same artifact under another policy, and to another broker. All are refused, for each kind of credential, also
// when the documents that they name are exchanged.
func TestReplay(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, options{policy: replayPolicy, keys: []string{"other"}, people: []person{{name: "alice", kind: "passkey"},
		{name: "bob", kind: "memory"}, {name: "carol", kind: "ssh"}}})
	// Another broker has the same people with the same keys, and is at the same host.
	elsewhere := start(t, options{policy: replayPolicy, keys: []string{"other"},
		people: []person{*s.people["alice"], *s.people["bob"], *s.people["carol"]}})
	b := browser.Start(t, s.CA, elsewhere.CA)
	s.enrol(b, "alice")
	s.signIn("alice", "/")

	const ref = "refs/heads/main"
	approved := s.asks(ref, "release", "app")
	s.approve("alice", approved)
	for _, name := range []string{"bob", "carol"} {
		s.decide(name, approved, approval.Approve)
	}
	given := map[string]*approval.Envelope{}
	e := s.evidence("bob", approved)
	for _, data := range e.Approvals {
		envelope, err := approval.DecodeEnvelope(data)
		if err != nil {
			t.Fatal(err)
		}
		credential, err := approval.DecodeCredential(e.Credentials[envelope.Credential])
		if err != nil {
			t.Fatal(err)
		}
		given[string(credential.Kind)] = envelope
	}
	if kinds := slices.Sorted(maps.Keys(given)); !slices.Equal(kinds, []string{"key", "passkey", "ssh"}) {
		t.Fatalf("the request has approvals of the kinds %q", kinds)
	}

	others := map[string]string{"another artifact": s.asks(ref, "release", "app 2"),
		"another key": s.asks(ref, "other", "app"), "the same artifact": s.asks("refs/heads/other", "release", "app")}
	for what, id := range others {
		s.refusesReplays(what, id, given)
		s.decide("bob", id, approval.Approve) // an approval of its own counts
		s.lacks(id, 2)
	}
	// The policy changes: other people are asked, and what they were asked before is void.
	changed := strings.ReplaceAll(softhsmtest.Read(t, s.Dir+"/policy.yaml"), "timeout: 72h", "timeout: 71h")
	s.must("operator", http.MethodPost, brokerapi.PolicyPath, brokerapi.NewPolicy{Policy: changed}, nil)
	if refusal, signed := s.signature(ref, "release", "app"); signed {
		t.Errorf("an approval of an old rule counts: %s", refusal)
	}
	s.refusesReplays("another policy", s.asks(ref, "release", "app 3"), given)

	// An approval that was withdrawn cannot be given again by whoever has seen it.
	id := s.asks(ref, "release", "app 4")
	once := s.envelope("bob", id, approval.Approve)
	if status, answer := s.post("bob", id, once); status >= 300 {
		t.Fatal(answer)
	}
	s.decide("bob", id, approval.Withdraw)
	if status, answer := s.post("bob", id, once); status < 400 || !strings.Contains(answer, "given before") {
		t.Errorf("a withdrawn approval: %d %s", status, answer)
	}
	s.lacks(id, 3)

	elsewhere.people["alice"].page = s.people["alice"].page
	elsewhere.enrol(b, "alice")
	elsewhere.refusesReplays("another broker", elsewhere.asks(ref, "release", "app"), given)
}

// refusesReplays checks that a request takes none of the approvals of another one.
func (s *site) refusesReplays(what, id string, given map[string]*approval.Envelope) {
	s.t.Helper()
	owners := map[string]string{"passkey": "alice", "key": "bob", "ssh": "carol"}
	for kind, envelope := range given {
		owner := owners[kind]
		e := s.evidence(owner, id)
		original, err := approval.Decode(envelope.Approval)
		if err != nil {
			s.t.Fatal(err)
		}
		// As it is, and with the documents of this request and this broker in place of those that were signed.
		renamed := *original
		renamed.Statement, renamed.Approver = approval.Hash(e.Statement), e.You
		document, err := renamed.Encode()
		if err != nil {
			s.t.Fatal(err)
		}
		for how, replay := range map[string]approval.Envelope{
			"as it is": *envelope,
			"with the credential": {Approval: envelope.Approval, Credential: s.credential(owner, e),
				Signature: envelope.Signature, ClientData: envelope.ClientData, AuthenticatorData: envelope.AuthenticatorData},
			"with the statement": {Approval: document, Credential: s.credential(owner, e), Signature: envelope.Signature,
				ClientData: envelope.ClientData, AuthenticatorData: envelope.AuthenticatorData},
		} {
			if status, answer := s.post(owner, id, &replay); status < 400 || status >= 500 {
				s.t.Errorf("%s takes the approval by %s %s: %d %s", what, kind, how, status, answer)
			}
		}
		if bytes.Equal(document, envelope.Approval) {
			s.t.Errorf("%s: the request has the statement of the other one", what)
		}
	}
	s.lacks(id, 3)
}

// lacks checks that a request is pending and lacks so many approvals.
func (s *site) lacks(id string, n int) {
	s.t.Helper()
	r := s.show("bob", id)
	if r.State != brokerapi.Pending || len(r.Needs) != 1 || r.Needs[0].Alternatives[0].Groups[0].Lacking != n {
		s.t.Errorf("the request %s is %s and lacks %+v", id, r.State, r.Needs)
	}
}
