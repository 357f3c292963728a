package main

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/session"
	"github.com/notation-hsm/notation-hsm/internal/broker/web"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// sharedSecrets are what replicas share of the sessions and the page. The zero value is for a broker without replicas.
type sharedSecrets struct {
	uses     session.Uses
	replicas []byte // key of the replicas, 32 bytes
}

// secretsOf returns what replicas share on a store. replica is nil for a broker without others.
func secretsOf(s store.Store, replica *broker.Replica) sharedSecrets {
	uses, is := s.(session.Uses)
	if replica == nil || !is {
		return sharedSecrets{}
	}
	return sharedSecrets{uses: uses, replicas: replica.Key}
}

// key returns a key for one purpose: derived from that of the replicas, or else random.
func (s sharedSecrets) key(purpose string) ([]byte, error) {
	if s.replicas == nil {
		return session.NewKey(), nil
	}
	return hkdf.Key(sha256.New, s.replicas, nil, "notation-hsm "+purpose, sha256.Size)
}

// newPage returns the page of a broker for those who approve, and the sessions that it shares with the API.
func newPage(f *brokerfile.File, b *broker.Broker, keys broker.Keys, registries *repository.Registries,
	url string, shared sharedSecrets) (*web.Web, *session.Sessions, error) {
	roots, err := attestationRoots(f)
	if err != nil {
		return nil, nil, err
	}
	company, err := companySignIn(f)
	if err != nil {
		return nil, nil, err
	}
	of, err := shared.key("sessions")
	if err != nil {
		return nil, nil, err
	}
	secret, err := shared.key("page")
	if err != nil {
		return nil, nil, err
	}
	sessions := session.New(of, shared.uses, time.Now)
	page := web.New(web.Options{Broker: b, Keys: keys, Sessions: sessions, Secret: secret, Uses: shared.uses,
		RPID: f.RPID, PublicURL: url,
		AttestationRoots: roots, Details: registries.Details, Since: registries.Since, Version: version, OIDC: company,
		Checkpoint: func(ctx context.Context) ([]byte, error) { return b.Log().Checkpoint(ctx) }})
	return page, sessions, nil
}
