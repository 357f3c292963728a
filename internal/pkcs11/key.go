package pkcs11

import (
	"context"
	"crypto"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Key is a private key on a token. It is a crypto.Signer and a crypto.MessageSigner, and is used until its Token is
// closed.
type Key struct {
	token  *Token
	object objectHandle
	public crypto.PublicKey
	id     []byte
	label  string

	working            atomic.Int32 // which way to sign the module accepted
	alwaysAuthenticate atomic.Bool  // every use asks for the PIN again
}

// Key logs in and finds the private key that the settings name. public is its public half when the caller has it from a
// certificate; with nil the module is asked. Failures: Invalid for no key or several (listing them), Denied for a PIN
// problem.
func (t *Token) Key(ctx context.Context, public crypto.PublicKey) (keystore.Key, error) {
	if err := t.Login(ctx); err != nil {
		return nil, err
	}
	k := &Key{token: t, public: public}
	err := t.within(ctx, "looking for the key", func(context.Context) (err error) {
		if k.object, err = t.privateKey(); err != nil || public != nil {
			return err
		}
		k.public, k.id, k.label, err = t.publicHalf(k.object)
		return err
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Public returns the key's public half.
func (k *Key) Public() crypto.PublicKey { return k.public }

// name is the key in the words of an error: as it was asked for, or, for one of a list, as the token has it.
func (k *Key) name() string {
	if asked := k.token.settings.Key; asked.Object != "" || len(asked.ID) > 0 {
		return keyName(asked)
	}
	return keyName(config.URI{Object: k.label, ID: k.id})
}

// ReadPublic asks the module for the key's public half, whatever the key was opened with.
func (k *Key) ReadPublic(ctx context.Context) (public crypto.PublicKey, err error) {
	err = k.token.within(ctx, "reading the public key", func(context.Context) error {
		public, k.id, k.label, err = k.token.publicHalf(k.object)
		return err
	})
	return public, err
}

var usageAttributes = []uint{
	pkcs11.CKA_LABEL, pkcs11.CKA_ID, pkcs11.CKA_SIGN, pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE,
	pkcs11.CKA_SENSITIVE, pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_NEVER_EXTRACTABLE,
	pkcs11.CKA_LOCAL,
	pkcs11.CKA_ALWAYS_AUTHENTICATE, pkcs11.CKA_WRAP_WITH_TRUSTED,
}

// Info returns what the module says of the key.
func (k *Key) Info(ctx context.Context) (info key.Info, err error) {
	t := k.token
	err = t.within(ctx, "reading the key's attributes", func(context.Context) error {
		values, err := t.calls.attributes(t.sessions.first, k.object, usageAttributes...)
		if err != nil {
			return t.failed(err, "can't read a key on %s", t.name())
		}
		flag := func(i int) *bool {
			if len(values[i]) != 1 {
				return nil
			}
			set := values[i][0] != 0
			return &set
		}
		info = key.Info{
			URI:   config.URI{Token: t.info.label, ID: values[1], Object: string(values[0])}.String(),
			Label: string(values[0]), ID: values[1], Public: k.public,
			Sign: flag(2), Decrypt: flag(3), Unwrap: flag(4), Derive: flag(5),
			Sensitive: flag(6), AlwaysSensitive: flag(7), Extractable: flag(8), NeverExtractable: flag(9), Local: flag(10),
			AlwaysAuth:      flag(11),
			WrapWithTrusted: flag(12),
		}
		return nil
	})
	return info, err
}

// Keys logs in and returns all private keys on the token; those whose public half can't be read have a nil Public.
func (t *Token) Keys(ctx context.Context) ([]keystore.Key, error) {
	if err := t.Login(ctx); err != nil {
		return nil, err
	}
	var keys []keystore.Key
	err := t.within(ctx, "listing keys", func(context.Context) error {
		objects, err := t.search(t.selector(pkcs11.CKO_PRIVATE_KEY, t.settings.Key), 1<<16)
		if err != nil {
			return t.failed(err, "can't list the keys of %s", t.name())
		}
		for _, object := range objects {
			k := &Key{token: t, object: object}
			k.public, k.id, k.label, _ = t.publicHalf(object)
			keys = append(keys, k)
		}
		return nil
	})
	return keys, err
}
