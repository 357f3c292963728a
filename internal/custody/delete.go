package custody

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Deletion is what deleting a key would take away.
type Deletion struct {
	Key          Key
	Certificates []string // subjects of the key's own, which go with it
	Consequences []string
}

// Delete removes a key, its public half and its own certificates from the token, once confirm agrees. It refuses while
// Notation signs with the key, or a CA of the folder does.
func Delete(ctx context.Context, s *keystore.Reference, caFolder string, confirm func(Deletion) error) error {
	return s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		info, err := k.Info(ctx)
		if err != nil {
			return err
		}
		if err := unusedByNotation(s.Keystore(), store.Describe(), info); err != nil {
			return err
		}
		if err := unusedByRotation(info); err != nil {
			return err
		}
		if err := unusedByCA(s.Keystore(), caFolder, k.Public()); err != nil {
			return err
		}
		there, err := store.Certificates(ctx)
		if err != nil {
			return err
		}
		var own []*x509.Certificate
		d := Deletion{Key: show(info, there)}
		for _, cert := range there {
			if certs.SameKey(cert.PublicKey, k.Public()) {
				own = append(own, cert)
				d.Certificates = append(d.Certificates, cert.Subject.String())
			}
		}
		d.Consequences = consequences(info, len(own))
		if err := confirm(d); err != nil {
			return err
		}
		return store.Delete(ctx, k, own)
	})
}

func consequences(info key.Info, certificates int) []string {
	all := []string{"nothing can be signed with it any more; what it has signed still verifies"}
	if info.Extractable != nil && *info.Extractable {
		all = append(all, "only a backup ('notation-hsm key backup') or the module's own can bring it back")
	} else {
		all = append(all, "it was never outside the module: only the module's own backup can bring it back")
	}
	if certificates > 0 {
		all = append(all,
			fmt.Sprintf("%d certificate(s) of it go from the token; 'notation-hsm cert export' prints them while they are there",
				certificates))
	}
	return all
}

func unusedByNotation(ks *keystore.Keystore, t key.Token, k key.Info) error {
	names, err := registeredAs(ks, t, k)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return failure.New(failure.Denied, "Notation signs with the key %q, as %s", k.Label, strings.Join(names, ", ")).
			WithHint("take it out of Notation's list first: notation key delete " +
				strings.Join(names, " "))
	}
	return nil
}

// unusedByRotation refuses the new key of a rotation that is not finished: without it, that never could be.
func unusedByRotation(k key.Info) error {
	all, err := journals()
	if err != nil {
		return err
	}
	for _, path := range all {
		r, err := readJournal(path)
		if err != nil {
			return err
		}
		if r != nil && (r.NewID == k.URI || len(k.ID) > 0 && r.ID == hex.EncodeToString(k.ID)) {
			return failure.New(failure.Denied,
				"the key %q is the new key of a rotation of %q that is not finished", k.Label, r.Name).
				WithHint("finish it first: notation-hsm key rotate " + r.Name + "; or give it up by removing " +
					path)
		}
	}
	return nil
}

func unusedByCA(ks *keystore.Keystore, folder string, public crypto.PublicKey) error {
	all, err := ca.List(ks, folder)
	if err != nil {
		return err
	}
	for _, a := range all {
		if certs.SameKey(a.Certificate().PublicKey, public) {
			return failure.New(failure.Denied, "the CA %q signs with the key", a.Name).
				WithHint("the CA could issue and revoke nothing without it. If the CA is to end, revoke what it has issued, publish a " +
					"last CRL, and remove its folder")
		}
	}
	return nil
}
