package proof

import (
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
)

// found is what the entries of a bundle say of a signature.
type found struct {
	request event
	intent  event
	signed  event
	agreed  []decision // approvals that stood when the module was asked to sign
}

// retryWindow is how long after a signature the broker signs the same artifact again for the same use.
const retryWindow = 15 * time.Minute

// replay follows the request from its entry to that of the signature. It fails if the log does not have the signature,
// or if what it has before forbids it.
func (v *verification) replay() error {
	r := &replay{verification: v, uses: map[string]time.Time{}}
	for i, e := range v.events {
		if (i == 0) != (e.Type == entry.Requested) {
			return v.refuse("the first of its entries is not the only request")
		}
		if done, err := r.apply(e); done || err != nil {
			return err
		}
	}
	return v.denied("the log does not have this signature in request %.80q", v.statement.Predicate.Request).
		WithHint("attach the bundle of this very signature")
}

// replay is the state of a request between two entries.
type replay struct {
	*verification

	agreed []decision           // approvals that stand
	intent *event               // that has no outcome yet
	before []decision           // agreed, when the intent was logged
	uses   map[string]time.Time // when an artifact was first signed for its newest use, by digest
}

// apply takes an entry into account. It reports whether it is that of the signature.
func (r *replay) apply(e event) (done bool, err error) {
	switch e.Type {
	case entry.Requested:
		return false, r.request(e)
	case entry.Approved:
		one, exists := r.decisions[e.index]
		if !exists {
			one = decision{event: e, missing: true}
		}
		r.agreed = append(r.agreed, one)
	case entry.Withdrawn:
		r.agreed = slices.DeleteFunc(slices.Clone(r.agreed), func(d decision) bool { return d.Approver == e.Approver })
	case entry.Rejected:
		return false, r.denied("the request was rejected before the signature").WithHint("do not use the image")
	case entry.Ended:
		return false, r.denied("the request had ended before the signature: it was %.40q", e.State).
			WithHint("do not use the image")
	case entry.Intended:
		r.intent, r.before = &e, r.agreed
	case entry.Signed:
		intent := r.intent
		r.intent = nil
		if intent == nil || intent.Payload != e.Payload {
			return false, r.refuse("entry %d of the log is a signature without its intent", e.index)
		}
		if e.Payload == r.wanted.Payload && e.Signature == r.wanted.Signature {
			return true, r.signed(*intent, e)
		}
		if _, first := r.uses[intent.Digest]; !first || !intent.Retry {
			r.uses[intent.Digest] = e.At()
		}
	case entry.Failed, entry.Lost:
		r.intent = nil
	default:
		return false, r.refuse("entry %d of the log is of the type %.40q", e.index, e.Type)
	}
	return false, nil
}

// request checks the entry of the request.
func (r *replay) request(e event) error {
	p := &r.statement.Predicate
	if e.Statement != r.digest || e.What != "" || e.Key != p.Key.Name || e.Leaf != p.Key.Leaf {
		return r.refuse("the request in the log is another than the statement's")
	}
	r.found.request = e
	return nil
}

// signed checks the entries of the signature.
func (r *replay) signed(intent, e event) error {
	first, again := r.uses[intent.Digest]
	switch p := &r.statement.Predicate; {
	case intent.Digest != r.wanted.Digest || intent.Leaf != r.wanted.Leaf || intent.Key != p.Key.Name ||
		intent.Statement != r.digest:
		return r.refuse("the intent in the log is another than the statement's")
	case !intent.Retry && intent.At().Unix() >= p.NotAfter:
		return r.denied("it was signed at %s, when the approvals had expired", intent.Time).WithHint("do not use the image")
	case intent.Retry && (!again || intent.At().Sub(first) > retryWindow):
		return r.denied("it was signed again at %s, without a signature shortly before", intent.Time).
			WithHint("do not use the image")
	}
	r.found.intent, r.found.signed, r.found.agreed = intent, e, r.before
	return nil
}
