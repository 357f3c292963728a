package broker

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/telemetry"
)

// Outcome is the answer to a request for a signature: the signature, or the request that waits.
type Outcome struct {
	Signature *brokerapi.Signature
	Request   *brokerapi.Request
}

// maxSkew is how far the signing time of what is signed can be from the broker's clock.
const maxSkew = 5 * time.Minute

// wish is a signature that a caller wants.
type wish struct {
	subject
	caller   identity.Caller
	artifact *payload.Artifact
	payload  string // sha256:HEX of the bytes
	claims   *brokerapi.Claims
	rule     string // by which it is allowed

	intent     int64   // index of the entry of its intent
	breakGlass string  // name of a rule for emergencies that the requester asks for
	why        string  // and the reason
	proven     *proven // what has been verified of the grant
}

// Sign signs bytes with a key of the policy, if they are understood, and if the policy in force allows it to the
// caller. The same bytes of the same caller have one outcome: a caller that lost the answer gets the same signature.
func (b *Broker) Sign(ctx context.Context, caller identity.Caller, key string, r brokerapi.SignatureRequest) (
	*Outcome, error) {
	leave, err := b.flying.begin()
	if err != nil {
		return nil, err
	}
	defer leave()
	w, err := b.read(ctx, caller, key, r)
	if err != nil {
		return nil, err
	}
	for range maxTries {
		outcome, again, err := b.signOnce(ctx, w, r)
		var unproven *unprovenError
		switch {
		case errors.As(err, &unproven):
			if err := b.verifyApprovals(ctx, unproven.proven, w.fits); err != nil {
				return nil, err
			}
			w.proven = unproven.proven
		case err != nil || again == "":
			return outcome, err
		default:
			if _, err := b.waitUntilSettled(ctx, again); err != nil { // the same bytes are being signed
				return nil, err
			}
		}
	}
	return nil, failure.New(failure.Unavailable, "the request for the signature changes all the time").
		WithHint("try again").WithRetryAfter(soon)
}

// maxTries bounds how often a decision is taken again: when other signatures of the same request are made before, and
// when its approvals change.
const maxTries = 1000

// unprovenError is the failure of a grant whose approvals have to be verified before it is used.
type unprovenError struct{ proven *proven }

// Error says what has to be done.
func (*unprovenError) Error() string { return "the approvals have to be verified" }

// read reads what is to be signed, and checks what needs no state.
func (b *Broker) read(ctx context.Context, caller identity.Caller, key string, r brokerapi.SignatureRequest) (
	*wish, error) {
	artifact, err := payload.Read(r.Payload)
	if err != nil {
		return nil, err
	}
	if artifact.Format == payload.LayerKey {
		return nil, failure.New(failure.Denied, "the key of an image layer is decrypted, not signed").
			WithHint("name a key of an agent to decrypt images")
	}
	if artifact.Algorithm != "" && artifact.Algorithm != r.Algorithm {
		return nil, failure.New(failure.Invalid, "the payload is for the algorithm %s, not %.60q", artifact.Algorithm,
			r.Algorithm).WithHint("ask for " + artifact.Algorithm)
	}
	if err := held.CheckClock(artifact, b.clock.now(time.Time{}), maxSkew); err != nil {
		return nil, err
	}
	hash := sha256.Sum256(r.Payload)
	w := &wish{caller: caller, artifact: artifact, payload: hashPrefix + hex.EncodeToString(hash[:])}
	w.subject = subject{Key: key, Target: brokerapi.Target{Format: artifact.Format, MediaType: artifact.MediaType,
		Digest: artifact.Digest, Size: artifact.Size, Annotations: artifact.Annotations}, Name: artifact.Name,
		Repository: r.Repository}
	if !artifact.Expiry.IsZero() && !artifact.SigningTime.IsZero() {
		w.Expiry = int64(artifact.Expiry.Sub(artifact.SigningTime) / time.Second)
	}
	if err := b.complete(ctx, &w.subject, &w.claims); err != nil {
		return nil, err
	}
	public, _, err := b.options.Keys.Describe(ctx, key)
	if err != nil {
		return nil, err
	}
	if own, ok := public.(interface{ Equal(crypto.PublicKey) bool }); ok && own.Equal(b.options.Log.Public) {
		return nil, failure.New(failure.Denied, "cannot sign with key %q: it is the log's, which signs nothing else", key).
			WithHint("have the policy name another key")
	}
	return w, held.CheckAlgorithm(artifact, public, r.Algorithm)
}

