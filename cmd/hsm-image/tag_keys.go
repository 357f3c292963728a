package main

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

const (
	keyForms    = "a key's URI or alias; can be repeated"
	publicForms = "a key's URI or alias, or pubkey:FILE for a key elsewhere; can be repeated"
	publicKey   = "pubkey:"
)

// keyFlags are the flags of the keys that a command signs with, by role. They only say what for: a key signs for every
// role that it is of.
type keyFlags struct{ root, targets, snapshot, timestamp, key []string }

func (k *keyFlags) all() []string {
	return slices.Concat(k.key, k.targets, k.snapshot, k.timestamp, k.root)
}

// addOnline adds the flags of the keys with which a command publishes by itself.
func (k *keyFlags) addOnline(c *cobra.Command) {
	c.Flags().StringArrayVar(&k.snapshot, "snapshot", nil, "snapshot key, to publish without a publisher; "+keyForms)
	c.Flags().StringArrayVar(&k.timestamp, "timestamp", nil, "timestamp key, to publish without a publisher; "+keyForms)
}

// checkOnline fails if only one of the keys with which a command publishes by itself is given: it would only propose.
func (k *keyFlags) checkOnline(c *cobra.Command) error {
	switch {
	case len(k.snapshot) > 0 && len(k.timestamp) == 0:
		return cli.Required(c, tuf.Timestamp, "pkcs11:token=online;object=timestamp")
	case len(k.snapshot) == 0 && len(k.timestamp) > 0:
		return cli.Required(c, tuf.Snapshot, "pkcs11:token=online;object=snapshot")
	}
	return nil
}

func (k *keyFlags) addTargets(c *cobra.Command) {
	c.Flags().StringArrayVar(&k.targets, "targets", nil, "targets key; "+keyForms)
}

func (k *keyFlags) addRoot(c *cobra.Command) {
	c.Flags().StringArrayVar(&k.root, "root", nil, "root key; "+keyForms)
}

// keyring are keys that are open for as long as a command takes.
type keyring struct {
	ks      *keystore.Keystore
	stores  []keystore.Store
	signers map[string]*tuf.Signer // by reference
}

func newKeyring(ks *keystore.Keystore) *keyring {
	return &keyring{ks: ks, signers: map[string]*tuf.Signer{}}
}

// Close closes the keys.
func (k *keyring) Close() {
	for _, store := range k.stores {
		_ = store.Close()
	}
}

// signer opens a private key.
func (k *keyring) signer(ctx context.Context, reference string) (*tuf.Signer, error) {
	if s := k.signers[reference]; s != nil {
		return s, nil
	}
	at, err := k.ks.Resolve(reference, nil, config.Flags)
	if err != nil {
		return nil, err
	}
	store, err := at.Open(ctx)
	if err != nil {
		return nil, err
	}
	k.stores = append(k.stores, store)
	private, err := store.Key(ctx, nil)
	if err != nil {
		return nil, err
	}
	s, err := tuf.NewSigner(private)
	if err != nil {
		return nil, err
	}
	k.signers[reference] = s
	return s, nil
}

// open opens private keys, each once.
func (k *keyring) open(ctx context.Context, references []string) ([]*tuf.Signer, error) {
	var all []*tuf.Signer
	for _, reference := range references {
		s, err := k.signer(ctx, reference)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(all, func(other *tuf.Signer) bool { return other.ID == s.ID }) {
			all = append(all, s)
		}
	}
	return all, nil
}

// publics returns the public keys of a role, and opens those that are not in files.
func (k *keyring) publics(ctx context.Context, references []string, threshold int) (tuf.RoleKeys, []*tuf.Signer,
	error) {
	keys := tuf.RoleKeys{Threshold: threshold}
	var signers []*tuf.Signer
	for _, reference := range references {
		if path, ok := strings.CutPrefix(reference, publicKey); ok {
			public, err := certs.ReadPublicKey(path)
			if err != nil {
				return keys, nil, err
			}
			one, err := tuf.NewKey(public)
			if err != nil {
				return keys, nil, err
			}
			keys.Keys = append(keys.Keys, one)
			continue
		}
		s, err := k.signer(ctx, reference)
		if err != nil {
			return keys, nil, err
		}
		keys.Keys, signers = append(keys.Keys, s.Key), append(signers, s)
	}
	return keys, signers, nil
}
