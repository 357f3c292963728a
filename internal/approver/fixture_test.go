package approver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

const (
	broker  = "https://broker.example.com"
	request = "01J9ZK3V7Q"
)

const inForce = `version: 1
groups: {managers: [alice, bob, carol], security: [dave]}
keys:
  release:
    key: nethsm:release
    formats: [notation]
    use:
    - name: release
      approvals: [{group: managers, quorum: 2}, {group: security, quorum: 1, kinds: [key]}]
      time-lock: 1h
      after: approvals
      timeout: 72h
    modify: [{approvals: [{group: managers, quorum: 1}, {group: security, quorum: 1}]}]
`

// scene is a request with its evidence, as a broker makes it.
type scene struct {
	t         *testing.T
	statement approval.Statement
	evidence  brokerapi.Evidence
	people    map[string]*person
}

// person is one who approves.
type person struct {
	id         string
	key        *ecdsa.PrivateKey
	credential approval.Credential
	hash       string // of the credential
}

type document interface{ Encode() ([]byte, error) }

func encode(t *testing.T, d document) []byte {
	t.Helper()
	data, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func salt(t *testing.T) string {
	t.Helper()
	random := make([]byte, 32)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(random)
}

// newScene returns a request of alice, bob, carol and dave's to sign some targets. Bob and dave have approved.
func newScene(t *testing.T, targets ...approval.Target) *scene {
	t.Helper()
	s := &scene{t: t, people: map[string]*person{}}
	s.evidence = brokerapi.Evidence{Rules: map[string][]byte{}, Names: map[string][]byte{},
		Credentials: map[string][]byte{}, Documents: map[string][]byte{}}
	for _, name := range []string{"alice", "bob", "carol", "dave"} {
		s.people[name] = s.newPerson("id-" + name)
	}
	opening := &approval.Opening{Issuer: "https://issuer.example.com", Subject: "repo:example/app", Salt: salt(t),
		Claims: map[string]string{"ref": `"refs/tags/v1"`}}
	s.evidence.Opening = encode(t, opening)
	s.statement = approval.Statement{Predicate: approval.Predicate{
		Action: "use", Broker: broker, Created: 1900000000, NotAfter: 1900259200, Expiry: 86400,
		Log:   "broker.example.com/log",
		Key:   &approval.KeyName{Name: "release", Formats: []string{"notation"}, Leaf: approval.Hash([]byte("leaf"))},
		Needs: []approval.Need{{Action: "use", Key: "release"}},
		Nonce: salt(t), Policy: approval.Hash([]byte(inForce)), Request: request, Repository: "registry.example.com/app",
		Targets: targets, Requester: approval.Requester{Commitment: approval.Hash(s.evidence.Opening), ID: "id-ci"}}}
	for _, target := range targets {
		algorithm, digits, _ := strings.Cut(target.Digest, ":")
		s.statement.Subjects = append(s.statement.Subjects,
			approval.Subject{Name: "registry.example.com/app", Digest: map[string]string{algorithm: digits}})
	}
	if len(targets) == 0 {
		s.statement.Subjects = []approval.Subject{{Name: "a change", Digest: map[string]string{"sha256": "00"}}}
	}
	s.rule("release", policy.Use)
	s.you("alice")
	s.seal()
	return s
}

// target returns a target with some content.
func target(mediaType string, content []byte) approval.Target {
	return approval.Target{Digest: approval.Hash(content), Format: "notation", MediaType: mediaType,
		Size: int64(len(content)), Annotations: map[string]string{"build": "7"}}
}

func (s *scene) newPerson(id string) *person {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		s.t.Fatal(err)
	}
	p := &person{id: id, key: key,
		credential: approval.Credential{Approver: id, Kind: approval.Key, Public: public, Salt: salt(s.t)}}
	p.hash = approval.Hash(encode(s.t, &p.credential))
	return p
}

// rule adds the rule of an action on the key to the needs, with the credentials of its members.
func (s *scene) rule(name string, action policy.Action) {
	s.t.Helper()
	parsed, err := policy.Parse([]byte(inForce))
	if err != nil {
		s.t.Fatal(err)
	}
	rule := parsed.Rules(action, "release")[0]
	n := &approval.Names{People: map[string]string{}, Rule: rule.Resolved(), Salt: salt(s.t)}
	credentials := map[string][]string{}
	for _, a := range rule.Approvals {
		for _, m := range a.Members {
			p := s.people[m.Name]
			n.People[p.id], credentials[p.id] = m.Name, []string{p.hash}
		}
	}
	d, names, err := n.Publish(credentials)
	if err != nil {
		s.t.Fatal(err)
	}
	data := encode(s.t, d)
	s.evidence.Rules[approval.Hash(data)], s.evidence.Names[d.Names] = data, names
	need := &s.statement.Predicate.Needs[0]
	need.Rules = append(need.Rules, approval.RuleRef{Name: name, Digest: approval.Hash(data)})
}

// you has the broker take the caller for a person.
func (s *scene) you(name string) {
	s.evidence.You = s.people[name].id
	s.enrol(name)
}

func (s *scene) enrol(name string) {
	p := s.people[name]
	s.evidence.Credentials[p.hash] = encode(s.t, &p.credential)
}

// seal encodes the statement, and has bob and dave approve it.
func (s *scene) seal() {
	s.t.Helper()
	s.evidence.Statement, s.evidence.Approvals = encode(s.t, &s.statement), nil
	s.decide("bob", approval.Approve)
	s.decide("dave", approval.Approve)
}

// decide adds a decision of a person.
func (s *scene) decide(name string, decision approval.Decision) {
	s.t.Helper()
	p := s.people[name]
	s.enrol(name)
	a := &approval.Approval{Approver: p.id, Decision: decision, Statement: approval.Hash(s.evidence.Statement),
		Time: time.Unix(1900000100, 0), Random: sha256.Sum256([]byte(salt(s.t)))}
	envelope, err := approval.SignKey(encode(s.t, a), p.hash, p.key)
	if err != nil {
		s.t.Fatal(err)
	}
	s.evidence.Approvals = append(s.evidence.Approvals, encode(s.t, envelope))
}

// read reads the evidence.
func (s *scene) read() (*Seen, error) { return Read(&s.evidence, request, broker) }

// text returns all tables as text.
func text(all []Table) string {
	var lines []string
	for _, t := range all {
		lines = append(lines, strings.Join(t.Header, " | "))
		for _, row := range t.Rows {
			lines = append(lines, strings.Join(row, " | "))
		}
	}
	return strings.Join(lines, "\n")
}
