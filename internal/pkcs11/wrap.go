package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// ImportWrapping stores an AES key on the token that may wrap and unwrap other keys and do nothing else, and that is
// trusted (CKA_TRUSTED). PKCS#11 lets the security officer alone give that trust (2.40, section 4.8), and keeps private
// objects from them, so the key is a public object that is sensitive. SoftHSM takes the attribute only as the object is
// made.
func (b *Backend) ImportWrapping(ctx context.Context, s *config.Settings, soPINSource string, w key.WrappingKey,
	value []byte) error {
	m, err := b.acquire(ctx, s)
	if err != nil {
		return err
	}
	t := &Token{module: m, calls: m.calls, settings: s}
	defer t.Close()
	_, err = call(ctx, m, s.Timeout, "storing the wrapping key", func(ctx context.Context) (none struct{}, err error) {
		if err := t.find(ctx); err != nil {
			return none, err
		}
		if err := t.checkWraps(); err != nil {
			return none, err
		}
		secret, err := t.readSOPIN(ctx, soPINSource)
		if err != nil {
			return none, err
		}
		defer secret.Clear() // not when a call does not return: the module may still read it
		return none, t.storeWrapping(ctx, secret, w, value)
	})
	return err
}

// storeWrapping logs the security officer in and stores a wrapping key, in a session of its own. The security officer
// can log in only while no read-only session is open (PKCS#11 5.6, C_Login).
func (t *Token) storeWrapping(ctx context.Context, secret *pin.Secret, w key.WrappingKey, value []byte) error {
	m, limit := t.module, t.settings.Timeout
	handle, err := step(ctx, m, limit, "opening a session", func() (sessionHandle, error) {
		return t.calls.openSession(t.slot, pkcs11.CKF_RW_SESSION)
	})
	if err != nil {
		return t.failed(err, "cannot open a session that may write on %s", t.name())
	}
	defer func() {
		_ = m.cleanup("closing the session", func() error { return t.calls.closeSession(handle) })
	}()
	if err := t.loginWith(ctx, pkcs11.CKU_SO, handle, secret); err != nil {
		f := failure.From(err)
		f.What = "cannot log the security officer in to " + t.name()
		if f.CKR == "CKR_PIN_INCORRECT" {
			f.Hint =
				"the security officer's PIN is wrong; check --so-pin-source. It is not tried again: on most tokens a few wrong " +
					"ones end in a reset"
		}
		return f
	}
	_, err = step(ctx, m, limit, "storing the wrapping key", func() (none struct{}, err error) {
		s := &session{Token: t, handle: handle}
		for _, taken := range []config.URI{{Object: w.Label}, {ID: w.ID}} {
			found, err := s.search(t.selector(pkcs11.CKO_SECRET_KEY, taken), 1)
			if err != nil {
				return none, t.failed(err, "cannot search %s", t.name())
			}
			if len(found) > 0 {
				return none, failure.New(failure.Conflict, "%s has the secret key %s already", t.name(), keyName(taken)).
					WithHint("choose another label, or use the key that is there")
			}
		}
		if err := t.calls.createObject(handle, wrappingTemplate(w, value)); err != nil {
			return none, t.wrappingRefused(err, handle, w)
		}
		return none, nil
	})
	return err
}

// wrappingRefused is the failure of a module that does not store a wrapping key. Some have no CKA_TRUSTED, or no
// templates of what a key may wrap, without which a backup is not safe.
func (t *Token) wrappingRefused(err error, session sessionHandle, w key.WrappingKey) error {
	f := failure.From(t.failed(err, "%s did not store the wrapping key %q", t.name(), w.Label))
	if is(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) || is(err, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID) ||
		is(err, pkcs11.CKR_ATTRIBUTE_READ_ONLY) || is(err, pkcs11.CKR_TEMPLATE_INCONSISTENT) {
		f.Kind = failure.Unsupported
		f.What += ": it refuses " + t.refusedAttribute(session, w) +
			", without which whoever may use the token can read the keys in a backup"
		f.Hint = "use the module's own backup"
	}
	return f
}

