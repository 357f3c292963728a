package custody

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// backupFile is a private key outside its token. Without the wrapping key, which is in modules alone, it is of no use.
type backupFile struct {
	Version      int            `json:"version"`
	Made         time.Time      `json:"made"`
	Token        string         `json:"token"` // that it was on
	Label        string         `json:"label"`
	ID           string         `json:"id"`
	Spec         string         `json:"spec"`
	PublicKey    string         `json:"publicKey"`    // PEM
	Certificates string         `json:"certificates"` // PEM: the key's own and its issuers
	Attributes   keptAttributes `json:"attributes"`
	WrappingKey  wrappingRef    `json:"wrappingKey"`
	Mechanism    string         `json:"mechanism"`
	Wrapped      []byte         `json:"wrapped"`
	Checksum     string         `json:"sha256"` // of this JSON without it, on one line
}

type keptAttributes struct {
	Sign            bool `json:"sign"`
	Sensitive       bool `json:"sensitive"`
	Extractable     bool `json:"extractable"`
	WrapWithTrusted bool `json:"wrapWithTrusted"`
}

type wrappingRef struct {
	Label string `json:"label"`
	ID    string `json:"id"` // derived from the key, so it is the same wherever the key is
}

const backupVersion = 1

func (b backupFile) checksum() (string, error) {
	b.Checksum = ""
	data, err := json.Marshal(b)
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), err
}

// Backup writes a key to a file, wrapped in the module by a wrapping key of its token. An empty reference is the only one there.
func Backup(ctx context.Context, s *config.Settings, wrapping, path string) (w key.WrappingKey, err error) {
	if _, err := os.Lstat(path); err == nil {
		return w, failure.New(failure.Invalid, "choose another name, or move it away", "%s is there already", path)
	}
	err = keystore.WithKey(ctx, s, func(store keystore.Store, k keystore.Key) error {
		info, err := k.Info()
		if err != nil {
			return err
		}
		if info.Extractable != nil && !*info.Extractable {
			return failure.New(failure.Denied, "use the module's own backup, as its vendor describes (of a NetHSM: 'notation-hsm nethsm backup'); a key that can be wrapped is made with 'notation-hsm key generate --backup-key'",
				"the key %s was made not extractable: nothing can take it out of the module", info.URI)
		}
		reference, err := wrappingReference(store, wrapping)
		if err != nil {
			return err
		}
		spec, err := key.SpecOf(k.Public())
		if err != nil {
			return err
		}
		public, err := x509.MarshalPKIXPublicKey(k.Public())
		if err != nil {
			return err
		}
		known, err := certificates(store, s)
		if err != nil {
			return err
		}
		var chain []*x509.Certificate
		if leaf := certs.LeafOf(k.Public(), known, time.Now()); leaf != nil {
			if chain, err = certs.Chain(leaf, known, nil, time.Now()); err != nil {
				chain = []*x509.Certificate{leaf}
			}
		}
		wrapped, err := store.Wrap(k, reference)
		if err != nil {
			return err
		}
		w = wrapped.By
		is := func(attribute *bool) bool { return attribute != nil && *attribute }
		b := backupFile{
			Version: backupVersion, Made: time.Now().UTC().Truncate(time.Second), Token: store.Describe().Label,
			Label: info.Label, ID: hex.EncodeToString(info.ID), Spec: string(spec.Name),
			PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), Certificates: string(certs.Encode(chain)),
			Attributes:  keptAttributes{is(info.Sign), is(info.Sensitive), is(info.Extractable), is(info.WrapWithTrusted)},
			WrappingKey: wrappingRef{w.Label, hex.EncodeToString(w.ID)}, Mechanism: wrapped.Mechanism, Wrapped: wrapped.Bytes,
		}
		if b.Checksum, err = b.checksum(); err != nil {
			return err
		}
		data, err := json.MarshalIndent(b, "", "  ")
		if err != nil {
			return err
		}
		return state.Write(path, append(data, '\n'), 0o600)
	})
	return w, err
}

// wrappingReference reads the reference to a wrapping key, which has to be on the token of the store.
func wrappingReference(store keystore.Store, text string) (config.URI, error) {
	if text == "" {
		return config.URI{}, nil
	}
	if !strings.HasPrefix(text, config.Scheme) {
		return config.URI{Object: text}, nil
	}
	uri, err := config.ParseURI(text)
	if err == nil && !keystore.Matches(uri, store.Describe()) {
		err = failure.New(failure.Invalid, "a key is wrapped where it is: bring the wrapping key to its token with 'notation-hsm key backup-key restore'",
			"the wrapping key %s is not on the token %q", uri, store.Describe().Label)
	}
	return uri, err
}

