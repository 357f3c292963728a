// Package web is the page of a team's broker for those who approve: what waits for them, everything that the broker
// knows of it, and their decisions, which they sign with a passkey in the browser. It is rendered on the server; the
// one script of it talks to the authenticator.
//
// The page can show something else than what is signed, if the broker's host is controlled by someone else. A signature
// by a key or an SSH key does not depend on it.
package web

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/session"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/repository"
)

// Broker is what the page shows and changes: broker.Broker, and a substitute in tests.
type Broker interface {
	Person(c identity.Caller) string
	Derive(purpose string) []byte
	Request(ctx context.Context, caller identity.Caller, id string) (*brokerapi.Request, error)
	Requests(ctx context.Context, caller identity.Caller, q broker.Query) (*brokerapi.Requests, error)
	Evidence(ctx context.Context, caller identity.Caller, id string) (*brokerapi.Evidence, error)
	Approve(ctx context.Context, caller identity.Caller, id string, envelope []byte) (*brokerapi.Request, error)
	Cancel(ctx context.Context, caller identity.Caller, id string) (*brokerapi.Request, error)
	Propose(ctx context.Context, caller identity.Caller, c broker.Change) (*brokerapi.Request, error)
	Approvers(ctx context.Context, after string, limit int) (*brokerapi.Approvers, error)
	Credential(ctx context.Context, id string) (*approval.Credential, string, error)
	CredentialsOf(ctx context.Context, person string) (map[string]*approval.Credential, error)
	Enrol(ctx context.Context, caller identity.Caller, person string, c approval.Credential, invitation string) (
		*brokerapi.Request, error)
	Invite(ctx context.Context, caller identity.Caller, person string) (string, time.Time, error)
	Invitation(ctx context.Context, token string) (string, error)
	Policy() *brokerapi.Policy
	Keys() []*policy.Key
	Blocked(key string) bool
}

// Options are what a page works with.
type Options struct {
	Broker   Broker
	Keys     broker.Keys
	Sessions *session.Sessions
	// Secret authenticates what the page gets back from browsers: 32 bytes with no other use, which replicas share; nil
	// for random ones.
	Secret []byte
	Uses   session.Uses // remembers challenges that were answered; nil for a memory of this process
	// RPID is the name that passkeys belong to: the host of PublicURL, or a domain above it. It never changes.
	RPID      string
	PublicURL string // of the broker, without a slash at its end; https
	// AttestationRoots are the manufacturers of authenticators whose attestations count; nil for none.
	AttestationRoots *x509.CertPool
	// Checkpoint returns the newest signed checkpoint of the log, nil if there is none.
	Checkpoint func(context.Context) ([]byte, error)
	// Details and Since ask the registry about an image, as repository.Registries do; nil without registries.
	Details func(ctx context.Context, repository, digest string) (*repository.Details, error)
	Since   func(ctx context.Context, repository, digest, previous string) (*repository.Changes, error)
	// OIDC is where people sign in beside their passkey; nil for nowhere.
	OIDC    *OIDC
	Version string
	Now     func() time.Time // nil for time.Now
}

// Web is a page that is served.
type Web struct {
	options  Options
	origin   string // of PublicURL
	handles  []byte // key of the names that authenticators keep
	attempts *session.Attempts
	counters counters
	company  company
	pages    pages
	parsed   atomic.Pointer[parsed]
}

// maxAttempts is how often one address may begin or finish something in a minute: a sign-in takes two.
const maxAttempts = 60

// maxUsed is the number of challenges that are remembered. Only owners of passkeys and invitations add to them.
const maxUsed = 20000

// New returns a page.
func New(o Options) *Web {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.OIDC != nil {
		client := *o.OIDC.Client
		client.Transport = shortAnswers{client.Transport}
		o.OIDC = &OIDC{Issuer: o.OIDC.Issuer, ClientID: o.OIDC.ClientID, Secret: o.OIDC.Secret, Client: &client}
	}
	if o.Secret == nil {
		o.Secret = session.NewKey()
	}
	if o.Uses == nil {
		o.Uses = session.NewMemory(maxUsed, o.Now)
	}
	w := &Web{options: o, origin: originOf(o.PublicURL), handles: o.Broker.Derive("page user handle"),
		attempts: session.NewAttempts(maxAttempts, time.Minute, o.Now), pages: readPages()}
	return w
}

