// Package api is the HTTP API of a team's broker, as internal/brokerapi describes it: over TLS and on a Unix socket. It
// authenticates callers, and leaves every decision to the broker.
package api

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/session"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/telemetry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Options are what a server serves.
type Options struct {
	Broker    *broker.Broker
	Identity  *identity.Authenticator
	Keys      broker.Keys
	Modules   func() []broker.Module // the state of the modules that have the keys; nil for unknown
	PublicURL string                 // of the broker, without a slash at its end
	Version   string
	Size      int64 // bytes of the largest body of a request; 0 means what brokerapi allows
	// Page answers requests that are not of the API, and authenticates them itself; nil refuses them.
	Page http.Handler
	// Sessions are those of the page as well; nil makes some of their own.
	Sessions *session.Sessions
	Uses     session.Uses // remembers login documents that were used; nil for a memory of this process
	// Registerer gets the server's metrics; nil for none.
	Registerer prometheus.Registerer
	Tracer     *telemetry.Tracer // nil for none

	now func() time.Time // in tests; nil is time.Now
}

// API is a server.
type API struct {
	options  Options
	limits   *httpapi.Limits
	log      http.Handler
	mux      *http.ServeMux
	all      map[string]operation // by pattern of mux
	polls    atomic.Int64         // requests that wait for a change
	signing  atomic.Int64         // requests for signatures
	sessions *session.Sessions
	attempts *session.Attempts // to sign in, and to propose credentials
	now      func() time.Time
	ready    readiness
	metrics  *metrics
}

// New returns a server.
func New(o Options) *API {
	a := &API{options: o, limits: httpapi.NewLimits("caller"), mux: http.NewServeMux(), now: time.Now,
		sessions: o.Sessions,
		log:      http.StripPrefix(brokerapi.LogPath+"/", translog.Handler(o.Broker.Log().File, httpapi.WriteProblem))}
	if o.now != nil {
		a.now = o.now
	}
	if a.sessions == nil {
		a.sessions = session.New(session.NewKey(), a.options.Uses, a.now)
	}
	if a.options.Uses == nil {
		a.options.Uses = session.NewMemory(maxLogins, a.now)
	}
	a.attempts = session.NewAttempts(loginAttempts, time.Minute, a.now)
	a.all = a.operations()
	for pattern, one := range a.all {
		a.mux.Handle(pattern, one.answer)
	}
	a.metrics = newMetrics(o.Registerer, a.limits)
	return a
}

// operation is one of the API.
type operation struct {
	answer http.HandlerFunc
	body   bool     // it takes one
	query  []string // the names of the query parameters that it takes
	open   bool     // it needs no credential
	free   bool     // it is answered whatever else the server does
}

