package keystoretest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Wrapped keys are sealed with AES-GCM here: what matters to the rooms above is that only the wrapping key opens them.
const wrapMechanism = "CKM_AES_KEY_WRAP_PAD"

func (w *wrappingObject) aead() cipher.AEAD {
	sum := sha256.Sum256(w.value) // a key of any length becomes one of AES-256
	block, _ := aes.NewCipher(sum[:])
	aead, _ := cipher.NewGCMWithRandomNonce(block) // neither fails for a key of 32 bytes
	return aead
}

// wrappingKey returns the wrapping key that a reference names. The caller holds the lock.
func (s *store) wrappingKey(reference config.URI) (*wrappingObject, error) {
	var found []*wrappingObject
	for _, w := range s.token.wrapping {
		if (reference.Object == "" || reference.Object == w.Label) &&
			(len(reference.ID) == 0 || bytes.Equal(reference.ID, w.ID)) {
			found = append(found, w)
		}
	}
	switch len(found) {
	case 0:
		return nil, failure.New(failure.NotFound, "there is no wrapping key that the security officer trusts on token %q",
			s.token.label)
	case 1:
		return found[0], nil
	}
	return nil, failure.New(failure.Invalid, "there are several trusted wrapping keys on token %q", s.token.label)
}

func (s *store) WrappingKey(ctx context.Context, reference config.URI) (w key.WrappingKey, err error) {
	err = s.in(ctx, "WrappingKey", func() error {
		found, err := s.wrappingKey(reference)
		if err == nil {
			w = found.WrappingKey
		}
		return err
	})
	return w, err
}

func (s *store) Wrap(ctx context.Context, k keystore.Key, reference config.URI) (wrapped key.Wrapped, err error) {
	err = s.in(ctx, "Wrap", func() error {
		by, err := s.wrappingKey(reference)
		if err != nil {
			return err
		}
		o := k.(*memoryKey).object
		if !o.wrappable {
			return ckr(failure.Denied, "CKR_KEY_UNEXTRACTABLE", "the module does not let key %q be wrapped", o.label)
		}
		der, err := x509.MarshalPKCS8PrivateKey(o.private)
		if err != nil {
			return err
		}
		wrapped = key.Wrapped{Bytes: by.aead().Seal(nil, nil, der, nil), Mechanism: wrapMechanism, By: by.WrappingKey}
		return nil
	})
	return wrapped, err
}

func (s *store) Unwrap(ctx context.Context, wrapped key.Wrapped, usage key.Usage, label string, id []byte,
	_ crypto.PublicKey) error {
	return s.in(ctx, "Unwrap", func() error {
		by, err := s.wrappingKey(config.URI{ID: wrapped.By.ID})
		if err != nil {
			return err
		}
		der, err := by.aead().Open(nil, nil, wrapped.Bytes, nil)
		if err != nil {
			return ckr(failure.Invalid, "CKR_WRAPPED_KEY_INVALID", "token %q did not unwrap the key %q", s.token.label, label)
		}
		private, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return err
		}
		s.token.keys = append(s.token.keys,
			&object{label: label, id: id, private: private.(crypto.Signer), usage: usage, wrappable: true})
		return nil
	})
}

func (s *store) Authenticate(ctx context.Context, data []byte, _ string, by key.WrappingKey) (mac key.MAC, err error) {
	err = s.in(ctx, "Authenticate", func() error {
		w, err := s.wrappingKey(config.URI{ID: by.ID})
		if err != nil {
			return err
		}
		secret := make([]byte, 32)
		_, _ = rand.Read(secret) // never fails
		mac = key.MAC{Key: w.aead().Seal(nil, nil, secret, nil), Value: authenticate(secret, data)}
		return nil
	})
	return mac, err
}

func authenticate(secret, data []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write(data)
	return h.Sum(nil)
}

func (s *store) Verify(ctx context.Context, data []byte, mac key.MAC, _ string, by key.WrappingKey) error {
	return s.in(ctx, "Verify", func() error {
		w, err := s.wrappingKey(config.URI{ID: by.ID})
		if err != nil {
			return err
		}
		secret, err := w.aead().Open(nil, nil, mac.Key, nil)
		if err != nil || !hmac.Equal(authenticate(secret, data), mac.Value) {
			return failure.New(failure.Invalid, "its MAC does not verify under the wrapping key %q", w.Label)
		}
		return nil
	})
}
