package keystoretest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// NewKey returns a new private key of a spec.
func NewKey(spec key.Spec) (crypto.Signer, error) {
	if spec.IsRSA() {
		return rsa.GenerateKey(rand.Reader, spec.Bits)
	}
	curves := map[int]elliptic.Curve{256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()}
	return ecdsa.GenerateKey(curves[spec.Bits], rand.Reader)
}

type store struct {
	module   *Module
	token    *token
	settings *config.Settings
	loggedIn bool
	refused  error // the one login that failed
	closed   bool
}

// do counts an operation and runs it under the module's lock.
func (s *store) do(ctx context.Context, operation string, do func() error) error {
	s.module.mu.Lock()
	defer s.module.mu.Unlock()
	if s.closed {
		return failure.New(failure.Internal, "%s on a store that is closed", operation)
	}
	if err := s.module.begin(ctx, operation); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return s.module.end(operation)
}

// in is do after a login.
func (s *store) in(ctx context.Context, operation string, do func() error) error {
	if err := s.Login(ctx); err != nil {
		return err
	}
	return s.do(ctx, operation, do)
}

func (s *store) Describe() key.Token {
	s.module.mu.Lock()
	defer s.module.mu.Unlock()
	return s.module.describe(s.token, uint(slices.Index(s.module.tokens, s.token)))
}

func (s *store) Login(ctx context.Context) error {
	if s.loggedIn || s.refused != nil {
		return s.refused
	}
	given := s.settings.PIN
	if given == "" && s.settings.PINSource != "" && s.settings.PINSource != pin.None {
		secret, err := pin.Read(ctx, s.settings.PINSource, s.token.label)
		if err != nil {
			return err
		}
		given = string(secret.Bytes())
		secret.Clear()
	}
	s.refused = s.do(ctx, "Login", func() error {
		switch {
		case given == "":
			return failure.New(failure.Denied, "no PIN for token %q: no pin-source is set", s.token.label)
		case s.token.wrong >= tries:
			return ckr(failure.Denied, "CKR_PIN_LOCKED", "cannot log in to token %q", s.token.label)
		case given != PIN:
			s.token.wrong++
			return ckr(failure.Denied, "CKR_PIN_INCORRECT", "cannot log in to token %q", s.token.label)
		}
		s.token.wrong = 0
		return nil
	})
	s.loggedIn = s.refused == nil
	return s.refused
}

func ckr(kind failure.Kind, name, format string, args ...any) *failure.Error {
	f := failure.New(kind, format, args...)
	f.CKR = name
	return f
}

func (s *store) Close() error {
	s.module.mu.Lock()
	defer s.module.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.module.open--
	}
	return nil
}

// matching returns the keys that a URI names. The caller holds the lock.
func (s *store) matching(uri config.URI) (found []*object) {
	for _, o := range s.token.keys {
		if (uri.Object == "" || uri.Object == o.label) && (len(uri.ID) == 0 || bytes.Equal(uri.ID, o.id)) {
			found = append(found, o)
		}
	}
	return found
}

// sole returns the one key that the settings name. The caller holds the lock.
func (s *store) sole() (*object, error) {
	found := s.matching(s.settings.Key)
	switch len(found) {
	case 0:
		return nil, failure.New(failure.NotFound, "there is no key %s on token %q", s.settings.Key, s.token.label)
	case 1:
		return found[0], nil
	}
	return nil, failure.New(failure.Invalid, "%d keys match %s", len(found), s.settings.Key)
}

func (s *store) Key(ctx context.Context, public crypto.PublicKey) (k keystore.Key, err error) {
	err = s.in(ctx, "Key", func() error {
		o, err := s.sole()
		if err != nil {
			return err
		}
		if public == nil {
			public = o.private.Public()
		}
		k = &memoryKey{store: s, object: o, public: public}
		return nil
	})
	return k, err
}

