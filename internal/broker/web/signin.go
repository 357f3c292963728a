package web

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"net/http"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

// question is what the script asks an authenticator, with what the broker wants to see again.
type question struct {
	Document []byte `json:"document"` // whose SHA-256 is the challenge
	Seal     string `json:"seal"`
	Person   string `json:"person,omitempty"` // whose invitation it is
	Options  any    `json:"options"`          // publicKey of navigator.credentials, bytes in base64
}

// getOptions are the options of navigator.credentials.get.
type getOptions struct {
	Challenge        []byte       `json:"challenge"`
	RPID             string       `json:"rpId"`
	AllowCredentials []descriptor `json:"allowCredentials,omitempty"`
	UserVerification string       `json:"userVerification"`
	Timeout          int64        `json:"timeout"` // milliseconds
}

// descriptor names a passkey.
type descriptor struct {
	Type string `json:"type"`
	ID   []byte `json:"id"`
}

// assertion is what an authenticator answers.
type assertion struct {
	ID                []byte `json:"id"`
	UserHandle        []byte `json:"user_handle,omitempty"`
	AuthenticatorData []byte `json:"authenticator_data"`
	ClientData        []byte `json:"client_data"`
	Signature         []byte `json:"signature"`
}

// answered is a question with the answer of an authenticator.
type answered struct {
	Document  []byte    `json:"document"`
	Seal      string    `json:"seal"`
	Assertion assertion `json:"assertion"`
	Next      string    `json:"next,omitempty"` // where the person wanted to go
}

// going is where the script goes on.
type going struct {
	Location string `json:"location"`
}

// required is the demand for user verification or a discoverable credential.
const required = "required"

func (w *Web) signInPage(r *http.Request) (*view, error) {
	return &view{Template: "signin", Title: "Sign in", Data: struct{ Next, Done string }{
		local(r.URL.Query().Get("next")), done(r)}}, nil
}

// beginSignIn asks for any passkey of this broker.
func (w *Web) beginSignIn(_ http.ResponseWriter, r *http.Request) (any, error) {
	var none struct{}
	if err := httpapi.ReadJSON(r, &none); err != nil {
		return nil, err
	}
	login := approval.Login{Broker: w.options.PublicURL, Time: w.options.Now()}
	_, _ = rand.Read(login.Random[:]) // never fails
	document, err := login.Encode()
	if err != nil {
		return nil, err
	}
	challenge := sha256.Sum256(document)
	return &question{Document: document, Seal: w.seal(forSignIn, "", document, signInTime),
		Options: getOptions{Challenge: challenge[:], RPID: w.options.RPID, UserVerification: required,
			Timeout: signInTime.Milliseconds()}}, nil
}

// finishSignIn begins a session of the person whose passkey has signed the challenge.
func (w *Web) finishSignIn(out http.ResponseWriter, r *http.Request) (any, error) {
	var body answered
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, err
	}
	until, err := w.unseal(body.Seal, forSignIn, "", body.Document)
	if err != nil {
		return nil, err
	}
	person, id, err := w.verifySignIn(r.Context(), body.Document, &body.Assertion)
	if err != nil {
		return nil, err
	}
	if err := w.once(r.Context(), body.Document, until); err != nil {
		return nil, err
	}
	return w.nextOf(out, person, id, body.Next)
}

// verifySignIn returns whose passkey has signed a login document, and the name of that credential.
func (w *Web) verifySignIn(ctx context.Context, document []byte, a *assertion) (person, id string, err error) {
	unknown := failure.New(failure.Denied, "the broker does not know this passkey").
		WithHint("use the passkey that you enrolled here; if it was removed or lost, ask for an invitation to enrol another")
	current, err := w.inForce()
	if err != nil {
		return "", "", err
	}
	person = current.people[string(a.UserHandle)]
	if person == "" || w.options.Broker.Person(callerOf(person)) != person {
		return "", "", unknown
	}
	id, credential, err := w.passkey(ctx, person, a.ID)
	if err != nil {
		return "", "", err
	}
	if credential == nil {
		return "", "", unknown
	}
	envelope := a.envelope(document, id)
	login, err := envelope.VerifyLogin(credential)
	if err != nil {
		return "", "", refusedAnswer(err)
	}
	if login.Broker != w.options.PublicURL {
		return "", "", unknown
	}
	return person, id, w.counters.check(id, a.AuthenticatorData)
}

// passkey returns the passkey of a person with a credential ID, and nil if there is none.
func (w *Web) passkey(ctx context.Context, person string, raw []byte) (string, *approval.Credential, error) {
	all, err := w.options.Broker.CredentialsOf(ctx, person)
	if err != nil {
		return "", nil, err
	}
	for id, c := range all {
		if c.Kind == approval.Passkey && c.Passkey != nil && bytes.Equal(c.Passkey.ID, raw) {
			return id, c, nil
		}
	}
	return "", nil, nil
}

// envelope returns a document with the answer of an authenticator as its signature.
func (a *assertion) envelope(document []byte, credential string) *approval.Envelope {
	return &approval.Envelope{Approval: document, AuthenticatorData: a.AuthenticatorData, ClientData: a.ClientData,
		Credential: credential, Signature: a.Signature}
}

func refusedAnswer(err error) error {
	return failure.New(failure.Denied, "the answer of the authenticator does not verify: %w", err).
		WithHint("load the page again, and use the passkey that you enrolled here, with its PIN or fingerprint")
}

// counters are the signature counters of passkeys, as this process has seen them last. Each replica has its own: they
// only grow, so that none is refused that is right, and a copy of a passkey is found where both are used.
type counters struct {
	mu   sync.Mutex
	seen map[string]uint32 // by credential
}

// check fails with Denied when a counter went back: somebody else has a copy of the passkey. Passkeys that can be
// copied on purpose have none, and say 0.
func (c *counters) check(credential string, authenticatorData []byte) error {
	const at = 33 // after the hash of the RP ID, and the flags
	if len(authenticatorData) < at+4 {
		return refusedAnswer(failure.New(failure.Invalid, "it is too short"))
	}
	now := binary.BigEndian.Uint32(authenticatorData[at:])
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.seen[credential]
	if (now > 0 || before > 0) && now <= before {
		slog.Warn("the signature counter of a passkey went back: it may have been copied", "credential", credential,
			"before", before, "now", now)
		return failure.New(failure.Denied, "the signature counter of the passkey went back: somebody may have a copy of it").
			WithHint("have the passkey removed, and enrol another")
	}
	if c.seen == nil {
		c.seen = map[string]uint32{}
	}
	c.seen[credential] = now
	return nil
}
