package agent

import (
	"context"
	"maps"
	"net"
	"net/http"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

// Serve serves callers until ctx ends, and then lets requests in flight finish for a short while.
//
// It is for a Unix socket. The header Host is not looked at: it protects a service on a TCP port from web pages whose
// name resolves to it (DNS rebinding), and no browser connects to a Unix socket.
func (a *Agent) Serve(ctx context.Context, listener net.Listener) error {
	return httpapi.Serve(ctx, listener, a.Handler(), a.limits, a.connected)
}

// connected returns the context of the requests of a new connection: with the process that made it.
func (a *Agent) connected(ctx context.Context, conn net.Conn) context.Context {
	p := peerOf(conn)
	ctx = httpapi.WithCaller(context.WithValue(ctx, peerKey{}, p), "caller", p.pid, "program", p.executable)
	return a.limits.Admit(ctx, conn, p.key())
}

// Handler returns the HTTP API.
func (a *Agent) Handler() http.Handler {
	mux := http.NewServeMux()
	for operation, handler := range a.operations() {
		mux.Handle(operation, handler)
	}
	guard := &httpapi.Guard{Operations: mux, Limits: a.limits,
		TakesBody: func(r *http.Request) bool { // the uses of a key
			return r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, brokerapi.KeysPath+"/")
		},
		Caller: func(r *http.Request) string { return peerIn(r.Context()).key() },
	}
	return guard.Handler(a.counted(mux))
}

// operations are the operations of the API, by method and path.
func (a *Agent) operations() map[string]http.HandlerFunc {
	all := map[string]http.HandlerFunc{
		"GET " + brokerapi.KeysPath:                        httpapi.Answer(nextStep(a, a.getKeys)),
		"GET " + brokerapi.KeysPath + "/{key}":             httpapi.Answer(nextStep(a, a.getKey)),
		"POST " + brokerapi.KeysPath + "/{key}/signatures": httpapi.Answer(nextStep(a, a.postSignature)),
		"POST " + brokerapi.KeysPath + "/{key}/layer-keys": httpapi.Answer(nextStep(a, a.postLayerKey)),
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
	if err := httpapi.ReadJSON(r, &request); err != nil {
		return nil, 0, err
	}
	s, err := a.sign(r.Context(), r.PathValue("key"), request)
	return s, http.StatusCreated, err
}
