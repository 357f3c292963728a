package custody

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// SelfSign returns a self-signed certificate for a key, in PEM, and the parts its subject lacks for Notation's trusted
// identities.
func SelfSign(ctx context.Context, s *keystore.Reference, subject string, days int) (data []byte, lacks []string,
	err error) {
	name, err := certs.ParseSubject(subject)
	if err != nil {
		return nil, nil, err
	}
	err = s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error {
		der, err := certs.SelfSign(keystore.Signer(ctx, k), name, days)
		data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		return err
	})
	return data, certs.LacksIdentity(name), err
}

// Request returns a certificate request for a key, in PEM, and the parts its subject lacks for Notation's trusted
// identities.
func Request(ctx context.Context, s *keystore.Reference, subject string) (data []byte, lacks []string, err error) {
	name, err := certs.ParseSubject(subject)
	if err != nil {
		return nil, nil, err
	}
	err = s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error {
		der, err := certs.Request(keystore.Signer(ctx, k), name)
		data = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		return err
	})
	return data, certs.LacksIdentity(name), err
}

// Import stores the chain of a PEM file beside a key. It returns how many certificates the chain has and how many were
// new. The file's other certificates are left out; a chain that is not whole is stored as far as it goes.
func Import(ctx context.Context, s *keystore.Reference, path string) (length, stored int, err error) {
	file, err := certs.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		leaf := certs.LeafOf(k.Public(), file, time.Now())
		if leaf == nil {
			return failure.New(failure.Invalid,
				"none of the %d certificates in %s belongs to the key %s", len(file), path, s.Key).
				WithHint("name the file of the certificate that was issued for this key")
		}
		chain, err := certs.Chain(leaf, file, keystore.IssuerLookup(ctx, store), time.Now())
		if err != nil {
			chain = []*x509.Certificate{leaf}
		} else if err := certs.Check(chain, time.Now()); err != nil {
			return err
		}
		length = len(chain)
		stored, err = store.Import(ctx, k, chain)
		return err
	})
	return length, stored, err
}

// Export returns a key's chain as PEM, leaf first, from the certificate-chain file and the token.
func Export(ctx context.Context, s *keystore.Reference) (data []byte, err error) {
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		known, err := certificates(ctx, store, s)
		if err != nil {
			return err
		}
		leaf := certs.LeafOf(k.Public(), known, time.Now())
		if leaf == nil {
			return failure.New(failure.Invalid, "the key %s has no certificate", s.Key).
				WithHint("make one with 'notation-hsm cert self-sign' or 'cert csr'")
		}
		chain, err := certs.Chain(leaf, known, nil, time.Now())
		if err != nil {
			return err
		}
		data = certs.Encode(chain)
		return nil
	})
	return data, err
}

// ExportPublic returns a key's public half in PEM (SubjectPublicKeyInfo, RFC 5280 section 4.1.2.7), without a login
// where the module shows it to anyone.
func ExportPublic(ctx context.Context, s *keystore.Reference) ([]byte, error) {
	store, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	public, err := store.Public(ctx)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// selfCertify stores a self-signed certificate beside a key.
func selfCertify(ctx context.Context, store keystore.Store, k keystore.Key, subject pkix.Name, days int) error {
	der, err := certs.SelfSign(keystore.Signer(ctx, k), subject, days)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	_, err = store.Import(ctx, k, []*x509.Certificate{cert})
	return err
}
