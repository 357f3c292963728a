package agent

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// requestLimits bound the body of a request: a payload in base64.
var requestLimits = bound.Limits{Bytes: payload.Limit/3*4 + 4096, Depth: 4, Elements: 16}

// Serve serves callers until ctx ends, and then lets requests in flight finish for a short while.
func (a *Agent) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: a.Handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		IdleTimeout: 5 * time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:    slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
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
	mux.HandleFunc("GET "+brokerapi.KeysPath+"/{key}", answer(a.getKey))
	mux.HandleFunc("POST "+brokerapi.KeysPath+"/{key}/signatures", answer(a.postSignature))
	for operation, handler := range a.agentOperations() {
		mux.Handle(operation, handler)
	}
	return a.counted(mux)
}

// answer returns a handler that answers with JSON or a Problem.
func answer[T any](do func(*http.Request) (*T, int, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, status, err := do(r)
		if err != nil {
			writeProblem(w, err)
			return
		}
		writeJSON(w, "application/json", status, body)
	}
}

func writeJSON(w http.ResponseWriter, mediaType string, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		slog.Error("cannot encode an answer", "error", err)
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", mediaType)
	w.WriteHeader(status)
	_, _ = w.Write(data) // the caller may be gone
}

// statuses are those of HTTP by kind.
var statuses = map[failure.Kind]int{
	failure.Internal:    http.StatusInternalServerError,
	failure.Invalid:     http.StatusBadRequest,
	failure.NotFound:    http.StatusNotFound,
	failure.Denied:      http.StatusForbidden,
	failure.Conflict:    http.StatusConflict,
	failure.Unavailable: http.StatusServiceUnavailable,
	failure.Throttled:   http.StatusTooManyRequests,
	failure.Timeout:     http.StatusGatewayTimeout,
	failure.Unsupported: http.StatusNotImplemented,
}

func writeProblem(w http.ResponseWriter, err error) {
	f := failure.From(err)
	status := statuses[f.Kind]
	slog.Info("refused", "kind", f.Kind.String(), "error", err)
	writeJSON(w, brokerapi.ProblemType, status, brokerapi.Problem{
		Title: http.StatusText(status), Status: status, Kind: f.Kind.String(), Detail: f.What, Hint: f.Hint, CKR: f.CKR,
	})
}

// readJSON reads the body of a request.
func readJSON(r *http.Request, into any) error {
	data, err := io.ReadAll(io.LimitReader(r.Body, int64(requestLimits.Bytes)+1))
	if err == nil {
		err = bound.JSON(data, requestLimits)
	}
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint("see the description of the API")
	}
	return nil
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
