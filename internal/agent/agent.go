// Package agent uses the keys of one token for the programs of one user, which need no PIN and no module: it logs in
// once, reads what is to be signed, and signs what its keys are allowed to sign.
//
// It serves the HTTP API of internal/brokerapi. Everything that reaches it is a program of the user's own, and may
// still be broken or hostile: a request is bounded in size and time, and names no key outside of the token.
package agent

import (
	"context"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// Options are what an agent is started with.
type Options struct {
	// Open returns a keystore of its own, and the token that the agent holds. It is called again after Lock.
	Open func() (*keystore.Keystore, *keystore.Reference, error)
	// Formats are what the keys are allowed to sign.
	Formats []payload.Format
	// Confirm asks a person whether a key may be used for an artifact, and fails with Denied if not; nil asks nobody.
	Confirm func(ctx context.Context, key string, a *payload.Artifact) error
	// Token is the URI by which the token was named, for those who ask for the state of the agent.
	Token string
	// Refusals are those that Open guards its PINs with, for those who ask.
	Refusals *Refusals
	// Idle is how long the agent runs without a use of a key; 0 means for ever.
	Idle time.Duration
}

// Agent holds a token.
type Agent struct {
	options Options
	started time.Time
	uses    uses
	running context.Context // ends with Run
	stop    func()

	mu       sync.Mutex
	current  *session  // nil while the agent is locked
	token    key.Token // of the last login
	unlocked time.Time // the login; zero without one
	closed   bool

	limits *httpapi.Limits
}

// New returns an agent that has not logged in.
func New(o Options) *Agent {
	now := time.Now()
	a := &Agent{options: o, started: now, uses: uses{last: now}, limits: httpapi.NewLimits("process")}
	a.running, a.stop = context.WithCancel(context.Background())
	return a
}

// Unlock logs in to the token, unless the agent has. What needs a key calls it by itself.
func (a *Agent) Unlock(ctx context.Context) error {
	s, err := a.session()
	if err != nil {
		return err
	}
	if err := s.Login(ctx, s.token); err != nil {
		return err
	}
	a.noteLogin()
	return nil
}

// noteLogin notes that the current session has logged in.
func (a *Agent) noteLogin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == nil || !a.unlocked.IsZero() {
		return
	}
	a.unlocked = time.Now()
	a.token = a.current.describe(a.token)
}

// Lock forgets the PIN, and ends the login and every use of a key in flight. The next use of a key logs in again.
func (a *Agent) Lock() error {
	a.mu.Lock()
	s := a.current
	a.current, a.unlocked = nil, time.Time{}
	a.mu.Unlock()
	if a.options.Refusals != nil {
		a.options.Refusals.locked()
	}
	if s == nil {
		return nil
	}
	return s.Close()
}

// Close locks the agent for good.
func (a *Agent) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	return a.Lock()
}

// describe returns the token as the module describes it, or else as it was known before.
func (s *session) describe(before key.Token) key.Token {
	if store := s.Opened(s.token); store != nil {
		return store.Describe()
	}
	return before
}

// session returns the open token.
func (a *Agent) session() (*session, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, failure.New(failure.Unavailable, "the agent is ending").WithHint("start 'hsm-broker agent' again")
	}
	if a.current == nil {
		ks, token, err := a.options.Open()
		if err != nil {
			return nil, err
		}
		a.current = newSession(ks, token)
	}
	return a.current, nil
}