// refusedAttribute names the attribute without which a module makes a wrapping key of no value that lasts as long as
// the session: a module does not say which it refuses.
func (t *Token) refusedAttribute(session sessionHandle, w key.WrappingKey) string {
	names := map[uint]string{pkcs11.CKA_TRUSTED: "CKA_TRUSTED", pkcs11.CKA_WRAP_TEMPLATE: "CKA_WRAP_TEMPLATE",
		pkcs11.CKA_UNWRAP_TEMPLATE: "CKA_UNWRAP_TEMPLATE"}
	for _, refused := range []uint{pkcs11.CKA_TRUSTED, pkcs11.CKA_WRAP_TEMPLATE, pkcs11.CKA_UNWRAP_TEMPLATE} {
		var template []*pkcs11.Attribute
		for _, a := range wrappingTemplate(w, make([]byte, 32)) {
			switch a.Type {
			case refused:
			case pkcs11.CKA_TOKEN:
				template = append(template, pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false))
			default:
				template = append(template, a)
			}
		}
		if t.calls.createObject(session, template) == nil {
			return names[refused]
		}
	}
	return "CKA_TRUSTED, CKA_WRAP_TEMPLATE or CKA_UNWRAP_TEMPLATE"
}

// wrappingTemplate is the template of a wrapping key. As a public object it can be used without a login, so it wraps
// and unwraps private objects alone, which need one, and sensitive ones: else whoever can open a session could read
// what is in a backup, or wrap a MAC key that they know.
func wrappingTemplate(w key.WrappingKey, value []byte) []*pkcs11.Attribute {
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_WRAP_TEMPLATE, privateAndSensitive()), // these two first, aligned as C has them
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP_TEMPLATE, privateAndSensitive()),
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_AES),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, w.Label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, w.ID),
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true),
		pkcs11.NewAttribute(pkcs11.CKA_UNWRAP, true),
		pkcs11.NewAttribute(pkcs11.CKA_ENCRYPT, false),
		pkcs11.NewAttribute(pkcs11.CKA_DECRYPT, false),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, false),
		pkcs11.NewAttribute(pkcs11.CKA_VERIFY, false),
		pkcs11.NewAttribute(pkcs11.CKA_TRUSTED, true),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE, value),
	}
}

// readSOPIN fetches the security officer's PIN, if it may be tried: for most tokens there is no way back once it is
// locked.
func (t *Token) readSOPIN(ctx context.Context, source string) (*pin.Secret, error) {
	if err := t.refusedBefore(pkcs11.CKU_SO); err != nil {
		return nil, err
	}
	if t.info.flags&(pkcs11.CKF_SO_PIN_LOCKED|pkcs11.CKF_SO_PIN_FINAL_TRY) != 0 {
		return nil, failure.New(failure.Denied,
			"the security officer's PIN of %s is locked or one wrong PIN away from it, so it was not tried", t.name()).
			WithHint("see the vendor's documentation")
	}
	switch {
	case source == "":
		return nil, failure.New(failure.Denied, "the security officer's PIN is needed to trust a wrapping key").
			WithHint(`add --so-pin-source env:NAME, file:/path, "exec:command args" or prompt`)
	case source == pin.None && t.info.flags&pkcs11.CKF_PROTECTED_AUTHENTICATION_PATH != 0:
		return nil, nil
	case source == pin.None:
		return nil, failure.New(failure.Denied, "--so-pin-source is none, but %s has no PIN pad of its own", t.name()).
			WithHint("use another --so-pin-source")
	}
	return pin.Read(ctx, source, t.info.label+", security officer")
}

type wrapping struct {
	name      string
	mechanism uint
}

