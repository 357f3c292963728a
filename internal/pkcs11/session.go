package pkcs11

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// session is a session of the pool while one operation uses it.
type session struct {
	*Token
	pool   *pool
	handle sessionHandle
}

// A pool holds the sessions of a token since it was connected last. The first is opened with the token; more are opened
// while others are busy, and kept.
type pool struct {
	slot uint
	info tokenInfo
	of   int64              // Module.starts when the token was found
	idle chan sessionHandle // sessions that nobody uses
	lost chan struct{}      // closed when the sessions, the login or the token were lost, or the pool was closed

	mu      sync.Mutex
	all     map[sessionHandle]bool
	flags   uint // of C_OpenSession
	full    bool // the token has no more sessions for this process
	growing bool // a session is being opened
	closed  bool // nobody uses the token any more
	busy    int  // operations that have a session or wait for one
	drained chan struct{}
}

// poolLimit bounds the sessions of one process on a token. A network HSM answers several at once; few allow many more.
const poolLimit = 16

func newPool(slot uint, info tokenInfo, starts int64) *pool {
	return &pool{
		slot: slot, info: info, of: starts, idle: make(chan sessionHandle, poolLimit), lost: make(chan struct{}),
		all: map[sessionHandle]bool{}, drained: make(chan struct{}),
	}
}

// errLost is returned when the sessions of a pool were lost before an operation began.
var errLost = errors.New("the session was lost")

func (p *pool) isLost() bool {
	select {
	case <-p.lost:
		return true
	default:
		return false
	}
}

// lose marks the sessions as lost. No operation begins in them any more.
func (p *pool) lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isLost() {
		return
	}
	close(p.lost)
	if p.busy == 0 {
		close(p.drained)
	}
}

// enter counts an operation and reports whether it may begin: not when the sessions are lost.
func (p *pool) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isLost() {
		return false
	}
	p.busy++
	return true
}

// leave ends an operation.
func (p *pool) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	if p.busy == 0 && p.isLost() {
		close(p.drained)
	}
}

// drain waits for the end of the operations in lost sessions. A module may give the number of a lost session to a new
// one, which they must not meet.
func (p *pool) drain(ctx context.Context, limit time.Duration) error {
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-p.drained:
		return nil
	case <-wait.Done():
		if ctx.Err() != nil {
			return interrupted(ctx, "waiting for other operations")
		}
		return failure.New(failure.Timeout, "other operations on %s did not end within %s", p.info.name(), limit).
			WithHint("check that the HSM can be reached, or set a longer timeout")
	}
}

// open opens a read-only session, which is all that signing needs; or a read-write one where a module has no other and
// answers CKR_FUNCTION_FAILED, as AWS CloudHSM's documentation says of it.
func (p *pool) open(m *Module) (sessionHandle, error) {
	p.mu.Lock()
	flags := p.flags
	p.mu.Unlock()
	session, err := m.calls.openSession(p.slot, flags)
	if is(err, pkcs11.CKR_FUNCTION_FAILED) && flags == 0 {
		writer, again := m.calls.openSession(p.slot, pkcs11.CKF_RW_SESSION)
		if again == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.flags = pkcs11.CKF_RW_SESSION
			return writer, nil
		}
	}
	return session, err
}

// add makes a new session available.
func (p *pool) add(session sessionHandle) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all[session] = true
	p.idle <- session
}

// closeIdle closes the sessions that nobody uses, but for the number of one that is open now.
func (p *pool) closeIdle(m *Module, open sessionHandle) (err error) {
	for {
		select {
		case session := <-p.idle:
			if session == open || p.of != m.starts.Load() { // another session has the number now
				continue
			}
			if closeErr := m.calls.closeSession(session); closeErr != nil {
				err = closeErr
			}
		default:
			return err
		}
	}
}

