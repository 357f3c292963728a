package nethsm

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Store is a NetHSM as a keystore. It sends no request before it needs a response, so a signature with a key whose
// certificate is known takes one request. It is safe for concurrent use.
type Store struct {
	*client
	reader    *credential // the operator, or the administrator if no operator is set
	admin     *credential
	readerErr error // why there is no reader
	adminErr  error // why there is no admin

	mu     sync.Mutex           // guards the following
	chains map[string]readChain // by key ID
	listed []string             // the key IDs that Keys returned last
}

// open returns a store for the NetHSM of the settings. It sends no request.
func (b *Backend) open(s *config.Settings) (*Store, error) {
	c, err := b.newClient(s)
	if err != nil {
		return nil, err
	}
	t := &Store{client: c, chains: map[string]readChain{}}
	t.admin, t.adminErr = c.administrator()
	if t.reader, t.readerErr = c.operator(); t.readerErr != nil && t.adminErr == nil {
		t.reader, t.readerErr = t.admin, nil
	}
	if t.readerErr == nil && t.adminErr == nil && t.reader.user == t.admin.user {
		t.admin = t.reader // the passphrase is read once
	}
	return t, nil
}

// Close waits for the requests in progress, clears the passphrases and closes the connections.
func (s *Store) Close() error {
	s.close()
	return nil
}

// Describe returns what is known without a request.
func (s *Store) Describe() key.Token { return describe(s.settings) }

func describe(s *config.Settings) key.Token {
	return key.Token{
		URI: config.NetHSMScheme, Label: strings.Join(s.NetHSM.Instances, " "), Manufacturer: "Nitrokey", Model: "NetHSM",
		Initialized: true, LoginRequired: true, PIN: key.PINNotTold,
	}
}

// Login verifies the passphrase with a request. Other requests do not need it.
func (s *Store) Login(ctx context.Context) error {
	if s.readerErr != nil {
		return s.readerErr
	}
	_, err := s.ask(ctx, request{what: "logging in", method: http.MethodGet, path: userPath(s.reader.user)}, http.StatusOK)
	return err
}

// An asker sends a request as one of the store's users and returns the response if it has one of the statuses.
type asker func(ctx context.Context, r request, statuses ...int) (*response, error)

// ask sends a request as the user that reads and uses keys.
func (s *Store) ask(ctx context.Context, r request, statuses ...int) (*response, error) {
	if s.readerErr != nil {
		return nil, s.readerErr
	}
	r.as = s.reader
	return s.expect(ctx, r, statuses...)
}

// change sends a request as the administrator.
func (s *Store) change(ctx context.Context, r request, statuses ...int) (*response, error) {
	if s.adminErr != nil {
		f := failure.From(s.adminErr)
		return nil, failure.New(f.Kind, "%s failed: %w", r.what, f).WithHint(f.Hint)
	}
	r.as = s.admin
	return s.expect(ctx, r, statuses...)
}

// expect sends a request and returns the response if it has one of the statuses.
func (s *Store) expect(ctx context.Context, r request, statuses ...int) (*response, error) {
	a, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if a == confirmed {
		return a, nil
	}
	return a, r.want(a, statuses...)
}

func keyPath(id string) string { return "/keys/" + url.PathEscape(id) }

func userPath(user string) string { return "/users/" + url.PathEscape(user) }

// id returns the ID of the key that the settings name. It fails with Invalid when they name none.
func (s *Store) id() (string, error) {
	id := s.settings.Key.Object
	if id == "" || strings.HasSuffix(id, "*") {
		return "", failure.New(failure.Invalid, "%s names no key", s.settings.Key).
			WithHint("name one as nethsm:KEYID: 'notation-hsm key list --token nethsm:' lists them")
	}
	return id, nil
}

// key returns a key of this store without its public half.
func (s *Store) key(id string) *Key { return &Key{store: s, id: id} }

// own returns a key as one of this store, which sends its requests.
func own(k keystore.Key) *Key { return k.(*Key) }
