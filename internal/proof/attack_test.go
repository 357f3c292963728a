package proof_test

import (
	"crypto/elliptic"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
)

// attack makes a bundle that must not verify. It may change what is wanted and demanded.
type attack struct {
	name  string
	words string // of the error
	make  func(s *scene) *proof.Bundle
}

// after returns an attack that changes the bundle of a good request.
func after(name, words string, change func(s *scene, b *proof.Bundle)) attack {
	return attack{name, words, func(s *scene) *proof.Bundle {
		b := s.good().Bundle()
		change(s, b)
		return b
	}}
}

// during returns an attack of a log's own: what happens between the request and its signature.
func during(name, words string, happen func(s *scene, r *prooftest.Request)) attack {
	return attack{name, words, func(s *scene) *proof.Bundle {
		r := s.request(nil)
		happen(s, r)
		return r.Bundle()
	}}
}

// demanding returns an attack in which the demand or what is wanted is another.
func demanding(name, words string, change func(s *scene)) attack {
	return after(name, words, func(s *scene, _ *proof.Bundle) { change(s) })
}

// wrongDemands are good bundles where they do not belong.
var wrongDemands = []attack{
	demanding("another image", "other artifacts", func(s *scene) { s.wanted.Digest = prooftest.Signature("b").Digest }),
	demanding("another leaf", "another certificate", func(s *scene) { s.wanted.Leaf = approval.Hash([]byte("other")) }),
	demanding("another payload", "does not have this signature", func(s *scene) {
		s.wanted.Payload = prooftest.Signature("b").Payload
	}),
	demanding("another signature", "does not have this signature", func(s *scene) {
		s.wanted.Signature = prooftest.Signature("b").Signature
	}),
	demanding("other annotations", "other annotations", func(s *scene) {
		s.wanted.Annotations = map[string]string{"approved": "yes"}
	}),
	demanding("another expiry", "another expiry", func(s *scene) { s.wanted.Expiry = 3600 }),
	demanding("another media type", "another media type", func(s *scene) { s.wanted.MediaType = "text/plain" }),
	demanding("another size", "another media type or size", func(s *scene) { s.wanted.Size = 1 }),
	demanding("no digest", "of no artifact", func(s *scene) { s.wanted.Digest = "" }),
	demanding("no leaf", "not the SHA-256", func(s *scene) { s.wanted.Leaf = "" }),
	demanding("no payload", "not the SHA-256", func(s *scene) { s.wanted.Payload = "" }),
	demanding("no signature", "not the SHA-256", func(s *scene) { s.wanted.Signature = "" }),
	demanding("no demand", "no group", func(s *scene) { s.demand = nil }),
	demanding("no group", "no group", func(s *scene) { s.demand.Groups = nil }),
	demanding("no quorum", `quorum of group "release-managers" is 0`, func(s *scene) { s.demand.Groups[0].Quorum = 0 }),
	demanding("no log", "no key of a log", func(s *scene) { s.demand.Log = nil }),
	demanding("three people", `2 of 3 people of group "release-managers" agreed`, func(s *scene) {
		s.demand.Groups[0].Quorum = 3
	}),
	demanding("a removed approver", "is not in the trust manifest", func(s *scene) {
		s.demand = prooftest.Demand(s.log, 2, s.alice, s.carol)
	}),
	demanding("a removed credential", `the credential of "bob" is not in the trust manifest`, func(s *scene) {
		delete(s.demand.Credentials, approval.Hash(s.bob.Document()))
	}),
	demanding("another credential of that name", "another SHA-256", func(s *scene) {
		s.demand.Credentials[approval.Hash(s.bob.Document())] = s.carol.Document()
	}),
	demanding("another member", `"bob" is in no group`, func(s *scene) {
		s.demand.Groups[0].Members = []string{s.alice.ID, s.carol.ID}
	}),
	demanding("wrong kind", `"bob" approved by ssh, which does not count`, func(s *scene) {
		s.demand.Groups[0].Kinds = []approval.Kind{approval.Key}
	}),
	demanding("one person in two groups", "0 of 1 people", func(s *scene) {
		two := s.demand.Groups[0]
		two.Name, two.Quorum, two.Members = "security", 1, []string{s.bob.ID}
		s.demand.Groups = append(s.demand.Groups, two)
	}),
	demanding("too old", "more than 1h0m0s ago", func(s *scene) {
		s.demand.MaxAge = time.Hour
		s.log.Now = s.log.Now.Add(2 * time.Hour)
	}),
	demanding("of the future", "in the future", func(s *scene) {
		s.demand.MaxAge = time.Hour
		s.log.Now = s.log.Now.Add(-time.Hour)
	}),
	demanding("another log", "the checkpoint is of another log", func(s *scene) {
		s.log.Origin = "other.example.com/log"
		s.demand.Log = prooftest.Demand(s.log, 1, s.alice).Log
	}),
	demanding("another key of the log", "cannot verify the log's checkpoint", func(s *scene) {
		s.log.Key = prooftest.Key(elliptic.P256(), 101)
		s.demand.Log = prooftest.Demand(s.log, 1, s.alice).Log
	}),
	demanding("more witnesses than are trusted", "1 witnesses are demanded", func(s *scene) { s.demand.Cosigned = 1 }),
}

