package main

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/session"
	"github.com/notation-hsm/notation-hsm/internal/broker/web"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/repository"
)

// newPage returns the page of a broker for those who approve, and the sessions that it shares with the API.
func newPage(f *brokerfile.File, b *broker.Broker, keys broker.Keys, registries *repository.Registries,
	url string) (*web.Web, *session.Sessions, error) {
	roots, err := attestationRoots(f)
	if err != nil {
		return nil, nil, err
	}
	company, err := companySignIn(f)
	if err != nil {
		return nil, nil, err
	}
	sessions := session.New(session.NewKey(), time.Now)
	page := web.New(web.Options{Broker: b, Keys: keys, Sessions: sessions, RPID: f.RPID, PublicURL: url,
		AttestationRoots: roots, Details: registries.Details, Since: registries.Since, Version: version, OIDC: company,
		Checkpoint: func(ctx context.Context) ([]byte, error) { return b.Log().Checkpoint(ctx) }})
	return page, sessions, nil
}
