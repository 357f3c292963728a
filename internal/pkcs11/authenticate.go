package pkcs11

import (
	"context"
	"crypto/hmac"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// A wrapping key wraps and does nothing else, so it makes no MAC itself. The module makes a MAC key for each MAC
// instead, and wraps it: without the use of the wrapping key, nobody makes a MAC that verifies. The value of the MAC
// key is never outside the module.

const (
	macKeySize     = 32
	wrappedMACSize = macKeySize + 8 // RFC 5649 adds 8 bytes to a multiple of 8
)

func macKeyTemplate(more ...*pkcs11.Attribute) []*pkcs11.Attribute {
	return append([]*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),  // it ends with the session
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, true), // which the wrapping key insists on
		pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, true),
		pkcs11.NewAttribute(pkcs11.CKA_SIGN, true),
	}, more...)
}

// Authenticate returns a MAC of data under a wrapping key of the token, which Verify accepts on every token that holds
// that key. mechanism is the one that wrapped the data's own key.
func (t *Token) Authenticate(ctx context.Context, data []byte, mechanism string, by key.WrappingKey) (key.MAC, error) {
	i, err := wrappingNamed(mechanism)
	if err != nil {
		return key.MAC{}, err
	}
	return inSession(ctx, t, "authenticating the backup", func(_ context.Context, s *session) (mac key.MAC, err error) {
		wrapping, _, err := s.wrappingKey(config.URI{ID: by.ID})
		if err != nil {
			return mac, err
		}
		secret, err := t.calls.generateKey(s.handle, pkcs11.CKM_GENERIC_SECRET_KEY_GEN, macKeyTemplate(
			pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, macKeySize), pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
			pkcs11.NewAttribute(pkcs11.CKA_WRAP_WITH_TRUSTED, true)))
		if err != nil {
			return mac, t.failed(err, "cannot generate a MAC key on %s", t.name())
		}
		defer func() { _ = t.calls.destroyObject(s.handle, secret) }()
		if mac.Value, _, err = t.calls.signBoth(s.handle, pkcs11.CKM_SHA256_HMAC, nil, secret, data); err != nil {
			return mac, t.failed(err, "cannot compute an HMAC on %s", t.name())
		}
		if mac.Key, err = t.calls.wrapKey(s.handle, wrappings[i].mechanism, wrapping, secret); err != nil {
			return mac, t.failed(err, "cannot wrap the MAC key by %q on %s", by.Label, t.name())
		}
		if len(mac.Key) != wrappedMACSize {
			return mac, failure.New(failure.Internal,
				"%s wrapped a MAC key to %d bytes instead of %d", t.name(), len(mac.Key), wrappedMACSize).
				WithHint("use the module's own backup")
		}
		return mac, nil
	})
}

// Verify returns an error unless Authenticate made the MAC of data under that wrapping key. It makes nothing on the
// token.
func (t *Token) Verify(ctx context.Context, data []byte, mac key.MAC, mechanism string, by key.WrappingKey) error {
	i, err := wrappingNamed(mechanism)
	if err != nil {
		return err
	}
	// A wrapped private key is longer: it must not become a secret key, not even for a moment.
	if len(mac.Key) != wrappedMACSize {
		return failure.New(failure.Invalid, "its MAC key has %d bytes instead of %d", len(mac.Key), wrappedMACSize).
			WithHint("use another copy")
	}
	if err := t.Login(ctx); err != nil {
		return err
	}
	_, err = inSession(ctx, t, "authenticating the backup", func(_ context.Context, s *session) (none struct{},
		err error) {
		wrapping, w, err := s.wrappingKey(config.URI{ID: by.ID})
		if err != nil {
			return none, err
		}
		template := macKeyTemplate(pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, false))
		secret, err := t.calls.unwrapKey(s.handle, wrappings[i].mechanism, wrapping, mac.Key, template)
		if err != nil {
			f := failure.From(t.failed(err, "%s did not unwrap its MAC key by %q", t.name(), w.Label))
			if badCiphertext(err) || is(err, pkcs11.CKR_WRAPPED_KEY_INVALID) || is(err, pkcs11.CKR_WRAPPED_KEY_LEN_RANGE) {
				f.Kind, f.Hint = failure.Invalid, "use another copy"
			}
			return none, f
		}
		defer func() { _ = t.calls.destroyObject(s.handle, secret) }()
		value, _, err := t.calls.signBoth(s.handle, pkcs11.CKM_SHA256_HMAC, nil, secret, data)
		if err != nil {
			return none, t.failed(err, "cannot compute an HMAC on %s", t.name())
		}
		if !hmac.Equal(value, mac.Value) {
			return none, failure.New(failure.Invalid, "its MAC does not verify under the wrapping key %q", w.Label).
				WithHint("use another copy")
		}
		return none, nil
	})
	return err
}

// wrappingNamed returns the index of a mechanism in wrappings.
func wrappingNamed(mechanism string) (int, error) {
	i := slices.IndexFunc(wrappings, func(w wrapping) bool { return w.name == mechanism })
	if i < 0 {
		return 0, failure.New(failure.Invalid, "the key was wrapped with %q, which is not known here", mechanism).
			WithHint("update this program")
	}
	return i, nil
}