// signOnce decides about a wish, and fulfils it. It returns the ID of the request that signs the same bytes already.
func (b *Broker) signOnce(ctx context.Context, w *wish, r brokerapi.SignatureRequest) (_ *Outcome, again string,
	err error) {
	p, err := b.place(ctx, w)
	if err != nil {
		return nil, "", err
	}
	defer p.leave()
	var found, busy *request
	var released *target
	var created *brokerapi.Request
	err = b.do(ctx, func(d *decision) error {
		found, busy, released, created = nil, nil, nil, nil
		var err error
		if same := d.byPayload[b.callerOf(w.caller)+w.payload]; same != nil && same.Key == w.Key {
			if t := same.signing(w.payload); t != nil && t.Signature != "" {
				one := *t
				found, released = same, &one
				d.confirm()
				return d.checkKey(w) // the caller may have lost the answer before the key was blocked
			}
			if same.State == brokerapi.Signing {
				busy = same
				return nil
			}
		}
		_, span := telemetry.Start(d.ctx, "policy")
		found, busy, created, err = d.allow(w)
		span.Set("rule", w.rule)
		span.End(kindOf(err))
		return err
	})
	switch {
	case err != nil:
		return nil, "", err
	case busy != nil:
		return nil, busy.ID, nil
	case released != nil:
		s, err := b.released(ctx, found.ID, released, w, r)
		return &Outcome{Signature: s}, "", err
	case found == nil:
		return &Outcome{Request: created}, "", nil
	}
	s, err := b.fulfil(ctx, found.ID, w, r, p)
	return &Outcome{Signature: s}, "", err
}

// allow decides about a wish. It returns the request whose intent to sign it logged, or the one that is being signed,
// or what the caller is told of the request that waits.
func (d *decision) allow(w *wish) (found, busy *request, waits *brokerapi.Request, err error) {
	if err := d.check(); err != nil {
		return nil, nil, nil, err
	}
	if err := d.checkKey(w); err != nil {
		return nil, nil, nil, err
	}
	ws := []*wish{w}
	e := d.eventOf(ws)
	e.Type, e.Payload = intended, w.payload
	g, err := d.grant(w)
	switch {
	case err != nil:
		return nil, nil, nil, err
	case g.busy != nil:
		return nil, g.busy, nil, nil
	case g.waits != nil:
		body, err := d.waiting(g.waits)
		return nil, nil, body, err
	}
	if err := d.spend(w.caller, &e); err != nil {
		return nil, nil, nil, err
	}
	if g.request != nil {
		r := g.request
		e.Request, e.Rule, e.RuleDigest, e.Requester = r.ID, g.by.rule.Name, g.by.name.Digest, r.Requester
		e.Retry, e.Statement = g.retry, r.Statement
		return r, nil, nil, d.intend(&e, w, nil)
	}
	rules, err := d.choose(ws)
	if err != nil {
		return nil, nil, nil, err
	}
	if (rule{rules[0]}).waits() {
		body, err := d.create(&e, ws, rules)
		return nil, nil, body, err
	}
	d.bind(&e, w, rules)
	e.Needs = []need{d.b.needOf(policy.Use, w.Key, rules)}
	body := w.body(e.Request, d.now)
	body.Rule, body.State = e.Rule, brokerapi.Signing
	if err := d.intend(&e, w, body); err != nil {
		return nil, nil, nil, err
	}
	return d.Requests[e.Request], nil, nil, nil
}

