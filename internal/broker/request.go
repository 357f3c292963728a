package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/telemetry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// row is what the store keeps of a request for those who look at it. It decides nothing.
type row struct {
	Request   brokerapi.Request `json:"request"`
	Requester string            `json:"requester"` // pseudonym
	Same      []string          `json:"same,omitempty"`
	People    bool              `json:"people,omitempty"` // it waits for approvals
	Entries   []int64           `json:"entries"`
}

// Create makes a request for a signature that is asked for later. Without people to ask and without a time lock it is
// approved at once.
func (b *Broker) Create(ctx context.Context, caller identity.Caller, n brokerapi.NewRequest) (*brokerapi.Request,
	error) {
	w := &wish{caller: caller, artifact: &payload.Artifact{Format: n.Artifact.Format}}
	w.subject = subject{Key: n.Key, Target: n.Artifact, Expiry: n.Expiry, Repository: n.Repository}
	if len(w.Target.Annotations) == 0 {
		w.Target.Annotations = nil
	}
	if n.Artifact.Format != payload.Notation {
		return nil, failure.New(failure.Invalid, "requests beforehand are for the format notation, not %.30q",
			n.Artifact.Format).WithHint("ask for the signature at once")
	}
	if err := digest.Digest(n.Artifact.Digest).Validate(); err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the artifact's digest %.100q: %w", n.Artifact.Digest, err).
			WithHint("name a digest, such as sha256: and 64 hexadecimal digits")
	}
	if err := b.complete(ctx, &w.subject, &w.claims); err != nil {
		return nil, err
	}
	var created *brokerapi.Request
	var open string
	err := b.do(ctx, func(d *decision) error {
		created, open = nil, ""
		if err := d.check(); err != nil {
			return err
		}
		if err := d.checkKey(w); err != nil {
			return err
		}
		for _, id := range sortedIDs(d.byStatement[w.digest]) { // the same wish of the same requester
			r := d.Requests[id]
			alive := r.State == brokerapi.Pending || r.State == brokerapi.Approved
			if alive && !r.Bare && r.Requester == b.requesterOf(caller, r.Same) && d.applies(r, w) == nil &&
				(r.NotAfter == 0 || d.now.Unix() < r.NotAfter) {
				open = id
				return nil
			}
		}
		e := Event{Key: w.Key, Statement: w.digest, Leaf: w.Leaf, Format: string(w.Target.Format), Digest: w.Target.Digest,
			Caller: b.callerOf(caller), Repository: w.Repository, Policy: d.b.inForce.Load().digest}
		if err := d.spend(caller, &e); err != nil {
			return err
		}
		_, span := telemetry.Start(d.ctx, "policy")
		rule, err := d.choose(w)
		span.End(kindOf(err))
		if err != nil {
			return err
		}
		e.Rule, e.RuleDigest, e.Same = rule.Name, ruleDigest(rule.Rule), rule.Same
		e.Requester = b.requesterOf(caller, rule.Same)
		e.Request = newID(d.now)
		created, err = d.create(&e, w, rule)
		return err
	})
	if err != nil {
		return nil, err
	}
	if open != "" {
		return b.Request(ctx, caller, open)
	}
	return created, nil
}

// grantLife is how long a grant is good for that has no timeout.
const grantLife = 24 * time.Hour

// create logs a request that is signed later.
func (d *decision) create(e *Event, w *wish, rule rule) (*brokerapi.Request, error) {
	if err := d.checkOpen(e.Caller); err != nil {
		return nil, err
	}
	e.Type, e.Payload = requested, ""
	body := w.body(e.Request, d.now)
	body.Rule, body.State = rule.Name, brokerapi.Approved
	if rule.waits() {
		body.State = brokerapi.Pending
	}
	timeout := rule.Timeout
	if timeout == 0 {
		timeout = grantLife + rule.TimeLock
	}
	until := d.now.Add(timeout).Truncate(time.Second)
	body.NotAfter, e.NotAfter = &until, until.Unix()
	if rule.TimeLock > 0 {
		from := d.now.Add(rule.TimeLock).Truncate(time.Second).Add(time.Second)
		body.NotBefore, e.NotBefore = &from, from.Unix()
		body.Reason = "it waits for its time lock until " + from.Format(time.RFC3339)
	}
	if len(rule.Approvals) > 0 {
		body.Reason = waitsFor(rule.Approvals)
	}
	e.State = string(body.State)
	if err := d.event(*e); err != nil {
		return nil, err
	}
	d.insert(body, w.caller, e.Requester)
	return body, nil
}

// waitsFor says whose approvals a request lacks.
func waitsFor(all []policy.Approval) string {
	text := "it waits for approvals:"
	for i, a := range all {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf(" %d of %s", a.Quorum, a.Group)
	}
	return text
}

// insert adds the row of a new request.
func (d *decision) insert(body *brokerapi.Request, c identity.Caller, requester string) {
	r := d.Requests[body.ID]
	d.put(&row{Request: *body, Requester: requester, Same: r.Same, Entries: r.Entries,
		People: r.What == "" && len(d.needs(r)) > 0}, d.b.callerOf(c), nil)
}

// put writes a row.
func (d *decision) put(r *row, caller string, signature []byte) {
	data, err := json.Marshal(r)
	if err != nil {
		slog.Error("cannot encode a request", "request", r.Request.ID, "error", err)
		return
	}
	digest := ""
	if r.Request.Artifact != nil {
		digest = r.Request.Artifact.Digest
	}
	written := store.Request{
		ID: r.Request.ID, Created: r.Request.Created, Changed: r.Request.Changed, Key: r.Request.Key,
		State: string(r.Request.State), Requester: caller, Rule: r.Request.Rule, Digest: digest,
		Repository: r.Request.Repository, Body: data, Signature: signature,
	}
	d.batch.Requests = append(d.batch.Requests, written)
	if r.Request.State == brokerapi.Signing { // it is changed again in a moment
		d.b.rows[written.ID] = &written
	} else {
		delete(d.b.rows, written.ID)
	}
}

