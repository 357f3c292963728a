package nethsm

import (
	"context"
	"crypto"
	"encoding/json"
	"net/http"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/config"
)

// Key is a private key on a NetHSM. It is safe for concurrent use, until its Store is closed.
type Key struct {
	store *Store
	id    string

	mu     sync.Mutex
	public crypto.PublicKey // nil for a listed key, until it was read
}

// Public returns the public half, or nil for a listed key before Info or ReadPublic.
func (k *Key) Public() crypto.PublicKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.public
}

// knownPublic returns the public half, and reads it if it is not known.
func (k *Key) knownPublic(ctx context.Context) (crypto.PublicKey, error) {
	if public := k.Public(); public != nil {
		return public, nil
	}
	return k.ReadPublic(ctx)
}

func (k *Key) learn(public crypto.PublicKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.public = public
}

func (k *Key) name() string { return config.NetHSMScheme + k.id }

// use sends a request to sign or decrypt with the key, as the operator.
func (k *Key) use(ctx context.Context, r request, body, into any) error {
	var err error
	if r.body, err = json.Marshal(body); err != nil {
		return err
	}
	r.method, r.path = http.MethodPost, keyPath(k.id)+r.path
	a, err := k.store.ask(ctx, r, http.StatusOK)
	if err != nil {
		return err
	}
	return decode(r.what, a.body, into)
}
