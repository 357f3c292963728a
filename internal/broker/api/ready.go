package api

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// readiness is what was found last. Everyone may ask, and looking asks the modules.
type readiness struct {
	mu    sync.Mutex
	found *brokerapi.Readiness
	at    time.Time
}

const (
	readyFresh = time.Second      // how long a state is answered again
	readyTime  = 10 * time.Second // how long all parts may take
)

// getReadiness answers 503 unless all parts that are needed are ready.
func (a *API) getReadiness(r *http.Request) (*brokerapi.Readiness, int, error) {
	a.ready.mu.Lock()
	defer a.ready.mu.Unlock()
	if a.ready.found == nil || time.Since(a.ready.at) >= readyFresh {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), readyTime)
		defer cancel()
		a.ready.found, a.ready.at = a.parts(ctx), time.Now()
	}
	if !a.ready.found.Ready {
		return a.ready.found, http.StatusServiceUnavailable, nil
	}
	return a.ready.found, http.StatusOK, nil
}

// parts returns the state of all parts.
func (a *API) parts(ctx context.Context) *brokerapi.Readiness {
	state := &brokerapi.Readiness{Ready: true, Parts: a.options.Broker.Parts(ctx)}
	for _, k := range a.options.Broker.Keys() {
		part := brokerapi.Part{Name: "key " + k.Name, Ready: true, Needed: true}
		if _, _, err := a.options.Keys.Describe(ctx, k.Name); err != nil {
			part.Ready, part.Detail = false, failure.From(err).What
		}
		state.Parts = append(state.Parts, part)
	}
	for _, issuer := range a.options.Identity.Ready(ctx) {
		part := brokerapi.Part{Name: "issuer " + issuer.Issuer, Ready: issuer.Usable}
		if issuer.Err != nil {
			part.Detail = failure.From(issuer.Err).What
		}
		state.Parts = append(state.Parts, part)
	}
	for _, part := range state.Parts {
		state.Ready = state.Ready && (part.Ready || !part.Needed)
	}
	return state
}
