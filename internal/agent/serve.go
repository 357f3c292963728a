package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Serve serves callers until ctx ends, and then lets requests in flight finish for a short while.
//
// It is for a Unix socket. The header Host is not looked at: it protects a service on a TCP port from web pages whose
// name resolves to it (DNS rebinding), and no browser connects to a Unix socket.
func (a *Agent) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: a.Handler(), ReadHeaderTimeout: readTime, ReadTimeout: readTime, WriteTimeout: writeTime,
		IdleTimeout: idleTime, MaxHeaderBytes: maxHeaders, DisableGeneralOptionsHandler: true,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext: a.limits.admit, ConnState: a.limits.track,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	answered := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(answered)
		ending, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if server.Shutdown(ending) != nil {
			server.Close()
		}
	})
	err := server.Serve(listener)
	if !stop() {
		<-answered // Serve itself returns as soon as the server stops to accept
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return failure.New(failure.Unavailable, "cannot serve: %w", err)
	}
	return nil
}

// Handler returns the HTTP API.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	for operation, handler := range a.operations() {
		mux.Handle(operation, handler)
	}
	return a.guard(mux, a.counted(mux))
}

// operations are the operations of the API, by method and path.
func (a *Agent) operations() map[string]http.HandlerFunc {
	all := map[string]http.HandlerFunc{
		"GET " + brokerapi.KeysPath:                        answer(nextStep(a, a.getKeys)),
		"GET " + brokerapi.KeysPath + "/{key}":             answer(nextStep(a, a.getKey)),
		"POST " + brokerapi.KeysPath + "/{key}/signatures": answer(nextStep(a, a.postSignature)),
		"POST " + brokerapi.KeysPath + "/{key}/layer-keys": answer(nextStep(a, a.postLayerKey)),
	}
	maps.Copy(all, a.agentOperations())
	return all
}

// nextStep returns an operation whose failures say how a refused PIN can be tried again.
func nextStep[T any](a *Agent, do func(*http.Request) (*T, int, error)) func(*http.Request) (*T, int, error) {
	return func(r *http.Request) (*T, int, error) {
		body, status, err := do(r)
		if a.options.Refusals != nil {
			err = a.options.Refusals.nextStep(err)
		}
		return body, status, err
	}
}

func (a *Agent) postSignature(r *http.Request) (*brokerapi.Signature, int, error) {
	var request brokerapi.SignatureRequest
	if err := readJSON(r, &request); err != nil {
		return nil, 0, err
	}
	s, err := a.sign(r.Context(), r.PathValue("key"), request)
	return s, http.StatusCreated, err
}
