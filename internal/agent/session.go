package agent

import (
	"context"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// session is a token with its login, from the first use of a key to the next Lock.
type session struct {
	*held.Keys
	keystore *keystore.Keystore
	token    *keystore.Reference
}

func newSession(ks *keystore.Keystore, token *keystore.Reference) *session {
	locked := failure.New(failure.Unavailable, "the agent was locked").WithHint("run it again, which logs in")
	return &session{Keys: held.New(ks, locked), keystore: ks, token: token}
}

// open returns the store of the token.
func (s *session) open(ctx context.Context) (keystore.Store, error) { return s.Open(ctx, s.token) }

// find returns the key that a caller names, to use it.
func (s *session) find(ctx context.Context, name string) (*held.Key, error) {
	reference, err := s.resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.Find(ctx, reference)
}

// findFresh returns the key that a caller names, with its certificates.
func (s *session) findFresh(ctx context.Context, name string) (*held.Key, error) {
	reference, err := s.resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	return s.FindFresh(ctx, reference)
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
