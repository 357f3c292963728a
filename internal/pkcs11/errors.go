package pkcs11

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// is reports whether err is this PKCS#11 return value.
func is(err error, ckr uint) bool { return errors.Is(err, pkcs11.Error(ckr)) }

// ckrName returns a return value's name, such as CKR_PIN_LOCKED; values of the vendor's own are written as numbers.
func ckrName(e pkcs11.Error) string {
	text := e.Error()
	if name := text[strings.LastIndex(text, " ")+1:]; name != "" {
		return name
	}
	return fmt.Sprintf("CKR_VENDOR_DEFINED+0x%X", uint(e)&^pkcs11.CKR_VENDOR_DEFINED)
}

// A meaning is what a return value says to the user, wherever it comes from.
type meaning struct {
	kind failure.Kind
	hint string
}

const pinHint = "check pin-source. Nothing tries the PIN again by itself: a few wrong PINs lock a token"

var meanings = map[pkcs11.Error]meaning{
	pkcs11.CKR_PIN_INCORRECT: {failure.Denied, "the PIN is wrong; " + pinHint},
	pkcs11.CKR_PIN_INVALID: {failure.Denied,
		"the PIN has characters the token does not take; " + pinHint},
	pkcs11.CKR_PIN_LEN_RANGE: {failure.Denied,
		"the PIN is too short or too long for the token; " + pinHint},
	pkcs11.CKR_PIN_EXPIRED: {failure.Denied,
		"change the PIN with the vendor's tool or pkcs11-tool --change-pin"},
	pkcs11.CKR_PIN_LOCKED: {failure.Denied,
		"too many wrong PINs: the security officer has to reset it with the vendor's tool"},
	pkcs11.CKR_USER_PIN_NOT_INITIALIZED:       {failure.Denied, "the security officer has to set a user PIN first"},
	pkcs11.CKR_USER_NOT_LOGGED_IN:             {failure.Denied, "the token wants a login: set pin-source"},
	pkcs11.CKR_USER_TYPE_INVALID:              {failure.Denied, "the token knows no such user"},
	pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN: {failure.Denied, "another user is logged in to the token in this process"},
	pkcs11.CKR_USER_TOO_MANY_TYPES:            {failure.Denied, "log the other users out of the token"},
	pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED: {failure.Denied,
		"the key may not sign (CKA_SIGN is false); use or make a signing key"},
	pkcs11.CKR_ACTION_PROHIBITED:     {failure.Denied, "the token's policy forbids it"},
	pkcs11.CKR_TOKEN_WRITE_PROTECTED: {failure.Denied, "the token is read-only"},
	pkcs11.CKR_SESSION_COUNT: {failure.Throttled,
		"all sessions of the token are in use: wait, or close what holds them"},
	pkcs11.CKR_TOKEN_NOT_PRESENT: {failure.Unavailable, "put the token back and run it again"},
	pkcs11.CKR_DEVICE_REMOVED:    {failure.Unavailable, "put the token back and run it again"},
	pkcs11.CKR_DEVICE_ERROR:      {failure.Unavailable, "check the HSM and its connection, and run it again"},
	pkcs11.CKR_SLOT_ID_INVALID:   {failure.NotFound, "list the slots with 'notation-hsm token list'"},
	pkcs11.CKR_MECHANISM_INVALID: {failure.Internal,
		"the module cannot do this with the key; see the mechanisms of the token with pkcs11-tool -M"},
}

const generalHint = "set NOTATION_HSM_LOG=/path/to/log to see every step, and check the module's own log"

// failed puts a module's error into the words of a failure: what was done, on which token or key, and what it means.
func (m *Module) failed(err error, format string, args ...any) error {
	var known *failure.Error
	if errors.As(err, &known) {
		return err
	}
	f := failure.New(failure.Internal, format, args...).WithHint(generalHint)
	f.Err = err
	var ckr pkcs11.Error
	if !errors.As(err, &ckr) {
		f.What += ": " + err.Error()
		return f
	}
	f.CKR = ckrName(ckr)
	if meaning, ok := meanings[ckr]; ok {
		f.Kind, f.Hint = meaning.kind, meaning.hint
	}
	return f
}

// initializeHint returns what to do about a module that C_Initialize does not start.
func initializeHint(err error, path, args string) string {
	switch {
	case is(err, pkcs11.CKR_ARGUMENTS_BAD) && args == "":
		return "set init-args of the token in the config file: this module wants parameters, such as NSS's " +
			`softoken: configdir='sql:/DIR' certPrefix='' keyPrefix='' secmod='secmod.db' flags=`
	case is(err, pkcs11.CKR_ARGUMENTS_BAD):
		return "check init-args of the token in the config file"
	case strings.Contains(filepath.Base(path), "opencryptoki") || strings.HasPrefix(filepath.Base(path), "PKCS11_API"):
		// Without its daemon, openCryptoki answers CKR_FUNCTION_FAILED (3.27) or CKR_HOST_MEMORY (3.8.1).
		return "start pkcsslotd, and check that this user is in the group pkcs11"
	}
	return "check that what the module talks to is running, and that this user may use it " +
		"(openCryptoki: pkcsslotd and the group pkcs11; a TPM: /dev/tpmrm0 and the group tss; a network HSM: its client's " +
		"configuration)"
}