func (s *store) Keys(ctx context.Context) (keys []keystore.Key, err error) {
	err = s.in(ctx, "Keys", func() error {
		for _, o := range s.matching(s.settings.Key) {
			keys = append(keys, &memoryKey{store: s, object: o, public: o.private.Public()})
		}
		return nil
	})
	return keys, err
}

func (s *store) Public(ctx context.Context) (public crypto.PublicKey, err error) {
	err = s.do(ctx, "Public", func() error {
		o, err := s.sole()
		if err == nil {
			public = o.private.Public()
		}
		return err
	})
	return public, err
}

func (s *store) Receives(ctx context.Context, _ crypto.PublicKey) (r key.Receives, err error) {
	err = s.do(ctx, "Receives", func() error {
		o, err := s.sole()
		if err != nil {
			return err
		}
		r = s.token.receives(o)
		return nil
	})
	return r, err
}

func (s *store) certificates(matches func(certificate) bool) (found []*x509.Certificate) {
	for _, c := range s.token.certs {
		if matches(c) {
			found = append(found, c.cert)
		}
	}
	return found
}

func (s *store) Leaf(ctx context.Context) (leaf *x509.Certificate, err error) {
	err = s.do(ctx, "Leaf", func() error {
		uri := s.settings.Key
		found := s.certificates(func(c certificate) bool {
			return (uri.Object == "" || c.label == uri.Object) && (len(uri.ID) == 0 || bytes.Equal(c.id, uri.ID))
		})
		if len(found) == 1 {
			leaf = found[0]
		}
		return nil
	})
	return leaf, err
}

func (s *store) Issuers(ctx context.Context, cert *x509.Certificate) (found []*x509.Certificate, err error) {
	err = s.do(ctx, "Issuers", func() error {
		found = s.certificates(func(c certificate) bool { return bytes.Equal(c.cert.RawSubject, cert.RawIssuer) })
		return nil
	})
	return found, err
}

func (s *store) Certificates(ctx context.Context) (found []*x509.Certificate, err error) {
	err = s.do(ctx, "Certificates", func() error {
		found = s.certificates(func(certificate) bool { return true })
		return nil
	})
	return found, err
}

func (s *store) Import(ctx context.Context, k keystore.Key, chain []*x509.Certificate) (added int, err error) {
	err = s.in(ctx, "Import", func() error {
		o := k.(*memoryKey).object
		for i, cert := range chain {
			if slices.ContainsFunc(s.token.certs, func(c certificate) bool { return c.cert.Equal(cert) }) {
				continue
			}
			c := certificate{cert: cert, label: cert.Subject.String()}
			if i == 0 {
				c.label, c.id = o.label, o.id
			}
			s.token.certs = append(s.token.certs, c)
			added++
		}
		return nil
	})
	return added, err
}

func (s *store) Delete(ctx context.Context, k keystore.Key, certificates []*x509.Certificate) error {
	return s.in(ctx, "Delete", func() error {
		o := k.(*memoryKey).object
		s.token.keys = slices.DeleteFunc(s.token.keys, func(other *object) bool { return other == o })
		s.token.certs = slices.DeleteFunc(s.token.certs, func(c certificate) bool {
			return slices.ContainsFunc(certificates, c.cert.Equal)
		})
		return nil
	})
}

func (s *store) Discard(ctx context.Context) error {
	return s.in(ctx, "Discard", func() error {
		uri := s.settings.Key
		if uri.Object == "" || len(uri.ID) == 0 {
			return failure.New(failure.Internal, "only a key that is named by label and id is discarded")
		}
		for _, o := range s.matching(uri) {
			s.token.keys = slices.DeleteFunc(s.token.keys, func(other *object) bool { return other == o })
		}
		return nil
	})
}

func (s *store) Taken(ctx context.Context, name config.URI) (taken bool, err error) {
	err = s.in(ctx, "Taken", func() error {
		taken = len(s.matching(config.URI{Object: name.Object, ID: name.ID})) > 0
		return nil
	})
	return taken, err
}

