package pkcs11

import (
	"context"
	"errors"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// errWantsLogin is returned for a key with CKA_ALWAYS_AUTHENTICATE (PKCS#11 5.6, C_Login with CKU_CONTEXT_SPECIFIC).
// The token says so in the first use; from then on the PIN is read before each.
var errWantsLogin = errors.New("every use of the key needs a login")

// A use is one use of a private key in a session.
type use struct {
	*session
	object objectHandle
	login  func() error // the login that the use needs between the two calls of the operation; nil for none
}

// useKey takes a session and uses the private key in it, once. It repeats a use that the loss of the session, the login
// or the token has ended, or whose object handle the module does not know any more. activity and failed are the words
// of errors.
func useKey(ctx context.Context, k *Key, activity, failed string, do func(use) ([]byte, error)) ([]byte, error) {
	result, err := useOnce(ctx, k, activity, failed, do)
	if errors.Is(err, errWantsLogin) {
		k.alwaysAuthenticate.Store(true)
		return useOnce(ctx, k, activity, failed, do)
	}
	if (is(err, pkcs11.CKR_KEY_HANDLE_INVALID) || is(err, pkcs11.CKR_OBJECT_HANDLE_INVALID)) && !k.token.isNetHSM() {
		k.forget()
		return useOnce(ctx, k, activity, failed, do)
	}
	return result, err
}

func useOnce(ctx context.Context, k *Key, activity, failed string, do func(use) ([]byte, error)) ([]byte, error) {
	t := k.token
	return inSessionSteps(ctx, t, activity, func(ctx context.Context, s *session) ([]byte, error) {
		var secret *pin.Secret
		each := k.alwaysAuthenticate.Load()
		if each {
			var err error
			if secret, err = t.readPIN(ctx, t.info); err != nil {
				return nil, err
			}
			defer secret.Clear() // not when a call does not return: the module may still read it
		}
		result, err := step(ctx, t.module, t.settings.Timeout, activity, func() ([]byte, error) {
			object, err := k.find(s)
			if err != nil {
				return nil, err
			}
			u := use{session: s, object: object}
			if each {
				u.login = k.loginOnce(ctx, s, secret)
			}
			return do(u)
		})
		if t.lossOf(err) {
			k.alwaysAuthenticate.Store(false) // a lost login answers a use as a missing one does
		}
		if err != nil && !errors.Is(err, errWantsLogin) {
			return nil, t.failed(err, "key %s on %s %s", k.name(), t.name(), failed)
		}
		return result, err
	})
}

// loginOnce returns a function that logs in for one use of the key. It fails when it is called again: the PIN is
// cleared by then, and what is left of it must not be tried.
func (k *Key) loginOnce(ctx context.Context, s *session, secret *pin.Secret) func() error {
	used := false
	return func() error {
		if used {
			return errors.New("the PIN was given once for this use")
		}
		used = true
		end, err := s.turn(ctx, pkcs11.CKU_CONTEXT_SPECIFIC, s.settings.Timeout/2)
		if err != nil {
			return err
		}
		defer end()
		defer s.module.lock(ctx, s.settings.Timeout/4)() // both within the limit of the step
		return s.loginNow(pkcs11.CKU_CONTEXT_SPECIFIC, s.handle, secret)
	}
}
