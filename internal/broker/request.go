package broker

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/telemetry"
)

// maxReason is the length of the longest reason of a requester, in bytes.
const maxReason = 1000

// Create makes a request for a signature that is asked for later. Without people to ask and without a time lock it is
// approved at once.
func (b *Broker) Create(ctx context.Context, caller identity.Caller, n brokerapi.NewRequest) (*brokerapi.Request,
	error) {
	ws, err := b.wishes(ctx, caller, n)
	if err != nil {
		return nil, err
	}
	var created *brokerapi.Request
	var open string
	err = b.do(ctx, func(d *decision) error {
		created, open = nil, ""
		if err := d.check(); err != nil {
			return err
		}
		if err := d.checkKey(ws[0]); err != nil {
			return err
		}
		if open = d.alike(ws, n.Rule); open != "" {
			return nil
		}
		e := d.eventOf(ws)
		if err := d.spend(caller, &e); err != nil {
			return err
		}
		_, span := telemetry.Start(d.ctx, "policy")
		rules, err := d.choose(ws)
		span.End(kindOf(err))
		if err != nil {
			return err
		}
		created, err = d.create(&e, ws, rules)
		return err
	})
	if err != nil {
		return nil, err
	}
	if open != "" {
		return b.Request(ctx, caller, open)
	}
	return b.Request(ctx, caller, created.ID)
}

// wishes returns what a request is for: an artifact, and the manifests of its platforms if it asks for them.
func (b *Broker) wishes(ctx context.Context, caller identity.Caller, n brokerapi.NewRequest) ([]*wish, error) {
	if n.Artifact.Format != payload.Notation {
		return nil, failure.New(failure.Invalid, "requests beforehand are for the format notation, not %.30q",
			n.Artifact.Format).WithHint("ask for the signature at once")
	}
	if err := digest.Digest(n.Artifact.Digest).Validate(); err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the artifact's digest %.100q: %w", n.Artifact.Digest, err).
			WithHint("name a digest, such as sha256: and 64 hexadecimal digits")
	}
	switch {
	case len(n.Reason) > maxReason:
		return nil, failure.New(failure.Invalid, "the reason is longer than %d bytes", maxReason).WithHint("shorten it")
	case n.Rule != "" && n.Reason == "":
		return nil, failure.New(failure.Invalid, "a request by the rule %.100q has no reason", n.Rule).
			WithHint("say why it is an emergency: those who approve see it, and the log has it")
	case n.Platforms && n.Repository == "":
		return nil, failure.New(failure.Invalid, "a request for all platforms names no repository").
			WithHint("name the repository, where the broker looks for the platforms")
	}
	targets := []brokerapi.Target{n.Artifact}
	if n.Platforms {
		name, err := repository.Name(n.Repository)
		if err != nil {
			return nil, err
		}
		manifests, err := b.options.Manifests(ctx, name, n.Artifact.Digest)
		if err != nil {
			return nil, err
		}
		for _, m := range manifests {
			targets = append(targets, brokerapi.Target{Format: payload.Notation, MediaType: m.MediaType, Digest: m.Digest,
				Size: m.Size, Annotations: n.Artifact.Annotations})
		}
	}
	var ws []*wish
	for _, target := range targets {
		w := &wish{caller: caller, artifact: &payload.Artifact{Format: target.Format}, breakGlass: n.Rule, why: n.Reason}
		w.subject = subject{Key: n.Key, Target: target, Expiry: n.Expiry, Repository: n.Repository}
		if len(w.Target.Annotations) == 0 {
			w.Target.Annotations = nil
		}
		if err := b.complete(ctx, &w.subject, &w.claims); err != nil {
			return nil, err
		}
		ws = append(ws, w)
	}
	return ws, nil
}

// alike returns the ID of an open request for the same wishes of the same requester, and "" if there is none.
func (d *decision) alike(ws []*wish, breakGlass string) string {
	for _, id := range sortedIDs(d.bySubject[ws[0].digest]) {
		r := d.Requests[id]
		if !r.open() || r.Bare || len(r.Targets) != len(ws) || r.Requester != d.b.requesterOf(ws[0].caller, r.Same) ||
			d.now.Unix() >= r.NotAfter || breakGlass != "" && r.Rule != breakGlass {
			continue
		}
		all := true
		for _, w := range ws {
			t := r.of(w.digest)
			all = all && t != nil && t.Count < r.Uses && d.applies(r, w)
		}
		if all {
			return id
		}
	}
	return ""
}

