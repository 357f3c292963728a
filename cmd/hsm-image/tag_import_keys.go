package main

import (
	"context"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/migrate"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// private leaves out the keys elsewhere.
func private(references []string) []string {
	return slices.DeleteFunc(references, func(r string) bool { return strings.HasPrefix(r, publicKey) })
}

// roles opens the keys of the roles that sign tags.
func (k *keyring) roles(ctx context.Context, a *migrate.Apply, targets []string,
	signers, certificates map[string][]string) error {
	for name, files := range certificates {
		if signers[name] == nil && (name != tuf.Targets || len(targets) == 0) || len(files) > 1 {
			return failure.New(failure.Invalid, "--signer-cert %s=... needs keys of %s, and can be given once", name, name).
				WithHint("give the certificate of the first key of each signer, with its issuers in the same file")
		}
	}
	for name, references := range signers {
		s, err := k.role(ctx, references, certificates[name])
		if err != nil {
			return err
		}
		a.Signers[name] = s
	}
	if len(targets) == 0 {
		return nil
	}
	s, err := k.role(ctx, targets, certificates[tuf.Targets])
	a.Signers[tuf.Tags] = s
	return err
}

// role opens the keys of a role, of which the first signs images.
func (k *keyring) role(ctx context.Context, references, certificates []string) (migrate.Signer, error) {
	var s migrate.Signer
	var err error
	if s.Keys, s.Signers, err = k.publics(ctx, references, 1); err != nil {
		return s, err
	}
	here := private(slices.Clone(references))
	if len(here) == 0 {
		return s, nil
	}
	var settings map[string]string
	if len(certificates) > 0 {
		settings = map[string]string{config.CertificateChain: certificates[0]}
	}
	at, err := k.ks.Resolve(here[0], settings, config.Flags)
	if err != nil {
		return s, err
	}
	s.Notation, err = migrate.NewNotation(ctx, at, version)
	return s, err
}
