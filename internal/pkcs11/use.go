package pkcs11

import (
	"context"
	"errors"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// errWantsLogin is returned for a key with CKA_ALWAYS_AUTHENTICATE (PKCS#11 5.6, C_Login with CKU_CONTEXT_SPECIFIC).
// The token says so in the first use; from then on the PIN is fetched before each, outside the module's time.
var errWantsLogin = errors.New("every use of the key asks for the PIN")

// use takes a session and uses the private key in it, once. do gets a login, to be made between the two calls of the
// operation, for a key that wants one for each use; with nil it returns errWantsLogin when the token asks for that.
// doing and failed are the words of errors.
func (k *Key) use(ctx context.Context, doing, failed string, do func(session sessionHandle, login func(sessionHandle) error) error) error {
	err := k.useOnce(ctx, doing, failed, do)
	if errors.Is(err, errWantsLogin) {
		k.alwaysAuthenticate.Store(true)
		err = k.useOnce(ctx, doing, failed, do)
	}
	return err
}

func (k *Key) useOnce(ctx context.Context, doing, failed string, do func(sessionHandle, func(sessionHandle) error) error) error {
	t := k.token
	var login func(sessionHandle) error
	var secret *pin.Secret
	if k.alwaysAuthenticate.Load() {
		var err error
		if secret, err = t.readPIN(ctx); err != nil {
			return err
		}
		used := false
		login = func(session sessionHandle) error {
			if used { // it is cleared by now, and what is left of it must not be tried
				return errors.New("the PIN was given once for this use")
			}
			used = true
			return t.loginWith(ctx, pkcs11.CKU_CONTEXT_SPECIFIC, session, secret)
		}
	}
	return t.withPIN(ctx, secret, doing, func(ctx context.Context) error {
		session, err := t.take(ctx)
		if err != nil {
			return err
		}
		err = do(session, login)
		t.giveBack(session, err != nil)
		if err != nil && !errors.Is(err, errWantsLogin) {
			return t.failed(err, "key %s on %s %s", k.name(), t.name(), failed)
		}
		return err
	})
}
