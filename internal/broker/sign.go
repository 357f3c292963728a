package broker

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/payload"
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
	for {
		outcome, again, err := b.signOnce(ctx, w, r)
		if err != nil || again == "" {
			return outcome, err
		}
		if _, err := b.waitUntilSettled(ctx, again); err != nil { // the same bytes are being signed
			return nil, err
		}
	}
}

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
	var found, released *request
	var created *brokerapi.Request
	err = b.do(ctx, func(d *decision) error {
		found, released, again, created = nil, nil, "", nil
		var err error
		switch same := d.byPayload[b.callerOf(w.caller)+w.payload]; {
		case same != nil && same.Key == w.Key && same.State == brokerapi.Signed && same.Signature != "":
			released = same
			return nil
		case same != nil && same.Key == w.Key && same.State == brokerapi.Signing:
			again = same.ID
			return nil
		}
		_, span := telemetry.Start(d.ctx, "policy")
		found, created, err = d.allow(w)
		span.Set("rule", w.rule)
		span.End(kindOf(err))
		return err
	})
	switch {
	case err != nil || again != "":
		return nil, again, err
	case released != nil:
		s, err := b.released(ctx, released, w, r)
		return &Outcome{Signature: s}, "", err
	case found == nil:
		return &Outcome{Request: created}, "", nil
	}
	s, err := b.fulfil(ctx, found.ID, w, r)
	return &Outcome{Signature: s}, "", err
}

// allow decides about a wish. It returns the request whose intent to sign it logged, or the request that waits.
func (d *decision) allow(w *wish) (*request, *brokerapi.Request, error) {
	if err := d.check(); err != nil {
		return nil, nil, err
	}
	if err := d.checkKey(w); err != nil {
		return nil, nil, err
	}
	e := Event{Type: intended, Key: w.Key, Payload: w.payload, Statement: w.digest, Leaf: w.Leaf,
		Format: string(w.Target.Format), Digest: w.Target.Digest, Caller: d.b.callerOf(w.caller),
		Repository: w.Repository, Policy: d.b.inForce.Load().digest}
	grant, waits := d.grant(w)
	if waits != nil {
		body, err := d.waiting(waits)
		return nil, body, err
	}
	if err := d.spend(w.caller, &e); err != nil {
		return nil, nil, err
	}
	if grant != nil {
		// Requests count towards the limit of a rule when they are signed: there can be more of them than it allows.
		current, err := d.current(grant)
		if err == nil && grant.First.IsZero() {
			err = d.checkLimit(w.Key, current)
		}
		if err != nil {
			return nil, nil, err
		}
		e.Request, e.Rule, e.RuleDigest, e.Requester = grant.ID, grant.Rule, grant.RuleDigest, grant.Requester
		e.Retry = !grant.First.IsZero()
		return grant, nil, d.intend(&e, w, nil)
	}
	rule, err := d.choose(w)
	if err != nil {
		return nil, nil, err
	}
	e.Rule, e.RuleDigest, e.Same = rule.Name, ruleDigest(rule.Rule), rule.Same
	e.Requester = d.b.requesterOf(w.caller, rule.Same)
	e.Request = newID(d.now)
	if rule.waits() {
		body, err := d.create(&e, w, rule)
		return nil, body, err
	}
	body := w.body(e.Request, d.now)
	body.Rule, body.State = rule.Name, brokerapi.Signing
	if err := d.intend(&e, w, body); err != nil {
		return nil, nil, err
	}
	return d.Requests[e.Request], nil, nil
}

// intend logs an intent, with the row of a request that is new.
func (d *decision) intend(e *Event, w *wish, body *brokerapi.Request) error {
	if err := d.event(*e); err != nil {
		return err
	}
	d.b.live[e.Request] = true
	w.rule = e.Rule
	if body != nil {
		d.insert(body, w.caller, e.Requester)
	}
	return nil
}

// fulfil has the module sign for an intent that is durable, and logs the outcome. A caller that leaves does not end it.
func (b *Broker) fulfil(ctx context.Context, id string, w *wish, r brokerapi.SignatureRequest) (
	*brokerapi.Signature, error) {
	ctx = context.WithValue(context.WithoutCancel(ctx), finishing{}, true)
	began := time.Now()
	using, span := telemetry.Start(ctx, "module")
	span.Set("key", w.Key)
	signature, err := b.options.Keys.Sign(using, w.Key, r.Payload, r.Algorithm)
	span.End(kindOf(err))
	b.metrics.signed(w.Key, time.Since(began), err)
	if err == nil { // it is not known which of two keys has signed
		if changed := b.sameKey(w); changed != nil {
			err = failure.New(failure.Unavailable, "the policy has changed the key %q meanwhile", w.Key).WithHint("try again")
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
		if err := d.event(e); err != nil {
			return err
		}
		switch now := d.Requests[id]; {
		case err == nil:
			index := d.Size - 1
			d.update(id, signature, func(r *row) {
				r.Request.State, r.Request.Reason = brokerapi.Signed, ""
				r.Entries = append(r.Entries, index)
			})
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

// released returns a signature that was made before. Its SHA-256 is in the log.
func (b *Broker) released(ctx context.Context, of *request, w *wish, r brokerapi.SignatureRequest) (
	*brokerapi.Signature, error) {
	row, err := b.options.Store.Request(ctx, of.ID)
	if err != nil {
		return nil, err
	}
	if hashOf(row.Signature) != of.Signature {
		return nil, failure.New(failure.Internal, "the signature of request %s in the store is not the one of the log", of.ID).
			WithHint("sign again, which makes another signing time and another signature")
	}
	return &brokerapi.Signature{Signature: row.Signature, Algorithm: r.Algorithm, Artifact: *w.artifact,
		Request: of.ID}, nil
}

// grant returns a request that lets its requester have the signature: one that is approved, or one that was signed a
// short while ago; or else one that waits for people or a time.
func (d *decision) grant(w *wish) (best, waits *request) {
	for _, id := range sortedIDs(d.byStatement[w.digest]) {
		r := d.Requests[id]
		if r.Bare || r.What != "" || r.Requester != d.b.requesterOf(w.caller, r.Same) {
			continue
		}
		if d.applies(r, w) != nil {
			continue
		}
		switch {
		case r.State == brokerapi.Signed && d.now.Sub(r.First) <= retryWindow:
			return r, nil
		case r.State == brokerapi.Approved && (r.NotAfter == 0 || d.now.Unix() < r.NotAfter):
			best = r
		case r.State == brokerapi.Pending && (r.NotAfter == 0 || d.now.Unix() < r.NotAfter):
			if len(d.needs(r)) == 0 && d.timeLock(r) == nil {
				best = r
			} else {
				waits = r
			}
		}
	}
	if best != nil {
		return best, nil
	}
	return nil, waits
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
	if err := d.timeLock(r); len(d.needs(r)) == 0 && err != nil {
		body.Request.Reason = failure.From(err).What
	}
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
