package agent

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// session is a token with its login, from the first use of a key to the next Lock.
type session struct {
	keystore *keystore.Keystore
	token    *keystore.Reference

	mu      sync.Mutex
	closed  bool
	root    keystore.Store      // the token; nil until it is opened
	held    map[string]*held    // by reference: at most three names for each key of the token
	opening map[string]*opening // by reference
}

func newSession(ks *keystore.Keystore, token *keystore.Reference) *session {
	return &session{keystore: ks, token: token, held: map[string]*held{}, opening: map[string]*opening{}}
}

// login logs in to the token.
func (s *session) login(ctx context.Context) error {
	store, err := s.open(ctx)
	if err != nil {
		return err
	}
	return s.met(store.Login(ctx))
}

// open returns the store of the token.
func (s *session) open(ctx context.Context) (keystore.Store, error) {
	s.mu.Lock()
	root := s.root
	s.mu.Unlock()
	if root != nil {
		return root, nil
	}
	root, err := s.token.Open(ctx)
	if err != nil {
		return nil, s.met(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		root.Close()
		return nil, errLocked()
	}
	if s.root != nil {
		return s.root, root.Close()
	}
	s.root = root
	return root, nil
}

// met returns why a request failed: that Lock has met it, whatever the module says of its end.
func (s *session) met(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.closed {
		return errLocked()
	}
	return err
}

// errLocked returns the failure of a request that Lock has met.
func errLocked() error {
	return failure.New(failure.Unavailable, "the agent was locked").WithHint("run it again, which logs in")
}

// resolve returns the reference of a key on the token, which a caller names by its label or by its URI. It fails with
// NotFound for a key of another token.
func (s *session) resolve(ctx context.Context, name string) (*keystore.Reference, error) {
	reference := *s.token
	if !strings.HasPrefix(name, s.token.Key.Scheme()) {
		reference.Key.Object, reference.Key.ID = name, nil
		return &reference, nil
	}
	uri, err := config.ParseURI(name)
	if err != nil {
		return nil, err
	}
	store, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	if len(uri.Query) > 0 || uri.Object == "" && len(uri.ID) == 0 || !s.keystore.Matches(uri, store.Describe()) {
		return nil, failure.New(failure.NotFound, "the agent does not hold the key %s", config.Redact(name)).
			WithHint("name a key of the token " + store.Describe().URI)
	}
	reference.Key.Object, reference.Key.ID = uri.Object, uri.ID
	return &reference, nil
}

// close ends the login, and closes the module.
func (s *session) close() error {
	s.mu.Lock()
	s.closed = true
	stores := []keystore.Store{}
	for _, h := range s.held {
		stores = append(stores, h.store)
	}
	if s.root != nil {
		stores = append(stores, s.root)
	}
	s.held, s.root = nil, nil
	s.mu.Unlock()
	failed := []error{s.keystore.Close()} // the process of a module ends, and its sessions with it
	for _, store := range stores {
		failed = append(failed, store.Close())
	}
	return errors.Join(failed...)
}
