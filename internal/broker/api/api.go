// Package api is the HTTP API of a team's broker, as internal/brokerapi describes it: over TLS and on a Unix socket. It
// authenticates callers, and leaves every decision to the broker.
package api

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/broker"
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
	PublicURL string // of the broker, without a slash at its end
	Version   string
	Size      int64 // bytes of the largest body of a request; 0 means what brokerapi allows
	// Registerer gets the server's metrics; nil for none.
	Registerer prometheus.Registerer
	Tracer     *telemetry.Tracer // nil for none
}

// API is a server.
type API struct {
	options Options
	limits  *httpapi.Limits
	log     http.Handler
	mux     *http.ServeMux
	polls   atomic.Int64 // requests that wait for a change
	ready   readiness
	metrics *metrics
}

// New returns a server.
func New(o Options) *API {
	a := &API{options: o, limits: httpapi.NewLimits("caller"), mux: http.NewServeMux(),
		log: http.StripPrefix(brokerapi.LogPath+"/", translog.Handler(o.Broker.Log().File, httpapi.WriteProblem))}
	for operation, handler := range a.operations() {
		a.mux.Handle(operation, handler)
	}
	a.metrics = newMetrics(o.Registerer, a.limits)
	return a
}

// operations are the operations of the API, by method and path.
func (a *API) operations() map[string]http.HandlerFunc {
	key, request := brokerapi.KeysPath+"/{key}", brokerapi.RequestsPath+"/{id}"
	return map[string]http.HandlerFunc{
		"GET " + brokerapi.KeysPath:               httpapi.Answer(a.getKeys),
		"GET " + key:                              httpapi.Answer(a.getKey),
		"POST " + key + "/signatures":             a.postSignature,
		"POST " + key + "/block":                  httpapi.Answer(a.change(broker.ChangeBlock)),
		"POST " + key + "/unblock":                httpapi.Answer(a.change(broker.ChangeUnblock)),
		"POST " + brokerapi.RequestsPath:          httpapi.Answer(a.postRequest),
		"GET " + brokerapi.RequestsPath:           httpapi.Answer(a.getRequests),
		"GET " + request:                          httpapi.Answer(a.getRequest),
		"POST " + request + "/cancel":             httpapi.Answer(a.cancelRequest),
		"GET " + brokerapi.PolicyPath:             httpapi.Answer(a.getPolicy),
		"POST " + brokerapi.PolicyPath:            httpapi.Answer(a.postPolicy),
		"POST " + brokerapi.ConfigPath:            httpapi.Answer(a.change(broker.ChangeConfig)),
		"POST " + brokerapi.EpochPath:             httpapi.Answer(a.change(broker.ChangeEpoch)),
		"GET " + brokerapi.VersionPath:            httpapi.Answer(a.getVersion),
		"GET " + brokerapi.HealthPath:             httpapi.Answer(a.getHealth),
		"GET " + brokerapi.ReadyPath:              httpapi.Answer(a.getReadiness),
		"GET " + brokerapi.LogPath + "/{file...}": a.log.ServeHTTP,
	}
}

// Handler returns the HTTP API.
func (a *API) Handler() http.Handler {
	guard := &httpapi.Guard{Operations: a.mux, Limits: a.limits, TakesBody: takesBody, Query: query, Size: a.options.Size,
		Identify: a.identify, Caller: func(r *http.Request) string {
			c, _ := callerIn(r.Context())
			return c.Issuer + " " + c.Subject
		}}
	return identified(a.observe(guard.Handler(logged(a.mux))))
}

func takesBody(r *http.Request) bool {
	return r.Method == http.MethodPost && (strings.HasSuffix(r.URL.Path, "/signatures") ||
		r.URL.Path == brokerapi.RequestsPath || r.URL.Path == brokerapi.PolicyPath)
}

// query returns the query parameters that an operation takes.
func query(r *http.Request) []string {
	switch {
	case r.Method != http.MethodGet:
	case r.URL.Path == brokerapi.RequestsPath:
		return []string{"state", "key", "before", "limit"}
	case strings.HasPrefix(r.URL.Path, brokerapi.RequestsPath+"/"):
		return []string{"wait"}
	}
	return nil
}

// open reports whether an operation needs no credential: what says that the broker works, and the log.
func open(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, brokerapi.LogPath+"/") ||
		slices.Contains([]string{brokerapi.HealthPath, brokerapi.ReadyPath, brokerapi.VersionPath}, r.URL.Path)
}

type callerKey struct{}

// callerIn returns who made a request.
func callerIn(ctx context.Context) (identity.Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(identity.Caller)
	return c, ok
}

// identify authenticates the caller of a request.
func (a *API) identify(r *http.Request) (context.Context, error) {
	if open(r) {
		return r.Context(), nil
	}
	c, err := a.options.Identity.Caller(r)
	if failure.Is(err, failure.Denied) {
		return nil, httpapi.WithStatus(http.StatusUnauthorized, err)
	}
	if err != nil {
		return nil, err
	}
	ctx := httpapi.WithCaller(r.Context(), "issuer", c.Issuer, "subject", c.Subject)
	return context.WithValue(ctx, callerKey{}, c), nil
}
