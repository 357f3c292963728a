package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// Bounds of a key set (JWKS, RFC 7517).
const (
	maxKeySet  = 256 << 10
	maxKeys    = 100
	minRSABits = 2048
)

var keySetLimits = bound.Limits{Bytes: maxKeySet, Depth: 6, Elements: 10_000}

// keySet are the public keys of an issuer that may sign its tokens, by their ids.
type keySet struct {
	keys       map[string]jose.JSONWebKey
	algorithms []string // that discovery lists; empty if it lists none
}

// readKeySet reads a JWKS. It leaves out keys that this package does not use: symmetric keys, keys for encryption, keys
// without an id, and types and sizes that no algorithm here has. It fails when no key is left, and when two keys have
// the same id.
func readKeySet(data []byte) (*keySet, error) {
	if err := bound.JSON(data, keySetLimits); err != nil {
		return nil, err
	}
	var document struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, fmt.Errorf("it is not a JWKS: %w", err)
	}
	if len(document.Keys) > maxKeys {
		return nil, fmt.Errorf("it has %d keys, more than %d", len(document.Keys), maxKeys)
	}
	set := &keySet{keys: map[string]jose.JSONWebKey{}}
	for _, raw := range document.Keys {
		var key jose.JSONWebKey
		if err := key.UnmarshalJSON(raw); err != nil || !usable(key) {
			continue
		}
		if _, exists := set.keys[key.KeyID]; exists {
			return nil, fmt.Errorf("two of its keys have the id %.50q", key.KeyID)
		}
		set.keys[key.KeyID] = key
	}
	if len(set.keys) == 0 {
		return nil, errors.New("it has no key for signatures with an id (kid)")
	}
	return set, nil
}

// usable reports whether a key verifies tokens.
func usable(key jose.JSONWebKey) bool {
	if key.KeyID == "" || len(key.KeyID) > maxKeyID || key.Use != "" && key.Use != "sig" {
		return false
	}
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		return public.N.BitLen() >= minRSABits
	case *ecdsa.PublicKey:
		return public.Curve == elliptic.P256() || public.Curve == elliptic.P384()
	case ed25519.PublicKey:
		return true
	}
	return false
}

// find returns the key with an id, for an algorithm. It returns false when there is none, and an error when that key or
// that issuer does not sign with that algorithm.
func (s *keySet) find(id string, algorithm jose.SignatureAlgorithm) (any, bool, error) {
	key, found := s.keys[id]
	if !found {
		return nil, false, nil
	}
	fits := false
	switch public := key.Key.(type) {
	case *rsa.PublicKey:
		fits = algorithm == jose.RS256 || algorithm == jose.PS256
	case *ecdsa.PublicKey:
		fits = algorithm == jose.ES256 && public.Curve == elliptic.P256() ||
			algorithm == jose.ES384 && public.Curve == elliptic.P384()
	case ed25519.PublicKey:
		fits = algorithm == jose.EdDSA
	}
	if !fits || key.Algorithm != "" && key.Algorithm != string(algorithm) ||
		len(s.algorithms) > 0 && !slices.Contains(s.algorithms, string(algorithm)) {
		return nil, true, fmt.Errorf("its algorithm (alg) %s is not that of its key, or of its issuer", algorithm)
	}
	return key.Key, true, nil
}
