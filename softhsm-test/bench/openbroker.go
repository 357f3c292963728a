package main

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"os/signal"
	"strings"
	"syscall"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/broker/api"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// openBroker serves a broker without a policy, a log and a store, for comparison: it authenticates callers over TLS,
// reads what is to be signed, and signs it, whoever asks.
func openBroker(file string) error {
	f, err := brokerfile.Read(file)
	if err != nil {
		return err
	}
	callers, err := identity.New(f.Callers, nil)
	if err != nil {
		return err
	}
	defer callers.Close()
	ks := backends.Service()
	keys := held.New(ks, errors.New("stopping"))
	defer keys.Close()
	given := maps.Clone(map[string]string(f.Modules[0]))
	token := given[config.Token]
	delete(given, config.Token)
	limits := httpapi.NewLimits("caller")
	sign := func(r *http.Request) (*brokerapi.Signature, int, error) {
		var body brokerapi.SignatureRequest
		if err := httpapi.ReadJSON(r, &body); err != nil {
			return nil, 0, err
		}
		artifact, err := payload.Read(body.Payload)
		if err != nil {
			return nil, 0, err
		}
		reference, err := ks.Resolve(token+";object="+r.PathValue("key"), given, config.Flags)
		if err != nil {
			return nil, 0, err
		}
		k, err := keys.Find(r.Context(), reference)
		if err != nil {
			return nil, 0, err
		}
		signature, err := k.Sign(r.Context(), "key", body.Payload, body.Algorithm)
		made := &brokerapi.Signature{Signature: signature, Algorithm: body.Algorithm, Artifact: *artifact}
		return made, http.StatusCreated, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+brokerapi.KeysPath+"/{key}/signatures", httpapi.Answer(sign))
	guard := &httpapi.Guard{Operations: mux, Limits: limits, TakesBody: func(*http.Request) bool { return true },
		Caller: func(*http.Request) string { return "" }, Identify: func(r *http.Request) (context.Context, error) {
			c, err := callers.Caller(r)
			if err == nil && !strings.HasPrefix(c.Issuer, "https:") {
				err = failure.New(failure.Denied, "no token")
			}
			return r.Context(), err
		}}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := api.ListenTLS(ctx, f.Listen.HTTPS.Address, api.Certificate{Chain: f.Listen.HTTPS.Certificate,
		Key: f.Listen.HTTPS.Key})
	if err != nil {
		return err
	}
	return httpapi.Serve(ctx, l, guard.Handler(mux), limits, func(ctx context.Context, c net.Conn) context.Context {
		return limits.Admit(ctx, c, "")
	})
}
