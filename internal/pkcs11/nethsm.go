package pkcs11

import (
	"context"
	"errors"
	"strings"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Behind Nitrokey's module is a REST API, and it shows. As its source has it:
//
//   - It shows nothing before the login, not even certificates; and a login counts for the one session it was made in.
//   - A search by CKA_ID, which is the key's ID on the NetHSM, is one request. Any other reads all keys and their
//     certificates, with two requests each, and ignores the rest of the template. CKA_LABEL is the same ID up to
//     version 2, and a label of its own from 3 on.
//   - A certificate is stored with its key and nowhere else. Where a chain is stored, the module cannot read it and
//     shows none.
//   - Keys and certificates are made and deleted by the Administrator, who is not the user that signs. Nothing is
//     wrapped.
//   - Public keys and mechanisms come with the key: asking for them, or for one that the key was not made for, costs no
//     request.

// isNetHSM reports whether the token is a NetHSM, by what it says of itself.
func (t *Token) isNetHSM() bool { return t.info.isNetHSM() }

func (i tokenInfo) isNetHSM() bool {
	return i.model == "NetHSM" && strings.HasPrefix(i.manufacturer, "Nitrokey")
}

// loginToSearch logs in where public objects are not shown to everyone.
func (t *Token) loginToSearch(ctx context.Context) error {
	if !t.isNetHSM() {
		return nil
	}
	return t.Login(ctx)
}

// byKeyID turns a label into the key ID that it stands for on a NetHSM.
func (t *Token) byKeyID(uri config.URI) config.URI {
	if t.isNetHSM() && uri.Object != "" {
		if len(uri.ID) == 0 {
			uri.ID = []byte(uri.Object)
		}
		uri.Object = ""
	}
	return uri
}

// unnamed reports whether an object of the reference can be found by reading all of them alone.
func unnamed(uri config.URI) bool { return uri.Object == "" && len(uri.ID) == 0 }

// checkWritable fails for a token that stores nothing for the user that we log in. otherwise is how it can be done
// where the token is read-only.
func (t *Token) checkWritable(otherwise string) error {
	switch {
	case t.isNetHSM():
		return failure.New(failure.Denied,
			"%s is a NetHSM: its module changes keys and certificates for the Administrator alone", t.name()).
			WithHint("do it without the module, with '--token nethsm:', or nethsm:KEYID as the key; the section " +
				"nethsm of the config file names the administrator")
	case t.info.flags&pkcs11.CKF_WRITE_PROTECTED != 0:
		return failure.New(failure.Denied, "%s is read-only", t.name()).WithHint(otherwise)
	}
	return nil
}

// checkWraps fails for a token that wraps no keys.
func (t *Token) checkWraps() error {
	if t.isNetHSM() {
		return failure.New(failure.Unsupported, "%s is a NetHSM: it wraps no keys", t.name()).
			WithHint("back up the NetHSM as a whole, with 'notation-hsm nethsm backup FILE'")
	}
	return nil
}

// wantsLoginForUse reports whether a use of a key failed because it asks for a login of its own, which no key on a
// NetHSM does: there, it means 403.
func (t *Token) wantsLoginForUse(err error) bool {
	return t.conn.loggedIn.Load() && is(err, pkcs11.CKR_USER_NOT_LOGGED_IN) && !t.isNetHSM()
}

const netHSMLog = "see 'notation-hsm nethsm status'; 'nethsm config --log-file' has the module write a log"

// netHSMMeanings are of what the module makes of the status of an answer.
var netHSMMeanings = map[pkcs11.Error]meaning{
	pkcs11.CKR_USER_TYPE_INVALID: {failure.Denied,
		"the passphrase is wrong, the module's configuration names no operator, or no instance let it in: " + netHSMLog +
			". Nothing tries the passphrase again by itself"},
	pkcs11.CKR_USER_NOT_LOGGED_IN: {failure.Denied, "the operator may not do that (403): check its tags and the key's"},
	pkcs11.CKR_KEY_HANDLE_INVALID: {failure.NotFound, "the key is gone (404): check the key ID"},
	pkcs11.CKR_TOKEN_NOT_PRESENT:  {failure.Unavailable, "no instance is operational: " + netHSMLog},
	pkcs11.CKR_DEVICE_ERROR:       {failure.Unavailable, "the NetHSM refused it, or no instance answered: " + netHSMLog},
}

// failed is Module.failed, with the meanings of a NetHSM if the token is one.
func (t *Token) failed(err error, format string, args ...any) error {
	failed := t.module.failed(err, format, args...)
	var ckr pkcs11.Error
	if !t.isNetHSM() || !errors.As(err, &ckr) {
		return failed
	}
	if meaning, ok := netHSMMeanings[ckr]; ok {
		f := failure.From(failed)
		f.Kind, f.Hint = meaning.kind, meaning.hint
	}
	return failed
}
