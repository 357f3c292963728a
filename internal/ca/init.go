package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Init makes a CA of a key in a module: a root, or with a parent an intermediate. given are the settings that come with
// the reference from its origin, and are kept in ca.json. It fails with Conflict when there is a CA of this name.
func Init(
	ctx context.Context, ks *keystore.Keystore, folder, name, reference string, given map[string]string,
	origin config.Origin, parent string, terms Terms,
) (*Authority, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	s, err := ks.Resolve(reference, given, origin)
	if err != nil {
		return nil, err
	}
	a := &Authority{Name: name, Key: reference, Parent: parent, Created: now(), Ledger: ledgerVersion,
		dir: filepath.Join(folder, name), keystore: ks}
	if a.Settings, err = config.Lasting(given); err != nil {
		return nil, err
	}
	var issuer *Authority
	var above *x509.Certificate
	if parent != "" {
		if issuer, err = Open(ks, folder, parent); err != nil {
			return nil, err
		}
		above = issuer.Certificate()
	}
	template, err := certs.CATemplate(terms, above)
	if err != nil {
		return nil, err
	}
	return a, a.locked(ctx, func() error {
		if err := a.checkVacant(); err != nil {
			return err
		}
		var err error
		if issuer == nil {
			err = s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error {
				cert, err := certs.Sign(keystore.Signer(ctx, k), template, nil, k.Public())
				if err != nil {
					return err
				}
				a.chain = []*x509.Certificate{cert}
				return a.begin(keystore.Signer(ctx, k))
			})
		} else {
			_, err = issuer.certifyKey(ctx, s, template, nil,
				func(_ keystore.Store, k keystore.Key, chain []*x509.Certificate) error {
					a.chain = chain
					return a.begin(keystore.Signer(ctx, k))
				})
		}
		if err != nil {
			return err
		}
		if err := a.write("chain.pem", a.Chain()); err != nil {
			return err
		}
		return a.save()
	})
}

// begin writes the ledger's first record, signed by the new CA's key, so that every CA has a ledger.
func (a *Authority) begin(signer crypto.Signer) error {
	l := newLedger(a.Certificate())
	return a.record(signer, l, record{Event: created, Time: a.Created})
}

// checkVacant fails with Conflict when the folder has a CA, or certificates or a CRL of one whose ca.json is lost. What
// an interrupted Init leaves behind does not count.
func (a *Authority) checkVacant() error {
	if _, err := os.Stat(a.path(description)); !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.Conflict, "there is already a CA %q in %s", a.Name, a.dir).
			WithHint("choose another name; see 'notation-hsm ca list'")
	}
	files, err := a.issuedFiles()
	if err != nil {
		return err
	}
	_, err = os.Stat(a.crlFile())
	if len(files) > 0 || !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.Conflict,
			"the folder %s has certificates or a CRL of a CA %q, but no %s", a.dir, a.Name, description).
			WithHint("restore ca.json from a backup; or choose another name")
	}
	return nil
}
