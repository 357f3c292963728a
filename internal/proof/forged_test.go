package proof_test

import (
	"crypto/sha256"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
)

// forgedApprovals are approvals that are not what their entries say.
var forgedApprovals = []attack{
	giving("a signature of another key", "cannot verify the approval", func(s *scene, a *approval.Approval) []byte {
		mallory := prooftest.SSHPerson(s.t, "bob", prooftest.Ed25519(66))
		return renamed(s, mallory.Sign(*a), s.bob)
	}),
	giving("an approval of another person", "cannot verify the approval", func(s *scene, a *approval.Approval) []byte {
		a.Approver = s.carol.ID
		return s.bob.Sign(*a)
	}),
	giving("an approval of another statement", "an approval is of another statement",
		func(s *scene, a *approval.Approval) []byte {
			a.Statement = approval.Hash(nil)
			return s.bob.Sign(*a)
		}),
	giving("a rejection as an approval", "another decision than its approval",
		func(s *scene, a *approval.Approval) []byte {
			a.Decision = approval.Reject
			return s.bob.Sign(*a)
		}),
	swapping("an ssh signature of another approval", func(s *scene) *prooftest.Person { return s.bob }, nil),
	swapping("a passkey's signature of another approval", func(s *scene) *prooftest.Person { return s.carol }, nil),
	swapping("a key's signature of another approval", func(s *scene) *prooftest.Person { return s.dave }, nil),
	swapping("a passkey's signature with another counter", func(s *scene) *prooftest.Person { return s.carol },
		func(e *approval.Envelope) { e.AuthenticatorData[36]++ }),
	swapping("a passkey's user who was not verified", func(s *scene) *prooftest.Person { return s.carol },
		func(e *approval.Envelope) { e.AuthenticatorData[32] &^= 4 }),
	entering("an entry with another hash of the document", "of another approval", func(e *entry.Event) {
		e.Signed = approval.Hash(nil)
	}),
	entering("an entry with another credential", "of another approval", func(e *entry.Event) {
		e.Credential = approval.Hash(nil)
	}),
	entering("an entry with another person", "another decision than its approval", func(e *entry.Event) {
		e.Approver = "somebody"
	}),
	entering("an entry of an approval of another statement", "about another statement", func(e *entry.Event) {
		e.Statement = approval.Hash(nil)
	}),
	giving("no envelope", "cannot read the approval", func(*scene, *approval.Approval) []byte { return []byte("{}") }),
}

// giving returns an attack in which the second approval is what a function makes of bob's.
func giving(name, words string, forge func(*scene, *approval.Approval) []byte) attack {
	return forging(name, words, forge, func(*entry.Event) {})
}

// entering returns an attack in which the entry of bob's approval is changed.
func entering(name, words string, change func(*entry.Event)) attack {
	return forging(name, words, func(s *scene, a *approval.Approval) []byte { return s.bob.Sign(*a) }, change)
}

func forging(name, words string, forge func(*scene, *approval.Approval) []byte, change func(*entry.Event)) attack {
	return attack{name, words, func(s *scene) *proof.Bundle {
		r := s.request(nil)
		approve(r, s.alice)
		a := approval.Approval{Approver: s.bob.ID, Decision: approval.Approve, Statement: approval.Hash(r.Statement),
			Time: s.log.Now, Random: sha256.Sum256([]byte("random"))}
		envelope := forge(s, &a)
		document, err := a.Encode()
		if err != nil {
			s.t.Fatal(err)
		}
		r.Approvals = append(r.Approvals, envelope)
		r.Event(entry.Approved, func(e *entry.Event) {
			e.Approver, e.Credential, e.Statement = s.bob.ID, approval.Hash(s.bob.Document()), approval.Hash(r.Statement)
			e.Approval, e.Signed = approval.Hash(envelope), approval.Hash(document)
			change(e)
		})
		r.Sign(s.wanted, nil)
		return r.Bundle()
	}}
}

// swapping returns an attack in which the second approval has a person's signature of another one; or one of its own
// that is changed.
func swapping(name string, who func(*scene) *prooftest.Person, change func(*approval.Envelope)) attack {
	return attack{name, "cannot verify the approval", func(s *scene) *proof.Bundle {
		r, p := s.request(nil), who(s)
		approve(r, s.alice)
		a := approval.Approval{Approver: p.ID, Decision: approval.Approve, Statement: approval.Hash(r.Statement),
			Time: s.log.Now}
		document, err := a.Encode()
		if err != nil {
			s.t.Fatal(err)
		}
		if change == nil {
			a.Random[0]++
		}
		e, err := approval.DecodeEnvelope(p.Sign(a))
		if err != nil {
			s.t.Fatal(err)
		}
		if e.Approval = document; change != nil {
			change(e)
		}
		data, err := e.Encode()
		if err != nil {
			s.t.Fatal(err)
		}
		r.Approvals = append(r.Approvals, data)
		r.Event(entry.Approved, func(ev *entry.Event) {
			ev.Approver, ev.Credential, ev.Statement = p.ID, e.Credential, approval.Hash(r.Statement)
			ev.Approval, ev.Signed = approval.Hash(data), approval.Hash(document)
		})
		r.Sign(s.wanted, nil)
		return r.Bundle()
	}}
}

// renamed returns an envelope that names the credential of another person.
func renamed(s *scene, data []byte, as *prooftest.Person) []byte {
	e, err := approval.DecodeEnvelope(data)
	if err != nil {
		s.t.Fatal(err)
	}
	e.Credential = approval.Hash(as.Document())
	if data, err = e.Encode(); err != nil {
		s.t.Fatal(err)
	}
	return data
}