// wrappings are the mechanisms that wrap a key of any length with AES (RFC 5649), under the names of PKCS#11 2.40 and
// 3.0.
var wrappings = []wrapping{{"CKM_AES_KEY_WRAP_PAD", pkcs11.CKM_AES_KEY_WRAP_PAD}, {"CKM_AES_KEY_WRAP_KWP", 0x210B}}

// WrappingKey finds the one trusted wrapping key on the token that a reference names; an empty one names any.
func (t *Token) WrappingKey(ctx context.Context, reference config.URI) (w key.WrappingKey, err error) {
	if err := t.checkWraps(); err != nil {
		return w, err
	}
	if err := t.Login(ctx); err != nil {
		return w, err
	}
	return inSession(ctx, t, "looking for the wrapping key", func(_ context.Context, s *session) (key.WrappingKey, error) {
		_, w, err := s.wrappingKey(reference)
		return w, err
	})
}

// wrappingKey returns the one trusted wrapping key that a reference names, with what the token calls it.
func (s *session) wrappingKey(reference config.URI) (objectHandle, key.WrappingKey, error) {
	template := append(s.selector(pkcs11.CKO_SECRET_KEY, reference),
		pkcs11.NewAttribute(pkcs11.CKA_WRAP, true), pkcs11.NewAttribute(pkcs11.CKA_TRUSTED, true))
	found, err := s.search(template, 2)
	if err != nil {
		return 0, key.WrappingKey{}, s.failed(err, "cannot search %s for wrapping keys", s.name())
	}
	which := ""
	if reference.Object != "" || len(reference.ID) > 0 {
		which = " " + keyName(reference)
	}
	if len(found) == 0 {
		hint := "make one with 'notation-hsm key backup-key generate', or bring it here with 'key backup-key restore'"
		if reference.Object == "" && len(reference.ID) > 0 {
			hint = "bring it here from its shares: notation-hsm key backup-key restore" // a new one would be another
		}
		return 0, key.WrappingKey{}, failure.New(failure.NotFound,
			"there is no wrapping key%s that the security officer trusts on %s", which, s.name()).
			WithHint(hint)
	}
	if len(found) > 1 {
		return 0, key.WrappingKey{}, failure.New(failure.Invalid,
			"there are several trusted wrapping keys%s on %s", which, s.name()).
			WithHint("name one with --backup-key")
	}
	values, err := s.calls.attributes(s.handle, found[0], pkcs11.CKA_LABEL, pkcs11.CKA_ID)
	if err != nil {
		return 0, key.WrappingKey{}, s.failed(err, "cannot read the wrapping key on %s", s.name())
	}
	return found[0], key.WrappingKey{Label: string(values[0]), ID: values[1]}, nil
}

// Wrap has the module encrypt a private key under a wrapping key of the token.
func (t *Token) Wrap(ctx context.Context, of keystore.Key, reference config.URI) (key.Wrapped, error) {
	k := of.(*Key) // keys of this store are its own
	return inSession(ctx, t, "wrapping the key", func(_ context.Context, s *session) (wrapped key.Wrapped, err error) {
		by, w, err := s.wrappingKey(reference)
		if err != nil {
			return wrapped, err
		}
		object, err := k.find(s)
		if err != nil {
			return wrapped, err
		}
		for _, way := range wrappings {
			wrapped = key.Wrapped{Mechanism: way.name, By: w}
			wrapped.Bytes, err = t.calls.wrapKey(s.handle, way.mechanism, by, object)
			if !is(err, pkcs11.CKR_MECHANISM_INVALID) {
				break
			}
		}
		if is(err, pkcs11.CKR_KEY_UNEXTRACTABLE) || is(err, pkcs11.CKR_KEY_NOT_WRAPPABLE) {
			f := failure.From(t.failed(err, "the module does not let key %s be wrapped by %q", k.name(), w.Label))
			f.Kind, f.Hint = failure.Denied,
				"use the module's own backup; a key that can be wrapped is made with 'notation-hsm key generate --backup-key'"
			return wrapped, f
		}
		if err != nil {
			return wrapped, t.failed(err, "cannot wrap key %s on %s", k.name(), t.name())
		}
		return wrapped, nil
	})
}

