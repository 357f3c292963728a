package custody

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// NewWrappingKey makes a wrapping key, splits it among custodians, and puts it on the token. The shares are written first: a key whose
// shares are lost could never be brought to another token. It returns the files.
func NewWrappingKey(
	ctx context.Context, s *config.Settings, soPINSource, label string, n, threshold int, dir string,
) (w key.WrappingKey, paths []string, err error) {
	if label == "" {
		return w, nil, failure.New(failure.Invalid, "name it, as in --label backup", "the wrapping key has no label")
	}
	w, value, shares, err := split(label, n, threshold)
	defer clear(value)
	if err != nil {
		return w, nil, err
	}
	if paths, err = writeShares(dir, shares); err != nil {
		return w, nil, err
	}
	if err := keystore.ImportWrapping(ctx, s, soPINSource, w, value); err != nil {
		removeShares(paths)
		return w, nil, err
	}
	return w, paths, nil
}

// RestoreWrappingKey puts a wrapping key on a token from the shares of enough custodians. accept is join's.
func RestoreWrappingKey(ctx context.Context, s *config.Settings, soPINSource string, files []string, accept func(Untagged) error) (w key.WrappingKey, err error) {
	shares, err := readShares(files)
	if err != nil {
		return w, err
	}
	w, value, err := join(files, shares, accept)
	defer clear(value)
	if err != nil {
		return w, err
	}
	return w, keystore.ImportWrapping(ctx, s, soPINSource, w, value)
}

// generateWrappable makes a key that a wrapping key of the token may wrap. A module that does not keep it to trusted keys would let any
// key wrap it, so its answer is looked at, and the key goes if it is wrong.
func generateWrappable(ctx context.Context, s *config.Settings, r key.Request, wrapping string) (key.Info, error) {
	store, err := keystore.Open(ctx, s)
	if err != nil {
		return key.Info{}, err
	}
	reference, err := wrappingReference(store, wrapping)
	if err == nil {
		_, err = store.WrappingKey(reference)
	}
	store.Close()
	if err != nil {
		return key.Info{}, err
	}
	r.Wrappable = true
	made, err := keystore.Generate(ctx, s, r)
	if err != nil {
		return made, err
	}
	named := *s
	named.Key.Object, named.Key.ID = made.Label, made.ID
	err = keystore.WithKey(ctx, &named, func(store keystore.Store, k keystore.Key) error {
		info, err := k.Info()
		if err != nil || (info.WrapWithTrusted != nil && *info.WrapWithTrusted) {
			return err
		}
		if err := store.Discard(); err != nil {
			return err
		}
		return failure.New(failure.Invalid, "make the key without --backup-key, and use the module's own backup",
			"the module does not keep keys to trusted wrapping keys (CKA_WRAP_WITH_TRUSTED), so the key was deleted again")
	})
	return made, err
}
