package pkcs11

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/crashreport"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Backend reaches keys in PKCS#11 modules for a keystore. It is safe for concurrent use. A process has one: what a
// module keeps per process (its initialisation, the login to a token, environment variables) is counted here.
type Backend struct {
	mu      sync.Mutex
	modules map[string]*Module
	env     map[string]string        // variables that were set for a module, by name
	refused map[string]error         // the refusal of a login, by the token's identity and user; it is not tried again
	logins  map[string]chan struct{} // by the same; each holds a value while somebody tries the PIN
}

// New returns a Backend with no module loaded.
func New() *Backend {
	return &Backend{modules: map[string]*Module{}, env: map[string]string{}, refused: map[string]error{},
		logins: map[string]chan struct{}{}}
}

// Scheme returns "pkcs11:".
func (*Backend) Scheme() string { return config.Scheme }

// Open returns the one token that the settings name, with a session. The module and the token are shared with all who
// have opened them before: a module is initialised by its first user and finalised by its last.
func (b *Backend) Open(ctx context.Context, s *config.Settings) (keystore.Store, error) {
	t, err := b.open(ctx, s)
	if err != nil {
		return nil, err
	}
	return t, nil
}

// Tokens lists the tokens of the module that the settings name.
func (b *Backend) Tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	m, err := b.acquire(ctx, s)
	if err != nil {
		return nil, err
	}
	defer func() { _ = m.release() }()
	return call(ctx, m, s.Timeout, "listing tokens", func(ctx context.Context) ([]key.Token, error) {
		defer m.lock(ctx, s.Timeout)()
		return step(ctx, m, s.Timeout, "listing tokens", m.tokens)
	})
}

// tokens lists the tokens of a module. A token that cannot be read is left out.
func (m *Module) tokens() ([]key.Token, error) {
	slots, err := m.calls.slots()
	if err != nil {
		return nil, m.failed(err, "cannot list the slots of %s", m.path)
	}
	var tokens []key.Token
	for _, slot := range slots {
		info, err := m.calls.tokenInfo(slot)
		if err != nil {
			slog.Warn("cannot read a token", "slot", slot, "error", err)
			continue
		}
		tokens = append(tokens, describe(slot, info))
	}
	return tokens, nil
}

// Matches reports whether a token is one that a URI names; what the URI leaves out matches any.
func (*Backend) Matches(want config.URI, token key.Token) bool { return matches(want, token) }

// Close does nothing: a module is finalised when its last store is closed.
func (*Backend) Close() error { return nil }

// acquire loads and initialises the module that the settings name, unless another user has done so, and counts one user
// more. The caller releases it.
func (b *Backend) acquire(ctx context.Context, s *config.Settings) (*Module, error) {
	if s.ModulePath == "" {
		return nil, failure.New(failure.Invalid, "no PKCS#11 module is named").
			WithHint("set module-path (or NOTATION_HSM_MODULE_PATH) to the PKCS#11 library of your HSM, or install p11-kit")
	}
	m, err := b.count(s)
	if err != nil {
		return nil, err
	}
	if err := m.start(ctx, s, func() { _ = m.release() }); err != nil {
		return nil, err
	}
	return m, nil
}

// count returns the module of a path with one user more. Links to one file are one module, since the dynamic linker
// loads a file once. Environment variables and init-args belong to the process and the module, so two users that want
// different ones are a conflict.
func (b *Backend) count(s *config.Settings) (*Module, error) {
	path := s.ModulePath
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.modules[path]
	const sameEnv = "give the tokens the same value in env in the config file, or use them in separate processes"
	for name, value := range s.Env {
		old, set := b.env[name]
		if set && old != value {
			return nil, failure.New(failure.Conflict,
				"cannot use the PKCS#11 module %s: another token of this process has set %s to another value", s.ModulePath, name).
				WithHint(sameEnv)
		}
		if !set && m != nil && m.users > 0 && os.Getenv(name) != value {
			return nil, failure.New(failure.Conflict,
				"cannot use the PKCS#11 module %s: another token of this process has started it without %s", s.ModulePath, name).
				WithHint(sameEnv)
		}
	}
	if m == nil {
		m = &Module{backend: b, path: s.ModulePath, starting: make(chan struct{}, 1)}
		b.modules[path] = m
	}
	if m.users > 0 && m.initArgs != s.InitArgs {
		return nil, failure.New(failure.Conflict,
			"cannot use the PKCS#11 module %s: another token of this process has initialised it with other init-args",
			s.ModulePath).
			WithHint("give the tokens of one module the same init-args in the config file")
	}
	m.users++
	m.initArgs = s.InitArgs
	for name, value := range s.Env {
		b.env[name] = value
	}
	return m, nil
}

// expectCrash prepares the error that is written when a module crashes the process. Which one it was cannot be told
// then, so all that are loaded are named.
func (b *Backend) expectCrash() {
	b.mu.Lock()
	defer b.mu.Unlock()
	var paths []string
	for _, m := range b.modules {
		paths = append(paths, m.path)
	}
	slices.Sort(paths)
	what := "the PKCS#11 module " + strings.Join(paths, " or ") + " crashed"
	crashreport.Expect(failure.New(failure.Internal, "%s", what).
		WithHint("update the module, and report the crash to its vendor; set NOTATION_HSM_LOG=/path/to/log to see the step " +
			"it crashed in"))
}

// refuse remembers why a token refused a login. Nobody in this process tries that token and user again.
func (b *Backend) refuse(identity string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused[identity] = err
}

// refusal returns why a token refused a login before, or nil.
func (b *Backend) refusal(identity string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refused[identity]
}

// turn waits until nobody else tries a PIN of that token and user, through whatever module and session, and returns the
// function that ends the caller's turn.
func (b *Backend) turn(ctx context.Context, identity string, limit time.Duration) (end func(), err error) {
	b.mu.Lock()
	login := b.logins[identity]
	if login == nil {
		login = make(chan struct{}, 1)
		b.logins[identity] = login
	}
	b.mu.Unlock()
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case login <- struct{}{}:
		return func() { <-login }, nil
	case <-wait.Done():
		if ctx.Err() != nil {
			return nil, interrupted(ctx, "waiting for another login")
		}
		return nil, failure.New(failure.Timeout, "another login to the token did not end within %s", limit).
			WithHint("check that the HSM can be reached, or set a longer timeout")
	}
}
