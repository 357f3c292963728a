package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// Bounds of logins.
const (
	loginTime     = 2 * time.Minute // how far the clock of a person may be from the broker's
	maxLogins     = 10000           // login documents that are remembered, for as long as they are valid
	loginAttempts = 60              // per minute from one address, and to propose credentials
)

// postSession signs a person in by a login document, which they signed with a key in a module or an SSH key.
func (a *API) postSession(r *http.Request) (*brokerapi.Session, int, error) {
	if err := a.attempt(r); err != nil {
		return nil, 0, err
	}
	var body brokerapi.Login
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, 0, err
	}
	envelope, login, err := readLogin(body.Envelope, body.Kind, body.Public)
	if err != nil {
		return nil, 0, err
	}
	credential, person, err := a.options.Broker.Enrolled(r.Context(), approval.Kind(body.Kind), body.Public)
	if failure.Is(err, failure.NotFound) {
		err = failure.New(failure.Denied, "cannot sign in: the key is not enrolled").
			WithHint("enrol it with 'hsm-broker approver add', or sign in with another key")
	}
	if err == nil {
		err = a.useLogin(r.Context(), envelope, login)
	}
	if err != nil {
		return nil, 0, err
	}
	token, expires := a.sessions.Issue(person, credential)
	slog.Info("signed in", append([]any{"person", person, "credential", credential},
		httpapi.Attributes(r.Context())...)...)
	return &brokerapi.Session{Token: token, Person: person, Expires: expires}, http.StatusCreated, nil
}

// attempt counts a request with a login document. It fails with Throttled when there are too many from its address.
func (a *API) attempt(r *http.Request) error {
	if a.attempts.Allow(r.RemoteAddr) {
		return nil
	}
	return failure.New(failure.Throttled, "there are too many logins from this address").WithHint("try again in a minute")
}

// readLogin reads a login document in its envelope, as a key has signed it. It fails with Invalid for what is none, and
// with Denied if the key has not signed it.
func readLogin(message []byte, kind string, public []byte) (*approval.Envelope, *approval.Login, error) {
	err := approval.CheckPublic(approval.Kind(kind), public)
	if approval.Kind(kind) == approval.Passkey {
		err = errors.New("passkeys are for the page")
	}
	if err != nil {
		return nil, nil, failure.New(failure.Invalid, "cannot read the public key: %w", err).
			WithHint("see the description of the API")
	}
	envelope, err := approval.DecodeEnvelope(message)
	if err != nil {
		return nil, nil, err
	}
	login, err := envelope.VerifyPossession(approval.Kind(kind), public)
	return envelope, login, err
}

// useLogin takes a login document whose signature has verified. It fails with Denied for one of another broker, of
// another time, and for one that was used before.
func (a *API) useLogin(ctx context.Context, envelope *approval.Envelope, login *approval.Login) error {
	now := a.now()
	switch skew := now.Sub(login.Time).Abs(); {
	case login.Broker != a.options.PublicURL:
		return failure.New(failure.Denied, "cannot accept the login: it is for the broker %.200q", login.Broker).
			WithHint("sign in to " + a.options.PublicURL)
	case skew > loginTime:
		return failure.New(failure.Denied, "cannot accept the login: its time is %s from the broker's clock",
			skew.Round(time.Second)).WithHint("set the clock of your computer, and sign in again")
	}
	first, err := a.options.Uses.Once(ctx, sha256.Sum256(envelope.Approval), login.Time.Add(loginTime))
	if err == nil && !first {
		err = failure.New(failure.Denied, "cannot accept the login: it was used before").WithHint("sign in again")
	}
	return err
}

// sessionPrefix begins the bearer tokens that are sessions. No JWT begins so.
const sessionPrefix = "hsm-session."

// caller returns who made a request: who has signed in, or whom identity.Authenticator finds.
func (a *API) caller(r *http.Request) (identity.Caller, error) {
	token, found := sessionToken(r)
	if !found {
		return a.options.Identity.Caller(r)
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return identity.Caller{}, failure.New(failure.Denied, "cannot authenticate caller: the request has a session and a "+
			"client certificate").WithHint("send one of them")
	}
	session, err := a.sessions.Read(r.Context(), token)
	if err != nil {
		return identity.Caller{}, err
	}
	_, person, err := a.options.Broker.Credential(r.Context(), session.Credential)
	if failure.Is(err, failure.NotFound) || err == nil && person != session.Person {
		return identity.Caller{}, failure.New(failure.Denied, "cannot accept the session: its credential is not enrolled "+
			"any more").WithHint("sign in with another credential")
	}
	if err != nil {
		return identity.Caller{}, err
	}
	return identity.Approver(session.Person), nil
}

// sessionToken returns the token of the session that a request has, if it has one.
func sessionToken(r *http.Request) (string, bool) {
	authorization := r.Header.Values("Authorization")
	if len(authorization) != 1 {
		return "", false
	}
	scheme, token, _ := strings.Cut(authorization[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	return strings.CutPrefix(token, sessionPrefix)
}
