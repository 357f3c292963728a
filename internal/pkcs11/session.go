package pkcs11

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// poolLimit bounds the sessions of one process. A network HSM answers several at once; few allow many more.
const poolLimit = 16

// A pool holds the sessions of a token. The first is opened with the token, holds the login, and makes the signatures
// of a process that signs one thing at a time; more are opened while others are busy, and kept.
type pool struct {
	first sessionHandle
	idle  chan sessionHandle // sessions that nobody signs with
	flags uint               // of C_OpenSession

	mu   sync.Mutex
	all  map[sessionHandle]bool
	full bool // the token has no more sessions for us
}

// openFirst opens the first session. When all the token's sessions are taken it waits for one, as long as the timeout
// allows: other signers give theirs back within moments.
func (t *Token) openFirst(ctx context.Context) error {
	p := &t.sessions
	deadline := time.Now().Add(t.timeout)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		session, err := t.openSession()
		if err == nil {
			p.first, p.idle, p.all = session, make(chan sessionHandle, poolLimit), map[sessionHandle]bool{session: true}
			p.idle <- session
			return nil
		}
		busy := t.failed(err, "can't open a session on %s", t.name())
		if !is(err, pkcs11.CKR_SESSION_COUNT) {
			return busy
		}
		slog.Debug("no session is free", "pause", pause)
		wait := pause/2 + rand.N(pause) //nolint:gosec // jitter, so that many waiters do not come back together
		if time.Until(deadline) < wait+pause {
			return busy
		}
		select {
		case <-ctx.Done():
			return busy
		case <-time.After(wait):
		}
	}
}

// openSession opens a read-only session, which is all that signing needs; or a read-write one where a module has no
// other and answers CKR_FUNCTION_FAILED, as AWS CloudHSM's documentation says of it.
func (t *Token) openSession() (sessionHandle, error) {
	session, err := t.calls.openSession(t.slot, t.sessions.flags)
	if is(err, pkcs11.CKR_FUNCTION_FAILED) && t.sessions.flags == 0 {
		writer, again := t.calls.openSession(t.slot, pkcs11.CKF_RW_SESSION)
		if again == nil {
			t.sessions.flags = pkcs11.CKF_RW_SESSION
			return writer, nil
		}
	}
	return session, err
}

// take returns a session to sign with: an idle one, else a new one, else the next that is given back.
func (t *Token) take(ctx context.Context) (sessionHandle, error) {
	p := &t.sessions
	select {
	case session := <-p.idle:
		return session, nil
	default:
	}
	if session, err := t.grow(); err == nil {
		return session, nil
	}
	wait, cancel := context.WithTimeout(ctx, t.timeout*9/10) // so that it is this that is reported
	defer cancel()
	select {
	case session := <-p.idle:
		return session, nil
	case <-wait.Done():
		return 0, t.failed(pkcs11.Error(pkcs11.CKR_SESSION_COUNT), "no session of %s became free", t.name())
	}
}

// grow opens one more session.
func (t *Token) grow() (sessionHandle, error) {
	p := &t.sessions
	p.mu.Lock()
	defer p.mu.Unlock()
	// whose other sessions would know nothing of the login
	if p.full || len(p.all) >= poolLimit || t.loggedIn && t.isNetHSM() {
		return 0, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)
	}
	session, err := t.openSession()
	if err != nil {
		p.full = true // those there are do the work
		slog.Debug("no more sessions", "open", len(p.all), "error", err)
		return 0, err
	}
	p.all[session] = true
	return session, nil
}

// giveBack returns a session after use. One that failed may be broken, and is replaced when the next is needed; the
// first is kept all the same, for its login.
func (t *Token) giveBack(session sessionHandle, failed bool) {
	p := &t.sessions
	if !failed || session == p.first {
		p.idle <- session
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, session)
	p.full = false
	_ = t.calls.closeSession(session)
}

// writing runs fn with a session that may write, which shares the login of the others.
func (t *Token) writing(ctx context.Context, what string, fn func(sessionHandle) error) error {
	return t.within(ctx, what, func(context.Context) error {
		writer, err := t.calls.openSession(t.slot, pkcs11.CKF_RW_SESSION)
		if err != nil {
			return t.failed(err, "can't open a session that may write on %s", t.name())
		}
		defer func() { _ = t.calls.closeSession(writer) }()
		return fn(writer)
	})
}

// closeSessions closes all sessions. Closing the last one logs the user out (PKCS#11 5.6, C_CloseSession), so no
// C_Logout is needed.
func (t *Token) closeSessions() {
	p := &t.sessions
	if len(p.all) == 0 || t.stuck.Load() {
		return
	}
	err := t.cleanup("closing the session", func() (err error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for session := range p.all {
			if closeErr := t.calls.closeSession(session); closeErr != nil {
				err = closeErr
			}
		}
		p.all = nil
		return err
	})
	if err != nil {
		slog.Warn("closing the session", "error", err)
	}
}
