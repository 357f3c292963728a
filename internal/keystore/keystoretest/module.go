// Package keystoretest is a PKCS#11 module in memory, for tests of the rooms above the keystore.
//
// A Module has tokens with PINs, keys, certificates and wrapping keys, and behaves as the keystore promises: one login
// per store, keys for one usage, private keys that leave only wrapped. It counts calls and fails those that a test asks
// it to fail. Tests of modules themselves use real ones.
package keystoretest

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// The PINs of every token.
const (
	PIN   = "4321"
	SOPIN = "87654321"
)

// Path is the module-path that settings made here have.
const Path = "/memory"

// tries is how often a wrong PIN may be tried before the token locks it.
const tries = 3

// Module is a keystore.Backend for pkcs11: URIs. It is safe for concurrent use.
type Module struct {
	mu        sync.Mutex
	tokens    []*token
	calls     map[string]int
	before    map[string]func() error
	after     map[string]func() error
	showInfo  func(*key.Info)
	showToken func(*key.Token)
	open      int
}

type token struct {
	label    string
	wrong    int // PINs since the last right one
	keys     []*object
	wrapping []*wrappingObject
	certs    []certificate
	oaep     []crypto.Hash // supported with RSA-OAEP
	silent   bool          // tells nothing of what its keys can decrypt
}

type object struct {
	label     string
	id        []byte
	private   crypto.Signer
	usage     key.Usage
	wrappable bool
	local     bool
}

type certificate struct {
	label string
	id    []byte
	cert  *x509.Certificate
}

type wrappingObject struct {
	key.WrappingKey
	value []byte
}

// New returns a module with a token for each label.
func New(labels ...string) *Module {
	m := &Module{calls: map[string]int{}, before: map[string]func() error{}, after: map[string]func() error{}}
	for _, label := range labels {
		m.tokens = append(m.tokens, &token{label: label, oaep: []crypto.Hash{crypto.SHA256, crypto.SHA1}})
	}
	return m
}

// Keystore returns a keystore with this module alone.
func (m *Module) Keystore() *keystore.Keystore { return keystore.New(nil, m) }

// Reference returns the key of a label on a token, with the right PIN in its settings. An empty label names the token.
func (m *Module) Reference(token, label string) *keystore.Reference {
	return m.Keystore().Reference(&config.Settings{
		Key: config.URI{Token: token, Object: label}, ModulePath: Path, PIN: PIN, Timeout: time.Minute,
	})
}

// Key puts a private key on a token and returns its reference.
func (m *Module) Key(t testing.TB, token, label string, private crypto.Signer, usage key.Usage) *keystore.Reference {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	on := m.token(token)
	if on == nil {
		t.Fatalf("there is no token %q", token)
	}
	on.keys = append(on.keys, &object{label: label, id: []byte(label), private: private, usage: usage})
	return m.Reference(token, label)
}

// Certificate puts a certificate on a token, under a label and the id of the key with this label.
func (m *Module) Certificate(t testing.TB, token, label string, cert *x509.Certificate) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	on := m.token(token)
	if on == nil {
		t.Fatalf("there is no token %q", token)
	}
	on.certs = append(on.certs, certificate{label: label, id: []byte(label), cert: cert})
}

// Calls returns how often an operation of a store or key was called, by the method's name.
func (m *Module) Calls(operation string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[operation]
}

// Fail has an operation fail, by the method's name, until it is called with nil.
func (m *Module) Fail(operation string, err error) { m.Before(operation, func() error { return err }) }

// Before has an operation call a function, which fails the operation by its error. The function calls no method of the
// module or its stores.
func (m *Module) Before(operation string, do func() error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before[operation] = do
}

// After is Before for a function that is called when the operation has taken effect, as when its answer is lost.
func (m *Module) After(operation string, do func() error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.after[operation] = do
}

// ShowInfo changes what keys show of themselves from now on.
func (m *Module) ShowInfo(change func(*key.Info)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.showInfo = change
}

// ShowToken changes what tokens show of themselves from now on.
func (m *Module) ShowToken(change func(*key.Token)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.showToken = change
}

// OpenStores returns how many stores are open: 0 when every caller has closed its own.
func (m *Module) OpenStores() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open
}

// Has reports whether a token holds a private key of a label.
func (m *Module) Has(token, label string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	on := m.token(token)
	return on != nil && slices.ContainsFunc(on.keys, func(o *object) bool { return o.label == label })
}