// operations are the operations of the API, by method and path.
func (a *API) operations() map[string]operation {
	key, request := brokerapi.KeysPath+"/{key}", brokerapi.RequestsPath+"/{id}"
	person, credential := brokerapi.ApproversPath+"/{name}", brokerapi.CredentialsPath+"/{id}"
	return map[string]operation{
		"GET " + brokerapi.KeysPath:      {answer: httpapi.Answer(a.getKeys)},
		"GET " + key:                     {answer: httpapi.Answer(a.getKey)},
		"POST " + key + "/signatures":    {answer: a.postSignature, body: true},
		"POST " + key + "/block":         {answer: httpapi.Answer(a.change(broker.ChangeBlock))},
		"POST " + key + "/unblock":       {answer: httpapi.Answer(a.change(broker.ChangeUnblock))},
		"POST " + brokerapi.RequestsPath: {answer: httpapi.Answer(a.postRequest), body: true},
		"GET " + brokerapi.RequestsPath: {answer: httpapi.Answer(a.getRequests),
			query: []string{"state", "key", "repository", "digest", "mine", "before", "limit"}},
		"GET " + request:                 {answer: httpapi.Answer(a.getRequest), query: []string{"wait"}},
		"POST " + request + "/cancel":    {answer: httpapi.Answer(a.cancelRequest)},
		"GET " + request + "/evidence":   {answer: httpapi.Answer(a.getEvidence)},
		"GET " + request + "/bundle":     {answer: httpapi.Answer(a.getBundle)},
		"POST " + request + "/approvals": {answer: httpapi.Answer(a.postApproval), body: true},

		"POST " + brokerapi.SessionsPath: {answer: httpapi.Answer(a.postSession), body: true, open: true},
		"GET " + brokerapi.ApproversPath: {answer: httpapi.Answer(a.getApprovers), query: []string{"after", "limit"}},
		"GET " + brokerapi.CredentialsPath: {answer: httpapi.Answer(a.getCredentials),
			query: []string{"after", "limit", "removed"}},
		"POST " + person + "/invitations":   {answer: httpapi.Answer(a.postInvitation)},
		"POST " + person + "/forget":        {answer: httpapi.Answer(a.forget)},
		"POST " + brokerapi.CredentialsPath: {answer: httpapi.Answer(a.postCredential), body: true},
		"POST " + credential + "/remove":    {answer: httpapi.Answer(a.removeCredential)},

		"GET " + brokerapi.PolicyPath:  {answer: httpapi.Answer(a.getPolicy)},
		"POST " + brokerapi.PolicyPath: {answer: httpapi.Answer(a.postPolicy), body: true},
		"POST " + brokerapi.ConfigPath: {answer: httpapi.Answer(a.change(broker.ChangeConfig))},
		"POST " + brokerapi.EpochPath:  {answer: httpapi.Answer(a.change(broker.ChangeEpoch))},
		"GET " + brokerapi.VersionPath: {answer: httpapi.Answer(a.getVersion), open: true, free: true},
		"GET " + brokerapi.HealthPath:  {answer: httpapi.Answer(a.getHealth), open: true, free: true},
		"GET " + brokerapi.ReadyPath:   {answer: httpapi.Answer(a.getReadiness), open: true, free: true},

		"GET " + brokerapi.LogPath + "/{file...}": {answer: a.log.ServeHTTP, open: true},
	}
}

// operation returns the operation of a request; none of its fields is set if there is none.
func (a *API) operation(r *http.Request) operation {
	_, pattern := a.mux.Handler(r)
	return a.all[pattern]
}

// Handler returns the HTTP API.
func (a *API) Handler() http.Handler {
	guard := &httpapi.Guard{Operations: a.mux, Limits: a.limits, Size: a.options.Size, Identify: a.identify,
		TakesBody: func(r *http.Request) bool { return a.operation(r).body },
		Small:     func(r *http.Request) bool { return a.operation(r).open },
		Free:      func(r *http.Request) bool { return a.operation(r).free },
		Query:     func(r *http.Request) []string { return a.operation(r).query },
		Caller: func(r *http.Request) string {
			c, _ := callerIn(r.Context())
			return c.Issuer + " " + c.Subject
		}}
	return identified(a.observe(a.orPage(guard.Handler(a.logged(a.mux)))))
}

type callerKey struct{}

// callerIn returns who made a request.
func callerIn(ctx context.Context) (identity.Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(identity.Caller)
	return c, ok
}

// identify authenticates the caller of a request. It refuses what a browser sends for another site: the browser may
// have a client certificate.
func (a *API) identify(r *http.Request) (context.Context, error) {
	if err := new(http.CrossOriginProtection).Check(r); err != nil {
		return nil, failure.New(failure.Denied, "cannot accept the request: %w", err).
			WithHint("send it from a program, or from the broker's own page")
	}
	if a.operation(r).open {
		return r.Context(), nil
	}
	c, err := a.caller(r)
	if failure.Is(err, failure.Denied) {
		return nil, httpapi.WithStatus(http.StatusUnauthorized, err)
	}
	if err != nil {
		return nil, err
	}
	ctx := httpapi.WithCaller(r.Context(), "issuer", c.Issuer, "subject", c.Subject)
	return context.WithValue(ctx, callerKey{}, c), nil
}
