package agent

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

func (a *Agent) getKey(r *http.Request) (_ *brokerapi.Key, _ int, err error) {
	s, err := a.session()
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = s.Cause(err) }()
	name := r.PathValue("key")
	h, err := s.findFresh(r.Context(), name)
	if err != nil {
		return nil, 0, err
	}
	info, receives, err := h.Info(r.Context(), slices.Contains(a.options.Formats, payload.LayerKey))
	if err != nil {
		return nil, 0, err
	}
	k, err := a.describe(name, h.Token().URI, info, h.Public, h.Chain)
	if err == nil {
		k.Receives = receives
	}
	return k, http.StatusOK, err
}

// getKeys lists the keys of the token. It leaves out a key whose public half the module does not show.
func (a *Agent) getKeys(r *http.Request) (_ *brokerapi.Keys, _ int, err error) {
	ctx := r.Context()
	s, err := a.session()
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = s.Cause(err) }()
	store, err := s.open(ctx)
	if err != nil {
		return nil, 0, err
	}
	found, err := store.Keys(ctx)
	if err != nil {
		return nil, 0, err
	}
	known, err := s.certificates(ctx, store)
	if err != nil {
		return nil, 0, err
	}
	all := &brokerapi.Keys{Token: store.Describe().URI, Keys: []brokerapi.Key{}}
	for _, k := range found {
		info, err := k.Info(ctx)
		if err != nil {
			return nil, 0, err
		}
		described, err := a.describe(info.Label, all.Token, info, info.Public, chainOf(info.Public, known))
		if err != nil {
			slog.Debug("a key is not listed", "uri", info.URI, "error", err)
			continue
		}
		all.Keys = append(all.Keys, *described)
	}
	return all, http.StatusOK, nil
}

// certificates returns those of the certificate-chain file and the token.
func (s *session) certificates(ctx context.Context, store keystore.Store) (known []*x509.Certificate, err error) {
	if file := s.token.CertificateChain; file != "" {
		if known, err = certs.ReadFile(file); err != nil {
			return nil, err
		}
	}
	on, err := store.Certificates(ctx)
	return append(known, on...), err
}

// chainOf returns the chain of a key: its leaf alone if the chain is not complete, and none without a leaf.
func chainOf(public crypto.PublicKey, known []*x509.Certificate) []*x509.Certificate {
	leaf := certs.LeafOf(public, known, time.Now())
	if leaf == nil {
		return nil
	}
	chain, err := certs.Chain(leaf, known, nil, time.Now())
	if err != nil {
		return []*x509.Certificate{leaf}
	}
	return chain
}

// describe returns what callers are told of a key. token is the URI of its token.
func (a *Agent) describe(name, token string, info key.Info, public crypto.PublicKey,
	chain []*x509.Certificate) (*brokerapi.Key, error) {
	k, err := held.Describe(name, info, public, chain)
	if err != nil {
		return nil, err
	}
	k.URI, k.Token, k.Label, k.ID, k.Formats = info.URI, token, info.Label, info.ID, a.options.Formats
	return k, nil
}
