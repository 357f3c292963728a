package keystore

import (
	"context"
	"crypto"
	"crypto/x509"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/nethsm"
)

// This file is where the NetHSM backend is plugged in.

type nethsmStore struct{ *nethsm.Store }

func openNetHSM(ctx context.Context, s *config.Settings) (Store, error) {
	store, err := nethsm.Open(ctx, s)
	if err != nil {
		return nil, err
	}
	return nethsmStore{store}, nil
}

func (s nethsmStore) Key(public crypto.PublicKey) (Key, error) {
	k, err := s.Store.Key(public)
	if err != nil {
		return nil, err
	}
	return k, nil
}

func (s nethsmStore) Keys() ([]Key, error) {
	found, err := s.Store.Keys()
	keys := make([]Key, len(found))
	for i, k := range found {
		keys[i] = k
	}
	return keys, err
}

func (s nethsmStore) Import(k Key, chain []*x509.Certificate) (int, error) {
	return s.Store.Import(k.(*nethsm.Key), chain) // keys of this store are its own
}

func (s nethsmStore) Delete(k Key, certificates []*x509.Certificate) error {
	return s.Store.Delete(k.(*nethsm.Key), certificates)
}

func (s nethsmStore) Wrap(k Key, reference config.URI) (key.Wrapped, error) {
	return s.Store.Wrap(k.(*nethsm.Key), reference)
}
