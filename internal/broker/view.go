package broker

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Request returns a request of a caller. It fails with NotFound for those of others, but an administrator sees all.
func (b *Broker) Request(ctx context.Context, caller identity.Caller, id string) (*brokerapi.Request, error) {
	var r *row
	judged, behind := false, true
	for n := 0; behind && n < maxReads; n++ {
		var err error
		if r, err = b.row(ctx, caller, id); err != nil {
			return nil, err
		}
		if err := b.look(ctx, func(d *decision) {
			behind = d.isAhead(r)
			judged = d.judge(r, b.callerOf(caller))
		}); err != nil {
			return nil, err
		}
	}
	if judged {
		if err := b.restate(ctx, &r.Request); err != nil {
			return nil, err
		}
	}
	answer := b.show(r)
	var err error
	answer.Proof, err = b.prove(ctx, r.Entries)
	return &answer, err
}

// maxReads is how often Request reads a row that others change meanwhile: what it says of approvals, and of the state
// that they add up to, is of one moment.
const maxReads = 10

// isAhead reports whether a request was decided about or has ended since its row was read.
func (d *decision) isAhead(kept *row) bool {
	r := d.Requests[kept.Request.ID]
	if r == nil || !r.open() && r.State != brokerapi.Signing {
		return kept.Request.State == brokerapi.Pending || kept.Request.State == brokerapi.Approved
	}
	return len(kept.Envelopes) < len(r.Seen)
}

// judge adds to the row of an open request what people are asked, and which of their approvals count, at this moment.
// It reports whether people are asked: what they agree to is then what the log says, whatever the row does.
func (d *decision) judge(kept *row, caller string) bool {
	answer := &kept.Request
	r := d.Requests[answer.ID]
	if r == nil || r.Statement == "" || !r.open() {
		return false
	}
	d.fill(r, kept)
	kept.Entries = r.Entries
	answer.Statement, answer.What, answer.Key, answer.Person = r.Statement, r.What, r.Key, d.personOf(r)
	answer.Emergency = slices.ContainsFunc(d.standing(r), func(all []alternative) bool {
		return slices.ContainsFunc(all, func(a alternative) bool { return a.rule != nil && a.rule.BreakGlass })
	})
	in := d.b.inForce.Load()
	answer.Needs = d.needsOf(r)
	answer.Waiting = in.callers[caller] != "" && d.waitsFor(r, d.standing(r), in.callers[caller])
	answer.Approvals = slices.Clone(answer.Approvals)
	for i := range answer.Approvals {
		a := &answer.Approvals[i]
		if a.Decision != string(approval.Approve) {
			continue
		}
		person := d.b.personID(a.Person)
		a.Why = "it was withdrawn"
		if slices.ContainsFunc(r.Votes, func(v vote) bool { return v.Person == person && v.Credential == a.Credential }) {
			a.Why = d.discounted(r, person, a.Credential)
		}
		a.Counts = a.Why == ""
	}
	return true
}

// personOf returns the name of the person whose credential a request adds or removes, and "" for another request.
func (d *decision) personOf(r *request) string {
	names := d.b.inForce.Load().names
	if r.Enrol != nil {
		return names[r.Enrol.Person]
	}
	if c := d.Credentials[r.Credential]; c != nil && r.What == ChangeRemove {
		return names[c.Person]
	}
	return ""
}

// restate has a request say what its statement says, which the log names: approvers see what they agree to, also when
// somebody has edited rows of the database.
func (b *Broker) restate(ctx context.Context, r *brokerapi.Request) error {
	data, err := b.Document(ctx, r.Statement)
	if err != nil {
		return err
	}
	s, err := approval.DecodeStatement(data)
	if err != nil {
		return err
	}
	p := &s.Predicate
	opened, err := b.Document(ctx, p.Requester.Commitment)
	if err != nil {
		return err
	}
	o, err := approval.DecodeOpening(opened)
	if err != nil {
		return err
	}
	until := time.Unix(p.NotAfter, 0).UTC()
	r.Requester = brokerapi.Requester{Issuer: o.Issuer, Subject: o.Subject, Claims: o.Run}
	r.Expiry, r.Repository, r.Why, r.NotAfter = p.Expiry, p.Repository, p.Reason, &until
	r.Policy, r.Credential = "", ""
	if c := p.Change; c != nil {
		r.Policy, r.Credential = c.Policy, c.Credential
	}
	r.Artifact, r.More = nil, nil
	for i, t := range p.Targets {
		target := brokerapi.Target{Format: payload.Format(t.Format), MediaType: t.MediaType, Digest: t.Digest, Size: t.Size,
			Annotations: t.Annotations}
		if i == 0 {
			r.Artifact = &target
		} else {
			r.More = append(r.More, target)
		}
	}
	return nil
}