// token returns the token of a label, or nil. The caller holds the lock.
func (m *Module) token(label string) *token {
	for _, t := range m.tokens {
		if t.label == label {
			return t
		}
	}
	return nil
}

// begin counts a call and returns its fault. The caller holds the lock.
func (m *Module) begin(ctx context.Context, operation string) error {
	m.calls[operation]++
	if do := m.before[operation]; do != nil {
		if err := do(); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return failure.New(failure.Internal, "interrupted: %w", err)
	}
	return nil
}

// Scheme returns "pkcs11:".
func (*Module) Scheme() string { return config.Scheme }

// Close does nothing.
func (*Module) Close() error { return nil }

// Matches reports whether a URI names a token by its label, or names none.
func (*Module) Matches(want config.URI, token key.Token) bool {
	return want.Token == "" || want.Token == token.Label
}

// Tokens lists the tokens.
func (m *Module) Tokens(ctx context.Context, _ *config.Settings) ([]key.Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(ctx, "Tokens"); err != nil {
		return nil, err
	}
	var all []key.Token
	for i, t := range m.tokens {
		all = append(all, m.describe(t, uint(i)))
	}
	return all, nil
}

// end returns the fault of an operation that has taken effect. The caller holds the lock.
func (m *Module) end(operation string) error {
	if do := m.after[operation]; do != nil {
		return do()
	}
	return nil
}

// describe returns what a token shows of itself. The caller holds the lock.
func (m *Module) describe(t *token, slot uint) key.Token {
	shown := t.describe(slot)
	if m.showToken != nil {
		m.showToken(&shown)
	}
	return shown
}

// info returns what a key shows of itself. The caller holds the lock.
func (m *Module) info(o *object, on *token) key.Info {
	shown := o.info(on)
	if m.showInfo != nil {
		m.showInfo(&shown)
	}
	return shown
}

func (t *token) describe(slot uint) key.Token {
	state := key.PINReady
	switch {
	case t.wrong >= tries:
		state = key.PINLocked
	case t.wrong == tries-1:
		state = key.PINFinalTry
	case t.wrong > 0:
		state = key.PINCountLow
	}
	return key.Token{
		URI: config.URI{Token: t.label}.String(), Slot: slot, Label: t.label, Manufacturer: "memory", Model: "test",
		Initialized: true, LoginRequired: true, PIN: state,
	}
}

// Open opens the token that the settings name.
func (m *Module) Open(ctx context.Context, s *config.Settings) (keystore.Store, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(ctx, "Open"); err != nil {
		return nil, err
	}
	on := m.token(s.Key.Token)
	if s.Key.Token == "" && len(m.tokens) == 1 {
		on = m.tokens[0]
	}
	if on == nil {
		return nil, failure.New(failure.NotFound, "no token matches %s", s.Key)
	}
	m.open++
	return &store{module: m, token: on, settings: s}, nil
}

// Generate makes a key on the token that the settings name.
func (m *Module) Generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	opened, err := m.Open(ctx, s)
	if err != nil {
		return key.Info{}, err
	}
	defer opened.Close()
	if err := opened.Login(ctx); err != nil {
		return key.Info{}, err
	}
	private, err := NewKey(r.Spec)
	if err != nil {
		return key.Info{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(ctx, "Generate"); err != nil {
		return key.Info{}, err
	}
	on := opened.(*store).token
	o := &object{label: r.Label, id: r.ID, private: private, usage: r.Usage, wrappable: r.Wrappable, local: true}
	if len(o.id) == 0 {
		o.id = fmt.Appendf(nil, "%s-%d", r.Label, len(on.keys))
	}
	for _, other := range on.keys {
		if other.label == o.label || string(other.id) == string(o.id) {
			return key.Info{}, failure.New(failure.Conflict, "token %q already has a key %q", on.label, r.Label)
		}
	}
	on.keys = append(on.keys, o)
	return m.info(o, on), m.end("Generate")
}

// ImportWrapping stores a wrapping key. soPINSource is not read: SOPIN is taken as given.
func (m *Module) ImportWrapping(ctx context.Context, s *config.Settings, _ string, w key.WrappingKey,
	value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(ctx, "ImportWrapping"); err != nil {
		return err
	}
	on := m.token(s.Key.Token)
	if on == nil {
		return failure.New(failure.NotFound, "no token matches %s", s.Key)
	}
	on.wrapping = append(on.wrapping, &wrappingObject{w, slices.Clone(value)})
	return m.end("ImportWrapping")
}
