package web

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// OIDC is the provider of a company, at which people sign in beside their passkey. A person is known there by an
// identity that people of the policy lists: the issuer and the subject.
type OIDC struct {
	Issuer   string
	ClientID string
	// Secret returns the client's secret; nil for a public client.
	Secret func(context.Context) (string, error)
	Client *http.Client // that reaches the provider, with a transport and a timeout
}

const (
	companyPath  = "/signin/company"  // where the browser goes on to the provider
	callbackPath = "/signin/callback" // where it comes back
	ticketCookie = "__Host-signin"
	ticketTime   = 5 * time.Minute // to sign in at the provider
	forTicket    = "ticket"
)

// company is the provider, once it was found.
type company struct {
	mu       sync.Mutex
	provider *oidc.Provider
	failed   error     // why it was not found
	at       time.Time // when that was
}

// again is how long nobody looks for a provider that was not found, so that those who wait do not wait in turns.
const again = 5 * time.Second

// maxAnswer is the number of bytes that are read of an answer of the provider.
const maxAnswer = 1 << 20

// shortAnswers is a transport whose answers are cut after maxAnswer bytes.
type shortAnswers struct{ http.RoundTripper }

// RoundTrip sends a request.
func (s shortAnswers) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := s.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, maxAnswer), answer.Body}
	}
	return answer, err
}

// ticket says who has signed in with a passkey, and has to sign in at the provider still.
type ticket struct {
	Person     string `json:"person"`
	Credential string `json:"credential"`
	Next       string `json:"next"`
	Random     string `json:"random"` // of which state, nonce and verifier are made
}

