package custody

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// SelfSign returns a self-signed certificate for a key as PEM. missing lists the attributes that its subject lacks for
// a trusted identity in Notation's trust policy.
func SelfSign(ctx context.Context, s *keystore.Reference, subject string, days int) (data []byte, missing []string,
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

// Request returns a certificate request for a key as PEM. missing is as in SelfSign.
func Request(ctx context.Context, s *keystore.Reference, subject string) (data []byte, missing []string, err error) {
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

// Import stores the chain of a PEM file on the token, beside its key. It returns the length of the chain and how many
// of its certificates were new. Other certificates in the file are left out. Of an incomplete chain only the leaf is
// stored. It fails if no certificate in the file belongs to the key, or if Notation does not accept the chain.
func Import(ctx context.Context, s *keystore.Reference, path string) (length, stored int, err error) {
	file, err := certs.ReadFile(path)
	if err != nil {
		return 0, 0, err
	}
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		leaf := certs.LeafOf(k.Public(), file, time.Now())
		if leaf == nil {
			return failure.New(failure.Invalid,
				"no certificate in %s belongs to the key %s", path, s.Key).
				WithHint("name the file with the certificate that was issued for this key")
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

// Export returns the chain of a key as PEM, leaf first, from the certificate-chain file and the token.
func Export(ctx context.Context, s *keystore.Reference) (data []byte, err error) {
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		known, err := certificates(ctx, store, s)
		if err != nil {
			return err
		}
		leaf := certs.LeafOf(k.Public(), known, time.Now())
		if leaf == nil {
			return withoutCertificate(s.Key.String())
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

// withoutCertificate returns the failure of a key that has no certificate.
func withoutCertificate(uri string) *failure.Error {
	return failure.New(failure.NotFound, "the key %s has no certificate", uri).
		WithHint("create one with 'notation-hsm cert self-sign', or with 'notation-hsm cert csr' and a CA; then run " +
			"'notation-hsm cert import'")
}

// ExportPublic returns the public half of a key as PEM (SubjectPublicKeyInfo, RFC 5280 section 4.1.2.7). It logs in
// only if the module does not show the public half without a login.
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
	return encodePublic(public)
}

// encodePublic returns a public key as PEM (SubjectPublicKeyInfo).
func encodePublic(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

// selfCertify stores a self-signed certificate for a key on its token.
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

// certificates returns the certificates of the certificate-chain file, if there is one, and those on the token.
func certificates(ctx context.Context, store keystore.Store, s *keystore.Reference) ([]*x509.Certificate, error) {
	var known []*x509.Certificate
	if s.CertificateChain != "" {
		file, err := certs.ReadFile(s.CertificateChain)
		if err != nil {
			return nil, err
		}
		known = file
	}
	onToken, err := store.Certificates(ctx)
	return append(known, onToken...), err
}
