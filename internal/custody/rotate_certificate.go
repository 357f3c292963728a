package custody

import (
	"context"
	"crypto/x509"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

func (r *Rotation) selfSign(ctx context.Context, s *keystore.Reference) error {
	name, err := certs.ParseSubject(r.Subject)
	if err != nil {
		return err
	}
	return s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		return selfCertify(ctx, store, k, name, r.Days)
	})
}

// issue has the CA issue the certificate and stores it. If the CA has issued one for this key before, the rotation was
// interrupted between issuing and storing, and that certificate is stored.
func (r *Rotation) issue(ctx context.Context, s *keystore.Reference, folder string) error {
	a, err := ca.Open(s.Keystore(), folder, r.CA)
	if err != nil {
		return err
	}
	stored, err := storeIssued(ctx, s, a)
	if err != nil || stored {
		return err
	}
	// The user has confirmed a plan that has the subject of the old key.
	allow := func(ca.Entry) bool { return true }
	_, err = a.IssueKey(ctx, s, ca.Terms{Subject: r.Subject, Days: limitDays(r.Days, a.Certificate()), CDP: r.CRL,
		OCSP: r.OCSP}, allow)
	return err
}

// storeIssued stores a certificate that a CA has issued for the key, and reports whether there is one.
func storeIssued(ctx context.Context, s *keystore.Reference, a *ca.Authority) (stored bool, err error) {
	entries, err := a.Entries()
	if err != nil {
		return false, err
	}
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		own, err := certs.KeyFingerprint(k.Public())
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.PublicKey != own || e.Revoked != nil {
				continue
			}
			leaf, err := e.Certificate()
			if err != nil {
				return err
			}
			issuers, err := certs.Parse(a.Chain())
			if err != nil {
				return err
			}
			stored = true
			_, err = store.Import(ctx, k, append([]*x509.Certificate{leaf}, issuers...))
			return err
		}
		return nil
	})
	return stored, err
}

// request writes the certificate request. The rotation then waits for the certificate.
func (r *Rotation) request(ctx context.Context, s *keystore.Reference, path string, notify Notify) error {
	if path == "" {
		return failure.New(failure.Invalid, "the rotation of %q waits for the certificate of the key %q", r.Name, r.Label).
			WithHint("give the certificate with --cert FILE; to write the request again, use --csr FILE")
	}
	data, _, err := Request(ctx, s, r.Subject)
	if err != nil {
		return err
	}
	if err := state.Write(path, data, 0o644); err != nil {
		return err
	}
	notify("wrote the certificate request to %s; Notation still signs with the old key", path)
	notify("next: have the CA answer the request, put its certificate and the issuers into one PEM file, and run: "+
		"notation-hsm key rotate %s --cert FILE", r.Name)
	return nil
}
