package custody

import (
	"context"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Sharing describes how a new wrapping key is split.
type Sharing struct {
	Label             string
	Shares, Threshold int
	Custodians        []string // public keys that the shares are encrypted to, in their order; none: no encryption
	Folder            string   // of the share files
}

// NewWrappingKey makes a wrapping key, writes its shares, and puts it on the token. The shares are written first:
// without them the key could not be brought to another token. It returns the paths of the share files.
func NewWrappingKey(
	ctx context.Context, s *keystore.Reference, soPINSource string, sharing Sharing,
) (w key.WrappingKey, paths []string, err error) {
	if sharing.Label == "" || !utf8.ValidString(sharing.Label) {
		return w, nil, failure.New(failure.Invalid, "cannot make a wrapping key without a label in UTF-8").
			WithHint("give it a label, as in: --label backup")
	}
	custodians, err := parseCustodians(ctx, s.Keystore(), sharing.Custodians, sharing.Shares)
	if err != nil {
		return w, nil, err
	}
	w, value, shares, err := split(sharing.Label, sharing.Shares, sharing.Threshold)
	defer clear(value)
	if err != nil {
		return w, nil, err
	}
	if paths, err = writeShares(sharing.Folder, shares, custodians); err != nil {
		return w, nil, err
	}
	if err := s.ImportWrapping(ctx, soPINSource, w, value); err != nil {
		removeShares(paths)
		return w, nil, err
	}
	return w, paths, nil
}

// ShareFiles names share files, and what decrypts them.
type ShareFiles struct {
	Files      []string
	Identities []string // files with an age or SSH private key, and URIs of keys in modules
	// Ask asks the user for the passphrase of an identity file.
	Ask func(ctx context.Context, path string) ([]byte, error)
	// Accept decides whether shares of version 1, which have no tag, are used. Nil refuses them.
	Accept func(Untagged) error
}

// RestoreWrappingKey recovers a wrapping key from shares and puts it on a token.
func RestoreWrappingKey(
	ctx context.Context, s *keystore.Reference, soPINSource string, o ShareFiles,
) (w key.WrappingKey, err error) {
	ids, err := openIdentities(ctx, s.Keystore(), o.Identities, o.Ask)
	if err != nil {
		return w, err
	}
	shares, err := readShares(ctx, o.Files, ids)
	if closeErr := ids.Close(); err == nil { // a token may refuse the security officer's login beside other sessions
		err = closeErr
	}
	if err != nil {
		return w, err
	}
	w, value, err := combine(o.Files, shares, o.Accept)
	defer clear(value)
	if err != nil {
		return w, err
	}
	return w, s.ImportWrapping(ctx, soPINSource, w, value)
}

// generateWrappable generates a key that trusted wrapping keys can wrap. It checks first that the token has the
// wrapping key. A module that ignores CKA_WRAP_WITH_TRUSTED would let any key wrap the new one, so such a key is
// deleted again.
func generateWrappable(ctx context.Context, s *keystore.Reference, r key.Request, wrapping string) (key.Info, error) {
	store, err := s.Open(ctx)
	if err != nil {
		return key.Info{}, err
	}
	reference, err := wrappingReference(s.Keystore(), store, wrapping)
	if err == nil {
		_, err = store.WrappingKey(ctx, reference)
	}
	store.Close()
	if err != nil {
		return key.Info{}, err
	}
	r.Wrappable = true
	made, err := s.Generate(ctx, r)
	if err != nil {
		return key.Info{}, err
	}
	named := *s
	named.Key.Object, named.Key.ID = made.Label, made.ID
	err = named.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		info, err := k.Info(ctx)
		if err != nil || isTrue(info.WrapWithTrusted) {
			return err
		}
		if err := store.Discard(ctx); err != nil {
			return err
		}
		return failure.New(failure.Unsupported,
			"the new key was deleted again: the module did not set its CKA_WRAP_WITH_TRUSTED, so any key could wrap it").
			WithHint("generate the key without --backup-key, and use the module's own backup")
	})
	return made, err
}
