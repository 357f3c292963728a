package custody

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Backup writes a key to a file, wrapped in the module under a wrapping key of its token, and returns that wrapping
// key. An empty reference names the only wrapping key of the token. An existing file is not replaced.
func Backup(ctx context.Context, s *keystore.Reference, wrapping, path string) (w key.WrappingKey, err error) {
	if err := checkNew(path); err != nil {
		return w, err
	}
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		reference, err := wrappingReference(s.Keystore(), store, wrapping)
		if err != nil {
			return err
		}
		b, err := newBackup(ctx, store, k, s)
		if err != nil {
			return err
		}
		wrapped, err := store.Wrap(ctx, k, reference)
		if err != nil {
			return err
		}
		w = wrapped.By
		b.WrappingKey = wrappingRef{w.Label, hex.EncodeToString(w.ID)}
		b.Mechanism, b.Wrapped = wrapped.Mechanism, wrapped.Bytes
		if b.Checksum, err = b.checksum(); err != nil {
			return err
		}
		mac, err := store.Authenticate(ctx, authenticatedText(b.Checksum), b.Mechanism, w)
		if err != nil {
			return err
		}
		b.MAC = &backupMAC{mac.Key, mac.Value}
		data, err := json.MarshalIndent(b, "", "  ")
		if err != nil {
			return err
		}
		return state.Write(path, append(data, '\n'), 0o600)
	})
	return w, err
}

// checkNew fails with kind Conflict if something exists at a path.
func checkNew(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return failure.New(failure.Conflict, "cannot write %s: it exists already", path).
			WithHint("choose another name, or move the file")
	}
	return nil
}

// newBackup returns the backup of a key without its wrapped private half.
func newBackup(ctx context.Context, store keystore.Store, k keystore.Key, s *keystore.Reference) (b backupFile,
	err error) {
	info, err := k.Info(ctx)
	if err != nil {
		return b, err
	}
	if isFalse(info.Extractable) {
		return b, failure.New(failure.Denied, "cannot back up the key %s: it was generated as not extractable", info.URI).
			WithHint("use the module's own backup, as its vendor describes (for a NetHSM: 'notation-hsm nethsm backup'); " +
				"'notation-hsm key generate --backup-key' generates keys that can be backed up")
	}
	if info.Label == "" || len(info.ID) == 0 || !utf8.ValidString(info.Label) { // JSON is UTF-8
		return b, failure.New(failure.Invalid, "cannot back up the key %s: it has no id, or no label in UTF-8", info.URI).
			WithHint("set both with the vendor's tool")
	}
	spec, err := key.SpecOf(k.Public())
	if err != nil {
		return b, err
	}
	public, err := encodePublic(k.Public())
	if err != nil {
		return b, err
	}
	known, err := certificates(ctx, store, s)
	if err != nil {
		return b, err
	}
	var chain []*x509.Certificate
	if leaf := certs.LeafOf(k.Public(), known, time.Now()); leaf != nil {
		if chain, err = certs.Chain(leaf, known, nil, time.Now()); err != nil {
			chain = []*x509.Certificate{leaf}
		}
	}
	return backupFile{
		Version: backupVersion, Made: time.Now().UTC().Truncate(time.Second), Token: store.Describe().Label,
		Label: info.Label, ID: hex.EncodeToString(info.ID), Spec: string(spec.Name),
		PublicKey: string(public), Certificates: string(certs.Encode(chain)),
		Attributes: backupAttributes{isTrue(info.Sign), isTrue(info.Sensitive), isTrue(info.Extractable),
			isTrue(info.WrapWithTrusted)},
	}, nil
}

// wrappingReference parses the label or URI of a wrapping key. It fails if the URI names another token than the
// store's.
func wrappingReference(ks *keystore.Keystore, store keystore.Store, text string) (config.URI, error) {
	if text == "" {
		return config.URI{}, nil
	}
	if !strings.HasPrefix(text, config.Scheme) {
		return config.URI{Object: text}, nil
	}
	uri, err := config.ParseURI(text)
	if err == nil && !ks.Matches(uri, store.Describe()) {
		err = failure.New(failure.Invalid, "the wrapping key %s is not on the token %q", uri, store.Describe().Label).
			WithHint("a wrapping key must be on the token of the key: bring it there with 'notation-hsm key backup-key restore'")
	}
	return uri, err
}
