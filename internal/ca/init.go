package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Init makes a CA of a key that is in a module: a root, or with a parent an intermediate. given are the settings that
// come with the key from its origin, and are kept with the CA.
func Init(
	ctx context.Context, folder, name, reference string, given map[string]string, origin config.Origin,
	parent string, terms Terms,
) (*Authority, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	s, err := config.Resolve(reference, given, origin)
	if err != nil {
		return nil, err
	}
	a := &Authority{Name: name, Key: reference, Parent: parent, Created: time.Now().UTC().Truncate(time.Second), dir: filepath.Join(folder, name)}
	if a.Settings, err = config.Lasting(given); err != nil {
		return nil, err
	}
	var issuer *Authority
	var above *x509.Certificate
	if parent != "" {
		if issuer, err = Open(folder, parent); err != nil {
			return nil, err
		}
		above = issuer.Certificate()
	}
	template, err := certs.CATemplate(terms, above)
	if err != nil {
		return nil, err
	}
	return a, a.locked(ctx, func() error {
		if _, err := os.Stat(a.path(description)); !errors.Is(err, fs.ErrNotExist) {
			return failure.New(failure.Invalid, "choose another name; see 'notation-hsm ca list'", "there is a CA %q already, in %s", name, a.dir)
		}
		var err error
		if issuer == nil {
			err = keystore.WithKey(ctx, s, func(_ keystore.Store, k keystore.Key) error {
				cert, err := certs.Sign(k, template, nil, k.Public())
				a.chain = []*x509.Certificate{cert}
				return err
			})
		} else {
			a.chain, err = issuer.certifyKey(ctx, s, template, nil)
		}
		if err != nil {
			return err
		}
		if err := a.write("chain.pem", a.Chain()); err != nil {
			return err
		}
		return a.writeJSON(description, a)
	})
}