// close closes the sessions, when operations whose callers have left have ended, or without them: these close theirs.
func (p *pool) close(m *Module) {
	p.lose()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	if m.stuck.Load() {
		return
	}
	wait, cancel := context.WithTimeout(context.Background(), cleanupLimit)
	defer cancel()
	_ = p.drain(wait, cleanupLimit)
	for len(p.idle) > 0 && !m.stuck.Load() { // one at a time, each with its own limit
		if err := m.cleanup("closing the session", func() error { return p.closeOne(m) }); err != nil {
			slog.Warn("closing the session", "error", err)
		}
	}
}

// closeOne closes one of the sessions that nobody uses, if there is any.
func (p *pool) closeOne(m *Module) error {
	select {
	case session := <-p.idle:
		if p.of != m.starts.Load() { // another session has the number now
			return nil
		}
		return m.calls.closeSession(session)
	default:
		return nil
	}
}

// openFirst opens the first session of a token, unless another store has. When all the token's sessions are taken it
// waits for one, as long as the timeout allows: other signers give theirs back within moments.
func (t *Token) openFirst(ctx context.Context) error {
	release, err := t.conn.acquire(ctx, t.settings.Timeout)
	if err != nil {
		return err
	}
	defer release()
	p := t.conn.pool.Load()
	if p.opened() {
		return nil
	}
	end := time.Now().Add(t.settings.Timeout)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		session, err := step(ctx, t.module, t.settings.Timeout, "opening a session", func() (sessionHandle, error) {
			return p.open(t.module)
		})
		if err == nil {
			p.add(session)
			return nil
		}
		full := t.failed(err, "cannot open a session on %s", t.name())
		if !is(err, pkcs11.CKR_SESSION_COUNT) {
			return full
		}
		slog.Debug("no session is free", "pause", pause)
		if time.Until(end) < 2*pause {
			return full
		}
		select {
		case <-ctx.Done():
			return full
		case <-time.After(jitter(pause)):
		}
	}
}

// opened reports whether the pool has or had a session.
func (p *pool) opened() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.all) > 0
}

// take returns a session for one operation: an idle one, else a new one, else the next that is given back.
func (t *Token) take(ctx context.Context) (*session, error) {
	p := t.conn.pool.Load()
	if !p.enter() {
		return nil, errLost
	}
	select {
	case handle := <-p.idle:
		return &session{t, p, handle}, nil
	default:
	}
	if handle, err := t.grow(ctx, p); err == nil {
		return &session{t, p, handle}, nil
	}
	wait, cancel := context.WithTimeout(ctx, t.settings.Timeout)
	defer cancel()
	select {
	case handle := <-p.idle:
		return &session{t, p, handle}, nil
	case <-p.lost:
		p.leave()
		return nil, errLost
	case <-wait.Done():
		p.leave()
		if ctx.Err() != nil {
			return nil, interrupted(ctx, "waiting for a session")
		}
		return nil, t.failed(pkcs11.Error(pkcs11.CKR_SESSION_COUNT), "no session of %s became free", t.name())
	}
}