type memoryKey struct {
	store  *store
	object *object
	public crypto.PublicKey
}

func (o *object) info(on *token) key.Info {
	flag := func(b bool) *bool { return &b }
	signs := o.usage == key.Sign
	_, isRSA := o.private.Public().(*rsa.PublicKey)
	return key.Info{
		URI: config.URI{Token: on.label, Object: o.label, ID: o.id}.String(), Label: o.label, ID: o.id,
		Public: o.private.Public(), Sign: flag(signs), Decrypt: flag(!signs && isRSA), Unwrap: flag(!signs && isRSA),
		Derive: flag(!signs && !isRSA), Sensitive: flag(true), AlwaysSensitive: flag(true), Extractable: flag(o.wrappable),
		NeverExtractable: flag(!o.wrappable), Local: flag(o.local), AlwaysAuth: flag(false),
		WrapWithTrusted: flag(o.wrappable),
	}
}

func (k *memoryKey) Public() crypto.PublicKey { return k.public }

// as runs an operation that a key of one usage alone may do.
func (k *memoryKey) as(ctx context.Context, usage key.Usage, operation string, do func() error) error {
	return k.store.do(ctx, operation, func() error {
		if k.object.usage != usage {
			return ckr(failure.Denied, "CKR_KEY_FUNCTION_NOT_PERMITTED", "key %q may not %s", k.object.label, operation)
		}
		return do()
	})
}

func (k *memoryKey) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) (signature []byte, err error) {
	err = k.as(ctx, key.Sign, "Sign", func() (err error) {
		signature, err = k.object.private.Sign(rand.Reader, digest, opts)
		return err
	})
	return signature, err
}

func (k *memoryKey) SignMessage(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	h := opts.HashFunc().New()
	h.Write(message)
	return k.Sign(ctx, h.Sum(nil), opts)
}

func (k *memoryKey) Decrypt(ctx context.Context, ciphertext []byte, opts crypto.DecrypterOpts) (plain []byte,
	err error) {
	err = k.as(ctx, key.Decrypt, "Decrypt", func() (err error) {
		private, isRSA := k.object.private.(*rsa.PrivateKey)
		if !isRSA {
			return failure.New(failure.Invalid, "key %q is not an RSA key", k.object.label)
		}
		if oaep, ok := opts.(*rsa.OAEPOptions); ok {
			if err := k.store.token.supports(oaep.Hash); err != nil {
				return err
			}
		}
		if plain, err = private.Decrypt(rand.Reader, ciphertext, opts); err != nil {
			return ckr(failure.Invalid, "CKR_ENCRYPTED_DATA_INVALID", "key %q cannot decrypt: %w", k.object.label, err)
		}
		return nil
	})
	return plain, err
}

func (k *memoryKey) ECDH(ctx context.Context, remote *ecdh.PublicKey) (shared []byte, err error) {
	err = k.as(ctx, key.Decrypt, "ECDH", func() error {
		private, isEC := k.object.private.(*ecdsa.PrivateKey)
		if !isEC {
			return failure.New(failure.Invalid, "key %q is not an elliptic curve key", k.object.label)
		}
		own, err := private.ECDH()
		if err != nil {
			return err
		}
		shared, err = own.ECDH(remote)
		return err
	})
	return shared, err
}

func (k *memoryKey) ReadPublic(ctx context.Context) (public crypto.PublicKey, err error) {
	err = k.store.do(ctx, "ReadPublic", func() error {
		public = k.object.private.Public()
		return nil
	})
	return public, err
}

func (k *memoryKey) Info(ctx context.Context) (info key.Info, err error) {
	err = k.store.do(ctx, "Info", func() error {
		info = k.store.module.info(k.object, k.store.token)
		return nil
	})
	return info, err
}
