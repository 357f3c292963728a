package nethsm

import (
	"context"
	"crypto"
	"encoding/json"
	"net/http"

	"github.com/notation-hsm/notation-hsm/internal/config"
)

// Key is a private key on a NetHSM. It may be used from many goroutines, until its Store is closed.
type Key struct {
	store  *Store
	id     string
	public crypto.PublicKey // nil for a key of a list, until Info
}

// Public returns the key's public half.
func (k *Key) Public() crypto.PublicKey { return k.public }

func (k *Key) name() string { return config.NetHSMScheme + k.id }

// use has the key sign or decrypt, as the operator.
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
