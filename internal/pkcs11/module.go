// Package pkcs11 reaches private keys in any PKCS#11 module: few calls, one login, and no session left behind.
//
// A Backend shares loaded modules among the stores of a process. A Module is a loaded library, a connection is a token
// of it with a pool of sessions, a Token is one user's store on a connection, and a Key is a private key on a token.
// When a session, a login or the whole token is lost, the next call connects again; an operation that met the loss is
// repeated once. A PIN that was refused is not tried again by anyone in the process.
//
// Every call into a module is a step with a limit. A call that does not return in time is abandoned, the module is not
// called again, and the caller gets a failure of kind Timeout.
package pkcs11

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Module is a loaded PKCS#11 library, shared by its users.
type Module struct {
	backend  *Backend
	path     string
	users    int    // guarded by backend.mu
	initArgs string // guarded by backend.mu; pReserved of C_Initialize

	starting chan struct{} // holds a value while somebody initialises or finalises the module
	calls    *cryptoki     // set once, by the first start
	running  bool          // initialised; guarded by starting
	owner    bool          // we initialised it, so we finalise it; guarded by starting

	starts   atomic.Int64 // how often it was started again; session numbers of before count no more
	stuck    atomic.Bool  // a call did not return; another call could hang too
	inFlight atomic.Int64 // jobs that may be calling the module

	mu          sync.Mutex
	connections []*connection
}

// call runs a job that calls the module, and returns its result; or a failure when a step of the job exceeds its limit,
// or ctx ends. activity completes the sentence "while ...". A job whose caller has left goes on by itself to its end.
func call[T any](ctx context.Context, m *Module, limit time.Duration, activity string,
	job func(context.Context) (T, error)) (T, error) {
	return callOrUndo(ctx, m, limit, activity, job, func() {})
}

// callOrUndo is call for a job that opens something. When it fails, also because the caller has left, undo is called
// once, after the end of the job.
func callOrUndo[T any](ctx context.Context, m *Module, limit time.Duration, activity string,
	job func(context.Context) (T, error), undo func()) (none T, err error) {
	if m.stuck.Load() {
		undo()
		return none, m.timedOut(activity, limit)
	}
	if ctx.Err() != nil {
		undo()
		return none, interrupted(ctx, "before "+activity)
	}
	m.inFlight.Add(1)
	result := new(T)     // written by the job alone, and read only after its end
	var over atomic.Bool // set at the end of the job, or when the caller leaves before
	err = deadline.Job(ctx, func(ctx context.Context) (err error) {
		defer func() {
			m.inFlight.Add(-1)
			if over.Swap(true) {
				undo()
				_ = m.finalizeUnused()
			}
		}()
		*result, err = job(ctx)
		return err
	})
	left := !over.Swap(true)
	if ctx.Err() != nil && !m.stuck.Load() {
		err = interrupted(ctx, activity)
	}
	if err == nil {
		return *result, nil
	}
	if !left {
		undo()
	}
	return none, err
}

// step runs one wait for the module within a job. When it exceeds the limit, the module counts as stuck.
func step[T any](ctx context.Context, m *Module, limit time.Duration, activity string,
	wait func() (T, error)) (result T, err error) {
	if m.stuck.Load() {
		return result, m.timedOut(activity, limit)
	}
	log := slog.Default().Enabled(ctx, slog.LevelDebug)
	start := time.Now()
	if log {
		slog.Debug("module", "begins", activity)
	}
	err = deadline.Step(ctx, limit, func() error { return m.abandon(activity, limit) }, func() (err error) {
		result, err = wait()
		return err
	})
	if log {
		slog.Debug("module", "ended", activity, "took", time.Since(start), "error", err)
	}
	return result, err
}

// interrupted is the failure of a call whose caller has left or has set a deadline that has passed.
func interrupted(ctx context.Context, activity string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		f := failure.New(failure.Timeout, "the caller's deadline passed while %s", activity).WithHint("allow more time")
		f.Err = ctx.Err()
		return f
	}
	return deadline.Interrupted(activity)
}

// abandon marks the module as stuck: a call has not returned, and another might not either.
func (m *Module) abandon(activity string, limit time.Duration) error {
	m.stuck.Store(true)
	slog.Error("module", "never ended", activity)
	return m.timedOut(activity, limit)
}

func (m *Module) timedOut(activity string, limit time.Duration) error {
	return failure.New(failure.Timeout, "the PKCS#11 module %s did not answer within %s while %s", m.path, limit,
		activity).
		WithHint("check that the HSM can be reached, or set a longer timeout")
}

// notStarted is the failure of a wait for somebody else who starts or stops the module.
func (m *Module) notStarted(limit time.Duration) error {
	return failure.New(failure.Timeout, "the PKCS#11 module %s was not started or stopped within %s", m.path, limit).
		WithHint("set a longer timeout")
}

// start loads and initialises the module, unless that is done.
func (m *Module) start(ctx context.Context, s *config.Settings, undo func()) error {
	_, err := callOrUndo(ctx, m, s.Timeout, "starting it", func(ctx context.Context) (struct{}, error) {
		wait, cancel := context.WithTimeout(ctx, s.Timeout)
		defer cancel()
		select {
		case m.starting <- struct{}{}:
		case <-wait.Done():
			return struct{}{}, m.notStarted(s.Timeout)
		}
		defer func() { <-m.starting }()
		if m.running {
			return struct{}{}, nil
		}
		defer m.lock(ctx, s.Timeout)()
		return step(ctx, m, s.Timeout, "starting it", func() (struct{}, error) {
			if err := m.load(s.Env); err != nil {
				return struct{}{}, err
			}
			return struct{}{}, m.initialize(s.InitArgs)
		})
	}, undo)
	return err
}

