package nethsm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Key returns the key that the settings name. public is its public half if the caller has it from a certificate; with
// nil the NetHSM is asked for it.
func (s *Store) Key(ctx context.Context, public crypto.PublicKey) (keystore.Key, error) {
	id, err := s.id()
	if err != nil {
		return nil, err
	}
	k := s.key(id)
	k.public = public
	if public == nil {
		if k.public, err = k.ReadPublic(ctx); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// Public returns the public half of the key that the settings name.
func (s *Store) Public(ctx context.Context) (crypto.PublicKey, error) {
	k, err := s.Key(ctx, nil)
	if err != nil {
		return nil, err
	}
	return k.Public(), nil
}

// Receives returns whether the key can decrypt for a recipient, and with which hashes. Only RSA keys can.
func (s *Store) Receives(ctx context.Context, public crypto.PublicKey) (r key.Receives, err error) {
	if _, isRSA := public.(*rsa.PublicKey); !isRSA {
		r.Refusal = "a NetHSM does not support ECDH"
		return r, nil
	}
	id, err := s.id()
	if err != nil {
		return r, err
	}
	d, err := s.key(id).describe(ctx, s.ask)
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

// Keys returns the key that the settings name, if it exists; or those whose ID has the prefix that they name; or all.
// Except for the first, their public halves are unknown until Info or ReadPublic.
func (s *Store) Keys(ctx context.Context) ([]keystore.Key, error) {
	id, prefix := s.settings.Key.Object, strings.TrimSuffix(s.settings.Key.Object, "*")
	if id != "" && id == prefix {
		k := s.key(id)
		exists, err := k.exists(ctx, s.ask)
		if err != nil || !exists {
			return nil, err
		}
		return []keystore.Key{k}, nil
	}
	path := "/keys"
	if prefix != "" {
		path = keyPath(prefix) + "*"
	}
	ids, err := listKeys(ctx, path, s.ask)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.listed = ids
	s.mu.Unlock()
	keys := make([]keystore.Key, len(ids))
	for i, id := range ids {
		keys[i] = s.key(id)
	}
	return keys, nil
}

// listKeys returns the IDs of the keys of a path.
func listKeys(ctx context.Context, path string, ask asker) ([]string, error) {
	r := request{what: "listing keys", method: http.MethodGet, path: path}
	a, err := ask(ctx, r, http.StatusOK)
	if err != nil {
		return nil, err
	}
	ids, err := parseKeyList(a.body)
	if err != nil {
		return nil, malformed(r.what, err)
	}
	return ids, nil
}

// parseKeyList reads a KeyList of the API. It fails on an ID that is no key ID: IDs become parts of paths.
func parseKeyList(body []byte) ([]string, error) {
	var list []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	ids := make([]string, len(list))
	for i, item := range list {
		if !isKeyID(item.ID) {
			return nil, fmt.Errorf("invalid key ID %q", truncate(item.ID))
		}
		ids[i] = item.ID
	}
	return ids, nil
}

// isKeyID reports whether a text can be the ID of a key, or a tag.
func isKeyID(text string) bool {
	uri, err := config.ParseURI(config.NetHSMScheme + text)
	return err == nil && uri.Object != "" && !strings.HasSuffix(text, "*")
}

// Taken reports whether a key with this label as its ID exists. Keys of a NetHSM have no other id.
func (s *Store) Taken(ctx context.Context, name config.URI) (bool, error) {
	if name.Object == "" {
		return false, nil
	}
	return s.key(name.Object).exists(ctx, s.ask)
}
