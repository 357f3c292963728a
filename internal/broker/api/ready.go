package api

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// readiness is what was found last. Everyone may ask, and looking asks the modules: one look at a time serves all.
type readiness struct {
	mu      sync.Mutex
	found   *brokerapi.Readiness
	at      time.Time
	looking chan struct{} // closed when the look that is under way ends; nil without one
}

const (
	readyFresh = time.Second      // how long a state is answered again
	readyTime  = 10 * time.Second // how long all parts may take
)

// state returns what was found last, or what look finds if that is not fresh. It fails when ctx ends before look does.
func (r *readiness) state(ctx context.Context, look func(context.Context) *brokerapi.Readiness) (
	*brokerapi.Readiness, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.found == nil || time.Since(r.at) >= readyFresh {
		if r.looking == nil {
			r.looking = make(chan struct{})
			go r.look(context.WithoutCancel(ctx), look)
		}
		ended := r.looking
		r.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
		}
		r.mu.Lock()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return r.found, nil
}

// look keeps what look finds.
func (r *readiness) look(ctx context.Context, look func(context.Context) *brokerapi.Readiness) {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	found := look(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found, r.at = found, time.Now()
	close(r.looking)
	r.looking = nil
}

// getReadiness answers 503 unless all parts that are needed are ready. Only callers with a credential are told what is
// wrong with a part: failures name files and modules.
func (a *API) getReadiness(r *http.Request) (*brokerapi.Readiness, int, error) {
	found, err := a.ready.state(r.Context(), a.parts)
	if err != nil {
		return nil, 0, err
	}
	if _, err := a.caller(r); err != nil {
		found = &brokerapi.Readiness{Ready: found.Ready, Parts: slices.Clone(found.Parts)}
		for i := range found.Parts {
			found.Parts[i].Detail = ""
		}
	}
	if !found.Ready {
		return found, http.StatusServiceUnavailable, nil
	}
	return found, http.StatusOK, nil
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
	state.Parts = append(state.Parts, a.modules()...)
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

// modules returns the state of modules of keys that are in several: the broker is ready if each key has one that works.
func (a *API) modules() (parts []brokerapi.Part) {
	if a.options.Modules == nil {
		return nil
	}
	for _, m := range a.options.Modules() {
		if !m.Alone {
			parts = append(parts, brokerapi.Part{Name: fmt.Sprintf("module %d of key %s", m.Number, m.Key),
				Ready: m.Err == nil, Detail: m.Detail})
		}
	}
	return parts
}
