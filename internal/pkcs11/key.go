package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"sync/atomic"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Key is a private key on a token. It is used until its Token is closed.
type Key struct {
	token  *Token
	public crypto.PublicKey
	place  atomic.Pointer[place]
	listed *key.Info // what the module said of it when it was listed; nil for one that was not

	working            atomic.Int32 // the index of the mechanism that the module accepted last
	alwaysAuthenticate atomic.Bool  // every use needs the PIN again
}

// place is where a key was found: its object, which counts while the sessions do, and what the token calls it, as far
// as that was read.
type place struct {
	pool   *pool
	object objectHandle
	id     []byte
	label  string
}

// Key logs in and finds the private key that the settings name. public is its public half when the caller has it from a
// certificate; with nil the module is asked. It fails with NotFound for no key, Invalid for several (listing them), and
// Denied for a PIN problem.
func (t *Token) Key(ctx context.Context, public crypto.PublicKey) (keystore.Key, error) {
	if err := t.Login(ctx); err != nil {
		return nil, err
	}
	k, err := inSession(ctx, t, "looking for the key", func(_ context.Context, s *session) (*Key, error) {
		object, err := s.privateKey(t.settings.Key)
		if err != nil {
			return nil, err
		}
		k := &Key{token: t, public: public}
		at := &place{pool: s.pool, object: object}
		if public == nil {
			k.public, at.id, at.label, err = s.publicHalf(object)
		}
		k.place.Store(at)
		return k, err
	})
	if err != nil {
		return nil, err // an interface that holds a nil *Key would not be nil
	}
	return k, nil
}

// find returns the key's object in a session. A key that was found before the token was lost is looked up again, by
// what it was found by. It fails with Conflict when another key has that name now.
func (k *Key) find(s *session) (objectHandle, error) {
	at := k.place.Load()
	if at.pool == s.pool {
		return at.object, nil
	}
	name := k.token.settings.Key
	if unnamed(name) || len(at.id) > 0 {
		name.ID, name.Object = at.id, at.label
	}
	object, err := s.privateKey(name)
	if err != nil {
		return 0, err
	}
	if own, ok := k.public.(interface{ Equal(crypto.PublicKey) bool }); ok {
		public, _, _, err := s.publicHalf(object)
		known := len(at.id) > 0 || at.label != "" // the module has shown the public half before
		if err != nil && (known || !errors.Is(err, errNoPublic)) {
			return 0, err
		}
		if err == nil && !own.Equal(public) {
			return 0, failure.New(failure.Conflict, "key %s on %s was replaced by another while the token was lost", k.name(),
				s.name()).WithHint("check the keys on the token, and start again")
		}
	}
	k.place.Store(&place{pool: s.pool, object: object, id: at.id, label: at.label})
	return object, nil
}

// forget drops where the key was found, so that it is looked up again.
func (k *Key) forget() {
	at := k.place.Load()
	k.place.Store(&place{id: at.id, label: at.label})
}

// Public returns the key's public half.
func (k *Key) Public() crypto.PublicKey { return k.public }

// name returns the key's name in an error: as it was asked for, or, for one of a list, as the token has it.
func (k *Key) name() string {
	if asked := k.token.settings.Key; !unnamed(asked) {
		return keyName(asked)
	}
	at := k.place.Load()
	return keyName(config.URI{Object: at.label, ID: at.id})
}

// ReadPublic asks the module for the key's public half, whatever the key was opened with.
func (k *Key) ReadPublic(ctx context.Context) (crypto.PublicKey, error) {
	return inSession(ctx, k.token, "reading the public key", func(_ context.Context, s *session) (
		crypto.PublicKey, error) {
		object, err := k.find(s)
		if err != nil {
			return nil, err
		}
		public, id, label, err := s.publicHalf(object)
		k.place.Store(&place{pool: s.pool, object: object, id: id, label: label})
		return public, err
	})
}

var usageAttributes = []uint{
	pkcs11.CKA_LABEL, pkcs11.CKA_ID, pkcs11.CKA_SIGN, pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE,
	pkcs11.CKA_SENSITIVE, pkcs11.CKA_ALWAYS_SENSITIVE, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_NEVER_EXTRACTABLE,
	pkcs11.CKA_LOCAL,
	pkcs11.CKA_ALWAYS_AUTHENTICATE, pkcs11.CKA_WRAP_WITH_TRUSTED,
}

// Info returns the attributes that the module shows of the key; for a key of a list, those that it showed then.
func (k *Key) Info(ctx context.Context) (key.Info, error) {
	if k.listed != nil {
		return *k.listed, nil
	}
	t := k.token
	return inSession(ctx, t, "reading the key's attributes", func(_ context.Context, s *session) (key.Info, error) {
		object, err := k.find(s)
		if err != nil {
			return key.Info{}, err
		}
		values, err := t.calls.attributes(s.handle, object, usageAttributes...)
		if err != nil {
			return key.Info{}, t.failed(err, "cannot read a key on %s", t.name())
		}
		return t.infoOf(values, k.public), nil
	})
}

// infoOf returns what the values of usageAttributes say of a key.
func (t *Token) infoOf(values [][]byte, public crypto.PublicKey) key.Info {
	flag := func(i int) *bool {
		if len(values[i]) != 1 {
			return nil
		}
		set := values[i][0] != 0
		return &set
	}
	label, id := string(values[0]), bytes.Clone(values[1]) // not a part of the larger buffer, which would stay with it
	return key.Info{
		URI:   config.URI{Token: t.info.label, ID: id, Object: label}.String(),
		Label: label, ID: id, Public: public,
		Sign: flag(2), Decrypt: flag(3), Unwrap: flag(4), Derive: flag(5),
		Sensitive: flag(6), AlwaysSensitive: flag(7), Extractable: flag(8), NeverExtractable: flag(9), Local: flag(10),
		AlwaysAuth:      flag(11),
		WrapWithTrusted: flag(12),
	}
}
