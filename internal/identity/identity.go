// Package identity authenticates the callers of a broker: by an OIDC token of a CI system, by a client certificate, or
// by the user id of the process at the other end of a Unix socket.
//
// There are no static tokens. A request has exactly one credential, or none and a Unix socket. What this package
// returns says who called; what a caller may do is up to the policy.
package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// The issuers of callers that have no OIDC issuer.
const (
	IssuerMTLS = "mtls"
	IssuerUnix = "unix"
	// IssuerPublisher is that of the broker itself when it publishes the tags of a repository, which is the subject. No
	// request from outside has it: issuers of tokens are URLs.
	IssuerPublisher = "publisher"
	// IssuerApprover is that of a person of the policy who has signed in with what they approve with. The subject is the
	// person's name. No request from outside has it without a session.
	IssuerApprover = "approver"
)

// Publisher returns the caller that publishes the tags of a repository.
func Publisher(repository string) Caller { return Caller{Issuer: IssuerPublisher, Subject: repository} }

// Approver returns the caller who is a person of the policy, by name.
func Approver(name string) Caller { return Caller{Issuer: IssuerApprover, Subject: name} }

// Caller is who made a request, as it was authenticated.
type Caller struct {
	Issuer  string         // URL of an OIDC issuer, IssuerMTLS, IssuerUnix or IssuerPublisher
	Subject string         // OIDC sub; SPIFFE ID or subject (RFC 4514) of the certificate; user id; repository
	Claims  map[string]any // values are string, bool, int64, float64, nil, []any or map[string]any
	Token   *Token         // nil unless the caller has an OIDC token
	Admin   bool           // listed under administrators
}

// Token identifies an OIDC token, so that the broker can count its uses.
type Token struct {
	// ID is the SHA-256 of the signed part of the token: header and payload, without the signature. An ECDSA signature
	// has a second valid encoding, so a hash of the whole token would give one token two ids.
	ID      [32]byte
	Expires time.Time // the token is refused from then on: exp plus the clock skew that is allowed
	Uses    int       // requests that the token is good for
}

// Authenticator authenticates the callers of a broker. It is safe for concurrent use.
type Authenticator struct {
	issuers map[string]*issuer
	names   []string // the issuers in the order of the config
	mtls    certificateRules
	unix    peerRules
	now     func() time.Time
}

// New returns an Authenticator. It reads the files that the config names and resolves users and groups, and asks no
// issuer. It fails with every mistake of the config, joined.
func New(config Config, administrators []Administrator) (*Authenticator, error) {
	mistakes := append(config.Check(), CheckAdministrators(administrators)...)
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	a := &Authenticator{issuers: map[string]*issuer{}, now: time.Now}
	a.mtls = newCertificateRules(config.MTLS, administrators)
	var err error
	if a.unix, err = newPeerRules(config.Unix, administrators); err != nil {
		return nil, err
	}
	clock := func() time.Time { return a.now() }
	for _, settings := range config.OIDC {
		made, err := newIssuer(settings, clock)
		if err != nil {
			a.Close()
			return nil, err
		}
		a.issuers[settings.Issuer] = made
		a.names = append(a.names, settings.Issuer)
	}
	return a, nil
}

// Close ends requests to issuers that are under way.
func (a *Authenticator) Close() {
	for _, i := range a.issuers {
		i.keys.close()
	}
}

// Caller returns who made a request. A request over a Unix socket needs a server with ConnContext. It fails with Denied
// when the request has no credential, more than one, or one that is not accepted, and with Unavailable when the keys of
// an issuer cannot be fetched.
func (a *Authenticator) Caller(r *http.Request) (Caller, error) {
	authorization := r.Header.Values("Authorization")
	certificate := r.TLS != nil && len(r.TLS.PeerCertificates) > 0
	switch {
	case len(authorization) > 0 && certificate:
		return Caller{}, failure.New(failure.Denied, "cannot authenticate caller: the request has a token and a client "+
			"certificate").WithHint("send one of them")
	case len(authorization) > 1:
		return Caller{}, failure.New(failure.Denied, "cannot authenticate caller: the request has %d Authorization "+
			"headers", len(authorization)).WithHint("send one Authorization header")
	case len(authorization) == 1:
		return a.bearer(r.Context(), authorization[0])
	case certificate:
		return a.mtls.caller(r.TLS, a.now())
	}
	if peer, ok := peerOf(r.Context()); ok {
		return a.unix.caller(peer)
	}
	return Caller{}, failure.New(failure.Denied, "cannot authenticate caller: the request has no credential").
		WithHint("send a token of an issuer that the broker lists, or a client certificate")
}

// bearer authenticates an Authorization header of RFC 6750.
func (a *Authenticator) bearer(ctx context.Context, authorization string) (Caller, error) {
	scheme, compact, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return Caller{}, failure.New(failure.Denied, "cannot authenticate caller: the scheme of the Authorization header "+
			"is not Bearer").WithHint("send the token as Authorization: Bearer TOKEN")
	}
	t, err := readToken(compact)
	if err != nil {
		return Caller{}, failure.New(failure.Denied, "cannot read the caller's token: %w", err).
			WithHint("send a signed JWT of an issuer that the broker lists")
	}
	i, known := a.issuers[t.issuer]
	if !known {
		return Caller{}, failure.New(failure.Denied, "cannot accept the caller's token: its issuer (iss) is not listed").
			WithHint("add the issuer to callers.oidc of the broker")
	}
	return i.caller(ctx, t)
}

// IssuerState tells whether the tokens of an issuer can be verified.
type IssuerState struct {
	Issuer  string
	Usable  bool      // there are keys that are not too old
	Keys    int       // number of keys
	Fetched time.Time // when they were fetched; zero if they never were
	Err     error     // why the last attempt to fetch keys failed; nil if it succeeded
}

// Ready returns the state of each issuer, in the order of the config. It asks an issuer that it has no usable keys of,
// and waits for the answer until ctx ends.
func (a *Authenticator) Ready(ctx context.Context) []IssuerState {
	states := make([]IssuerState, len(a.names))
	for n, name := range a.names {
		states[n] = a.issuers[name].keys.state(ctx)
		states[n].Issuer = name
	}
	return states
}

// isAdministrator reports whether administrators name a caller of IssuerMTLS or IssuerUnix.
func isAdministrator(administrators []string, subject string) bool {
	return slices.Contains(administrators, subject)
}

// verified reports whether the TLS server verified the client's certificate.
func verified(state *tls.ConnectionState) bool { return len(state.VerifiedChains) > 0 }
