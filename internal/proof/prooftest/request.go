package prooftest

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/proof"
)

// Request is a request for signatures.
type Request struct {
	Log       *Log
	Statement []byte
	ID        string
	Rule      []byte // document
	Approvals [][]byte
	Indexes   []int64 // of its entries

	key, leaf string
}

// NewRequest logs a request for the signatures of artifacts with a key. change can change its statement and its entry;
// it may be nil.
func (l *Log) NewRequest(key, leaf string, digests []string, change func(*approval.Statement, *entry.Event)) *Request {
	l.t.Helper()
	rule := []byte(`{"members":[],"rule":{},"salt":"5a","type":"resolved-rule/v1"}`)
	r := &Request{Log: l, ID: fmt.Sprintf("request-%d", len(l.Entries)), Rule: rule, key: key, leaf: leaf}
	s := &approval.Statement{Predicate: approval.Predicate{Action: "use", Broker: "https://broker.example.com",
		Created: l.Now.Unix(), Key: &approval.KeyName{Formats: []string{"notation"}, Leaf: leaf, Name: key}, Log: l.Origin,
		Needs: []approval.Need{{Action: "use", Key: key, Rules: []approval.RuleRef{{Digest: approval.Hash(rule),
			Name: "release"}}}}, Nonce: strings.Repeat("42", 32), NotAfter: l.Now.Add(24 * time.Hour).Unix(),
		Policy: approval.Hash(nil), Reason: "release 1.0", Repository: "registry.example.com/app", Request: r.ID,
		Requester: approval.Requester{Commitment: approval.Hash([]byte("opening")), ID: "requester"}}}
	e := entry.Event{Type: entry.Requested, Request: r.ID, Key: key, Leaf: leaf, Rule: "release", State: "pending",
		Requester: "requester", NotAfter: s.Predicate.NotAfter, Repository: s.Predicate.Repository}
	for _, digest := range digests {
		algorithm, digits, _ := strings.Cut(digest, ":")
		s.Subjects = append(s.Subjects, approval.Subject{Name: s.Predicate.Repository,
			Digest: map[string]string{algorithm: digits}})
		s.Predicate.Targets = append(s.Predicate.Targets, approval.Target{Digest: digest, Format: "notation",
			MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 528})
		e.Subjects = append(e.Subjects, approval.Hash([]byte(digest)))
	}
	e.Digest = digests[0]
	if change != nil {
		change(s, &e)
	}
	data, err := s.Encode()
	if err != nil {
		l.t.Fatal(err)
	}
	r.Statement = data
	if e.Statement == "" {
		e.Statement = approval.Hash(data)
	}
	r.add(e)
	return r
}

// add logs an entry of the request.
func (r *Request) add(e entry.Event) {
	r.Log.t.Helper()
	r.Indexes = append(r.Indexes, r.Log.Append(e))
}

// Event logs an entry of a type. change can change it; it may be nil.
func (r *Request) Event(kind string, change func(*entry.Event)) {
	r.Log.t.Helper()
	e := entry.Event{Type: kind, Request: r.ID, Key: r.key}
	if change != nil {
		change(&e)
	}
	r.add(e)
}

// Decide has a person decide about the request. The number makes the approval another than others.
func (r *Request) Decide(p *Person, decision approval.Decision, number byte) {
	r.Log.t.Helper()
	a := approval.Approval{Approver: p.ID, Decision: decision, Reason: "looks good to " + p.Name,
		Statement: approval.Hash(r.Statement), Time: r.Log.Now.Truncate(time.Second)}
	a.Random = sha256.Sum256([]byte(p.Name + r.ID + string(decision) + string(rune(number))))
	r.Give(p, a)
}

// Give logs an approval of a person.
func (r *Request) Give(p *Person, a approval.Approval) {
	r.Log.t.Helper()
	envelope := p.Sign(a)
	document, err := a.Encode()
	if err != nil {
		r.Log.t.Fatal(err)
	}
	r.Approvals = append(r.Approvals, envelope)
	kind := map[approval.Decision]string{approval.Approve: entry.Approved, approval.Reject: entry.Rejected,
		approval.Withdraw: entry.Withdrawn}[a.Decision]
	r.add(entry.Event{Type: kind, Request: r.ID, Key: r.key, Approver: p.ID, Statement: approval.Hash(r.Statement),
		Credential: approval.Hash(p.Document()), Approval: approval.Hash(envelope), Signed: approval.Hash(document)})
}

// Sign logs the intent and the signature of an artifact. change can change the intent; it may be nil.
func (r *Request) Sign(s proof.Signature, change func(*entry.Event)) {
	r.Log.t.Helper()
	e := entry.Event{Type: entry.Intended, Request: r.ID, Key: r.key, Leaf: s.Leaf, Digest: s.Digest, Payload: s.Payload,
		Rule: "release", Statement: approval.Hash(r.Statement), Subjects: []string{approval.Hash([]byte(s.Digest))}}
	if change != nil {
		change(&e)
	}
	r.add(e)
	r.add(entry.Event{Type: entry.Signed, Request: r.ID, Key: r.key, Payload: e.Payload, Signature: s.Signature})
}

// Bundle returns the bundle of the request.
func (r *Request) Bundle() *proof.Bundle {
	r.Log.t.Helper()
	b := &proof.Bundle{Approvals: r.Approvals, Checkpoint: string(r.Log.Checkpoint()), Rules: [][]byte{r.Rule},
		Statement: r.Statement}
	for _, index := range r.Indexes {
		b.Entries = append(b.Entries, r.Log.Entry(index))
	}
	return b
}

// Encode returns the encoding of a bundle.
func Encode(t testing.TB, b *proof.Bundle) []byte {
	t.Helper()
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Signature returns a signature of an artifact, which has the name text.
func Signature(text string) proof.Signature {
	return proof.Signature{Digest: approval.Hash([]byte("image " + text)), Leaf: approval.Hash([]byte("leaf")),
		Payload: approval.Hash([]byte("payload " + text)), Signature: approval.Hash([]byte("signature " + text))}
}

// Demand returns a demand for one group of people, of any kind of approval.
func Demand(l *Log, quorum int, people ...*Person) *proof.Demand {
	l.t.Helper()
	g := proof.Group{Name: "release-managers", Quorum: quorum,
		Kinds: []approval.Kind{approval.Key, approval.SSH, approval.Passkey}}
	d := &proof.Demand{Credentials: map[string][]byte{}, Names: map[string]string{}}
	for _, p := range people {
		g.Members = append(g.Members, p.ID)
		d.Credentials[approval.Hash(p.Document())] = p.Document()
		d.Names[p.ID] = p.Name
	}
	d.Groups = append(d.Groups, g)
	d.Log = append(d.Log, l.Verifier())
	return d
}
