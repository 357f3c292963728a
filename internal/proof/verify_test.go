package proof_test

import (
	"crypto/elliptic"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
)

// scene is a log, people with a credential of each kind, and a signature.
type scene struct {
	t                       testing.TB
	log                     *prooftest.Log
	alice, bob, carol, dave *prooftest.Person // key, ssh, passkey, key
	wanted                  proof.Signature
	demand                  *proof.Demand
}

func newScene(t testing.TB) *scene {
	t.Helper()
	s := &scene{t: t, log: prooftest.NewLog(t), wanted: prooftest.Signature("app")}
	s.alice = prooftest.KeyPerson(t, "alice", prooftest.Key(elliptic.P256(), 1))
	s.bob = prooftest.SSHPerson(t, "bob", prooftest.Ed25519(2))
	s.carol = prooftest.PasskeyPerson(t, "carol", 3, true, true)
	s.dave = prooftest.KeyPerson(t, "dave", prooftest.Key(elliptic.P384(), 4))
	s.demand = prooftest.Demand(s.log, 2, s.alice, s.bob, s.carol, s.dave)
	return s
}

// request logs a request for the signature.
func (s *scene) request(change func(*approval.Statement, *entry.Event)) *prooftest.Request {
	s.t.Helper()
	s.log.Append(entry.Event{Type: entry.Blocked, Key: "other"}) // so that others stand between
	return s.log.NewRequest("release", s.wanted.Leaf, []string{s.wanted.Digest}, change)
}

// approve has people approve a request.
func approve(r *prooftest.Request, people ...*prooftest.Person) {
	for _, p := range people {
		r.Decide(p, approval.Approve, 0)
	}
}

// good returns a request that alice and bob approved, and that is signed.
func (s *scene) good() *prooftest.Request {
	s.t.Helper()
	r := s.request(nil)
	approve(r, s.alice, s.bob)
	r.Sign(s.wanted, nil)
	return r
}

// verify verifies the bundle of a request.
func (s *scene) verify(b *proof.Bundle) (*proof.Shown, error) {
	s.t.Helper()
	return proof.Verify(prooftest.Encode(s.t, b), s.wanted, s.demand, s.log.Now)
}

// TestShown shows all that a bundle says.
func TestShown(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	erin := prooftest.SSHPerson(t, "erin", prooftest.Key(elliptic.P256(), 5))
	r := s.request(nil)
	approve(r, s.alice, s.bob, erin)
	r.Sign(s.wanted, nil)
	s.log.Append(entry.Event{Type: entry.Unblocked, Key: "other"})
	shown, err := s.verify(r.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	if shown.Request != r.ID || shown.Key != "release" || shown.Log != prooftest.Origin || shown.Size != 9 ||
		shown.Index != 7 || !shown.Signed.Equal(s.log.Now.Add(-2*time.Second)) || shown.Rule != "release" ||
		shown.Repository != "registry.example.com/app" || shown.Reason != "release 1.0" || shown.BreakGlass ||
		len(shown.Witnesses) != 0 {
		t.Errorf("%+v", shown)
	}
	at := s.log.Now.Add(-6 * time.Second)
	want := []proof.Approver{
		{ID: s.alice.ID, Name: "alice", Kind: approval.Key, Time: at, Reason: "looks good to alice", Counts: true},
		{ID: s.bob.ID, Name: "bob", Kind: approval.SSH, Time: at.Add(time.Second), Reason: "looks good to bob", Counts: true},
		{ID: erin.ID, Time: at.Add(2 * time.Second)}, // no word of hers is believed
	}
	if !slices.EqualFunc(shown.Approvers, want, func(a, b proof.Approver) bool {
		same := a.Time.Equal(b.Time)
		a.Time = b.Time
		return same && a == b
	}) {
		t.Errorf("%+v", shown.Approvers)
	}
}

// TestKinds verifies approvals by keys of all kinds.
func TestKinds(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	people := []*prooftest.Person{s.alice, s.bob, s.carol, s.dave,
		prooftest.KeyPerson(t, "p521", prooftest.Key(elliptic.P521(), 6)),
		prooftest.KeyPerson(t, "ed25519", prooftest.Ed25519(7)),
		prooftest.SSHPerson(t, "ssh-p256", prooftest.Key(elliptic.P256(), 8)),
		prooftest.SSHPerson(t, "ssh-p384", prooftest.Key(elliptic.P384(), 8)),
		prooftest.SSHPerson(t, "ssh-p521", prooftest.Key(elliptic.P521(), 9)),
		prooftest.PasskeyPerson(t, "synced", 10, false, false)}
	r := s.request(nil)
	approve(r, people...)
	r.Sign(s.wanted, nil)
	for _, p := range people {
		s.demand = prooftest.Demand(s.log, 1, p)
		shown, err := s.verify(r.Bundle())
		if err != nil {
			t.Errorf("%s: %v", p.Name, err)
			continue
		}
		for _, a := range shown.Approvers {
			if a.Counts != (a.ID == p.ID) {
				t.Errorf("%s: %+v", p.Name, a)
			}
		}
	}
	s.demand = prooftest.Demand(s.log, len(people), people...)
	if _, err := s.verify(r.Bundle()); err != nil {
		t.Error(err)
	}
}

// denies fails the test unless an error is a refusal with the words.
func denies(t *testing.T, name string, err error, words string) {
	t.Helper()
	if !failure.Is(err, failure.Denied) && !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: %v, which does not say %q", name, err, words)
	}
}
