package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
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
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		ending, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if server.Shutdown(ending) != nil {
			server.Close()
		}
	})
	err := server.Serve(listener)
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return failure.New(failure.Unavailable, "cannot serve: %w", err)
	}
	<-ended // Serve returns before the requests in flight have been answered
	return nil
}

// Handler returns the HTTP API.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	for operation, handler := range a.operations() {
		mux.Handle(operation, handler)
	}
	return a.guard(mux, mux)
}

// operations are the operations of the API, by method and path.
func (a *Agent) operations() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET " + brokerapi.KeysPath + "/{key}":             answer(a.getKey),
		"POST " + brokerapi.KeysPath + "/{key}/signatures": answer(a.postSignature),
	}
}

func (a *Agent) getKey(r *http.Request) (*brokerapi.Key, int, error) {
	s, err := a.session()
	if err != nil {
		return nil, 0, err
	}
	name := r.PathValue("key")
	h, err := s.find(r.Context(), name)
	if err != nil {
		return nil, 0, err
	}
	k, err := a.describe(r.Context(), name, h)
	return k, http.StatusOK, err
}

// describe returns what callers are told of a key.
func (a *Agent) describe(_ context.Context, name string, h *held) (*brokerapi.Key, error) {
	der, err := x509.MarshalPKIXPublicKey(h.public)
	if err != nil {
		return nil, failure.New(failure.Unsupported, "the key %q is of a type that callers cannot use: %w", name, err)
	}
	k := &brokerapi.Key{
		Name: name, URI: h.reference.Key.String(), Token: h.store.Describe().Label, Label: h.reference.Key.Object,
		ID: h.reference.Key.ID, Public: der, Formats: a.options.Formats,
	}
	if spec, err := key.SpecOf(h.public); err == nil {
		k.Spec = string(spec.Name)
	}
	for _, cert := range h.chain {
		k.Chain = append(k.Chain, cert.Raw)
	}
	return k, nil
}

func (a *Agent) postSignature(r *http.Request) (*brokerapi.Signature, int, error) {
	var request brokerapi.SignatureRequest
	if err := readJSON(r, &request); err != nil {
		return nil, 0, err
	}
	s, err := a.sign(r.Context(), r.PathValue("key"), request)
	return s, http.StatusCreated, err
}