// intend logs an intent, with the row of a request that is new.
func (d *decision) intend(e *Event, w *wish, body *brokerapi.Request) error {
	if d.b.replica != nil {
		e.Replica = d.b.replica.turn
	}
	if err := d.event(*e); err != nil {
		return err
	}
	w.intent = d.Size - 1
	d.b.live[e.Request] = true
	w.rule = e.Rule
	if body != nil {
		d.insert(body, w.caller, e.Requester)
	}
	return nil
}

// fulfil has the module sign for an intent that is durable, and logs the outcome. A caller that leaves does not end it.
// It gives the place back when the module has signed.
func (b *Broker) fulfil(ctx context.Context, id string, w *wish, r brokerapi.SignatureRequest, p *place) (
	*brokerapi.Signature, error) {
	p.decided()
	ctx = context.WithValue(context.WithoutCancel(ctx), finishing{}, true)
	began := time.Now()
	using, span := telemetry.Start(ctx, "module")
	span.Set("key", w.Key)
	signature, err := b.options.Keys.Sign(using, w.Key, r.Payload, r.Algorithm)
	span.End(kindOf(err))
	p.signed()
	b.metrics.signed(w.Key, time.Since(began), err)
	if err == nil { // it is not known which of two keys has signed
		if changed := b.sameKey(w); changed != nil {
			err = failure.New(failure.Unavailable, "the policy has changed the key %q meanwhile", w.Key).WithHint("try again").
				WithRetryAfter(soon)
		}
	}
	e := Event{Type: signed, Request: id, Key: w.Key, Payload: w.payload}
	if err != nil {
		e.Type = failed
		f := failure.From(err)
		if f.Kind == failure.Unavailable || f.Kind == failure.Timeout || f.Kind == failure.Internal {
			e.Type = lost // the module may have signed
		}
		e.Reason = f.Kind.String()
	} else {
		e.Signature = hashOf(signature)
	}
	logged := b.do(ctx, func(d *decision) error {
		delete(b.live, id)
		now := d.Requests[id]
		if now == nil || now.State != brokerapi.Signing || now.Intent != w.intent { // it was taken for lost
			if err == nil {
				err = failure.New(failure.Unavailable, "the signature of request %s is not released: it was taken for lost", id).
					WithHint("try again").WithRetryAfter(soon)
			}
			return nil
		}
		if _, is := d.Blocked[w.Key]; is && err == nil { // it was blocked while the module signed: nothing is released
			err = d.checkKey(w)
			e.Type, e.Signature, e.Reason = lost, "", failure.Denied.String()
		}
		if err := d.event(e); err != nil {
			return err
		}
		switch now = d.Requests[id]; {
		case err == nil:
			d.release(id, signature)
		case now != nil: // the grant is as good as before
			d.finish(id, now.State, failure.From(err).What)
		case e.Type == lost:
			d.finish(id, brokerapi.Lost, failure.From(err).What)
		default:
			d.finish(id, brokerapi.Failed, failure.From(err).What)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if logged != nil { // the signature is not released
		b.group.Go(func() { b.lose(id) })
		return nil, logged
	}
	slog.InfoContext(ctx, "signed", "request", id, "key", w.Key, "rule", w.rule, "format", w.artifact.Format, "digest",
		w.Target.Digest, "repository", w.Repository, "issuer", w.caller.Issuer, "subject", w.caller.Subject, "trace_id",
		telemetry.Trace(ctx))
	return &brokerapi.Signature{Signature: signature, Algorithm: r.Algorithm, Artifact: *w.artifact, Request: id}, nil
}

// lose ends an intent whose outcome could not be logged, as soon as the store works again. If the broker ends before,
// the next start does so.
func (b *Broker) lose(id string) {
	for {
		err := b.do(b.running, func(d *decision) error {
			delete(b.live, id)
			return d.loseAll()
		})
		if err == nil {
			return
		}
		select {
		case <-time.After(time.Second):
		case <-b.running.Done():
			return
		}
	}
}

// release keeps a signature that is in the log. One request for several artifacts has several.
func (d *decision) release(id string, signature []byte) {
	index, now := d.Size-1, d.Requests[id]
	as, several := brokerapi.Signed, now != nil && (len(now.Targets) > 1 || now.Uses > 1)
	if now != nil {
		as = now.State
	}
	if several {
		d.documentOf(id, signature)
	}
	d.update(id, signature, func(r *row) {
		r.Request.State, r.Request.Reason = as, ""
		r.Entries = append(r.Entries, index)
	})
	if now != nil && now.Statement != "" {
		d.notify(NoticeSigned, id)
	}
}

// released returns a signature that was made before. Its SHA-256 is in the log.
func (b *Broker) released(ctx context.Context, id string, of *target, w *wish, r brokerapi.SignatureRequest) (
	*brokerapi.Signature, error) {
	row, err := b.options.Store.Request(ctx, id)
	if err != nil {
		return nil, err
	}
	signature := row.Signature
	if hashOf(signature) != of.Signature { // another artifact of the request was signed since
		signature, err = b.Document(ctx, of.Signature)
	}
	if err != nil {
		return nil, failure.New(failure.Internal, "the signature of request %s in the store is not the one of the log", id).
			WithHint("sign again, which makes another signing time and another signature")
	}
	return &brokerapi.Signature{Signature: signature, Algorithm: r.Algorithm, Artifact: *w.artifact, Request: id}, nil
}

// granted is what there is for a wish: a request that lets its requester have the signature, by a rule, or one that is
// being signed, or one that waits.
type granted struct {
	request, busy, waits *request
	by                   alternative
	retry                bool // it was signed a short while ago
}

// grant looks for a request for a wish. It fails with unprovenError for one whose approvals have to be verified first.
func (d *decision) grant(w *wish) (g granted, err error) {
	for _, id := range sortedIDs(d.bySubject[w.digest]) {
		r := d.Requests[id]
		if r.Bare || r.What != "" || r.Requester != d.b.requesterOf(w.caller, r.Same) {
			continue
		}
		rules := d.applying(r, w)
		if len(rules) == 0 {
			continue
		}
		t := r.of(w.digest)
		retry := t.retries(d.now)
		switch {
		case r.State == brokerapi.Signing && (t.Count < r.Uses || retry):
			return granted{busy: r}, nil
		case r.State == brokerapi.Signed && !retry, t.Count >= r.Uses && !retry, !retry && d.now.Unix() >= r.NotAfter:
			continue
		}
		chosen, lacking := d.allowed(r, retry)
		switch {
		case lacking != nil:
			if !retry && g.request == nil && r.open() {
				g.waits = r
			}
			continue
		case len(chosen) != 1 || !slices.Contains(rules, chosen[0].rule):
			continue
		}
		if !retry { // requests count towards the limit of a rule when they are signed: there can be more than it allows
			if err := d.checkLimit(w.Key, chosen[0].rule); err != nil {
				return g, err
			}
		}
		g = granted{request: r, by: chosen[0], retry: retry}
		if retry {
			break
		}
	}
	if r := g.request; r != nil {
		g.waits = nil
		if r.Statement != "" { // of this one alone: there can be several that are allowed
			if p := d.toProve(r, []alternative{g.by}); !p.same(w.proven) {
				return g, &unprovenError{p}
			}
		}
	}
	return g, nil
}

// waiting returns what callers are told of a request that waits.
func (d *decision) waiting(r *request) (*brokerapi.Request, error) {
	kept, err := d.kept(r.ID)
	if err != nil {
		return nil, err
	}
	var body row
	if err := json.Unmarshal(kept.Body, &body); err != nil {
		return nil, failure.New(failure.Internal, "cannot read request %s: %w", r.ID, err)
	}
	d.fill(r, &body)
	return &body.Request, nil
}

func sortedIDs(of map[string]*request) []string {
	ids := make([]string, 0, len(of))
	for id := range of {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