// load loads the library and its functions, after it has set the environment variables that the library wants to find.
// These are set in C alone, and right here: a library reads them with getenv, and they are not for other programs that
// this process starts.
func (m *Module) load(env map[string]string) error {
	for name, value := range env {
		if err := setenv(name, value); err != nil {
			return failure.New(failure.Invalid, "cannot set %q for the PKCS#11 module %s: %w", name, m.path, err).
				WithHint("check env in the config file")
		}
	}
	if m.calls != nil {
		return nil
	}
	m.backend.expectCrash()
	if info, err := os.Stat(m.path); err == nil && info.IsDir() {
		return failure.New(failure.Invalid, "the PKCS#11 module %s is a folder", m.path).
			WithHint("name the library file in it")
	}
	calls, err := load(m.path)
	if ckr := pkcs11.Error(0); errors.As(err, &ckr) {
		return m.failed(err, "C_GetFunctionList of the PKCS#11 module %s failed", m.path)
	}
	if err != nil {
		return failure.New(failure.Invalid, "cannot load the PKCS#11 module %s: %w", m.path, err).
			WithHint("check module-path; the library must be for this machine and all that it needs must be installed")
	}
	m.calls = calls
	return nil
}

// initialize calls C_Initialize. It needs no second call for a module that another user of the library in this process
// has initialised: that one finalises it.
func (m *Module) initialize(args string) error {
	err := m.calls.initialize(pkcs11.CKF_OS_LOCKING_OK, args)
	if is(err, pkcs11.CKR_CANT_LOCK) {
		err = m.calls.initialize(0, args) // it cannot be called from several threads
	}
	if is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		m.running = true
		return nil
	}
	if err != nil {
		f := failure.From(m.failed(err, "cannot initialise the PKCS#11 module %s", m.path))
		f.Hint = initializeHint(err, m.path, args)
		return f
	}
	m.running, m.owner = true, true
	slog.Debug("module started", "module", m.path)
	return nil
}

// restart initialises a module again that says that it is not, as one does that another user of the library in this
// process has finalised, or that was reset.
func (m *Module) restart(ctx context.Context, s *config.Settings) error {
	wait, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	select {
	case m.starting <- struct{}{}:
	case <-wait.Done():
		if ctx.Err() != nil {
			return interrupted(ctx, "starting it")
		}
		return m.notStarted(s.Timeout)
	}
	defer func() { <-m.starting }()
	_, err := step(ctx, m, s.Timeout, "starting it again", m.calls.slots)
	if !is(err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) {
		return nil // it was started again in the meantime, or the next call shows what is wrong
	}
	m.starts.Add(1)
	if err := m.loseSessions(ctx, s.Timeout); err != nil {
		return err
	}
	_, err = step(ctx, m, s.Timeout, "starting it again", func() (struct{}, error) {
		return struct{}{}, m.initialize(s.InitArgs)
	})
	return err
}

// loseSessions ends the use of the sessions of all tokens, before the module gives their numbers, and those of objects,
// to new ones: an operation with an old number could use a key of another token.
func (m *Module) loseSessions(ctx context.Context, limit time.Duration) error {
	var pools []*pool
	m.mu.Lock()
	for _, c := range m.connections {
		pools = append(pools, c.pool.Load())
	}
	m.mu.Unlock()
	for _, p := range pools {
		p.lose()
	}
	for _, p := range pools {
		if err := p.drain(ctx, limit); err != nil {
			return err
		}
	}
	return nil
}

// cleanupLimit is the longest wait for closing sessions and for finalising: a finished signature is not kept waiting.
const cleanupLimit = 2 * time.Second

// release counts one user less. The last one finalises the module.
func (m *Module) release() error {
	m.backend.mu.Lock()
	m.users--
	m.backend.mu.Unlock()
	return m.finalizeUnused()
}

// finalizeUnused finalises the module if it has no user, and no call is stuck in it. Whoever starts or stops the module
// meanwhile for longer than cleanupLimit finalises it at the end of its own use: that wait is not the module's.
func (m *Module) finalizeUnused() error {
	if m.stuck.Load() || !m.unused() {
		return nil
	}
	select {
	case m.starting <- struct{}{}:
	case <-time.After(cleanupLimit):
		return nil
	}
	return m.cleanup("stopping it", func() error {
		defer func() { <-m.starting }()
		return m.finalize()
	})
}

// unused reports whether the module has no user.
func (m *Module) unused() bool {
	m.backend.mu.Lock()
	defer m.backend.mu.Unlock()
	return m.users == 0
}

// finalize calls C_Finalize, unless the module has been opened again, or a call whose caller has left is still in it:
// then that finalises it at its end. A module that another user of the library has initialised is left to that user.
// The caller holds starting.
func (m *Module) finalize() error {
	if !m.running || !m.unused() || m.inFlight.Load() > 0 {
		return nil
	}
	owner := m.owner
	m.running, m.owner = false, false
	if !owner {
		return nil
	}
	return m.calls.finalize()
}

// cleanup runs what closes, also when the caller has left. After cleanupLimit the end of the process has to do.
func (m *Module) cleanup(activity string, wait func() error) error {
	err := deadline.Run(context.Background(), func(ctx context.Context) error {
		return deadline.Step(ctx, cleanupLimit, func() error { return m.abandon(activity, cleanupLimit) }, wait)
	})
	slog.Debug("module", "ended", activity, "error", err)
	return err
}
