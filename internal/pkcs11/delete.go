package pkcs11

import (
	"context"
	"crypto"
	"crypto/x509"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Delete removes a private key, the public key object that belongs to it, and the certificates. The private key goes
// last, so that a deletion that was cut short can be run again.
func (t *Token) Delete(ctx context.Context, of keystore.Key, certificates []*x509.Certificate) error {
	k := of.(*Key) // keys of this store are its own
	if err := t.checkWritable("delete it with the vendor's tool"); err != nil {
		return err
	}
	_, err := writing(ctx, t, "deleting the key", func(s *session) (none struct{}, err error) {
		var objects []objectHandle
		for _, cert := range certificates {
			found, err := s.search([]*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE),
				pkcs11.NewAttribute(pkcs11.CKA_VALUE, cert.Raw),
			}, 8)
			if err != nil {
				return none, t.failed(err, "cannot search %s for the certificate of %q", t.name(), cert.Subject)
			}
			objects = append(objects, found...)
		}
		halves, err := s.publicObjects(k)
		if err != nil {
			return none, err
		}
		private, err := k.find(s)
		if err != nil {
			return none, err
		}
		for _, object := range append(append(objects, halves...), private) {
			if err := t.calls.destroyObject(s.handle, object); err != nil {
				return none, t.failed(err, "cannot delete an object of key %s on %s", k.name(), t.name())
			}
		}
		return none, nil
	})
	return err
}

// publicObjects finds the public key objects that carry a key's label and id, and its public half.
func (s *session) publicObjects(k *Key) ([]objectHandle, error) {
	at := k.place.Load()
	found, err := s.search(s.selector(pkcs11.CKO_PUBLIC_KEY, config.URI{Object: at.label, ID: at.id}), 8)
	if err != nil {
		return nil, s.failed(err, "cannot search %s for the public key", s.name())
	}
	var halves []objectHandle
	for _, object := range found {
		public, err := s.readPublic(object)
		if own, ok := k.public.(interface{ Equal(crypto.PublicKey) bool }); err == nil && ok && own.Equal(public) {
			halves = append(halves, object)
		}
	}
	return halves, nil
}

// Discard removes the private and public key objects that carry exactly the label and the id of the settings: what a
// module leaves behind when it is cut short while it makes a key, which may be half a key.
func (t *Token) Discard(ctx context.Context) error {
	uri := t.settings.Key
	if uri.Object == "" || len(uri.ID) == 0 {
		return failure.New(failure.Internal, "only a key that is named by label and id is discarded")
	}
	if err := t.checkWritable("see the vendor's documentation"); err != nil {
		return err
	}
	if err := t.Login(ctx); err != nil {
		return err
	}
	_, err := writing(ctx, t, "deleting what is left of the key", func(s *session) (none struct{}, err error) {
		for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_PRIVATE_KEY} {
			objects, err := s.search(t.selector(class, uri), 8)
			if err != nil {
				return none, t.failed(err, "cannot search %s", t.name())
			}
			for _, object := range objects {
				if err := t.calls.destroyObject(s.handle, object); err != nil {
					return none, t.failed(err, "cannot delete half a key from %s", t.name())
				}
			}
		}
		return none, nil
	})
	return err
}

// Taken reports whether a private key on the token has this label, or this id.
func (t *Token) Taken(ctx context.Context, name config.URI) (bool, error) {
	if err := t.Login(ctx); err != nil {
		return false, err
	}
	return inSession(ctx, t, "looking for keys of that name", func(_ context.Context, s *session) (bool, error) {
		found, err := s.search(t.selector(pkcs11.CKO_PRIVATE_KEY, name), 1)
		if err != nil {
			return false, t.failed(err, "cannot search %s", t.name())
		}
		return len(found) > 0, nil
	})
}
