package custody

import (
	"context"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Sharing says how a new wrapping key is split.
type Sharing struct {
	Label             string
	Shares, Threshold int
	Custodians        []string // whom the shares are encrypted to, in their order; none: the files are in the clear
	Folder            string   // for the files
}

// NewWrappingKey makes a wrapping key, splits it among custodians, and puts it on the token. The shares are written
// first: a key whose shares are lost could never be brought to another token. It returns the files.
func NewWrappingKey(
	ctx context.Context, s *keystore.Reference, soPINSource string, sharing Sharing,
) (w key.WrappingKey, paths []string, err error) {
	if sharing.Label == "" || !utf8.ValidString(sharing.Label) {
		return w, nil, failure.New(failure.Invalid, "the wrapping key has no label, or none in UTF-8").
			WithHint("name it, as in --label backup")
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

// Opening says how shares are read again.
type Opening struct {
	Files      []string
	Identities []string // of the custodians whose shares are encrypted
	// Ask asks for the passphrase of an identity.
	Ask func(ctx context.Context, what string) ([]byte, error)
	// Accept decides whether shares of version 1, which have no tag, are used. Nil refuses them.
	Accept func(Untagged) error
}

// RestoreWrappingKey puts a wrapping key on a token from the shares of enough custodians.
func RestoreWrappingKey(
	ctx context.Context, s *keystore.Reference, soPINSource string, o Opening,
) (w key.WrappingKey, err error) {
	ids, err := openIdentities(ctx, s.Keystore(), o.Identities, o.Ask)
	if err != nil {
		return w, err
	}
	shares, err := readShares(ctx, o.Files, ids)
	if closed := ids.Close(); err == nil { // before the security officer logs in, who may be alone on a token
		err = closed
	}
	if err != nil {
		return w, err
	}
	w, value, err := join(o.Files, shares, o.Accept)
	defer clear(value)
	if err != nil {
		return w, err
	}
	return w, s.ImportWrapping(ctx, soPINSource, w, value)
}

// generateWrappable makes a key that a wrapping key of the token may wrap. A module that does not keep it to trusted
// keys would let any key wrap it, so its answer is looked at, and the key goes if it is wrong.
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
		return made, err
	}
	named := *s
	named.Key.Object, named.Key.ID = made.Label, made.ID
	err = named.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		info, err := k.Info(ctx)
		if err != nil || (info.WrapWithTrusted != nil && *info.WrapWithTrusted) {
			return err
		}
		if err := store.Discard(ctx); err != nil {
			return err
		}
		return failure.New(failure.Invalid,
			"the module does not keep keys to trusted wrapping keys (CKA_WRAP_WITH_TRUSTED), so the key was deleted again").
			WithHint("make the key without --backup-key, and use the module's own backup")
	})
	return made, err
}
