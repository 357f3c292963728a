// Package held has keys that stay open in a program that runs for long: each is looked up once, is described without a
// call of the module, and is used by many at a time. It has the rules of what such a program signs, too.
package held

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Keys are the keys of a keystore that were used, and their tokens, until Close.
type Keys struct {
	keystore *keystore.Keystore
	closedBy error
	done     chan struct{} // closed by Close

	mu      sync.Mutex
	closed  bool
	tokens  map[string]keystore.Store // by reference
	held    map[string]*Key           // by reference: at most three names for each key
	opening map[string]*opening       // by reference
}

// New returns the keys of a keystore, none of which is open. closed is the failure of everything that Close has met.
func New(ks *keystore.Keystore, closed error) *Keys {
	return &Keys{keystore: ks, closedBy: closed, tokens: map[string]keystore.Store{}, held: map[string]*Key{},
		opening: map[string]*opening{}, done: make(chan struct{})}
}

// identify returns an identifier of what a reference names: by its URI alone, two modules can have the same key.
func identify(r *keystore.Reference) string {
	return fmt.Sprintf("%s\n%q\n%q\n%q\n%q", r.Key, r.ModulePath, r.InitArgs, r.CertificateChain, r.Env)
}

// Login logs in to the token of a reference. The use of a key does so by itself.
func (k *Keys) Login(ctx context.Context, token *keystore.Reference) error {
	store, err := k.Open(ctx, token)
	if err != nil {
		return err
	}
	return k.Cause(store.Login(ctx))
}

// Open returns the store of a token, which stays open until Close.
func (k *Keys) Open(ctx context.Context, token *keystore.Reference) (keystore.Store, error) {
	if opened := k.Opened(token); opened != nil {
		return opened, nil
	}
	store, err := token.Open(ctx)
	if err != nil {
		return nil, k.Cause(err)
	}
	id := identify(token)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		store.Close()
		return nil, k.closedBy
	}
	if opened := k.tokens[id]; opened != nil {
		return opened, store.Close()
	}
	k.tokens[id] = store
	return store, nil
}

// Opened returns the store of a token, or nil if Open has not opened it.
func (k *Keys) Opened(token *keystore.Reference) keystore.Store {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tokens[identify(token)]
}

// Cause returns why a call failed: that Close has met it, whatever the module says of its end.
func (k *Keys) Cause(err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && k.closed {
		return k.closedBy
	}
	return err
}

// Close ends the logins and every use of a key in flight, and closes the keystore.
func (k *Keys) Close() error {
	k.mu.Lock()
	if !k.closed {
		close(k.done)
	}
	k.closed = true
	stores := []keystore.Store{}
	for _, h := range k.held {
		stores = append(stores, h.store)
	}
	for _, store := range k.tokens {
		stores = append(stores, store)
	}
	k.held, k.tokens = nil, nil
	k.mu.Unlock()
	failed := []error{k.keystore.Close()} // the process of a module ends, and its sessions with it
	for _, store := range stores {
		failed = append(failed, store.Close())
	}
	return errors.Join(failed...)
}