// grow opens one more session, unless another operation is doing that.
func (t *Token) grow(ctx context.Context, p *pool) (sessionHandle, error) {
	p.mu.Lock()
	// A NetHSM's module knows of a login only in the session that it was made in.
	if p.full || p.growing || len(p.all) >= poolLimit || p.info.isNetHSM() {
		p.mu.Unlock()
		return 0, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)
	}
	p.growing = true
	p.mu.Unlock()
	handle, err := step(ctx, t.module, t.settings.Timeout, "opening a session", func() (sessionHandle, error) {
		return p.open(t.module)
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.growing = false
	if err != nil {
		p.full = true // those there are do the work
		slog.Debug("no more sessions", "open", len(p.all), "error", err)
		return 0, err
	}
	p.all[handle] = true
	return handle, nil
}

// giveBack returns a session after its operation. One whose operation failed may be broken, and is closed if there are
// others.
func (s *session) giveBack(ctx context.Context, err error) {
	p := s.pool
	defer p.leave()
	if s.lossOf(err) {
		p.lose()
	}
	p.mu.Lock()
	unwanted := p.closed || err != nil && len(p.all) > 1 && !p.isLost()
	if unwanted {
		delete(p.all, s.handle)
		p.full = false
	}
	p.mu.Unlock()
	if unwanted {
		_, _ = step(ctx, s.module, cleanupLimit, "closing a session", func() (struct{}, error) {
			return struct{}{}, s.module.calls.closeSession(s.handle)
		})
		return
	}
	p.idle <- s.handle
}

// lossOf reports whether an error says that the session, the login or the token was lost, so that connecting again may
// help.
func (t *Token) lossOf(err error) bool {
	if err == nil {
		return false
	}
	for _, ckr := range []uint{
		pkcs11.CKR_SESSION_HANDLE_INVALID, pkcs11.CKR_SESSION_CLOSED, pkcs11.CKR_DEVICE_REMOVED,
		pkcs11.CKR_TOKEN_NOT_PRESENT, pkcs11.CKR_TOKEN_NOT_RECOGNIZED, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED,
	} {
		if is(err, ckr) {
			return true
		}
	}
	if t.isNetHSM() { // there, the others say that a request was refused
		return false
	}
	return is(err, pkcs11.CKR_DEVICE_ERROR) || is(err, pkcs11.CKR_USER_NOT_LOGGED_IN) && t.conn != nil &&
		t.conn.loggedIn.Load()
}

// inSession runs an operation in a session of the pool, as one step, and once more if the session, the login or the
// token was lost. So it is for operations that may be repeated.
func inSession[T any](ctx context.Context, t *Token, activity string, do func(context.Context, *session) (T,
	error)) (T, error) {
	return inSessionSteps(ctx, t, activity, func(ctx context.Context, s *session) (T, error) {
		return step(ctx, t.module, t.settings.Timeout, activity, func() (T, error) { return do(ctx, s) })
	})
}

// lossLimit is how often an operation that has not begun is begun again after others met a loss.
const lossLimit = 10

// inSessionSteps is inSession for an operation of several steps, which it makes itself.
func inSessionSteps[T any](ctx context.Context, t *Token, activity string,
	do func(context.Context, *session) (T, error)) (T, error) {
	repeated := false
	for attempt := 0; ; attempt++ {
		if err := t.ready(ctx); err != nil {
			var none T
			return none, err
		}
		result, err := call(ctx, t.module, t.settings.Timeout, activity, func(ctx context.Context) (result T, err error) {
			s, err := t.take(ctx)
			if err != nil {
				return result, err
			}
			defer func() { s.giveBack(ctx, err) }()
			return do(ctx, s)
		})
		switch {
		case errors.Is(err, errLost) && attempt < lossLimit:
		case t.lossOf(err) && !repeated:
			repeated = true
		case errors.Is(err, errLost):
			return result, t.failed(pkcs11.Error(pkcs11.CKR_SESSION_CLOSED), "the session on %s was lost", t.name())
		default:
			return result, err
		}
	}
}

// writing runs an operation in a session of its own that may write, which shares the login of the others. It is not
// repeated.
func writing[T any](ctx context.Context, t *Token, activity string, do func(*session) (T, error)) (T, error) {
	var none T
	if err := t.ready(ctx); err != nil {
		return none, err
	}
	return call(ctx, t.module, t.settings.Timeout, activity, func(ctx context.Context) (result T, err error) {
		p := t.conn.pool.Load()
		if !p.enter() {
			return none, t.failed(pkcs11.Error(pkcs11.CKR_SESSION_CLOSED), "the session on %s was lost", t.name())
		}
		defer p.leave()
		defer func() {
			if t.lossOf(err) {
				p.lose()
			}
		}()
		return step(ctx, t.module, t.settings.Timeout, activity, func() (T, error) {
			writer, err := t.module.calls.openSession(p.slot, pkcs11.CKF_RW_SESSION)
			if err != nil {
				return none, t.failed(err, "cannot open a session that may write on %s", t.name())
			}
			defer func() { _ = t.module.calls.closeSession(writer) }()
			return do(&session{t, p, writer})
		})
	})
}
