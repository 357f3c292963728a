package custody

import (
	"bytes"
	"context"
	"crypto/rsa"
	"fmt"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Restored describes a key that Restore has made and proved.
type Restored struct {
	URI          string
	Usage        key.Usage
	Certificates int // stored with the key
}

// Unauthenticated is what a backup of version 1 claims. Anyone could have written it.
type Unauthenticated struct {
	Label, ID, Spec string
	Usage           key.Usage
	Certificate     string // subject, or ""
}

// Restore makes a key from the file of a backup, on the token of the settings. The MAC of the backup must verify under
// the wrapping key of the token before anything is made. The key is deleted again unless it has the attributes that the
// backup states, and its signature verifies under the backup's public key, or it decrypts what is encrypted to it. A
// backup of version 1 has no MAC: accept decides whether it is restored, and nil refuses it.
func Restore(
	ctx context.Context, s *keystore.Reference, path string, accept func(Unauthenticated) error,
) (r Restored, err error) {
	b, err := readBackup(path)
	if err != nil {
		return r, err
	}
	c, err := b.contents(path)
	if err != nil {
		return r, err
	}
	if b.Version == unauthenticatedVersion {
		if err := b.acceptUnauthenticated(path, c, accept); err != nil {
			return r, err
		}
	}
	named := *s
	named.Key.Object, named.Key.ID = b.Label, c.id
	store, err := named.Open(ctx)
	if err != nil {
		return r, err
	}
	defer store.Close()
	if b.Version != unauthenticatedVersion {
		mac := key.MAC{Key: b.MAC.Key, Value: b.MAC.Value}
		if err := store.Verify(ctx, authenticatedText(b.Checksum), mac, b.Mechanism, c.wrapped.By); err != nil {
			f := failure.From(err)
			f.What = fmt.Sprintf("cannot authenticate the backup %s: %s", path, f.What)
			return r, f
		}
	}
	if err := checkNotTaken(ctx, store, b.Label, c.id); err != nil {
		return r, err
	}
	if err := store.Discard(ctx); err != nil { // public objects that an interrupted restore left behind
		return r, err
	}
	if r, err = restoreKey(ctx, store, b, c); err != nil {
		f := failure.From(err)
		if err := store.Discard(ctx); err != nil {
			f.What += fmt.Sprintf("; the key is still on the token, since it cannot be deleted: %v", err)
		}
		return Restored{}, f
	}
	return r, nil
}

func (b *backupFile) acceptUnauthenticated(path string, c backupContents, accept func(Unauthenticated) error) error {
	if accept == nil {
		return failure.New(failure.Denied,
			"cannot authenticate the backup %s: version %d has no MAC, so its usage, label and certificates can be forged",
			path, b.Version).
			WithHint("make a new backup where the key still exists; or check what 'key restore --unauthenticated' prints of " +
				"this one")
	}
	u := Unauthenticated{Label: b.Label, ID: b.ID, Spec: b.Spec, Usage: b.usage()}
	if len(c.chain) > 0 {
		u.Certificate = c.chain[0].Subject.String()
	}
	return accept(u)
}

// checkNotTaken fails with kind Conflict if a key on the token has this label, or this id.
func checkNotTaken(ctx context.Context, store keystore.Store, label string, id []byte) error {
	for _, name := range []config.URI{{Object: label}, {ID: id}} {
		taken, err := store.Taken(ctx, name)
		if err != nil {
			return err
		}
		if taken {
			return failure.New(failure.Conflict, "the token %q already has a key %s", store.Describe().Label, name).
				WithHint("restore to another token; or, if an interrupted restore has left that key, delete it and run this again")
		}
	}
	return nil
}

// restoreKey unwraps the key, proves it, and stores its certificates.
func restoreKey(ctx context.Context, store keystore.Store, b *backupFile, c backupContents) (r Restored, err error) {
	r.Usage, r.Certificates = b.usage(), len(c.chain)
	if err := store.Unwrap(ctx, c.wrapped, r.Usage, b.Label, c.id, c.public); err != nil {
		return r, err
	}
	k, err := store.Key(ctx, nil)
	if err != nil {
		return r, err
	}
	info, err := k.Info(ctx)
	if err != nil {
		return r, err
	}
	r.URI = info.URI
	if err := b.checkAttributes(info, c); err != nil {
		return r, err
	}
	if r.Usage == key.Decrypt {
		err = proveDecryption(ctx, k, c.public)
	} else {
		err = proveSigning(ctx, k, c.public)
	}
	if err == nil && len(c.chain) > 0 {
		_, err = store.Import(ctx, k, c.chain)
	}
	return r, err
}

// checkAttributes fails if the module gave the key another name or usage than the backup states, or attributes by which
// it can leave the module otherwise than wrapped by a trusted key.
func (b *backupFile) checkAttributes(info key.Info, c backupContents) error {
	const hint = "restore it to a token of another module"
	_, isRSA := c.public.(*rsa.PublicKey)
	decrypts := b.usage() == key.Decrypt
	for _, a := range []struct {
		name string
		is   *bool
		want bool
	}{
		{"CKA_SENSITIVE", info.Sensitive, true},
		{"CKA_WRAP_WITH_TRUSTED", info.WrapWithTrusted, true},
		{"CKA_EXTRACTABLE", info.Extractable, true},
		{"CKA_SIGN", info.Sign, !decrypts},
		{"CKA_DECRYPT", info.Decrypt, decrypts && isRSA},
		{"CKA_UNWRAP", info.Unwrap, decrypts && isRSA},
		{"CKA_DERIVE", info.Derive, decrypts && !isRSA},
	} {
		if a.want && !isTrue(a.is) || !a.want && isTrue(a.is) {
			return failure.New(failure.Internal, "cannot restore the key %q: the module did not set its %s to %t", b.Label,
				a.name, a.want).WithHint(hint)
		}
	}
	if info.Label != b.Label || !bytes.Equal(info.ID, c.id) {
		return failure.New(failure.Internal, "cannot restore the key %q with id %s: the module made %s instead", b.Label,
			b.ID, info.URI).WithHint(hint)
	}
	return nil
}
