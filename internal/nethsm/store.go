package nethsm

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/url"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// Store is a NetHSM as a place of keys. Nothing is sent before something is asked for: a key that is known by its
// certificate costs one request for a signature. Its keys may sign from many goroutines at once; everything else is for
// one.
type Store struct {
	*client
	reader *credential // the operator, or the administrator where no operator is named
	admin  *credential
	noUser error // why there is no reader
	noRoot error // why there is no admin

	chains map[string][]*x509.Certificate // by key ID, as far as they were read
	listed []string                       // by Keys
}

// Open prepares for the NetHSM that the settings name. It sends nothing.
func Open(s *config.Settings) (*Store, error) {
	c, err := newClient(s)
	if err != nil {
		return nil, err
	}
	t := &Store{client: c, chains: map[string][]*x509.Certificate{}}
	t.admin, t.noRoot = administrator(s)
	if t.reader, t.noUser = operator(s); t.noUser != nil && t.noRoot == nil {
		t.reader, t.noUser = t.admin, nil
	}
	if t.noUser == nil && t.noRoot == nil && t.reader.user == t.admin.user {
		t.admin = t.reader // one passphrase, one try
	}
	return t, nil
}

// Close drops the connections.
func (s *Store) Close() error {
	s.close()
	return nil
}

// Describe says what is known without a request.
func (s *Store) Describe() key.Token { return describe(s.settings) }

func describe(s *config.Settings) key.Token {
	return key.Token{
		URI: config.NetHSMScheme, Label: strings.Join(s.NetHSM.Instances, " "), Manufacturer: "Nitrokey", Model: "NetHSM",
		Initialized: true, LoginRequired: true, PIN: key.PINNotTold,
	}
}

// Login has the user prove itself, which nothing else needs to be done first.
func (s *Store) Login(ctx context.Context) error {
	if s.noUser != nil {
		return s.noUser
	}
	_, err := s.ask(ctx, request{what: "logging in", method: http.MethodGet, path: userPath(s.reader.user)}, http.StatusOK)
	return err
}

// An asker sends a request as a user who may do it, and returns the answer if its status is one of those.
type asker func(ctx context.Context, r request, statuses ...int) (*answer, error)

// ask does what the reader may do.
func (s *Store) ask(ctx context.Context, r request, statuses ...int) (*answer, error) {
	if s.noUser != nil {
		return nil, s.noUser
	}
	r.as = s.reader
	return s.wanted(ctx, r, statuses...)
}

// change does what only an administrator may do.
func (s *Store) change(ctx context.Context, r request, statuses ...int) (*answer, error) {
	if s.noRoot != nil {
		f := failure.From(s.noRoot)
		return nil, failure.New(f.Kind, "%s failed: %w", r.what, f).WithHint(f.Hint)
	}
	r.as = s.admin
	return s.wanted(ctx, r, statuses...)
}

func (s *Store) wanted(ctx context.Context, r request, statuses ...int) (*answer, error) {
	a, err := s.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if a == settled {
		return a, nil
	}
	return a, r.want(a, statuses...)
}

func keyPath(id string) string { return "/keys/" + url.PathEscape(id) }

// id is the key that the settings name.
func (s *Store) id() (string, error) {
	id := s.settings.Key.Object
	if id == "" || strings.HasSuffix(id, "*") {
		return "", failure.New(failure.Invalid, "%s names no key",
			s.settings.Key).
			WithHint(`name it like nethsm:release; 'notation-hsm key list --token nethsm:' shows what is there`)
	}
	return id, nil
}
