// Package pkcs11 is the path from a key's URI to a signature made inside a module: any module, few calls, one login,
// and no session left behind.
//
// A Module is a loaded library, a Token a token in one of its slots with a session open, and a Key a private key on it,
// which is a crypto.Signer. Every wait for the module is bounded: a call that does not return in time is abandoned, the
// module is not touched again, and the caller gets a failure of kind Timeout.
package pkcs11

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/crashreport"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Module is a loaded and initialised PKCS#11 library.
type Module struct {
	path    string
	timeout time.Duration
	calls   *cryptoki
	owner   bool        // we initialised it, so we finalise it
	stuck   atomic.Bool // a call never came back; touching the module again could hang too
}

// Load loads and initialises the module that the settings name. ctx bounds the module's whole life.
func Load(ctx context.Context, s *config.Settings) (*Module, error) {
	if s.ModulePath == "" {
		return nil, failure.New(failure.Invalid, "no PKCS#11 module is named").
			WithHint("set module-path (or NOTATION_HSM_MODULE_PATH) to the PKCS#11 library of your HSM, or install p11-kit")
	}
	for name, value := range s.Env {
		if err := os.Setenv(name, value); err != nil {
			return nil, failure.New(failure.Invalid, "can't set %q for the module: %w", name,
				err).
				WithHint("check env in the config file")
		}
	}
	m := &Module{path: s.ModulePath, timeout: s.Timeout}
	crashreport.Expect(failure.New(failure.Internal, "the PKCS#11 module %s crashed", m.path).
		WithHint("update the module, and report the crash to its vendor; set NOTATION_HSM_LOG=/path/to/log to see the step " +
			"it crashed in"))
	err := m.within(ctx, "starting it", func(context.Context) error {
		if info, err := os.Stat(m.path); err == nil && info.IsDir() {
			return failure.New(failure.Invalid, "the PKCS#11 module %s is a folder", m.path).
				WithHint("name the library file in it")
		}
		calls, err := load(m.path)
		if ckr := pkcs11.Error(0); errors.As(err, &ckr) {
			return m.failed(err, "the PKCS#11 module %s does not give its functions", m.path)
		}
		if err != nil {
			return failure.New(failure.Invalid, "can't load the PKCS#11 module %s: %w", m.path, err).
				WithHint("check module-path; the library must be for this machine and all that it needs must be installed")
		}
		m.calls = calls
		return m.initialize(ctx)
	})
	if err != nil {
		_ = m.Close() // an interrupted start may have come to its end
		return nil, err
	}
	return m, nil
}

func (m *Module) initialize(ctx context.Context) error {
	defer m.turn(ctx)()
	err := m.calls.initialize(pkcs11.CKF_OS_LOCKING_OK)
	if is(err, pkcs11.CKR_CANT_LOCK) {
		err = m.calls.initialize(0) // it can't be called from several threads at once, which one signature never does
	}
	if is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		return nil // by another user of the library in this process, whose it stays
	}
	if err != nil {
		f := failure.From(m.failed(err, "can't start the PKCS#11 module %s", m.path))
		f.Hint =
			"check that what the module talks to is running, and that this user may use it (openCryptoki: pkcsslotd and the " +
				"group pkcs11; a TPM: /dev/tpmrm0 and the group tss; a network HSM: its client's configuration)"
		return f
	}
	m.owner = true
	slog.Debug("module started", "module", m.path)
	return nil
}

// Close finalises the module. It does nothing when a call is stuck in it.
func (m *Module) Close() error {
	if m == nil || !m.owner {
		return nil
	}
	m.owner = false
	return m.cleanup("stopping it", m.calls.finalize)
}

// within runs fn, which calls the module, and returns its error; or a failure when fn takes longer than the timeout, or
// the user has interrupted. what completes the sentence "while ...". fn gets the module's context, for where it waits
// itself.
func (m *Module) within(ctx context.Context, what string, fn func(context.Context) error) error {
	if m.stuck.Load() {
		return m.timedOut(what)
	}
	if ctx.Err() != nil {
		return deadline.Interrupted("before " + what)
	}
	log := slog.Default().Enabled(ctx, slog.LevelDebug)
	start := time.Now()
	if log {
		slog.Debug("module", "begins", what)
	}
	err := deadline.Step(ctx, m.timeout, func() error { return m.abandon(what) }, func() error { return fn(ctx) })
	if log {
		slog.Debug("module", "ended", what, "took", time.Since(start), "error", err)
	}
	if ctx.Err() != nil && !m.stuck.Load() {
		return deadline.Interrupted(what)
	}
	return err
}

// cleanupLimit is the longest wait for closing: a finished signature is not kept waiting.
const cleanupLimit = 2 * time.Second

// cleanup is within for closing. It also runs when the user has interrupted, and a close that hangs ends nothing but
// itself.
func (m *Module) cleanup(what string, fn func() error) error {
	if m.stuck.Load() {
		return nil // the process's end will have to do
	}
	err := deadline.Run(context.Background(), func(ctx context.Context) error {
		return deadline.Step(ctx, min(m.timeout, cleanupLimit), func() error { return m.abandon(what) }, fn)
	})
	slog.Debug("module", "ended", what, "error", err)
	return err
}

// abandon gives the module up: a call in it has not come back, and another could not either.
func (m *Module) abandon(what string) error {
	m.stuck.Store(true)
	slog.Error("module", "never ended", what)
	return m.timedOut(what)
}

func (m *Module) timedOut(what string) error {
	return failure.New(failure.Timeout, "the PKCS#11 module %s did not answer within %s while %s", m.path, m.timeout, what).
		WithHint("check that the HSM can be reached, or set a longer timeout")
}
