package nethsm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Tokens describes the NetHSM of the settings, once an instance has said that it is operational.
func tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	c, err := newClient(s)
	if err != nil {
		return nil, err
	}
	defer c.close()
	// Unlike the state, readiness is a status, so that another instance is asked when this one is not ready.
	r := request{what: "looking for the NetHSM", method: http.MethodGet, path: "/health/ready"}
	a, err := c.do(ctx, r)
	if err == nil {
		err = r.want(a, http.StatusOK)
	}
	if err != nil {
		return nil, err
	}
	var all sync.WaitGroup
	for _, url := range s.NetHSM.Instances { // so that one that is not what it should be does not wait to be found out
		all.Go(func() {
			if _, t := c.try(ctx, min(dialLimit, s.Timeout), url, r); t != nil {
				t.warn()
			}
		})
	}
	all.Wait()
	return []key.Token{describe(s)}, nil
}

// Key returns the key that the settings name. public is its public half when the caller has it from a certificate; with
// nil the NetHSM is asked.
func (s *Store) Key(ctx context.Context, public crypto.PublicKey) (keystore.Key, error) {
	id, err := s.id()
	if err != nil {
		return nil, err
	}
	k := &Key{store: s, id: id, public: public}
	if public == nil {
		if k.public, err = k.ReadPublic(ctx); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Public returns the key's public half.
func (s *Store) Public(ctx context.Context) (crypto.PublicKey, error) {
	k, err := s.Key(ctx, nil)
	if err != nil {
		return nil, err
	}
	return k.Public(), nil
}

// Receives returns what the NetHSM tells of the key as a recipient's. It derives no secrets, so only RSA keys are any.
func (s *Store) Receives(ctx context.Context, public crypto.PublicKey) (r key.Receives, err error) {
	if _, isRSA := public.(*rsa.PublicKey); !isRSA {
		r.Refusal = "a NetHSM does no ECDH"
		return r, nil
	}
	id, err := s.id()
	if err != nil {
		return r, err
	}
	d, err := (&Key{store: s, id: id}).describe(ctx, s.ask)
	if err != nil {
		return r, err
	}
	r.OAEP = []crypto.Hash{}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA1} {
		if slices.Contains(d.Mechanisms, "RSA_Decryption_OAEP_"+hashNames[hash]) {
			r.OAEP = append(r.OAEP, hash)
		}
	}
	r.Sure = true
	return r, nil
}

// Keys returns the key that the settings name, if it is there; or those whose ID begins as they say; or all. What a key
// is, Info tells.
func (s *Store) Keys(ctx context.Context) ([]keystore.Key, error) {
	id, prefix := s.settings.Key.Object, strings.TrimSuffix(s.settings.Key.Object, "*")
	if id != "" && id == prefix {
		k := &Key{store: s, id: id}
		there, err := k.exists(ctx, s.ask)
		if err != nil || !there {
			return nil, err
		}
		return []keystore.Key{k}, nil
	}
	path := "/keys"
	if prefix != "" {
		path = keyPath(prefix) + "*"
	}
	r := request{what: "listing keys", method: http.MethodGet, path: path}
	a, err := s.ask(ctx, r, http.StatusOK)
	if err != nil {
		return nil, err
	}
	if s.listed, err = parseKeyList(a.body); err != nil {
		return nil, malformed(r.what, err)
	}
	keys := make([]keystore.Key, len(s.listed))
	for i, id := range s.listed {
		keys[i] = &Key{store: s, id: id}
	}
	return keys, nil
}

// Taken reports whether there is a key of this name. A NetHSM gives a key no other id.
func (s *Store) Taken(ctx context.Context, name config.URI) (bool, error) {
	if name.Object == "" {
		return false, nil
	}
	return (&Key{store: s, id: name.Object}).exists(ctx, s.ask)
}
