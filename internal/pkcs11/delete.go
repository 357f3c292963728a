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
	if err := t.mayWrite("delete it with the vendor's tool"); err != nil {
		return err
	}
	return t.writing(ctx, "deleting the key", func(writer sessionHandle) error {
		var doomed []objectHandle
		for _, cert := range certificates {
			found, err := t.search([]*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE),
				pkcs11.NewAttribute(pkcs11.CKA_VALUE, cert.Raw),
			}, 8)
			if err != nil {
				return t.failed(err, "can't search %s for the certificate of %q", t.name(), cert.Subject)
			}
			doomed = append(doomed, found...)
		}
		halves, err := t.publicObjects(k)
		if err != nil {
			return err
		}
		for _, object := range append(append(doomed, halves...), k.object) {
			if err := t.calls.destroyObject(writer, object); err != nil {
				return t.failed(err, "can't delete an object of key %s on %s", keyName(config.URI{Object: k.label, ID: k.id}),
					t.name())
			}
		}
		return nil
	})
}

// publicObjects finds the public key objects that carry a key's label and id, and its public half.
func (t *Token) publicObjects(k *Key) ([]objectHandle, error) {
	found, err := t.search(t.selector(pkcs11.CKO_PUBLIC_KEY, config.URI{Object: k.label, ID: k.id}), 8)
	if err != nil {
		return nil, t.failed(err, "can't search %s for the public key", t.name())
	}
	var halves []objectHandle
	for _, object := range found {
		public, err := t.readPublic(object)
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
	if err := t.mayWrite("see the vendor's documentation"); err != nil {
		return err
	}
	if err := t.Login(ctx); err != nil {
		return err
	}
	return t.writing(ctx, "tidying up", func(writer sessionHandle) error {
		for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_PRIVATE_KEY} {
			objects, err := t.search(t.selector(class, uri), 8)
			if err != nil {
				return t.failed(err, "can't search %s", t.name())
			}
			for _, object := range objects {
				if err := t.calls.destroyObject(writer, object); err != nil {
					return t.failed(err, "can't delete half a key from %s", t.name())
				}
			}
		}
		return nil
	})
}

// Taken reports whether a private key on the token has this label, or this id.
func (t *Token) Taken(ctx context.Context, name config.URI) (taken bool, err error) {
	if err := t.Login(ctx); err != nil {
		return false, err
	}
	err = t.within(ctx, "looking for keys of that name", func(context.Context) error {
		found, err := t.search(t.selector(pkcs11.CKO_PRIVATE_KEY, name), 1)
		taken = len(found) > 0
		if err != nil {
			return t.failed(err, "can't search %s", t.name())
		}
		return nil
	})
	return taken, err
}