// kept returns the row of a request as this batch leaves it.
func (d *decision) kept(id string) (*store.Request, error) {
	for _, r := range slices.Backward(d.batch.Requests) {
		if r.ID == id {
			return &r, nil
		}
	}
	if r := d.b.rows[id]; r != nil {
		return r, nil
	}
	return d.b.options.Store.Request(context.Background(), id)
}

// update changes the row of a request. A row that cannot be read does not matter: it decides nothing.
func (d *decision) update(id string, signature []byte, change func(*row)) {
	old, err := d.kept(id)
	if err != nil {
		slog.Warn("cannot read a request to change it", "request", id, "error", err)
		return
	}
	var r row
	if err := json.Unmarshal(old.Body, &r); err != nil {
		slog.Warn("cannot read a request to change it", "request", id, "error", err)
		return
	}
	if signature == nil {
		signature = old.Signature
	}
	change(&r)
	if now := d.Requests[id]; now != nil {
		r.Entries = now.Entries
	}
	r.Request.Changed = d.now
	d.put(&r, old.Requester, signature)
}

// finish has a row say how a request has ended.
func (d *decision) finish(id string, as brokerapi.State, why string) {
	index := d.Size - 1
	d.update(id, nil, func(r *row) {
		r.Request.State, r.Request.Reason = as, why
		r.Entries = append(r.Entries, index)
	})
}

// Request returns a request of a caller. It fails with NotFound for those of others, but an administrator sees all.
func (b *Broker) Request(ctx context.Context, caller identity.Caller, id string) (*brokerapi.Request, error) {
	r, err := b.row(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	answer := b.show(r)
	answer.Proof, err = b.prove(ctx, r.Entries)
	return &answer, err
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
	if !caller.Admin && kept.Requester != b.callerOf(caller) && r.Requester != b.requesterOf(caller, r.Same) {
		return nil, missing
	}
	return &r, nil
}

// show returns a request as it is now.
func (b *Broker) show(r *row) brokerapi.Request {
	answer := r.Request
	answer.State = settledBy(b.clock.now(time.Time{}), &answer, r.People)
	if answer.State == brokerapi.Approved {
		answer.Reason = ""
	}
	return answer
}

// Query says which requests are listed.
type Query struct {
	State, Key, Before string
	Limit              int
}

// Requests lists requests, newest first: those of a caller, or all for an administrator.
func (b *Broker) Requests(ctx context.Context, caller identity.Caller, q Query) (*brokerapi.Requests, error) {
	in := store.Query{Before: q.Before, Limit: q.Limit, Key: q.Key, State: q.State}
	if !caller.Admin {
		in.Requester = b.callerOf(caller)
	}
	rows, err := b.options.Store.Requests(ctx, in)
	if err != nil {
		return nil, err
	}
	all := &brokerapi.Requests{Requests: []brokerapi.Request{}}
	for _, kept := range rows {
		var r row
		if err := json.Unmarshal(kept.Body, &r); err != nil {
			return nil, failure.New(failure.Internal, "cannot read request %s: %w", kept.ID, err)
		}
		all.Requests = append(all.Requests, b.show(&r))
	}
	if len(rows) == q.Limit && q.Limit > 0 {
		all.Before = rows[len(rows)-1].ID
	}
	return all, nil
}

// maxExpired is the largest number of requests that expire in one transaction.
const maxExpired = 1000

// expire ends requests that are open and whose time is over. It is called once in a minute.
func (b *Broker) expire() {
	if b.sealed.Load() {
		return
	}
	err := b.do(b.running, func(d *decision) error {
		n := 0
		for id, r := range d.Requests {
			open := r.State == brokerapi.Pending || r.State == brokerapi.Approved
			if !open || r.NotAfter == 0 || d.now.Unix() < r.NotAfter {
				continue
			}
			if n++; n > maxExpired {
				break
			}
			if err := d.event(Event{Type: ended, Request: id, Key: r.Key, State: string(brokerapi.Expired)}); err != nil {
				return err
			}
			d.finish(id, brokerapi.Expired, "it was not used in time")
		}
		return nil
	})
	if err != nil && b.running.Err() == nil {
		slog.Error("cannot end requests that have expired", "error", err)
	}
}

// Cancel ends a request of a caller that is open.
func (b *Broker) Cancel(ctx context.Context, caller identity.Caller, id string) (*brokerapi.Request, error) {
	if _, err := b.row(ctx, caller, id); err != nil {
		return nil, err
	}
	err := b.do(ctx, func(d *decision) error {
		r := d.Requests[id]
		if r == nil || r.State != brokerapi.Pending && r.State != brokerapi.Approved {
			return failure.New(failure.Conflict, "the request %s is not open", id).
				WithHint("look at its state: there is nothing to cancel")
		}
		if err := d.event(Event{Type: ended, Request: id, Key: r.Key, State: string(brokerapi.Cancelled)}); err != nil {
			return err
		}
		d.finish(id, brokerapi.Cancelled, "its requester has cancelled it")
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.Request(ctx, caller, id)
}

// prove returns proofs of the entries of a request, once a checkpoint covers them all.
func (b *Broker) prove(ctx context.Context, entries []int64) (*brokerapi.Proof, error) {
	newest := b.published.Load()
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
