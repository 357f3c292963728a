// Package worker is a keystore backend that uses each PKCS#11 module in a process of its own, for programs that run for
// long. A module is C code of a vendor: it needs variables in its environment, prints to descriptors 1 and 2, installs
// signal handlers, hangs and crashes. In a process of its own it does so without harm to the program.
//
// The process is started from the same executable (Main) and spoken to over a socket. It serves a keystore.Backend. It
// is started again when it crashes or hangs; a call that was in flight is repeated once if it changes nothing on the
// token. The PIN stays in locked memory of the parent, which hands it to the process at each login, and never again
// once it was refused.
package worker

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// Backend reaches keys in modules, each in a process of its own.
type Backend struct {
	inner   keystore.Backend
	limits  limits
	pins    *pins
	closing chan struct{}

	mu        sync.Mutex
	modules   map[string]*module
	variables map[string]bool // that PINs come from
	closed    bool
}

// New returns a Backend with no process running. The processes serve calls with a backend such as inner, as the program
// hands it to Main; inner itself opens no module.
func New(inner keystore.Backend) *Backend {
	return &Backend{
		inner: inner, limits: defaultLimits, pins: newPINs(), closing: make(chan struct{}),
		modules: map[string]*module{}, variables: map[string]bool{},
	}
}

// Scheme returns that of the inner backend.
func (b *Backend) Scheme() string { return b.inner.Scheme() }

// Matches reports whether a token is one that a URI names.
func (b *Backend) Matches(want config.URI, token key.Token) bool { return b.inner.Matches(want, token) }

// Open opens the token that the settings name in the process of its module.
func (b *Backend) Open(ctx context.Context, s *config.Settings) (keystore.Store, error) {
	settings := *s
	by := owner{settings: &settings}
	m, err := b.module(by)
	if err != nil {
		return nil, err
	}
	store := &store{module: m, owner: by, opening: make(chan struct{}, 1)}
	if err := store.repeat(ctx, func(*opened) error { return nil }); err != nil {
		return nil, err
	}
	return store, nil
}

// Tokens lists the tokens of the module that the settings name.
func (b *Backend) Tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	r, err := b.call(ctx, opListTokens, owner{settings: s}, arguments{})
	return r.Tokens, err
}

// Generate makes a key inside the module.
func (b *Backend) Generate(ctx context.Context, s *config.Settings, request key.Request) (key.Info, error) {
	r, err := b.call(ctx, opGenerate, owner{settings: s}, arguments{Request: &request})
	if err != nil {
		return key.Info{}, err
	}
	return r.info()
}

// ImportWrapping stores a trusted wrapping key on the token, as its security officer, whose PIN comes from soPINSource.
func (b *Backend) ImportWrapping(ctx context.Context, s *config.Settings, soPINSource string, w key.WrappingKey,
	value []byte) error {
	_, err := b.call(ctx, opImportWrapping, owner{settings: s, soPIN: soPINSource},
		arguments{PINSource: pinSource(soPINSource), Wrapping: w, Data: value})
	return err
}

// call makes a call without a store. One that changes nothing is repeated once if the process ends.
func (b *Backend) call(ctx context.Context, k kind, o owner, a arguments) (results, error) {
	m, err := b.module(o)
	if err != nil {
		return results{}, err
	}
	a.Settings = forProcess(o.settings)
	body := encode(a)
	for tries := (attempts{}); ; {
		var answer []byte
		p, err := m.process(ctx)
		began := err == nil
		if began {
			answer, err = p.call(ctx, k, o, body)
			err = once(k, err)
		}
		if err == nil {
			return decode(answer)
		}
		if !tries.again(ctx, began, err) {
			return results{}, ended(err)
		}
	}
}

// Guard has a guard asked before each login of a user. It is called before the first Open.
func (b *Backend) Guard(guard pin.Guard) { b.pins.guard = guard }

// Forget clears all PINs, and what is known of those that were refused: the next login reads its PIN again. Processes
// whose module has refused a PIN end, since they remember that, too.
func (b *Backend) Forget() {
	for m := range b.pins.forget() {
		m.end()
	}
}

// Close ends all processes, which close their sessions and finalise their modules, and clears all PINs.
func (b *Backend) Close() error {
	b.mu.Lock()
	if !b.closed {
		b.closed = true
		close(b.closing)
	}
	modules := slices.Collect(maps.Values(b.modules))
	b.mu.Unlock()
	b.pins.close() // at once: a process may take seconds to end
	var group sync.WaitGroup
	for _, m := range modules {
		group.Go(m.close)
	}
	group.Wait()
	_ = b.pins.forget()
	return nil
}

// module returns the module of a call: one for each library, init-args and environment.
func (b *Backend) module(o owner) (*module, error) {
	s := o.settings
	if s.ModulePath == "" {
		return nil, failure.New(failure.Invalid, "no PKCS#11 module is named").
			WithHint("set module-path (or NOTATION_HSM_MODULE_PATH) to the PKCS#11 library of your HSM, or install p11-kit")
	}
	id := s.ModulePath + "\x00" + s.InitArgs
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		id += "\x00" + name + "=" + s.Env[name]
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, failure.New(failure.Unavailable, "cannot use the PKCS#11 module %s: %w", s.ModulePath, errClosed)
	}
	for _, source := range []string{s.PINSource, o.soPIN} {
		if name, ok := strings.CutPrefix(source, "env:"); ok {
			b.variables[name] = true
		}
	}
	m := b.modules[id]
	if m == nil {
		m = &module{backend: b, path: s.ModulePath, env: maps.Clone(s.Env), running: map[*process]bool{}}
		b.modules[id] = m
	}
	return m, nil
}

// pinVariables returns the names of variables that PINs come from.
func (b *Backend) pinVariables() map[string]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.variables)
}

// forProcess returns settings as a process gets them: without a PIN, and without the place that it comes from.
func forProcess(s *config.Settings) *config.Settings {
	copied := *s
	copied.Key.Query, copied.Env = nil, nil
	copied.PINSource = pinSource(s.PINSource)
	if s.PIN != "" {
		copied.PIN, copied.PINSource = "", fromParent
	}
	return &copied
}

// fromParent is the source of PINs in a process: whatever it is there, the process asks its parent.
const fromParent = "parent"

// pinSource returns the source as a process gets it.
func pinSource(source string) string {
	if source == "" || source == pin.None {
		return source
	}
	return fromParent
}
