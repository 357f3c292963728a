// Package nethsm is the keystore backend for Nitrokey's NetHSM. It speaks the REST API in Go, so a key nethsm:KEYID
// needs neither a PKCS#11 module nor C code.
//
// A Backend opens stores and remembers what all stores of a process share: warnings that were written and users that
// were rejected. A Store sends requests through a client, which tries the instances of one cluster in turn until the
// timeout of the settings. Besides the keystore, a Backend serves the commands for a NetHSM: setup, status, backup and
// the configuration of Nitrokey's PKCS#11 module.
package nethsm

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Backend reaches keys on NetHSMs. It is safe for concurrent use.
type Backend struct {
	warnings io.Writer
	// firstPause is before the second round through the instances. It doubles for each further round.
	firstPause time.Duration
	// certificateAge is for how long certificates that were read are used again.
	certificateAge time.Duration
	// withTimeout limits one try of a request.
	withTimeout func(context.Context, time.Duration) (context.Context, context.CancelFunc)

	mu       sync.Mutex
	warned   map[string]bool          // by the text of the warning
	turns    map[string]chan struct{} // by user and instance
	rejected map[string]rejected      // by user and instance
}

// New returns a backend that writes each warning for people to the writer once. The log has them as well.
func New(warnings io.Writer) *Backend {
	return &Backend{
		warnings: warnings, firstPause: 100 * time.Millisecond, certificateAge: 5 * time.Second,
		withTimeout: context.WithTimeout,
		warned:      map[string]bool{}, turns: map[string]chan struct{}{}, rejected: map[string]rejected{},
	}
}

// Scheme returns "nethsm:".
func (b *Backend) Scheme() string { return config.NetHSMScheme }

// Open returns a store for the NetHSM of the settings. It sends no request.
func (b *Backend) Open(_ context.Context, s *config.Settings) (keystore.Store, error) {
	store, err := b.open(s)
	if err != nil {
		return nil, err
	}
	return store, nil
}

// Tokens describes the NetHSM of the settings. It fails with Unavailable when no instance is operational.
func (b *Backend) Tokens(ctx context.Context, s *config.Settings) ([]key.Token, error) {
	c, err := b.newClient(s)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.checkReady(ctx); err != nil {
		return nil, err
	}
	return []key.Token{describe(s)}, nil
}

// ImportWrapping fails with Unsupported: a NetHSM has no wrapping keys.
func (b *Backend) ImportWrapping(context.Context, *config.Settings, string, key.WrappingKey, []byte) error {
	return errNoWrapping()
}

// Matches reports true: the settings name one NetHSM.
func (b *Backend) Matches(config.URI, key.Token) bool { return true }

// Close does nothing: each store closes its own connections.
func (b *Backend) Close() error { return nil }

// warn writes a warning, unless this backend has written it before.
func (b *Backend) warn(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.warned[text] {
		return
	}
	b.warned[text] = true
	slog.Warn(text)
	fmt.Fprintln(b.warnings, "warning: "+text)
}