func (b *Broker) row(ctx context.Context, caller identity.Caller, id string) (*row, error) {
	missing := failure.New(failure.NotFound, "the caller has no request %.60q", id).
		WithHint("use the ID that the broker gave, and call as its requester did")
	kept, err := b.options.Store.Request(ctx, id)
	if failure.Is(err, failure.NotFound) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	var r row
	if err := json.Unmarshal(kept.Body, &r); err != nil {
		return nil, failure.New(failure.Internal, "cannot read request %s: %w", id, err)
	}
	if !caller.Admin && b.Person(caller) == "" && kept.Requester != b.callerOf(caller) &&
		r.Requester != b.requesterOf(caller, r.Same) {
		return nil, missing
	}
	return &r, nil
}

// show returns a request as it is now.
func (b *Broker) show(r *row) brokerapi.Request {
	answer := r.Request
	answer.State = settledBy(b.time(), &answer, r.People)
	if answer.State == brokerapi.Approved {
		answer.Reason = ""
	}
	return answer
}

// Query says which requests are listed. An empty field does not count.
type Query struct {
	State, Key, Before, Repository, Digest string
	Mine                                   bool // those that wait for the approval of the caller
	Limit                                  int
}

// Requests lists requests, newest first: those of a caller, or all for an administrator and for people of the policy.
func (b *Broker) Requests(ctx context.Context, caller identity.Caller, q Query) (*brokerapi.Requests, error) {
	in := store.Query{Before: q.Before, Limit: q.Limit, Key: q.Key, State: q.State, Repository: q.Repository,
		Digest: q.Digest}
	if !caller.Admin && b.Person(caller) == "" {
		in.Requester = b.callerOf(caller)
	}
	if q.Mine {
		var err error
		if in.IDs, err = b.waiting(ctx, caller, q); err != nil || len(in.IDs) == 0 {
			return &brokerapi.Requests{Requests: []brokerapi.Request{}}, err
		}
	}
	page, err := b.options.Store.Requests(ctx, in)
	if err != nil {
		return nil, err
	}
	all := &brokerapi.Requests{Requests: []brokerapi.Request{}, Before: page.Before}
	for _, kept := range page.Requests {
		var r row
		if err := json.Unmarshal(kept.Body, &r); err != nil {
			return nil, failure.New(failure.Internal, "cannot read request %s: %w", kept.ID, err)
		}
		one := b.show(&r)
		one.Approvals, one.Waiting = nil, q.Mine
		all.Requests = append(all.Requests, one)
	}
	return all, nil
}

// waiting returns the IDs of requests that wait for the approval of a caller, newest first.
func (b *Broker) waiting(ctx context.Context, caller identity.Caller, q Query) (ids []string, err error) {
	person := b.inForce.Load().callers[b.callerOf(caller)]
	if person == "" {
		return nil, nil
	}
	var all []string
	err = b.look(ctx, func(d *decision) {
		for id, r := range d.Requests {
			if (q.Before == "" || id < q.Before) && (q.Key == "" || r.Key == q.Key) {
				all = append(all, id)
			}
		}
	})
	slices.Sort(all)
	slices.Reverse(all)
	for part := range slices.Chunk(all, maxJudged) { // others are decided about between them
		if err != nil || len(ids) >= q.Limit {
			break
		}
		err = b.look(ctx, func(d *decision) {
			for _, id := range part {
				if r := d.Requests[id]; r != nil && len(ids) < q.Limit && d.waitsFor(r, d.standing(r), person) {
					ids = append(ids, id)
				}
			}
		})
	}
	return ids, err
}

// maxJudged is the largest number of requests of which waiting looks at who has agreed in one step.
const maxJudged = 500

// prove returns proofs of the entries of a request, once a checkpoint covers them all.
func (b *Broker) prove(ctx context.Context, entries []int64) (*brokerapi.Proof, error) {
	return b.proveUnder(ctx, b.published.Load(), entries)
}

// proveUnder returns proofs under a checkpoint, nil if it does not cover them all.
func (b *Broker) proveUnder(ctx context.Context, newest *published, entries []int64) (*brokerapi.Proof, error) {
	if len(entries) == 0 || newest == nil || newest.Size <= entries[len(entries)-1] {
		return nil, nil
	}
	p := &brokerapi.Proof{Checkpoint: string(newest.note)}
	for _, index := range entries {
		one := brokerapi.ProvenEntry{Index: index}
		err := b.options.Store.Entries(ctx, index, index+1, func(_ int64, entry []byte) error {
			one.Entry = entry
			return nil
		})
		if err != nil {
			return nil, err
		}
		hashes, err := translog.ProveEntry(ctx, b.tiles, newest.Size, index)
		if err != nil {
			return nil, err
		}
		for _, hash := range hashes {
			one.Hashes = append(one.Hashes, hash[:])
		}
		p.Entries = append(p.Entries, one)
	}
	return p, nil
}