// Unwrap makes a private key again from what Wrap returned, and the public key object that belongs to it. The key is
// what it was: good for its usage alone, sensitive, and wrapped by trusted keys alone.
func (t *Token) Unwrap(ctx context.Context, wrapped key.Wrapped, usage key.Usage, label string, id []byte,
	public crypto.PublicKey) error {
	i, err := wrappingNamed(wrapped.Mechanism)
	if err != nil {
		return err
	}
	half, kind, err := publicTemplate(public, usage)
	if err != nil {
		return err
	}
	if err := t.Login(ctx); err != nil {
		return err
	}
	names := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, kind), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label), pkcs11.NewAttribute(pkcs11.CKA_ID, id),
	}
	private := append(slices.Clone(names), unwrapTemplate(usage, kind == pkcs11.CKK_RSA)...)
	_, err = writing(ctx, t, "unwrapping the key", func(s *session) (none struct{}, err error) {
		by, _, err := s.wrappingKey(config.URI{ID: wrapped.By.ID})
		if err != nil {
			return none, err
		}
		if err := t.calls.createObject(s.handle, append(half, names...)); err != nil {
			return none, t.failed(err, "cannot store the public half of %q on %s", label, t.name())
		}
		if _, err := t.calls.unwrapKey(s.handle, wrappings[i].mechanism, by, wrapped.Bytes, private); err != nil {
			return none, t.failed(err, "%s did not unwrap the key %q", t.name(), label)
		}
		return none, nil
	})
	return err
}

// unwrapTemplate returns what a private key that is unwrapped may do. CKA_WRAP_WITH_TRUSTED keeps others from wrapping
// it with a key of their own, whose value they know.
func unwrapTemplate(usage key.Usage, isRSA bool) []*pkcs11.Attribute {
	private := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}
	_, uses, others := usages(usage, isRSA)
	for _, a := range append(uses, pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE,
		pkcs11.CKA_WRAP_WITH_TRUSTED) {
		private = append(private, pkcs11.NewAttribute(a, true))
	}
	for _, a := range others {
		private = append(private, pkcs11.NewAttribute(a, false))
	}
	return private
}

// publicTemplate is what a public key object says of the key itself, and its CKA_KEY_TYPE.
func publicTemplate(public crypto.PublicKey, usage key.Usage) (template []*pkcs11.Attribute, kind uint, err error) {
	template = []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
	}
	_, isRSA := public.(*rsa.PublicKey)
	uses, _, _ := usages(usage, isRSA)
	for _, use := range uses {
		template = append(template, pkcs11.NewAttribute(use, true))
	}
	switch p := public.(type) {
	case *rsa.PublicKey:
		return append(template, pkcs11.NewAttribute(pkcs11.CKA_MODULUS, p.N.Bytes()),
			pkcs11.NewAttribute(pkcs11.CKA_PUBLIC_EXPONENT, big.NewInt(int64(p.E)).Bytes())), pkcs11.CKK_RSA, nil
	case *ecdsa.PublicKey:
		point, err := p.Bytes()
		if err != nil {
			return nil, 0, err
		}
		for _, c := range curves {
			if c.curve == p.Curve {
				params, _ := asn1.Marshal(c.oid) // these two always marshal
				octets, _ := asn1.Marshal(point)
				return append(template, pkcs11.NewAttribute(pkcs11.CKA_EC_PARAMS, params),
					pkcs11.NewAttribute(pkcs11.CKA_EC_POINT, octets)), pkcs11.CKK_EC, nil
			}
		}
	}
	return nil, 0, fmt.Errorf("there are no public key objects for keys of type %T here", public)
}
