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

// Deletion describes what the deletion of a key removes.
type Deletion struct {
	Key          Key
	Certificates []string // subjects of the key's own certificates, which are deleted with it
	Consequences []string // sentences for the user
}

// Delete deletes a key, its public half and its own certificates from the token if confirm returns nil. It refuses a
// key that Notation signs with, the new key of an unfinished rotation, and the key of a CA in caFolder.
func Delete(ctx context.Context, s *keystore.Reference, caFolder string, confirm func(Deletion) error) error {
	return s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		info, err := k.Info(ctx)
		if err != nil {
			return err
		}
		if err := checkUnused(s.Keystore(), store.Describe(), info, k.Public(), caFolder); err != nil {
			return err
		}
		onToken, err := store.Certificates(ctx)
		if err != nil {
			return err
		}
		var own []*x509.Certificate
		d := Deletion{Key: describeKey(info, onToken, nil)}
		for _, cert := range onToken {
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
	all := []string{"the key cannot sign any more; its existing signatures still verify"}
	if isTrue(info.Extractable) {
		all = append(all, "it can be restored only from a backup: 'notation-hsm key backup', or the module's own")
	} else {
		all = append(all, "it was never outside the module: it can be restored only from the module's own backup")
	}
	if certificates > 0 {
		all = append(all, fmt.Sprintf("%d certificate(s) are deleted with it; 'notation-hsm cert export' prints them before",
			certificates))
	}
	return all
}

// checkUnused fails with kind Denied if something still needs the key.
func checkUnused(
	ks *keystore.Keystore, t key.Token, info key.Info, public crypto.PublicKey, caFolder string,
) error {
	if err := checkUnusedByNotation(ks, t, info); err != nil {
		return err
	}
	if err := checkUnusedByRotation(info); err != nil {
		return err
	}
	return checkUnusedByCA(ks, caFolder, public)
}

func checkUnusedByNotation(ks *keystore.Keystore, t key.Token, k key.Info) error {
	names, err := registeredAs(ks, t, k)
	if err != nil {
		return err
	}
	if len(names) > 0 {
		return failure.New(failure.Denied, "cannot delete the key %q: Notation signs with it, as %s", k.Label,
			strings.Join(names, ", ")).
			WithHint("remove it from Notation's list first: notation key delete " + strings.Join(names, " "))
	}
	return nil
}

// checkUnusedByRotation refuses the new key of an unfinished rotation, which could not be finished without it.
func checkUnusedByRotation(k key.Info) error {
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
				"cannot delete the key %q: it is the new key in an unfinished rotation of %q", k.Label, r.Name).
				WithHint("finish the rotation with 'notation-hsm key rotate " + r.Name + "'; or abandon it: remove " + path)
		}
	}
	return nil
}

func checkUnusedByCA(ks *keystore.Keystore, folder string, public crypto.PublicKey) error {
	all, err := ca.List(ks, folder)
	if err != nil {
		return err
	}
	for _, a := range all {
		if certs.SameKey(a.Certificate().PublicKey, public) {
			return failure.New(failure.Denied, "cannot delete the key: the CA %q signs with it", a.Name).
				WithHint("to end the CA, revoke its certificates, publish a last CRL, and remove its folder")
		}
	}
	return nil
}
