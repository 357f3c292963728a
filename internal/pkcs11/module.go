// Package pkcs11 is the path from a key's URI to a signature made inside a module: any module, few calls, one login, and no
// session left behind.
//
// A Module is a loaded library, a Token a token in one of its slots with a session open, and a Key a private key on it,
// which is a crypto.Signer. Every wait for the module is bounded: a call that does not return in time is abandoned, the
// module is not touched again, and the caller gets a failure of kind Timeout.
package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/crash"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Module is a loaded and initialised PKCS#11 library.
type Module struct {
	path    string
	timeout time.Duration
	ctx     context.Context // ends when the user interrupts; bounds every call
	calls   *cryptoki
	owner   bool        // we initialised it, so we finalise it
	stuck   atomic.Bool // a call never came back; touching the module again could hang too
}

// Load loads and initialises the module that the settings name. ctx bounds the module's whole life.
func Load(ctx context.Context, s *config.Settings) (*Module, error) {
	if s.ModulePath == "" {
		return nil, failure.New(failure.Invalid, "set module-path (or NOTATION_HSM_MODULE_PATH) to the PKCS#11 library of your HSM, or install p11-kit",
			"no PKCS#11 module is named")
	}
	for name, value := range s.Env {
		if err := os.Setenv(name, value); err != nil {
			return nil, failure.New(failure.Invalid, "check env in the config file", "can't set %q for the module: %w", name, err)
		}
	}
	m := &Module{path: s.ModulePath, timeout: s.Timeout, ctx: ctx}
	crash.Expect(failure.New(failure.Internal, "update the module, and report the crash to its vendor; set NOTATION_HSM_LOG=/path/to/log to see the step it crashed in",
		"the PKCS#11 module %s crashed", m.path))
	err := m.within("starting it", func(context.Context) error {
		if info, err := os.Stat(m.path); err == nil && info.IsDir() {
			return failure.New(failure.Invalid, "name the library file in it", "the PKCS#11 module %s is a folder", m.path)
		}
		calls, err := load(m.path)
		if ckr := pkcs11.Error(0); errors.As(err, &ckr) {
			return m.failed(err, "the PKCS#11 module %s does not give its functions", m.path)
		}
		if err != nil {
			return failure.New(failure.Invalid, "check module-path; the library must be for this machine and all that it needs must be installed",
				"can't load the PKCS#11 module %s: %w", m.path, err)
		}
		m.calls = calls
		return m.initialize()
	})
	if err != nil {
		_ = m.Close() // an interrupted start may have come to its end
		return nil, err
	}
	return m, nil
}

func (m *Module) initialize() error {
	defer m.turn()()
	err := m.calls.initialize(pkcs11.CKF_OS_LOCKING_OK)
	if is(err, pkcs11.CKR_CANT_LOCK) {
		err = m.calls.initialize(0) // it can't be called from several threads at once, which one signature never does
	}
	if is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		return nil // by another user of the library in this process, whose it stays
	}
	if err != nil {
		f := failure.From(m.failed(err, "can't start the PKCS#11 module %s", m.path))
		f.Hint = "check that what the module talks to is running, and that this user may use it (openCryptoki: pkcsslotd and the group pkcs11; a TPM: /dev/tpmrm0 and the group tss; a network HSM: its client's configuration)"
		return f
	}
	m.owner = true
	slog.Debug("module started", "module", m.path)
	return nil
}

// Close finalises the module. It does nothing when a call is stuck in it.
func (m *Module) Close() error {
	if m == nil || !m.owner || m.stuck.Load() {
		return nil
	}
	m.owner = false
	return m.cleanup("stopping it", func(context.Context) error { return m.calls.finalize() })
}

// grace is how long an interrupted call may take to come back, so that its session can be closed.
const grace = 2 * time.Second

// within runs fn, which calls the module, and returns its error; or a failure when fn takes longer than the timeout, or
// the user interrupts. what completes the sentence "while ...". The context that fn gets ends at the timeout; fn looks at
// it where it waits.
func (m *Module) within(what string, fn func(context.Context) error) error {
	if err := m.ctx.Err(); err != nil {
		return failure.New(failure.Internal, "", "interrupted before %s", what)
	}
	return m.run(m.ctx, m.timeout, what, fn)
}

// cleanup is within for closing: it also runs when the user has interrupted, and does not keep a finished signature waiting.
func (m *Module) cleanup(what string, fn func(context.Context) error) error {
	return m.run(context.WithoutCancel(m.ctx), min(m.timeout, grace), what, fn)
}

func (m *Module) run(parent context.Context, timeout time.Duration, what string, fn func(context.Context) error) error {
	if m.stuck.Load() {
		return m.timedOut(what)
	}
	ctx, cancel := context.WithTimeout(parent, timeout)
	defer cancel()
	slog.Debug("module", "begins", what)
	start := time.Now()
	done := make(chan error, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				slog.Error("panic", "what", fmt.Sprint(r), "stack", string(debug.Stack()))
				done <- fmt.Errorf("internal error while %s: %v", what, r)
			}
		}()
		done <- fn(ctx)
	}()
	select {
	case err := <-done:
		slog.Debug("module", "ended", what, "took", time.Since(start), "error", err)
		return err
	case <-ctx.Done():
	}
	interrupted := errors.Is(ctx.Err(), context.Canceled)
	wait := time.Duration(0) // a call that used up the timeout gets no more
	if interrupted {
		wait = grace
	}
	select {
	case err := <-done:
		if !interrupted {
			return err // it came back just now, or saw the deadline itself
		}
	case <-time.After(wait):
		m.stuck.Store(true)
	}
	slog.Error("module", "not ended", what, "took", time.Since(start), "interrupted", interrupted, "stuck", m.stuck.Load())
	if interrupted {
		return failure.New(failure.Internal, "run it again", "interrupted while %s", what)
	}
	return m.timedOut(what)
}

func (m *Module) timedOut(what string) error {
	return failure.New(failure.Timeout, "check that the HSM can be reached, or set a longer timeout",
		"the PKCS#11 module %s did not answer within %s while %s", m.path, m.timeout, what)
}
