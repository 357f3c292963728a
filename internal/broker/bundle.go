package broker

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/proof"
)

// Bundle returns the bundle of approvals of a request, in its encoding: what shows to others that people agreed to its
// signatures. It fails with NotFound for a request of others, and for one that nobody has to agree to; and with
// Unavailable as long as no checkpoint of the log, that a witness has cosigned if there are any, covers all entries of
// the request.
func (b *Broker) Bundle(ctx context.Context, caller identity.Caller, id string) ([]byte, error) {
	kept, err := b.row(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	if kept.Request.Statement == "" {
		return nil, failure.New(failure.NotFound, "the request %s has no bundle of approvals: nobody has to agree to it", id).
			WithHint("use a rule with approvals, or do not demand approvals of its images")
	}
	of := evidenceOf{statement: kept.Request.Statement}
	for _, v := range kept.Envelopes {
		of.envelopes = append(of.envelopes, v.Envelope)
	}
	e, s, err := b.evidence(ctx, of)
	if err != nil {
		return nil, err
	}
	proven, err := b.proveToOthers(ctx, kept)
	if err != nil {
		return nil, err
	}
	if proven == nil && len(b.witnesses.all) > 0 {
		return nil, failure.New(failure.Unavailable,
			"no checkpoint of the log that a witness has cosigned covers the request %s yet", id).
			WithHint("try again in a minute, or see why the witnesses do not cosign")
	}
	if proven == nil {
		return nil, failure.New(failure.Unavailable, "no checkpoint of the log covers the request %s yet", id).
			WithHint("try again in a second")
	}
	bundle := &proof.Bundle{Approvals: [][]byte{}, Checkpoint: proven.Checkpoint, Entries: []proof.Entry{},
		Rules: [][]byte{}, Statement: e.Statement}
	bundle.Approvals = append(bundle.Approvals, e.Approvals...)
	for _, one := range proven.Entries {
		hashes := append([][]byte{}, one.Hashes...) // not nil, which JSON has null for
		bundle.Entries = append(bundle.Entries, proof.Entry{Entry: one.Entry, Hashes: hashes, Index: one.Index})
	}
	added := map[string]bool{}
	for _, n := range s.Predicate.Needs {
		for _, r := range n.Rules {
			if !added[r.Digest] {
				added[r.Digest] = true
				bundle.Rules = append(bundle.Rules, e.Rules[r.Digest])
			}
		}
	}
	return bundle.Encode()
}

// witnessPatience is how long after a change of a request its bundle waits for the cosignature of a witness.
const witnessPatience = time.Minute

// proveToOthers returns proofs of the entries of a request under the newest checkpoint that witnesses have cosigned: a
// verifier may demand it. While the witnesses do not answer, the proofs are under a checkpoint without cosignatures. It
// returns nil if no checkpoint covers the entries yet.
func (b *Broker) proveToOthers(ctx context.Context, kept *row) (*brokerapi.Proof, error) {
	if len(b.witnesses.all) == 0 {
		return b.prove(ctx, kept.Entries)
	}
	cosigned, note := b.Cosigned()
	proven, err := b.proveUnder(ctx, &published{Checkpoint: cosigned, note: note}, kept.Entries)
	if proven != nil || err != nil || b.clock.now(time.Time{}).Before(kept.Request.Changed.Add(witnessPatience)) {
		return proven, err
	}
	return b.prove(ctx, kept.Entries)
}
