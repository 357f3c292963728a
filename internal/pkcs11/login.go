package pkcs11

import (
	"context"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// Login logs in once. It never tries a PIN twice, and does not try it at all when the token says that it is locked, or
// that one more wrong PIN would lock it.
func (t *Token) Login(ctx context.Context) error {
	if t.loggedIn || t.loginErr != nil || !t.wantsLogin() {
		return t.loginErr
	}
	t.loginErr = t.loginUser(ctx)
	t.loggedIn = t.loginErr == nil
	return t.loginErr
}

func (t *Token) loginUser(ctx context.Context) error {
	secret, err := t.readPIN(ctx)
	if err != nil {
		return err
	}
	return t.withPIN(ctx, secret, "logging in to "+t.name(), func(context.Context) error {
		return t.loginWith(ctx, pkcs11.CKU_USER, t.sessions.first, secret)
	})
}

// withPIN is within for what logs in with a PIN, which is cleared in any case but one: that a call does not come back,
// so that the module may still read it.
func (t *Token) withPIN(ctx context.Context, secret *pin.Secret, what string, fn func(context.Context) error) error {
	var begun atomic.Bool
	err := t.within(ctx, what, func(ctx context.Context) error {
		begun.Store(true)
		defer secret.Clear()
		return fn(ctx)
	})
	if !begun.Load() {
		secret.Clear()
	}
	return err
}

// loginWith logs in and clears the PIN at once.
func (t *Token) loginWith(ctx context.Context, user uint, session sessionHandle, secret *pin.Secret) error {
	defer t.turn(ctx)()
	err := t.calls.login(session, user, secret.Bytes())
	secret.Clear()
	if err != nil && !is(err, pkcs11.CKR_USER_ALREADY_LOGGED_IN) {
		return t.failed(err, "can't log in to %s", t.name())
	}
	return nil
}

// wantsLogin reports whether the token asks for a login, or the user for one to be made.
func (t *Token) wantsLogin() bool {
	return t.info.flags&pkcs11.CKF_LOGIN_REQUIRED != 0 || t.settings.PIN != "" || t.settings.PINSource != ""
}

// readPIN fetches the PIN if it may be tried; it is empty for a token with a PIN pad of its own.
func (t *Token) readPIN(ctx context.Context) (*pin.Secret, error) {
	if !t.wantsLogin() {
		return nil, nil
	}
	if err := t.mayTryPIN(); err != nil {
		return nil, err
	}
	pinpad := t.info.flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0
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
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	return pin.Read(ctx, source, t.info.label)
}

func (t *Token) mayTryPIN() error {
	switch state := pinState(t.info.flags); {
	case state == key.PINLocked:
		f := failure.New(failure.Denied, "the user PIN of %s is locked, so it was not tried", t.name()).
			WithHint(meanings[pkcs11.CKR_PIN_LOCKED].hint)
		f.CKR = "CKR_PIN_LOCKED"
		return f
	case state == key.PINFinalTry && !t.settings.AllowFinalPINTry:
		return failure.New(failure.Denied, "one more wrong PIN locks %s, so the PIN was not tried", t.name()).
			WithHint("give the right PIN to the vendor's tool once, which resets the count; or set allow-final-pin-try=true to try " +
				"here all the same")
	}
	return nil
}
