package approval

import (
	"slices"
	"strings"
	"testing"

	"github.com/descope/virtualwebauthn"
	"github.com/hiddeco/sshsig"

	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// team is the policy of the tests.
const team = `version: 1
groups:
  managers: [alice, bob, carol]
  security: [carol, dave]
keys:
  release:
    key: nethsm:release
    formats: [notation]
    use:
    - name: release
      approvals: [{group: managers, quorum: 2}, {group: security, quorum: 1, kinds: [key, ssh]}]
      same: [sha, repository]
      limit: 10 per hour
      time-lock: 1h
      timeout: 72h
    - {name: second, when: 'caller.issuer == "<&>"', approvals: [{group: security, quorum: 2}]}
`

// emergency is a rule with all that a rule can demand besides.
const emergency = `    - name: emergency
      break-glass: true
      uses: 3
      approvals: [{group: managers, quorum: 1, attestation: required, device-bound: true}]
      time-lock: 1h
      after: approvals
`

// scene is a request, and people who can agree to it.
type scene struct {
	t        testing.TB
	evidence Evidence
	names    map[string][]byte  // names documents by sha256:HEX
	people   map[string]*signer // by id
}

// newScene returns a request to use the key release.
func newScene(t testing.TB) *scene {
	t.Helper()
	s := &scene{t: t, evidence: Evidence{Rules: map[string][]byte{}, Credentials: map[string][]byte{}},
		names: map[string][]byte{}, people: map[string]*signer{
			alice: fixedPasskey(t, 2).signer(t, alice),
			bob:   sshSigner(t, bob, newSSH(t, keys()["Ed25519"]), sshsig.HashSHA512),
			carol: moduleSigner(t, carol, keys()["P-256"]),
			dave:  fixedPasskey(t, 3).signer(t, dave),
		}}
	for _, p := range s.people {
		s.evidence.Credentials[p.hash(t)] = encode(t, &p.credential)
	}
	p, err := policy.Parse([]byte(team))
	if err != nil {
		t.Fatal(err)
	}
	var refs []RuleRef
	for _, rule := range p.Rules(policy.Use, "release") {
		refs = append(refs, RuleRef{Digest: s.rule(rule), Name: rule.Name})
	}
	s.state(&Statement{Predicate: Predicate{Action: "use", Broker: origin,
		Needs: []Need{{Action: "use", Key: "release", Rules: refs}}},
		Subjects: []Subject{{Name: "registry.example.com/app"}}})
	return s
}

// rule adds the document of a rule, and returns its name.
func (s *scene) rule(rule *policy.Rule) string {
	s.t.Helper()
	names, credentials := namesOf(rule), map[string][]string{}
	for id := range names.People {
		credentials[id] = []string{s.people[id].hash(s.t)}
	}
	document, encoded, err := names.Publish(credentials)
	if err != nil {
		s.t.Fatal(err)
	}
	data := encode(s.t, document)
	s.evidence.Rules[Hash(data)], s.names[document.Names] = data, encoded
	return Hash(data)
}

func (s *scene) state(statement *Statement) { s.evidence.Statement = encode(s.t, statement) }

// decide adds a decision of a person.
func (s *scene) decide(person string, d Decision) {
	s.t.Helper()
	a := exampleApproval(person, Hash(s.evidence.Statement))
	a.Decision = d
	s.evidence.Approvals = append(s.evidence.Approvals, encode(s.t, s.people[person].approve(s.t, a)))
}

// verify returns the agreement, which there must be.
func (s *scene) verify() *Agreement {
	s.t.Helper()
	a, err := Verify(s.evidence)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// want checks how many people the two rules lack.
func (s *scene) want(agreed bool, lacking ...int) {
	s.t.Helper()
	a := s.verify()
	if a.Agreed() != agreed {
		s.t.Errorf("agreed: %v", a.Agreed())
	}
	for i, l := range lacking {
		got := 0
		for _, n := range a.Needs[0].Alternatives[i].Lacking {
			got += n
		}
		if got != l {
			s.t.Errorf("rule %d lacks %d, want %d", i, got, l)
		}
	}
}

// TestAgreement follows people as they agree, withdraw and refuse.
func TestAgreement(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.want(false, 3, 2)
	s.decide(alice, Approve)
	s.want(false, 2, 2)
	s.decide(dave, Approve) // a passkey, which does not count for the first rule
	s.want(false, 2, 1)
	s.decide(carol, Approve) // in both groups, and counts for one
	a := s.verify()
	if !a.Agreed() || a.Needs[0].Alternatives[0].Agreed() || !a.Needs[0].Alternatives[1].Agreed() {
		t.Errorf("%+v", a.Needs)
	}
	s.decide(bob, Approve)
	s.want(true, 0, 0)
	if a = s.verify(); len(a.Decisions) != 4 || a.Decisions[0].Approver != alice ||
		a.Decisions[0].Credential.Kind != Passkey ||
		a.Needs[0].Alternatives[0].Name != "release" || a.Needs[0].Alternatives[0].Rule.TimeLock.Seconds != 3600 {
		t.Errorf("%+v", a)
	}

	withdrawn := s.evidence
	s.decide(carol, Withdraw)
	s.want(false, 1, 1)
	s.decide(carol, Approve)
	s.want(true, 0, 0)
	s.evidence = withdrawn

	s.evidence.Never = []string{"id-of-nobody", bob}
	s.want(true, 1, 0)
	s.evidence.Never = nil
	removed := s.people[carol].hash(t)
	s.evidence.Counts = func(credential string) bool { return credential != removed }
	s.want(false, 1, 1)
	s.evidence.Counts = nil

	s.decide(dave, Reject)
	s.want(false)
	s.decide(dave, Withdraw)
	s.decide(dave, Approve)
	s.want(false) // a rejection ends a request
	if !s.verify().Rejected {
		t.Error("it is not rejected")
	}
}

// TestListedByRule checks that an approval counts for those rules alone that list its credential: another rule was
// resolved when the person did not have it yet.
func TestListedByRule(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	statement, err := DecodeStatement(s.evidence.Statement)
	if err != nil {
		t.Fatal(err)
	}
	rule, _, err := DecodeRule(s.evidence.Rules[statement.Predicate.Needs[0].Rules[1].Digest])
	if err != nil {
		t.Fatal(err)
	}
	for i := range rule.Members {
		rule.Members[i].Credentials = nil
	}
	data := encode(t, rule)
	s.evidence.Rules[Hash(data)] = data
	statement.Predicate.Needs[0].Rules[1].Digest = Hash(data)
	s.state(statement)
	s.decide(carol, Approve)
	s.decide(dave, Approve)
	s.want(false, 2, 2)
}

// TestSeveralCredentials checks that a person who approves twice counts once, by either credential.
func TestSeveralCredentials(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	other := sshSigner(t, dave, newSSH(t, keys()["P-384"]), sshsig.HashSHA256)
	s.evidence.Credentials[other.hash(t)] = encode(t, &other.credential)
	statement, err := DecodeStatement(s.evidence.Statement)
	if err != nil {
		t.Fatal(err)
	}
	for i, ref := range statement.Predicate.Needs[0].Rules {
		rule, _, err := DecodeRule(s.evidence.Rules[ref.Digest])
		if err != nil {
			t.Fatal(err)
		}
		for j, m := range rule.Members {
			if m.ID == dave {
				rule.Members[j].Credentials = slices.Sorted(slices.Values(append(m.Credentials, other.hash(t))))
			}
		}
		data := encode(t, rule)
		s.evidence.Rules[Hash(data)] = data
		statement.Predicate.Needs[0].Rules[i].Digest = Hash(data)
	}
	s.state(statement)
	s.decide(dave, Approve)
	s.want(false, 3, 1) // a passkey, which the first rule does not take
	first := s.people[dave]
	s.people[dave] = other
	s.decide(dave, Approve)
	s.want(false, 2, 1)
	s.people[dave] = first
	s.decide(dave, Approve)
	s.want(false, 2, 1)
	s.decide(dave, Withdraw)
	s.want(false, 3, 2)
}

// TestEvidence checks that evidence of which anything is missing, changed, or of something else is refused.
func TestEvidence(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		change func(*scene)
		text   string
	}{
		"nothing": {func(*scene) {}, ""},
		"twice": {func(s *scene) { s.evidence.Approvals = append(s.evidence.Approvals, s.evidence.Approvals[0]) },
			"there twice"},
		"twice after it was withdrawn": {func(s *scene) {
			s.decide(alice, Withdraw)
			s.evidence.Approvals = append(s.evidence.Approvals, s.evidence.Approvals[0])
		}, "there twice"},
		"another statement": {func(s *scene) {
			statement, _ := DecodeStatement(s.evidence.Statement)
			statement.Predicate.Nonce = "another"
			s.state(statement)
		}, "another statement"},
		"a rule is missing":       {func(s *scene) { clear(s.evidence.Rules) }, "missing"},
		"a credential is missing": {func(s *scene) { clear(s.evidence.Credentials) }, "missing"},
		"a rule is changed": {func(s *scene) {
			for name, data := range s.evidence.Rules {
				s.evidence.Rules[name] = []byte(strings.Replace(string(data), `"quorum":2`, `"quorum":1`, 1))
			}
		}, "another SHA-256"},
		"a credential is changed": {func(s *scene) {
			name := s.people[alice].hash(s.t)
			s.evidence.Credentials[name] = encode(s.t, &s.people[bob].credential)
		}, "another SHA-256"},
		"a credential that no rule lists": {func(s *scene) {
			other := newPasskey(virtualwebauthn.KeyTypeEC2).signer(s.t, alice)
			s.evidence.Credentials[other.hash(s.t)] = encode(s.t, &other.credential)
			s.people[alice] = other
			s.decide(alice, Approve)
		}, "lists"},
		"a credential of another person": {func(s *scene) {
			s.people[bob].credential.Approver = alice // whose id it claims
			s.evidence.Credentials[s.people[bob].hash(s.t)] = encode(s.t, &s.people[bob].credential)
			a := exampleApproval(alice, Hash(s.evidence.Statement))
			s.evidence.Approvals = append(s.evidence.Approvals, encode(s.t, s.people[bob].approve(s.t, a)))
		}, "lists"},
		"a rule for another action": {func(s *scene) {
			statement, _ := DecodeStatement(s.evidence.Statement)
			statement.Predicate.Needs[0].Action = "modify"
			s.state(statement)
			s.evidence.Approvals = nil
		}, "alternative"},
		"too many": {func(s *scene) { s.evidence.Approvals = make([][]byte, maxEnvelopes+1) }, "more than"},
	} {
		s := newScene(t)
		s.decide(alice, Approve)
		c.change(s)
		_, err := Verify(s.evidence)
		if what == "nothing" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		t.Log(what)
		refused(t, err, c.text)
	}
}

// TestNeeds checks that a request with several needs has to have all, and that one without rules is never allowed.
func TestNeeds(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	statement, err := DecodeStatement(s.evidence.Statement)
	if err != nil {
		t.Fatal(err)
	}
	needs := statement.Predicate.Needs
	first, second := needs[0], needs[0]
	first.Rules, second.Rules = needs[0].Rules[:1], needs[0].Rules[1:]
	statement.Predicate.Needs = []Need{first, second}
	s.state(statement)
	s.decide(carol, Approve)
	s.decide(dave, Approve)
	if a := s.verify(); a.Agreed() || a.Needs[0].Agreed() || !a.Needs[1].Agreed() {
		t.Errorf("%+v", a.Needs)
	}
	statement.Predicate.Needs = []Need{second, {Action: "use", Rules: []RuleRef{}}}
	s.state(statement)
	s.evidence.Approvals = nil
	s.decide(carol, Approve)
	s.decide(dave, Approve)
	if a := s.verify(); a.Agreed() {
		t.Error("a need without rules is met")
	}
}

// TestOpening checks that a statement's requester is the one of its commitment alone.
func TestOpening(t *testing.T) {
	t.Parallel()
	o := &Opening{Issuer: "mtls", Subject: "ci", Salt: salt(), Claims: map[string]string{"ref": "main", "a": "b"}}
	data := encode(t, o)
	if again, err := DecodeOpening(data); err != nil || again.Claims["ref"] != "main" {
		t.Fatal(again, err)
	}
	s := &Statement{Predicate: Predicate{Requester: Requester{Commitment: Hash(data)}}}
	if err := s.Opens(data); err != nil {
		t.Error(err)
	}
	o.Subject = "another"
	refused(t, s.Opens(encode(t, o)), "requester")
}
