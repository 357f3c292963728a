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

// issue has our CA issue the certificate, unless it has done so for this key before: then only the storing was cut
// short.
func (r *Rotation) issue(ctx context.Context, s *keystore.Reference, folder string) error {
	a, err := ca.Open(s.Keystore(), folder, r.CA)
	if err != nil {
		return err
	}
	entries, err := a.Entries()
	if err != nil {
		return err
	}
	stored := false
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
	if err != nil || stored {
		return err
	}
	// The subject is that of the old key, as the plan that was agreed to said.
	same := func(ca.Entry) bool { return true }
	_, err = a.IssueKey(ctx, s, ca.Terms{Subject: r.Subject, Days: atMost(r.Days, a.Certificate()), CDP: r.CRL,
		OCSP: r.OCSP}, same)
	return err
}

// request writes the certificate request, which is where the rotation waits for a CA that is not ours.
func (r *Rotation) request(ctx context.Context, s *keystore.Reference, path string, say func(string, ...any)) error {
	if path == "" {
		return failure.New(failure.Invalid, "the rotation of %q waits for the certificate of the key %q", r.Name, r.Label).
			WithHint("give it with --cert FILE; --csr FILE writes the request again")
	}
	data, _, err := Request(ctx, s, r.Subject)
	if err != nil {
		return err
	}
	if err := state.Write(path, data, 0o644); err != nil {
		return err
	}
	say("the request is in %s; nothing has changed for Notation yet", path)
	say(
		"next: have it signed by the CA, put its answer and the issuers into one PEM file, and run: notation-hsm key "+
			"rotate %s --cert FILE", r.Name)
	return nil
}
