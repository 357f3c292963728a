// Package keystore is the only door to a private key: from resolved settings to a key whose private half stays in its
// module. Rooms above it work with crypto and x509 and know no module by name.
//
// A Keystore holds the backends that reach tokens, one for each kind of module. A Reference is a key or a token with
// its settings resolved; its methods open a Store, which is a token with a session. Every call takes a context, whose
// end ends that call alone.
package keystore

import (
	"context"
	"errors"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// A Backend reaches the tokens of one kind of module. It is safe for concurrent use.
type Backend interface {
	// Scheme is the scheme of the URIs that the backend reaches, with its colon: "pkcs11:".
	Scheme() string
	// Open opens the token that the settings name.
	Open(ctx context.Context, s *config.Settings) (Store, error)
	// Tokens lists the tokens of the module that the settings name.
	Tokens(ctx context.Context, s *config.Settings) ([]key.Token, error)
	// Generate makes a key inside the module: sensitive, not extractable unless the request says so, and for its usage
	// alone.
	Generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error)
	// ImportWrapping stores a trusted wrapping key on the token, as its security officer.
	ImportWrapping(ctx context.Context, s *config.Settings, soPINSource string, w key.WrappingKey, value []byte) error
	// Matches reports whether a token is one that a URI of the backend's scheme names.
	Matches(want config.URI, token key.Token) bool
	// Close releases what the backend keeps between calls.
	Close() error
}

// Keystore reaches keys through its backends. A process has one, made at its edge.
type Keystore struct {
	backends map[string]Backend
	missing  func(scheme string) error
	direct   bool
}

// New returns a Keystore of backends. missing returns the failure for a scheme without one; nil means a general one.
func New(missing func(scheme string) error, backends ...Backend) *Keystore {
	k := &Keystore{backends: map[string]Backend{}, missing: missing}
	for _, b := range backends {
		k.backends[b.Scheme()] = b
	}
	return k
}

// Direct returns the same keystore for commands that change keys or certificates: the setting broker does not count.
func (k *Keystore) Direct() *Keystore {
	return &Keystore{backends: k.backends, missing: k.missing, direct: true}
}

// Close releases what the backends keep between calls.
func (k *Keystore) Close() error {
	var failed []error
	for _, b := range k.backends {
		failed = append(failed, b.Close())
	}
	return errors.Join(failed...)
}

// Forget has backends that keep PINs forget them, and which of them tokens have refused: the next login reads its PIN
// again.
func (k *Keystore) Forget() {
	for _, b := range k.backends {
		if keeps, ok := b.(interface{ Forget() }); ok {
			keeps.Forget()
		}
	}
}

func (k *Keystore) backend(scheme string) (Backend, error) {
	if b, ok := k.backends[scheme]; ok {
		return b, nil
	}
	if k.missing != nil {
		return nil, k.missing(scheme)
	}
	return nil, failure.New(failure.Unsupported, "this program has no access to %s keys", scheme)
}

// Resolve returns the key or token that a reference names: a URI, an alias of the config file, or "" for a token alone.
// It takes what config.Resolve takes, and returns its failures.
func (k *Keystore) Resolve(reference string, given map[string]string, origin config.Origin) (*Reference, error) {
	return k.with(config.Resolve(reference, given, k.route(origin)))
}

// ResolveStored is Resolve for a reference that stands in data with settings of its own, as config.ResolveStored has
// it.
func (k *Keystore) ResolveStored(reference string, stored map[string]string, origin config.Origin,
	flags map[string]string) (*Reference, error) {
	return k.with(config.ResolveStored(reference, stored, k.route(origin), flags))
}

func (k *Keystore) route(origin config.Origin) config.Origin {
	if k.direct {
		return origin.Direct()
	}
	return origin
}

func (k *Keystore) with(s *config.Settings, err error) (*Reference, error) {
	if err != nil {
		return nil, err
	}
	return k.Reference(s), nil
}

// Reference returns the key or token that resolved settings name.
func (k *Keystore) Reference(s *config.Settings) *Reference {
	return &Reference{Settings: *s, keystore: k}
}

// Matches reports whether a token may be one that a URI names; what the URI leaves out matches any. broker:NAME does
// not tell which token the broker holds, so that it may be any.
func (k *Keystore) Matches(want config.URI, token key.Token) bool {
	if want.Broker {
		return true
	}
	b, err := k.backend(want.Scheme())
	return err == nil && strings.HasPrefix(token.URI, want.Scheme()) && b.Matches(want, token)
}

// Reference is a key or a token whose settings are resolved, with the keystore that reaches it. A copy whose settings
// were changed names another key of the same keystore.
type Reference struct {
	config.Settings
	keystore *Keystore
}

// Keystore returns the keystore that reaches the key.
func (r *Reference) Keystore() *Keystore { return r.keystore }

// Backend returns the backend that reaches the key, for operations that one kind of module alone has.
func (r *Reference) Backend() (Backend, error) { return r.keystore.backend(r.Scheme()) }

// Open opens the token. The caller closes the store.
func (r *Reference) Open(ctx context.Context) (Store, error) {
	b, err := r.keystore.backend(r.Scheme())
	if err != nil {
		return nil, err
	}
	return b.Open(ctx, &r.Settings)
}

// WithKey opens the key for as long as do takes.
func (r *Reference) WithKey(ctx context.Context, do func(Store, Key) error) error {
	store, err := r.Open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	k, err := store.Key(ctx, nil)
	if err != nil {
		return err
	}
	return do(store, k)
}

// Tokens lists the tokens of the module.
func (r *Reference) Tokens(ctx context.Context) ([]key.Token, error) {
	b, err := r.keystore.backend(r.Scheme())
	if err != nil {
		return nil, err
	}
	return b.Tokens(ctx, &r.Settings)
}

// Generate makes a key inside the module: sensitive, not extractable unless the request says so, and for its usage
// alone.
func (r *Reference) Generate(ctx context.Context, request key.Request) (key.Info, error) {
	b, err := r.keystore.backend(r.Scheme())
	if err != nil {
		return key.Info{}, err
	}
	return b.Generate(ctx, &r.Settings, request)
}

// ImportWrapping stores a trusted wrapping key on the token, as its security officer, whose PIN comes from soPINSource.
func (r *Reference) ImportWrapping(ctx context.Context, soPINSource string, w key.WrappingKey, value []byte) error {
	b, err := r.keystore.backend(r.Scheme())
	if err != nil {
		return err
	}
	return b.ImportWrapping(ctx, &r.Settings, soPINSource, w, value)
}