// forgedBundles are bundles whose parts do not belong together.
var forgedBundles = []attack{
	after("another statement", "other artifacts", func(s *scene, b *proof.Bundle) {
		b.Statement = s.log.NewRequest("release", s.wanted.Leaf, []string{prooftest.Signature("b").Digest}, nil).Statement
	}),
	after("the statement of another request", "another request", func(s *scene, b *proof.Bundle) {
		b.Statement = s.request(nil).Statement
	}),
	after("an approval less", `1 of 2 people of group "release-managers" agreed; the bundle lacks an approval of "bob"`,
		func(_ *scene, b *proof.Bundle) { b.Approvals = b.Approvals[:1] }),
	after("approvals in another order", "not in its order", func(_ *scene, b *proof.Bundle) {
		b.Approvals = [][]byte{b.Approvals[1], b.Approvals[0]}
	}),
	after("an approval twice", "not in the log", func(_ *scene, b *proof.Bundle) {
		b.Approvals = [][]byte{b.Approvals[0], b.Approvals[0], b.Approvals[1]}
	}),
	after("an approval that is not in the log", "not in the log", func(s *scene, b *proof.Bundle) {
		b.Approvals = append(slices.Clone(b.Approvals), s.dave.Sign(approval.Approval{Approver: s.dave.ID,
			Decision: approval.Approve, Statement: approval.Hash(b.Statement), Time: s.log.Now}))
	}),
	after("a rule of another statement", "none of the statement", func(_ *scene, b *proof.Bundle) {
		b.Rules = [][]byte{[]byte("{}")}
	}),
	after("a rule twice", "there twice", func(_ *scene, b *proof.Bundle) { b.Rules = append(b.Rules, b.Rules[0]) }),
	after("no approval entry", "not in the log", func(_ *scene, b *proof.Bundle) {
		b.Entries = slices.Delete(b.Entries, 1, 2)
	}),
	after("no request entry", "the first of its entries", func(_ *scene, b *proof.Bundle) { b.Entries = b.Entries[1:] }),
	after("no intent entry", "without its intent", func(_ *scene, b *proof.Bundle) {
		b.Entries = slices.Delete(b.Entries, 3, 4)
	}),
	after("no signature entry", "does not have this signature", func(_ *scene, b *proof.Bundle) {
		b.Entries = b.Entries[:4]
	}),
	after("no entries", "not in the log", func(_ *scene, b *proof.Bundle) { b.Entries = nil }),
	after("entries in another order", "not in the order", func(_ *scene, b *proof.Bundle) {
		b.Entries[1], b.Entries[2] = b.Entries[2], b.Entries[1]
	}),
	after("an entry twice", "not in the order", func(_ *scene, b *proof.Bundle) {
		b.Entries = slices.Insert(b.Entries, 1, b.Entries[1])
	}),
	after("an entry of another request", "of another request", func(s *scene, b *proof.Bundle) {
		b.Entries = slices.Insert(b.Entries, 0, s.log.Entry(0))
		*b = *reprove(s, b)
	}),
	after("an entry that was changed", "does not fit the checkpoint", func(_ *scene, b *proof.Bundle) {
		b.Entries[1].Entry = []byte(strings.Replace(string(b.Entries[1].Entry), "release", "rElease", 1))
	}),
	after("the proof of another entry", "does not fit the checkpoint", func(_ *scene, b *proof.Bundle) {
		b.Entries[1].Hashes = b.Entries[2].Hashes
	}),
	after("another index", "does not fit the checkpoint", func(_ *scene, b *proof.Bundle) { b.Entries[4].Index++ }),
	after("a short hash", "has 31 bytes", func(_ *scene, b *proof.Bundle) {
		b.Entries[1].Hashes[0] = b.Entries[1].Hashes[0][1:]
	}),
	after("a fork", "does not fit the checkpoint", func(s *scene, b *proof.Bundle) {
		b.Checkpoint = fork(s)
	}),
	after("a checkpoint before the signature", "does not fit the checkpoint", func(s *scene, b *proof.Bundle) {
		other := prooftest.NewLog(s.t)
		for _, data := range s.log.Entries[1:3] {
			other.AppendRaw(data)
		}
		b.Checkpoint = string(other.Checkpoint())
	}),
	after("a checkpoint that was changed", "cannot verify the log's checkpoint", func(_ *scene, b *proof.Bundle) {
		b.Checkpoint = strings.Replace(b.Checkpoint, "\n7\n", "\n8\n", 1)
	}),
	after("a checkpoint without a signature", "cannot verify the log's checkpoint", func(_ *scene, b *proof.Bundle) {
		text, _, _ := strings.Cut(b.Checkpoint, "\n\n")
		b.Checkpoint = text + "\n"
	}),
	after("no checkpoint", "another log", func(_ *scene, b *proof.Bundle) { b.Checkpoint = "" }),
}