// eventOf returns an event about wishes for the same key.
func (d *decision) eventOf(ws []*wish) Event {
	w := ws[0]
	e := Event{Key: w.Key, Leaf: w.Leaf, Format: string(w.Target.Format), Digest: w.Target.Digest,
		Caller: d.b.callerOf(w.caller), Repository: w.Repository, Policy: d.b.inForce.Load().digest}
	for _, w := range ws {
		e.Subjects = append(e.Subjects, w.digest)
	}
	e.Person = d.b.inForce.Load().callers[e.Caller]
	return e
}

// grantLife is how long a grant is good for that has no timeout.
const grantLife = 24 * time.Hour

// create logs a request that is signed later, by any of some rules.
func (d *decision) create(e *Event, ws []*wish, rules []*policy.Rule) (*brokerapi.Request, error) {
	if err := d.checkOpen(e.Caller); err != nil {
		return nil, err
	}
	w := ws[0]
	d.bind(e, w, rules)
	e.Type, e.Payload, e.RuleDigest = requested, "", ""
	e.Needs = []need{d.b.needOf(policy.Use, w.Key, rules)}
	body := w.body(e.Request, d.now)
	body.Rule, body.State, body.Why = e.Rule, brokerapi.Approved, w.why
	if body.Emergency = w.breakGlass != ""; body.Emergency {
		e.Why = w.why // in the log, for everyone to see
	}
	for _, other := range ws[1:] {
		body.More = append(body.More, other.Target)
	}
	people := false
	var life time.Duration
	uses := max(rules[0].Uses, 1)
	for _, r := range rules {
		if (rule{r}).waits() {
			body.State = brokerapi.Pending
		}
		people = people || len(r.Approvals) > 0
		life, uses = max(life, lifeOf(r)), min(uses, max(r.Uses, 1))
	}
	if uses > 1 {
		e.Uses = int64(uses)
	}
	until := d.now.Add(life).Truncate(time.Second)
	body.NotAfter, e.NotAfter = &until, until.Unix()
	e.State = string(body.State)
	if people {
		if err := d.write(d.statementOf(ws), e, w.caller, w.why, [][]*policy.Rule{rules}); err != nil {
			return nil, err
		}
		body.Statement = e.Statement
	}
	if err := d.event(*e); err != nil {
		return nil, err
	}
	d.insert(body, w.caller, e.Requester)
	if people {
		d.notify(NoticePending, e.Request)
	}
	return body, nil
}

// bind fills in what an event says of the rules that allow it, and who may use it: whoever has all claims that any of
// them lists.
func (d *decision) bind(e *Event, w *wish, rules []*policy.Rule) {
	e.Request, e.Rule, e.RuleDigest = newID(d.now), rules[0].Name, d.b.ruleDigest(rules[0])
	e.Same = nil
	for _, r := range rules {
		for _, claim := range r.Same {
			if !slices.Contains(e.Same, claim) {
				e.Same = append(e.Same, claim)
			}
		}
	}
	e.Requester = d.b.requesterOf(w.caller, e.Same)
}

// Cancel ends a request of a caller that is open.
func (b *Broker) Cancel(ctx context.Context, caller identity.Caller, id string) (*brokerapi.Request, error) {
	kept, err := b.row(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	if !caller.Admin && kept.Requester != b.requesterOf(caller, kept.Same) {
		return nil, failure.New(failure.Denied, "the request %s is somebody else's", id).
			WithHint("reject it, if you are asked to approve it")
	}
	err = b.do(ctx, func(d *decision) error {
		r := d.Requests[id]
		if r == nil || !r.open() {
			return failure.New(failure.Conflict, "the request %s is not open", id).
				WithHint("look at its state: there is nothing to cancel")
		}
		return d.endAs(id, brokerapi.Cancelled, "its requester has cancelled it")
	})
	if err != nil {
		return nil, err
	}
	return b.Request(ctx, caller, id)
}
