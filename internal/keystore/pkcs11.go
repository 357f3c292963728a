//go:build cgo

package keystore

import (
	"context"
	"crypto"
	"crypto/x509"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/pkcs11"
)

// This file is where the PKCS#11 backend is plugged in; nothing else above internal/pkcs11 imports it.

var (
	tokensPKCS11         = pkcs11.Tokens
	generatePKCS11       = pkcs11.Generate
	matchesPKCS11        = pkcs11.Matches
	importWrappingPKCS11 = pkcs11.ImportWrapping
)

type pkcs11Store struct{ *pkcs11.Token }

func openPKCS11(ctx context.Context, s *config.Settings) (Store, error) {
	t, err := pkcs11.Open(ctx, s)
	if err != nil {
		return nil, err
	}
	return pkcs11Store{t}, nil
}

func (s pkcs11Store) Key(public crypto.PublicKey) (Key, error) {
	k, err := s.Token.Key(public)
	if err != nil {
		return nil, err
	}
	return k, nil
}

func (s pkcs11Store) Keys() ([]Key, error) {
	found, err := s.Token.Keys()
	keys := make([]Key, len(found))
	for i, k := range found {
		keys[i] = k
	}
	return keys, err
}

func (s pkcs11Store) Import(k Key, chain []*x509.Certificate) (int, error) {
	return s.Token.Import(k.(*pkcs11.Key), chain) // keys of this store are its own
}

func (s pkcs11Store) Delete(k Key, certificates []*x509.Certificate) error {
	return s.Token.Delete(k.(*pkcs11.Key), certificates)
}

func (s pkcs11Store) Wrap(k Key, reference config.URI) (key.Wrapped, error) {
	return s.Token.Wrap(k.(*pkcs11.Key), reference)
}