// originOf returns the origin (RFC 6454) of a URL, without a default port.
func originOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	host := u.Host
	if u.Port() == "443" && u.Scheme == "https" {
		host = u.Hostname()
	}
	return u.Scheme + "://" + host
}

// Handler serves the page at / and below, but the API's paths.
func (w *Web) Handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, handler := range map[string]http.HandlerFunc{
		"GET /static/{file}":            w.static,
		"GET /favicon.ico":              w.favicon,
		"GET /signin":                   w.public(w.signInPage),
		"POST /signin/begin":            w.ceremony(w.beginSignIn),
		"POST /signin/finish":           w.ceremony(w.finishSignIn),
		"GET /enrol":                    w.public(w.enrolPage),
		"POST /enrol/begin":             w.ceremony(w.beginEnrol),
		"POST /enrol/finish":            w.ceremony(w.finishEnrol),
		"GET /enrol/done":               w.public(w.enrolledPage),
		"POST /signout":                 w.form(w.signOut),
		"GET /{$}":                      w.page(w.waiting),
		"GET /requests":                 w.page(w.history),
		"GET /requests/{id}":            w.page(w.request),
		"GET /requests/{id}/proof":      w.page(w.proof),
		"POST /requests/{id}/begin":     w.decision(w.beginDecision),
		"POST /requests/{id}/finish":    w.decision(w.finishDecision),
		"POST /requests/{id}/cancel":    w.form(w.cancel),
		"GET /keys":                     w.page(w.keys),
		"GET /keys/{key}/{change}":      w.page(w.confirmKey),
		"POST /keys/{key}/{change}":     w.form(w.changeKey),
		"GET /policy":                   w.page(w.policyPage),
		"GET /approvers":                w.page(w.approvers),
		"POST /approvers/{name}/invite": w.form(w.invite),
		"GET /credentials/{id}/remove":  w.page(w.confirmRemove),
		"POST /credentials/{id}/remove": w.form(w.removeCredential),
		"GET /log":                      w.page(w.log),
	} {
		mux.Handle(pattern, handler)
	}
	if w.options.OIDC != nil {
		mux.HandleFunc("GET "+companyPath, w.public(w.toCompany))
		mux.HandleFunc("GET "+callbackPath, w.fromCompany)
	}
	return w.guard(mux)
}

// parsed is a policy that was read, by its digest.
type parsed struct {
	digest string
	policy *policy.Policy
	people map[string]string // names by handle
}

// inForce returns the policy in force. It is read once for each policy.
func (w *Web) inForce() (*parsed, error) {
	current := w.options.Broker.Policy()
	if known := w.parsed.Load(); known != nil && known.digest == current.SHA256 {
		return known, nil
	}
	read, err := policy.Parse([]byte(current.Policy))
	if err != nil {
		return nil, failure.New(failure.Internal, "cannot read the policy in force: %w", err)
	}
	now := &parsed{digest: current.SHA256, policy: read, people: map[string]string{}}
	for _, name := range namesIn(read) {
		now.people[string(w.handleOf(name))] = name
	}
	w.parsed.Store(now)
	return now, nil
}

// namesIn returns the names of the people whom a rule of a policy names.
func namesIn(p *policy.Policy) (names []string) {
	add := func(rules []*policy.Rule) {
		for _, r := range rules {
			for _, a := range r.Approvals {
				for _, m := range a.Members {
					names = append(names, m.Name)
				}
			}
		}
	}
	add(p.Rules(policy.Modify, ""))
	for _, k := range p.Keys() {
		for _, action := range policy.Actions {
			add(p.Rules(action, k.Name))
		}
	}
	return names
}

// handleOf returns the name by which authenticators know a person: 32 bytes that tell nobody who it is.
func (w *Web) handleOf(person string) []byte {
	h := hmac.New(sha256.New, w.handles)
	h.Write([]byte(person))
	return h.Sum(nil)
}

// callerOf returns the caller that a person is on the page.
func callerOf(person string) identity.Caller {
	return identity.Caller{Issuer: identity.IssuerApprover, Subject: person}
}
