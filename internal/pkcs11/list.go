package pkcs11

import (
	"context"
	"crypto"
	"crypto/x509"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// A token with thousands of keys is listed with one search for each class of objects, and one call for the attributes
// of each object: a module such as SoftHSM reads every object in every search. Public keys are searched only if a
// private key does not show its public half, and certificates only if a public key is missing then.

// Limits of a list: objects of a class, and objects that are read in one step, which has the timeout to itself.
const (
	listLimit = 1 << 16
	listStep  = 64
)

// Keys logs in and returns all private keys that the settings match; those whose public half cannot be read have a nil
// Public. It reports progress to the function that keystore.WithProgress set.
func (t *Token) Keys(ctx context.Context) ([]keystore.Key, error) {
	if err := t.Login(ctx); err != nil {
		return nil, err
	}
	return inSessionSteps(ctx, t, "listing keys", func(ctx context.Context, s *session) ([]keystore.Key, error) {
		keys, err := s.privateKeys(ctx)
		if err != nil {
			return nil, err
		}
		if len(keys) == 0 {
			return nil, s.checkLogin()
		}
		if err := s.addPublicHalves(ctx, keys); err != nil {
			return nil, err
		}
		all := make([]keystore.Key, 0, len(keys))
		for _, k := range keys {
			k.listed.Public = k.public
			all = append(all, k)
		}
		return all, nil
	})
}

// privateKeys returns the private keys that the settings match, with the public halves that they show themselves.
func (s *session) privateKeys(ctx context.Context) ([]*Key, error) {
	types := append(append([]uint{}, publicAttributes...), usageAttributes[2:]...) // both begin with the names
	var keys []*Key
	err := s.each(ctx, "keys", s.selector(pkcs11.CKO_PRIVATE_KEY, s.settings.Key), types,
		func(object objectHandle, values [][]byte) {
			k := &Key{token: s.Token}
			k.public, _ = publicOf(values)
			info := s.infoOf(append([][]byte{values[2], values[1]}, values[len(publicAttributes):]...), k.public)
			k.listed = &info
			k.place.Store(&place{pool: s.pool, object: object, id: info.ID, label: info.Label})
			keys = append(keys, k)
		})
	return keys, err
}

// addPublicHalves finds the public halves that are missing in public key objects of the same id (or label, for a key
// without id), and then in certificates of that id.
func (s *session) addPublicHalves(ctx context.Context, keys []*Key) error {
	for _, from := range []struct {
		class uint
		types []uint
		read  func([][]byte) (id []byte, label string, public crypto.PublicKey)
	}{
		{pkcs11.CKO_PUBLIC_KEY, publicAttributes, func(values [][]byte) ([]byte, string, crypto.PublicKey) {
			public, _ := publicOf(values)
			return values[1], string(values[2]), public
		}},
		{pkcs11.CKO_CERTIFICATE, []uint{pkcs11.CKA_VALUE, pkcs11.CKA_ID, pkcs11.CKA_LABEL},
			func(values [][]byte) ([]byte, string, crypto.PublicKey) {
				return values[1], string(values[2]), publicOfCertificate(values[0])
			}},
	} {
		missing := map[string][]*Key{}
		for _, k := range keys {
			if name := matchName(k.listed.ID, k.listed.Label); k.public == nil && name != "" {
				missing[name] = append(missing[name], k)
			}
		}
		if len(missing) == 0 {
			return nil
		}
		found := map[string][]crypto.PublicKey{}
		which := config.URI{}
		if len(missing) == 1 {
			for _, keys := range missing {
				which = sameAs(keys[0].listed.ID, keys[0].listed.Label)
			}
		}
		err := s.each(ctx, "public keys", s.selector(from.class, which), from.types,
			func(_ objectHandle, values [][]byte) {
				id, label, public := from.read(values)
				if name := matchName(id, label); len(missing[name]) > 0 {
					found[name] = append(found[name], public)
				}
				if name := matchName(nil, label); len(id) > 0 && len(missing[name]) > 0 {
					found[name] = append(found[name], public)
				}
			})
		if err != nil {
			return err
		}
		for name, halves := range found {
			for _, k := range missing[name] {
				if len(halves) == 1 {
					k.public = halves[0]
				}
			}
		}
	}
	return nil
}

// sameAs returns what the other half of a key is found by: its id, or its label when it has no id.
func sameAs(id []byte, label string) config.URI {
	if len(id) > 0 {
		return config.URI{ID: id}
	}
	return config.URI{Object: label}
}

// matchName returns sameAs as the key of a map, or "" for a key without a name.
func matchName(id []byte, label string) string {
	if len(id) > 0 {
		return "id " + string(id)
	}
	if label != "" {
		return "label " + label
	}
	return ""
}

// publicOfCertificate returns the public key of a DER certificate, or nil.
func publicOfCertificate(der []byte) crypto.PublicKey {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return cert.PublicKey
}

// each reads attributes of the objects that a template matches, in steps whose time is bounded, and not that of the
// list.
func (s *session) each(ctx context.Context, what string, template []*pkcs11.Attribute, types []uint,
	do func(objectHandle, [][]byte)) error {
	m, limit := s.module, s.settings.Timeout
	activity := "listing " + what
	objects, err := s.searchSteps(ctx, activity, template)
	if err != nil {
		return s.failed(err, "cannot list the %s of %s", what, s.name())
	}
	for start := 0; start < len(objects); start += listStep {
		keystore.ReportProgress(ctx, activity, start, len(objects))
		if ctx.Err() != nil {
			return interrupted(ctx, activity)
		}
		part := objects[start:min(start+listStep, len(objects))]
		_, err := step(ctx, m, limit, activity, func() (struct{}, error) {
			for _, object := range part {
				values, err := s.calls.attributes(s.handle, object, types...)
				if is(err, pkcs11.CKR_OBJECT_HANDLE_INVALID) {
					continue // deleted since the search
				}
				if err != nil {
					return struct{}{}, s.failed(err, "cannot list the %s of %s", what, s.name())
				}
				do(object, values)
			}
			return struct{}{}, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// searchSteps is search for all objects, with a step for each call.
func (s *session) searchSteps(ctx context.Context, activity string, template []*pkcs11.Attribute) (
	[]objectHandle, error) {
	m, limit := s.module, s.settings.Timeout
	if _, err := step(ctx, m, limit, activity, func() (struct{}, error) {
		return struct{}{}, s.calls.findInit(s.handle, template)
	}); err != nil {
		return nil, err
	}
	var objects []objectHandle
	var failed error
	for len(objects) < listLimit && ctx.Err() == nil {
		batch, err := step(ctx, m, limit, activity, func() ([]objectHandle, error) {
			return s.calls.find(s.handle, searchBatch)
		})
		objects, failed = append(objects, batch...), err
		if len(batch) < searchBatch {
			break
		}
	}
	_, err := step(ctx, m, limit, activity, func() (struct{}, error) { return struct{}{}, s.calls.findFinal(s.handle) })
	if failed == nil {
		failed = err
	}
	return objects, failed
}
