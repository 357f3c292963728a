package web

import (
	"crypto/rand"
	"crypto/sha256"
	"net/http"
	"slices"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

// maxReason is the length of the longest reason, in bytes.
const maxReason = 1000

// deciding is what a person wants to sign.
type deciding struct {
	Decision approval.Decision `json:"decision"`
	Reason   string            `json:"reason"`
	// Statement is the one that the page has shown.
	Statement string `json:"statement"`
}

// beginDecision returns the approval that a person signs, and its SHA-256 as the challenge.
func (w *Web) beginDecision(r *http.Request, p *who) (any, error) {
	var body deciding
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, err
	}
	if err := body.check(); err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	evidence, err := w.options.Broker.Evidence(r.Context(), p.caller(), id)
	if err != nil {
		return nil, err
	}
	if evidence.You == "" {
		return nil, failure.New(failure.Denied, "you are not an approver of the request %.40q", id).
			WithHint("leave it to those whom the page lists")
	}
	if statement := approval.Hash(evidence.Statement); statement != body.Statement {
		return nil, failure.New(failure.Conflict, "the request is not the one that the page has shown").
			WithHint("load the page again")
	}
	all, err := w.options.Broker.CredentialsOf(r.Context(), p.Person)
	if err != nil {
		return nil, err
	}
	rules, err := rulesOf(evidence)
	if err != nil {
		return nil, err
	}
	allowed := passkeysOf(listed(rules, all))
	if len(allowed) == 0 {
		return nil, failure.New(failure.Denied, "you had no passkey when the request was made").
			WithHint("approve by the command that the page shows")
	}
	a := approval.Approval{Approver: evidence.You, Decision: body.Decision, Reason: body.Reason, Statement: body.Statement,
		Time: w.options.Now()}
	_, _ = rand.Read(a.Random[:]) // never fails
	document, err := a.Encode()
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot encode the approval: %w", err).WithHint("write a plainer reason")
	}
	challenge := sha256.Sum256(document)
	return &question{Document: document, Seal: w.seal(forDecision, p.token+" "+id, document, decideTime),
		Options: getOptions{Challenge: challenge[:], RPID: w.options.RPID, UserVerification: required,
			Timeout: decideTime.Milliseconds(), AllowCredentials: allowed}}, nil
}

func (d *deciding) check() error {
	switch {
	case d.Decision != approval.Approve && d.Decision != approval.Reject && d.Decision != approval.Withdraw:
		return failure.New(failure.Invalid, "there is no decision %.20q", d.Decision).WithHint("approve, reject or withdraw")
	case len(d.Reason) > maxReason || !utf8.ValidString(d.Reason):
		return failure.New(failure.Invalid, "the reason is longer than %d bytes", maxReason).WithHint("write a shorter one")
	case d.Decision == approval.Reject && d.Reason == "":
		return failure.New(failure.Invalid, "a rejection has no reason").WithHint("write why, for those who asked")
	}
	return nil
}

// passkeysOf returns the passkeys among credentials, in the order of their IDs.
func passkeysOf(all map[string]*approval.Credential) (found []descriptor) {
	for _, c := range all {
		if c.Kind == approval.Passkey && c.Passkey != nil {
			found = append(found, descriptor{"public-key", c.Passkey.ID})
		}
	}
	slices.SortFunc(found, func(a, b descriptor) int { return slices.Compare(a.ID, b.ID) })
	return found
}

// finishDecision hands a signed approval to the broker.
func (w *Web) finishDecision(r *http.Request, p *who) (any, error) {
	var body answered
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, err
	}
	id := r.PathValue("id")
	until, err := w.unseal(body.Seal, forDecision, p.token+" "+id, body.Document)
	if err != nil {
		return nil, err
	}
	signed, err := approval.Decode(body.Document)
	if err != nil {
		return nil, err
	}
	credential, found, err := w.passkey(r.Context(), p.Person, body.Assertion.ID)
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, failure.New(failure.Denied, "the passkey is not one of yours").WithHint("use one that you enrolled here")
	}
	envelope := body.Assertion.envelope(body.Document, credential)
	if _, err := envelope.Verify(found); err != nil {
		return nil, refusedAnswer(err)
	}
	if err := w.counters.check(credential, body.Assertion.AuthenticatorData); err != nil {
		return nil, err
	}
	if err := w.once(r.Context(), body.Document, until); err != nil {
		return nil, err
	}
	data, err := envelope.Encode()
	if err != nil {
		return nil, err
	}
	if _, err := w.options.Broker.Approve(r.Context(), p.caller(), id, data); err != nil {
		return nil, err
	}
	return &going{brokerapi.PagePath(id) + "?done=" + string(signed.Decision)}, nil
}