// part returns a secret of a ticket for one purpose, which its cookie does not tell.
func (w *Web) part(t *ticket, purpose string) string {
	h := hmac.New(sha256.New, w.options.Secret)
	h.Write([]byte("company " + purpose + "\x00" + t.Random))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// setTicket has the browser keep a ticket. Browsers send its cookie when the provider leads back, which they do not
// with that of a session.
func (w *Web) setTicket(out http.ResponseWriter, person, credential, next string) error {
	data, err := json.Marshal(ticket{person, credential, next, rand.Text()})
	if err != nil {
		return err
	}
	value := base64.RawURLEncoding.EncodeToString(data) + "." + w.seal(forTicket, "", data, ticketTime)
	http.SetCookie(out, &http.Cookie{Name: ticketCookie, Value: value, Path: "/", MaxAge: int(ticketTime / time.Second),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	return nil
}

// readTicket returns the ticket of a request, and when it expires.
func (w *Web) readTicket(r *http.Request) (*ticket, time.Time, error) {
	late := unauthorized("the sign-in took too long, or was begun elsewhere")
	set, err := r.Cookie(ticketCookie)
	if err != nil {
		return nil, time.Time{}, late
	}
	encoded, seal, _ := strings.Cut(set.Value, ".")
	data, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return nil, time.Time{}, late
	}
	until, err := w.unseal(seal, forTicket, "", data)
	if err != nil {
		return nil, time.Time{}, late
	}
	t := &ticket{}
	return t, until, json.Unmarshal(data, t)
}

// client returns the provider and this broker as its client. It asks the provider where everything is, until it has
// answered once.
func (w *Web) client(ctx context.Context) (*oidc.Provider, *oauth2.Config, error) {
	w.company.mu.Lock()
	defer w.company.mu.Unlock()
	o := w.options.OIDC
	if w.company.provider == nil {
		now := w.options.Now()
		if since := now.Sub(w.company.at); w.company.failed != nil && since >= 0 && since < again {
			return nil, nil, w.company.failed
		}
		// The provider fetches keys with this context later.
		found, err := oidc.NewProvider(oidc.ClientContext(context.Background(), o.Client), o.Issuer)
		if err != nil {
			w.company.failed, w.company.at = unavailable(err), w.options.Now()
			return nil, nil, w.company.failed
		}
		w.company.provider = found
	}
	c := &oauth2.Config{ClientID: o.ClientID, Endpoint: w.company.provider.Endpoint(), Scopes: []string{oidc.ScopeOpenID},
		RedirectURL: w.options.PublicURL + callbackPath}
	if o.Secret != nil {
		var err error
		if c.ClientSecret, err = o.Secret(ctx); err != nil {
			return nil, nil, err
		}
	}
	return w.company.provider, c, nil
}

func unavailable(err error) error {
	return failure.New(failure.Unavailable, "the company's sign-in does not answer: %w", err).
		WithHint("try again later, or tell the operator of the broker")
}

// toCompany leads the browser to the provider.
func (w *Web) toCompany(r *http.Request) (*view, error) {
	t, _, err := w.readTicket(r)
	if err != nil {
		return nil, err
	}
	_, client, err := w.client(r.Context())
	if err != nil {
		return nil, err
	}
	return &view{Location: client.AuthCodeURL(w.part(t, "state"), oidc.Nonce(w.part(t, "nonce")),
		oauth2.S256ChallengeOption(w.part(t, "verifier")))}, nil
}

// fromCompany begins the session of a person who has signed in with a passkey, and at the provider as the same person.
func (w *Web) fromCompany(out http.ResponseWriter, r *http.Request) {
	err := w.attempt(r)
	var t *ticket
	if err == nil {
		t, err = w.finishCompany(r)
	}
	if err != nil {
		w.fail(out, r, err)
		return
	}
	http.SetCookie(out, &http.Cookie{Name: ticketCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true,
		SameSite: http.SameSiteLaxMode})
	w.setSession(out, t.Person, t.Credential)
	slog.Info("signed in", "person", t.Person, "credential", t.Credential, "issuer", w.options.OIDC.Issuer)
	next := local(t.Next)
	// The provider has led here, so browsers send the session's cookie with no redirect, but from this page they do.
	out.Header().Set("Refresh", "0; url="+next)
	w.answer(out, r, nil, &view{Template: "signed-in", Title: "You have signed in", Data: next}, nil)
}

// finishCompany verifies what the provider says.
func (w *Web) finishCompany(r *http.Request) (*ticket, error) {
	t, until, err := w.readTicket(r)
	if err != nil {
		return nil, err
	}
	values := r.URL.Query()
	refuse := func(format string, args ...any) error {
		return failure.New(failure.Denied, "cannot accept the company's sign-in: "+format, args...).
			WithHint("sign in again, from the start")
	}
	switch {
	case subtle.ConstantTimeCompare([]byte(values.Get("state")), []byte(w.part(t, "state"))) != 1:
		return nil, refuse("it was not begun here")
	case values.Get("error") != "":
		return nil, refuse("it says %q", visible(values.Get("error")))
	}
	provider, client, err := w.client(r.Context())
	if err != nil {
		return nil, err
	}
	ctx := oidc.ClientContext(r.Context(), w.options.OIDC.Client)
	answer, err := client.Exchange(ctx, values.Get("code"), oauth2.VerifierOption(w.part(t, "verifier")))
	if err != nil {
		slog.Warn("the company's sign-in has refused a code", "error", err)
		return nil, refuse("it does not confirm it")
	}
	raw, _ := answer.Extra("id_token").(string)
	token, err := provider.Verifier(&oidc.Config{ClientID: w.options.OIDC.ClientID, Now: w.options.Now}).Verify(ctx, raw)
	if err != nil {
		return nil, refuse("%w", err)
	}
	if subtle.ConstantTimeCompare([]byte(token.Nonce), []byte(w.part(t, "nonce"))) != 1 {
		return nil, refuse("its token is of another sign-in")
	}
	if w.options.Broker.Person(identity.Caller{Issuer: token.Issuer, Subject: token.Subject}) != t.Person {
		return nil, failure.New(failure.Denied, "the company knows you as %q, and the policy does not have that as %s",
			visible(token.Subject), t.Person).WithHint("have the identity added to people in the policy")
	}
	return t, w.once(r.Context(), []byte("ticket "+t.Random), until)
}

// nextOf returns where a person goes on after signing in with a passkey: to the provider, if the company has one.
func (w *Web) nextOf(out http.ResponseWriter, person, credential, next string) (*going, error) {
	if w.options.OIDC == nil {
		w.setSession(out, person, credential)
		slog.Info("signed in", "person", person, "credential", credential)
		return &going{local(next)}, nil
	}
	return &going{companyPath}, w.setTicket(out, person, credential, local(next))
}
