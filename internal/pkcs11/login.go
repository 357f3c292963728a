package pkcs11

import (
	"context"
	"errors"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// Login logs in, unless a store of this process has logged in to the token. One login is made at a time. A PIN is not
// tried when the token has refused a login in this process, when it says that its PIN is locked, or that one more wrong
// PIN would lock it.
func (t *Token) Login(ctx context.Context) error {
	for attempt := 0; ; attempt++ {
		if !t.wantsLogin() {
			return nil
		}
		if err := t.ready(ctx); err != nil || t.conn.loggedIn.Load() {
			return err
		}
		_, err := call(ctx, t.module, t.settings.Timeout, "logging in to "+t.name(), t.loginFirst)
		if !errors.Is(err, errLost) || attempt == lossLimit {
			return err
		}
	}
}

// loginFirst logs in if nobody has.
func (t *Token) loginFirst(ctx context.Context) (_ struct{}, err error) {
	release, err := t.conn.acquire(ctx, t.settings.Timeout)
	if err != nil {
		return struct{}{}, err
	}
	defer release()
	if t.conn.loggedIn.Load() {
		return struct{}{}, nil
	}
	s, err := t.take(ctx)
	if err != nil {
		return struct{}{}, err
	}
	defer func() { s.giveBack(ctx, err) }()
	if err = t.loginUser(ctx, s.pool.info, s.handle); err == nil {
		t.conn.loggedIn.Store(true)
	}
	return struct{}{}, err
}

// loginUser reads the PIN and logs in.
func (t *Token) loginUser(ctx context.Context, info tokenInfo, session sessionHandle) error {
	secret, err := t.readPIN(ctx, info)
	if err != nil {
		return err
	}
	defer secret.Clear() // not when the call does not return: the module may still read it
	return t.loginWith(ctx, pkcs11.CKU_USER, session, secret)
}

// loginWith logs in as a step of its own, clears the PIN at once, and remembers a refusal.
func (t *Token) loginWith(ctx context.Context, user uint, session sessionHandle, secret *pin.Secret) error {
	end, err := t.turn(ctx, user, t.settings.Timeout)
	if err != nil {
		return err
	}
	defer end()
	defer t.module.lock(ctx, t.settings.Timeout)()
	_, err = step(ctx, t.module, t.settings.Timeout, "logging in to "+t.name(), func() (struct{}, error) {
		return struct{}{}, t.loginNow(user, session, secret)
	})
	return err
}

// turn waits for the turn to try a PIN, and returns the function that ends it. It fails when the token has refused the
// PIN since it was read: many may have read it by then.
func (t *Token) turn(ctx context.Context, user uint, limit time.Duration) (end func(), err error) {
	end, err = t.module.backend.turn(ctx, t.loginIdentity(user), limit)
	if err != nil {
		return nil, err
	}
	if err := t.refusedBefore(user); err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// loginNow calls C_Login in the caller's turn, clears the PIN, and remembers a refusal. Every error counts as one, but
// for those that say that the session or the token was lost: a module may answer a wrong PIN by a value of its own.
// CKR_DEVICE_ERROR is such a value here, since the device may have counted the PIN before it failed.
func (t *Token) loginNow(user uint, session sessionHandle, secret *pin.Secret) error {
	err := t.calls.login(session, user, secret.Bytes())
	secret.Clear()
	if err == nil || is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		return nil
	}
	failed := t.failed(err, "cannot log in to %s", t.name())
	if !t.lossOf(err) || is(err, pkcs11.CKR_DEVICE_ERROR) {
		t.module.backend.refuse(t.loginIdentity(user), failed)
	}
	return failed
}

// checkLogin fails with CKR_USER_NOT_LOGGED_IN when a login was lost, after which a token shows no private keys.
func (s *session) checkLogin() error {
	if !s.conn.loggedIn.Load() || s.isNetHSM() {
		return nil
	}
	holds, err := s.calls.loggedIn(s.handle)
	if err == nil && !holds {
		err = pkcs11.Error(pkcs11.CKR_USER_NOT_LOGGED_IN)
	}
	if err != nil {
		return s.failed(err, "the login to %s was lost", s.name())
	}
	return nil
}

// loginIdentity names the token and the user of a login that may be refused. A login for one use of a key takes the
// user's PIN.
func (t *Token) loginIdentity(user uint) string {
	if user == pkcs11.CKU_SO {
		return "SO " + t.info.identity()
	}
	return t.info.identity()
}

// refusedBefore returns the failure of a PIN that this token has refused in this process, or nil.
func (t *Token) refusedBefore(user uint) error {
	before := t.module.backend.refusal(t.loginIdentity(user))
	if before == nil {
		return nil
	}
	first := failure.From(before)
	f := failure.New(failure.Denied, "%s has refused a login of this process, so its PIN is not tried again: %s", t.name(),
		first.What).WithHint(first.Hint)
	f.CKR, f.Err = first.CKR, before
	return f
}

// wantsLogin reports whether the token requires a login, or the settings give a PIN for one.
func (t *Token) wantsLogin() bool {
	return t.info.flags&pkcs11.CKF_LOGIN_REQUIRED != 0 || t.settings.PIN != "" || t.settings.PINSource != ""
}

// readPIN fetches the PIN if it may be tried; it is empty for a token with a PIN pad of its own.
func (t *Token) readPIN(ctx context.Context, info tokenInfo) (*pin.Secret, error) {
	if !t.wantsLogin() {
		return nil, nil
	}
	if err := t.refusedBefore(pkcs11.CKU_USER); err != nil {
		return nil, err
	}
	if err := t.checkPINState(info); err != nil {
		return nil, err
	}
	pinpad := info.flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0
	source := t.settings.PINSource
	switch {
	case t.settings.PIN != "":
		return pin.From(t.settings.PIN)
	case source == pin.None && !pinpad:
		return nil, failure.New(failure.Denied, "pin-source is none, but %s has no PIN pad of its own", t.name()).
			WithHint("use another pin-source")
	case source == pin.None, source == "" && pinpad:
		return nil, nil
	case source == "":
		return nil, failure.New(failure.Denied, "no PIN for %s: no pin-source is set", t.name()).
			WithHint(`set NOTATION_HSM_PIN, or pin-source to env:NAME, file:/path, "exec:command args" or prompt`)
	case source == pin.Prompt: // a person takes as long as they take
		return pin.Read(ctx, source, t.info.label)
	}
	ctx, cancel := context.WithTimeout(ctx, t.settings.Timeout)
	defer cancel()
	return pin.Read(ctx, source, t.info.label)
}

// checkPINState fails when the token says that its PIN is locked, or that one more wrong one would lock it.
func (t *Token) checkPINState(info tokenInfo) error {
	switch state := pinState(info.flags); {
	case state == key.PINLocked:
		f := failure.New(failure.Denied, "the user PIN of %s is locked, so it was not tried", t.name()).
			WithHint(meanings[pkcs11.CKR_PIN_LOCKED].hint)
		f.CKR = "CKR_PIN_LOCKED"
		return f
	case state == key.PINFinalTry && !t.settings.AllowFinalPINTry:
		return failure.New(failure.Denied, "one more wrong PIN locks %s, so the PIN was not tried", t.name()).
			WithHint("give the right PIN to the vendor's tool once, which resets the count; or set " +
				"allow-final-pin-try=true to try here all the same")
	}
	return nil
}