// reprove makes the proofs of the entries of a bundle anew.
func reprove(s *scene, b *proof.Bundle) *proof.Bundle {
	for i, e := range b.Entries {
		b.Entries[i] = s.log.Entry(e.Index)
	}
	b.Checkpoint = string(s.log.Checkpoint())
	return b
}

// fork returns the checkpoint of a log of the same key and as many entries, one of which is another.
func fork(s *scene) string {
	other := prooftest.NewLog(s.t)
	for _, data := range s.log.Entries[1 : len(s.log.Entries)-1] {
		other.AppendRaw(data)
	}
	other.AppendRaw([]byte(`{"type":"signed/v1"}`))
	return string(other.Checkpoint())
}

// wickedLogs are what a broker logs that does not do what people agreed to, or that logs what it should not have done.
var wickedLogs = []attack{
	during("one approval", `1 of 2 people of group "release-managers" agreed`, func(s *scene, r *prooftest.Request) {
		approve(r, s.alice)
		r.Sign(s.wanted, nil)
	}),
	during("two approvals of one person", "1 of 2 people", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice)
		r.Decide(s.alice, approval.Approve, 1)
		r.Sign(s.wanted, nil)
	}),
	during("no approval", "0 of 2 people", func(s *scene, r *prooftest.Request) { r.Sign(s.wanted, nil) }),
	during("one approval logged twice", "an approval is in the log twice", func(s *scene, r *prooftest.Request) {
		a := approval.Approval{Approver: s.alice.ID, Decision: approval.Approve, Statement: approval.Hash(r.Statement),
			Time: s.log.Now}
		r.Give(s.alice, a)
		r.Give(s.alice, a) // another signature of the same document
		r.Sign(s.wanted, nil)
	}),
	during("approval after the intent", "1 of 2 people", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice)
		r.Event(entry.Intended, func(e *entry.Event) {
			e.Leaf, e.Digest, e.Payload, e.Statement = s.wanted.Leaf, s.wanted.Digest, s.wanted.Payload,
				approval.Hash(r.Statement)
		})
		approve(r, s.bob)
		r.Event(entry.Signed, func(e *entry.Event) { e.Payload, e.Signature = s.wanted.Payload, s.wanted.Signature })
	}),
	during("approval after the signature", "1 of 2 people", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice)
		r.Sign(s.wanted, nil)
		approve(r, s.bob)
	}),
	during("a withdrawn approval", "1 of 2 people", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		r.Decide(s.bob, approval.Withdraw, 0)
		r.Sign(s.wanted, nil)
	}),
	during("a rejection", "was rejected", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		r.Decide(s.carol, approval.Reject, 0)
		r.Sign(s.wanted, nil)
	}),
	during("a request that ended", `had ended before the signature: it was "cancelled"`,
		func(s *scene, r *prooftest.Request) {
			approve(r, s.alice, s.bob)
			r.Event(entry.Ended, func(e *entry.Event) { e.State = "cancelled" })
			r.Sign(s.wanted, nil)
		}),
	during("signed after the approvals expired", "the approvals had expired", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		s.log.Now = s.log.Now.Add(25 * time.Hour)
		r.Sign(s.wanted, nil)
	}),
	during("a retry without a signature", "without a signature shortly before", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		s.log.Now = s.log.Now.Add(25 * time.Hour)
		r.Sign(s.wanted, func(e *entry.Event) { e.Retry = true })
	}),
	during("a retry of a retry", "without a signature shortly before", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		other := s.wanted
		for i, hash := range []string{"a", "b", "c"} {
			other.Payload, other.Signature = approval.Hash([]byte(hash)), approval.Hash([]byte("s"+hash))
			r.Sign(other, func(e *entry.Event) { e.Retry = i > 0 })
			s.log.Now = s.log.Now.Add(7 * time.Minute)
		}
		r.Sign(s.wanted, func(e *entry.Event) { e.Retry = true })
	}),
	during("an intent for another artifact", "the intent in the log is another", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		r.Sign(s.wanted, func(e *entry.Event) { e.Digest = prooftest.Signature("b").Digest })
	}),
	during("an intent of another statement", "the intent in the log is another", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		r.Sign(s.wanted, func(e *entry.Event) { e.Statement = "" })
	}),
	during("an intent with another leaf", "the intent in the log is another", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		r.Sign(s.wanted, func(e *entry.Event) { e.Leaf = approval.Hash(nil) })
	}),
	during("an intent of another key", "the intent in the log is another", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		r.Sign(s.wanted, func(e *entry.Event) { e.Key = "other" })
	}),
	during("an intent of another payload", "without its intent", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		r.Event(entry.Intended, func(e *entry.Event) {
			e.Leaf, e.Digest, e.Payload, e.Statement = s.wanted.Leaf, s.wanted.Digest, approval.Hash(nil),
				approval.Hash(r.Statement)
		})
		r.Event(entry.Signed, func(e *entry.Event) { e.Payload, e.Signature = s.wanted.Payload, s.wanted.Signature })
	}),
	during("an intent that failed", "without its intent", func(s *scene, r *prooftest.Request) {
		approve(r, s.alice, s.bob)
		r.Event(entry.Intended, func(e *entry.Event) { e.Payload = s.wanted.Payload })
		r.Event(entry.Failed, func(e *entry.Event) { e.Payload = s.wanted.Payload })
		r.Event(entry.Signed, func(e *entry.Event) { e.Payload, e.Signature = s.wanted.Payload, s.wanted.Signature })
	}),
	during("a type that is unknown", `of the type "policy/v1"`, func(s *scene, r *prooftest.Request) {
		r.Event(entry.PolicySet, nil)
		approve(r, s.alice, s.bob)
		r.Sign(s.wanted, nil)
	}),
	during("a request twice", "not the only request", func(s *scene, r *prooftest.Request) {
		r.Event(entry.Requested, nil)
		approve(r, s.alice, s.bob)
		r.Sign(s.wanted, nil)
	}),
	during("an entry that cannot be read", "cannot read entry", func(s *scene, r *prooftest.Request) {
		r.Indexes = append(r.Indexes, s.log.AppendRaw([]byte(`{"request":"`+r.ID+`","time":"2026","type":"signed/v1"}`)))
	}),
	{"the requester's own approval", `"bob" asked for the signature`, func(s *scene) *proof.Bundle {
		r := s.request(func(_ *approval.Statement, e *entry.Event) { e.Person = s.bob.ID })
		approve(r, s.alice, s.bob)
		r.Sign(s.wanted, nil)
		return r.Bundle()
	}},
	requesting("an entry of another statement", "the request in the log is another",
		func(_ *approval.Statement, e *entry.Event) { e.Statement = approval.Hash(nil) }),
	requesting("an entry of another key", "the request in the log is another",
		func(_ *approval.Statement, e *entry.Event) { e.Key = "other" }),
	requesting("an entry with another leaf", "the request in the log is another",
		func(_ *approval.Statement, e *entry.Event) { e.Leaf = approval.Hash(nil) }),
	requesting("an entry of a change", "the request in the log is another",
		func(_ *approval.Statement, e *entry.Event) { e.What = "policy" }),
	requesting("a statement to block", "a change of the broker",
		func(s *approval.Statement, _ *entry.Event) { s.Predicate.Action = "block" }),
	requesting("a statement without a key", "a change of the broker",
		func(s *approval.Statement, _ *entry.Event) { s.Predicate.Key = nil }),
	requesting("a statement of a change", "a change of the broker",
		func(s *approval.Statement, _ *entry.Event) { s.Predicate.Change = &approval.Change{What: "policy"} }),
	requesting("a statement of another log", "a request of another log",
		func(s *approval.Statement, _ *entry.Event) { s.Predicate.Log = "other.example.com/log" }),
	requesting("an artifact that nobody agreed to", "other artifacts", func(s *approval.Statement, _ *entry.Event) {
		other := approval.Hash([]byte("other"))
		s.Predicate.Targets[0].Digest, s.Subjects[0].Digest["sha256"] = other, strings.TrimPrefix(other, "sha256:")
	}),
	requesting("a format", "another format", func(s *approval.Statement, _ *entry.Event) {
		s.Predicate.Targets[0].Format = "cosign"
	}),
	requesting("annotations", "other annotations", func(s *approval.Statement, _ *entry.Event) {
		s.Predicate.Targets[0].Annotations = map[string]string{"approved": "yes"}
	}),
	requesting("an expiry", "another expiry", func(s *approval.Statement, _ *entry.Event) { s.Predicate.Expiry = 60 }),
	requesting("a subject less", "other artifacts", func(s *approval.Statement, _ *entry.Event) {
		s.Predicate.Targets = append([]approval.Target{{Digest: approval.Hash(nil)}}, s.Predicate.Targets...)
	}),
	requesting("a subject that is not the target", "other artifacts", func(s *approval.Statement, _ *entry.Event) {
		s.Subjects[0].Digest = map[string]string{"sha256": strings.Repeat("0", 64)}
	}),
	requesting("a subject with two digests", "other artifacts", func(s *approval.Statement, _ *entry.Event) {
		s.Subjects[0].Digest["sha512"] = strings.Repeat("0", 128)
	}),
}

// requesting returns an attack in which a request and its statement say what they must not.
func requesting(name, words string, change func(*approval.Statement, *entry.Event)) attack {
	return attack{name, words, func(s *scene) *proof.Bundle {
		r := s.request(change)
		approve(r, s.alice, s.bob)
		r.Sign(s.wanted, nil)
		return r.Bundle()
	}}
}

// TestAttacks refuses bundles, each with its reason.
func TestAttacks(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, a := range slices.Concat(wrongDemands, forgedBundles, wickedLogs, forgedApprovals, witnessed) {
		if seen[a.name] {
			t.Errorf("the name %q is there twice", a.name)
		}
		seen[a.name] = true
		s := newScene(t)
		b := a.make(s)
		_, err := s.verify(b)
		denies(t, a.name, err, a.words)
	}
}
