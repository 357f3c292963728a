package broker

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"slices"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// peoplePolicy asks two managers and one of security, or one director.
const peoplePolicy = `
version: 1
people:
  alice: [{issuer: "https://issuer.example.com", subject: alice}]
  bob: []
  carol: []
  dave: []
  erin: []
  frank: []
keys:
  release:
    key: pkcs11:token=test;object=release
    formats: [notation]
    use:
    - {name: nightly, when: caller.subject == "ci"}
    - name: release
      when: caller.subject == "pipeline" || caller.subject == "alice"
      approvals: [{group: managers, quorum: 2}, {group: security, quorum: 1}]
      timeout: 72h
    - name: director
      when: caller.subject == "pipeline"
      approvals: [{group: directors, quorum: 1}]
      time-lock: 1h
      after: approvals
    block: [{name: anyone, when: caller.subject == "admin"}]
    unblock: [{approvals: [{group: security, quorum: 1}]}]
    modify: [{name: managers, approvals: [{group: managers, quorum: 2}]}]
groups:
  managers: [alice, bob, carol]
  security: [carol, dave]
  directors: [erin]
`

// approvers is a broker whose people have keys.
func approvers(t testing.TB) *fixture {
	f := newFixture(t)
	f.policy = peoplePolicy
	f.people = map[string]*ecdsa.PrivateKey{}
	for _, name := range []string{"alice", "bob", "carol", "dave", "erin"} {
		f.people[name] = generate(t)
	}
	return f
}

// first returns the first approvers: all people of the fixture.
func (f *fixture) first() (all []FirstApprover) {
	for name, key := range f.people {
		all = append(all, FirstApprover{Name: name, Credential: keyCredential(f.t, key)})
	}
	slices.SortFunc(all, func(a, b FirstApprover) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	return all
}

func keyCredential(t testing.TB, key *ecdsa.PrivateKey) *approval.Credential {
	t.Helper()
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &approval.Credential{Kind: approval.Key, Public: public}
}

// TestStuck tells when too few people are enrolled to change anything.
func TestStuck(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	for _, name := range []string{"bob", "carol"} {
		delete(f.people, name)
	}
	f.start()
	parts := f.Parts(t.Context())
	if last := parts[len(parts)-1]; last.Name != "approvers" || last.Ready || last.Needed || last.Detail == "" {
		t.Errorf("%+v", last)
	}
	g := approvers(t)
	g.start()
	parts = g.Parts(t.Context())
	if last := parts[len(parts)-1]; !last.Ready || last.Detail != "" {
		t.Errorf("%+v", last)
	}
}

// credentialOf returns the name of the only credential of a person.
func (f *fixture) credentialOf(name string) string {
	f.t.Helper()
	all, err := f.CredentialsOf(f.t.Context(), name)
	if err != nil || len(all) != 1 {
		f.t.Fatalf("%s has %d credentials: %v", name, len(all), err)
	}
	for id := range all {
		return id
	}
	return ""
}

// envelope returns a decision of a person about a request.
func (f *fixture) envelope(name, id string, decision approval.Decision, reason string) []byte {
	f.t.Helper()
	r, err := f.Request(f.t.Context(), identity.Approver(name), id)
	if err != nil {
		f.t.Fatal(err)
	}
	a := &approval.Approval{Approver: f.personID(name), Decision: decision, Reason: reason, Statement: r.Statement,
		Time: f.clock.now()}
	_, _ = rand.Read(a.Random[:])
	document, err := a.Encode()
	if err != nil {
		f.t.Fatal(err)
	}
	e, err := approval.SignKey(document, f.credentialOf(name), f.people[name])
	if err != nil {
		f.t.Fatal(err)
	}
	data, err := e.Encode()
	if err != nil {
		f.t.Fatal(err)
	}
	return data
}

// decide has a person decide about a request.
func (f *fixture) decide(name, id string, decision approval.Decision) (*brokerapi.Request, error) {
	f.t.Helper()
	return f.Approve(f.t.Context(), identity.Approver(name), id, f.envelope(name, id, decision, "because"))
}

// approves has people approve a request.
func (f *fixture) approves(id string, names ...string) *brokerapi.Request {
	f.t.Helper()
	var r *brokerapi.Request
	for _, name := range names {
		var err error
		if r, err = f.decide(name, id, approval.Approve); err != nil {
			f.t.Fatalf("%s: %v", name, err)
		}
	}
	return r
}
