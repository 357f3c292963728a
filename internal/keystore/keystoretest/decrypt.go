package keystoretest

import (
	"crypto"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// OAEP limits the hashes that a token supports for RSA-OAEP. A new token supports SHA-256 and SHA-1.
func (m *Module) OAEP(token string, hashes ...crypto.Hash) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.token(token).oaep = hashes
}

// Silence has a token tell nothing of what its keys can decrypt, as modules do whose private keys are hidden without a
// login.
func (m *Module) Silence(token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.token(token).silent = true
}

// receives returns what a token accepts for a key. The caller holds the lock.
func (t *token) receives(o *object) key.Receives {
	switch {
	case t.silent:
		return key.Receives{}
	case o.usage != key.Decrypt:
		return key.Receives{Refusal: "CKA_DECRYPT is false"}
	}
	return key.Receives{Sure: true, OAEP: t.oaep}
}

// supports fails with Unsupported for RSA-OAEP with a hash that the token does not support.
func (t *token) supports(hash crypto.Hash) error {
	if !slices.Contains(t.oaep, hash) {
		return ckr(failure.Unsupported, "CKR_MECHANISM_PARAM_INVALID", "token %q does not support OAEP with %s", t.label,
			hash)
	}
	return nil
}