// Restore makes a key again from a file of Backup's, on the token of the settings, and proves it by a signature that verifies under the
// public key and the certificate that the file has, or, for a recipient's key, by what it opens. It returns the key's URI.
func Restore(ctx context.Context, s *config.Settings, path string) (uri string, certificates int, err error) {
	b, err := readBackup(path)
	if err != nil {
		return "", 0, err
	}
	public, chain, id, err := b.contents(path)
	if err != nil {
		return "", 0, err
	}
	named := *s
	named.Key.Object, named.Key.ID = b.Label, id
	store, err := keystore.Open(ctx, &named)
	if err != nil {
		return "", 0, err
	}
	defer store.Close()
	for _, name := range []config.URI{{Object: b.Label}, {ID: id}} {
		taken, err := store.Taken(name)
		if taken {
			err = failure.New(failure.Invalid, "restore it to another token, or delete the key that is there",
				"the token %q has a key with this name already: %s", store.Describe().Label, name)
		}
		if err != nil {
			return "", 0, err
		}
	}
	wrapped := key.Wrapped{Bytes: b.Wrapped, Mechanism: b.Mechanism}
	wrapped.By.Label = b.WrappingKey.Label
	if wrapped.By.ID, err = hex.DecodeString(b.WrappingKey.ID); err != nil {
		return "", 0, damaged(path, err)
	}
	if err := store.Discard(); err != nil { // a public half that is left of a restoration that was cut short
		return "", 0, err
	}
	usage := key.Sign
	if !b.Attributes.Sign {
		usage = key.Decrypt
	}
	k, err := restored(store, wrapped, usage, b.Label, id, public)
	if err != nil {
		_ = store.Discard() // a key that does not work as it should is worse than none
		return "", 0, err
	}
	if len(chain) > 0 {
		if _, err := store.Import(k, chain); err != nil {
			return "", 0, err
		}
	}
	info, err := k.Info()
	return info.URI, len(chain), err
}

func restored(store keystore.Store, wrapped key.Wrapped, usage key.Usage, label string, id []byte, public crypto.PublicKey) (keystore.Key, error) {
	if err := store.Unwrap(wrapped, usage, label, id, public); err != nil {
		return nil, err
	}
	k, err := store.Key(nil)
	if err != nil {
		return nil, err
	}
	if usage == key.Decrypt {
		return k, proveOpens(k, public)
	}
	return k, prove(k, public)
}

const backupLimit = 1 << 20 // bytes; a backup has a few kilobytes

func damaged(path string, err error) error {
	return failure.New(failure.Invalid, "use the file as 'notation-hsm key backup' wrote it, or another copy",
		"the backup %s is damaged: %w", path, err)
}

func readBackup(path string) (*backupFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, failure.New(failure.Invalid, "check the path, and that this user can read the file", "can't read the backup: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, backupLimit))
	if err != nil {
		return nil, failure.New(failure.Invalid, "check the file", "can't read the backup: %w", err)
	}
	var b backupFile
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&b); err != nil {
		return nil, damaged(path, err)
	}
	if b.Version != backupVersion {
		return nil, failure.New(failure.Invalid, "update this program",
			"the backup %s is of version %d, which is not known here", path, b.Version)
	}
	if sum, err := b.checksum(); err != nil || sum != b.Checksum {
		return nil, failure.New(failure.Invalid, "use another copy",
			"the backup %s is damaged: its checksum is not that of its contents", path)
	}
	return &b, nil
}

// contents reads what the file says of the key itself.
func (b *backupFile) contents(path string) (public crypto.PublicKey, chain []*x509.Certificate, id []byte, err error) {
	block, _ := pem.Decode([]byte(b.PublicKey))
	if block == nil {
		return nil, nil, nil, failure.New(failure.Invalid, "use another copy", "the backup %s has no public key", path)
	}
	if public, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		return nil, nil, nil, damaged(path, err)
	}
	if id, err = hex.DecodeString(b.ID); err != nil {
		return nil, nil, nil, damaged(path, err)
	}
	if b.Certificates == "" {
		return public, nil, id, nil
	}
	if chain, err = certs.Parse([]byte(b.Certificates)); err != nil {
		return nil, nil, nil, damaged(path, err)
	}
	if !certs.SameKey(chain[0].PublicKey, public) {
		return nil, nil, nil, failure.New(failure.Invalid, "use another copy", "the certificate in the backup %s is another key's", path)
	}
	return public, chain, id, nil
}
