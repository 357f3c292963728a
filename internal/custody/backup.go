package custody

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// backupFile is a private key outside its token. Without the wrapping key, which is in modules alone, it is of no use,
// and nothing in it can be changed: the checksum covers all other fields, and the MAC, which takes the use of the
// wrapping key, covers the checksum.
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
	Checksum     string         `json:"sha256"`        // of this JSON without it and the MAC, on one line
	MAC          *backupMAC     `json:"mac,omitempty"` // since version 2
}

// backupMAC is a key.MAC of backupText.
type backupMAC struct {
	Key   []byte `json:"key"`
	Value []byte `json:"hmacSHA256"`
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

const (
	backupVersion = 2
	// unauthenticatedVersion has no MAC: whoever could write the file could change the usage, the names and the
	// certificates.
	unauthenticatedVersion = 1
)

// backupText is what the MAC of a backup with this checksum is over.
func backupText(checksum string) []byte {
	return []byte("notation-hsm backup v2\nsha256 " + checksum + "\n")
}

func (b backupFile) checksum() (string, error) {
	b.Checksum, b.MAC = "", nil
	data, err := json.Marshal(b)
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), err
}

// Backup writes a key to a file, wrapped in the module by a wrapping key of its token. An empty reference is the only
// one there.
func Backup(ctx context.Context, s *keystore.Reference, wrapping, path string) (w key.WrappingKey, err error) {
	if _, err := os.Lstat(path); err == nil {
		return w, failure.New(failure.Invalid, "%s is there already", path).WithHint("choose another name, or move it away")
	}
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		info, err := k.Info(ctx)
		if err != nil {
			return err
		}
		if info.Extractable != nil && !*info.Extractable {
			return failure.New(failure.Denied,
				"the key %s was made not extractable: nothing can take it out of the module", info.URI).
				WithHint("use the module's own backup, as its vendor describes (of a NetHSM: 'notation-hsm nethsm backup'); a key that " +
					"can be wrapped is made with 'notation-hsm key generate --backup-key'")
		}
		// JSON carries nothing but UTF-8 unchanged.
		if info.Label == "" || len(info.ID) == 0 || !utf8.ValidString(info.Label) {
			return failure.New(failure.Invalid, "the key %s has no id, or no label in UTF-8", info.URI).
				WithHint("give the key both, with the vendor's tool")
		}
		reference, err := wrappingReference(s.Keystore(), store, wrapping)
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
		known, err := certificates(ctx, store, s)
		if err != nil {
			return err
		}
		var chain []*x509.Certificate
		if leaf := certs.LeafOf(k.Public(), known, time.Now()); leaf != nil {
			if chain, err = certs.Chain(leaf, known, nil, time.Now()); err != nil {
				chain = []*x509.Certificate{leaf}
			}
		}
		wrapped, err := store.Wrap(ctx, k, reference)
		if err != nil {
			return err
		}
		w = wrapped.By
		is := func(attribute *bool) bool { return attribute != nil && *attribute }
		b := backupFile{
			Version: backupVersion, Made: time.Now().UTC().Truncate(time.Second), Token: store.Describe().Label,
			Label: info.Label, ID: hex.EncodeToString(info.ID), Spec: string(spec.Name),
			PublicKey:    string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})),
			Certificates: string(certs.Encode(chain)),
			Attributes:   keptAttributes{is(info.Sign), is(info.Sensitive), is(info.Extractable), is(info.WrapWithTrusted)},
			WrappingKey:  wrappingRef{w.Label, hex.EncodeToString(w.ID)}, Mechanism: wrapped.Mechanism, Wrapped: wrapped.Bytes,
		}
		if b.Checksum, err = b.checksum(); err != nil {
			return err
		}
		mac, err := store.Authenticate(ctx, backupText(b.Checksum), b.Mechanism, w)
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

// wrappingReference reads the reference to a wrapping key, which has to be on the token of the store.
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
			WithHint("a key is wrapped where it is: bring the wrapping key to its token with 'notation-hsm key " +
				"backup-key restore'")
	}
	return uri, err
}

// Restored is a key that was made again and proved.
type Restored struct {
	URI          string
	Usage        key.Usage
	Certificates int
}

// Unauthenticated is what a backup says of itself that anyone could have written.
type Unauthenticated struct {
	Label, ID, Spec string
	Usage           key.Usage
	Certificate     string // subject, or empty
}

// Restore makes a key again from a file of Backup's, on the token of the settings. Before anything is made there, the
// MAC has to verify under the wrapping key of the token. The key that was made has to have the attributes of the
// backup, and to sign, or open, what its public key in the backup verifies, or closed; else it is deleted. A backup of
// version 1 has no MAC: accept decides whether it is restored, and nil refuses it.
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
		if accept == nil {
			return r, failure.New(failure.Denied,
				"the backup %s is of version %d, which has no MAC: its usage, label and certificates may have been changed",
				path, b.Version).
				WithHint("make a new backup where the key still is; else check what 'key restore --unauthenticated' shows " +
					"of this one")
		}
		u := Unauthenticated{Label: b.Label, ID: b.ID, Spec: b.Spec, Usage: b.usage()}
		if len(c.chain) > 0 {
			u.Certificate = c.chain[0].Subject.String()
		}
		if err := accept(u); err != nil {
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
		if err := store.Verify(ctx, backupText(b.Checksum), mac, b.Mechanism, c.wrapped.By); err != nil {
			f := failure.From(err)
			f.What = fmt.Sprintf("cannot authenticate the backup %s: %s", path, f.What)
			return r, f
		}
	}
	for _, name := range []config.URI{{Object: b.Label}, {ID: c.id}} {
		taken, err := store.Taken(ctx, name)
		if taken {
			err = failure.New(failure.Invalid, "the token %q has a key with this name already: %s", store.Describe().Label, name).
				WithHint("restore it to another token; or, if it is left of a restoration that was interrupted, delete it " +
					"and run this again")
		}
		if err != nil {
			return r, err
		}
	}
	if err := store.Discard(ctx); err != nil { // a public half that is left of a restoration that was cut short
		return r, err
	}
	if r, err = restored(ctx, store, b, c); err != nil {
		f := failure.From(err)
		if err := store.Discard(ctx); err != nil { // a key that does not work as it should is worse than none
			f.What += fmt.Sprintf("; and the key is still on the token, for it could not be deleted: %v", err)
		}
		return Restored{}, f
	}
	return r, nil
}

func restored(ctx context.Context, store keystore.Store, b *backupFile, c contents) (r Restored, err error) {
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
	if err := sameAttributes(info, b, c); err != nil {
		return r, err
	}
	if r.Usage == key.Decrypt {
		err = proveOpens(ctx, k, c.public)
	} else {
		err = prove(ctx, k, c.public)
	}
	if err == nil && len(c.chain) > 0 {
		_, err = store.Import(ctx, k, c.chain)
	}
	return r, err
}

// sameAttributes fails if the module made a key with another name or usage than the backup has, or one that could leave
// the module in another way than wrapped by a trusted key.
func sameAttributes(info key.Info, b *backupFile, c contents) error {
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
		if told := a.is != nil; told && *a.is != a.want || !told && a.want {
			return failure.New(failure.Internal,
				"the module made the key %q, and its %s is not %t, as in the backup", b.Label, a.name, a.want).
				WithHint("restore it to a token of another module")
		}
	}
	if info.Label != b.Label || !bytes.Equal(info.ID, c.id) {
		return failure.New(failure.Internal, "the module made the key %s instead of %q with id %s", info.URI, b.Label, b.ID).
			WithHint("restore it to a token of another module")
	}
	return nil
}

func (b *backupFile) usage() key.Usage {
	if b.Attributes.Sign {
		return key.Sign
	}
	return key.Decrypt
}

// backupBounds are far above what a backup has: a few thousand bytes in some twenty fields.
var backupBounds = bound.Limits{Bytes: 256 << 10, Depth: 2, Elements: 64}

func damaged(path string, err error) error {
	return failure.New(failure.Invalid, "the backup %s is damaged: %w", path, err).
		WithHint("use the file as 'notation-hsm key backup' wrote it, or another copy")
}

func readBackup(path string) (*backupFile, error) {
	data, err := bound.ReadFile(path, backupBounds.Bytes)
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the backup: %w", err).
			WithHint("check the path, and that this user can read the file")
	}
	return parseBackup(path, data)
}

func parseBackup(path string, data []byte) (*backupFile, error) {
	version, err := versionOf(data, backupBounds)
	if err != nil {
		return nil, damaged(path, err)
	}
	if version > backupVersion {
		return nil, failure.New(failure.Invalid, "the backup %s is of version %d, which is not known here", path, version).
			WithHint("update this program")
	}
	var b backupFile
	if err := decodeExactly(data, &b); err != nil {
		return nil, damaged(path, err)
	}
	if sum, err := b.checksum(); err != nil || sum != b.Checksum {
		return nil, failure.New(failure.Invalid, "the backup %s is damaged: its checksum is not that of its contents", path).
			WithHint("use another copy")
	}
	if b.Version < unauthenticatedVersion || (b.Version == unauthenticatedVersion) != (b.MAC == nil) {
		return nil, damaged(path, fmt.Errorf("version %d has a MAC: %t", b.Version, b.MAC != nil))
	}
	return &b, nil
}

// contents are the fields of a backup that are more than text.
type contents struct {
	public  crypto.PublicKey
	chain   []*x509.Certificate
	id      []byte
	wrapped key.Wrapped
}

func (b *backupFile) contents(path string) (c contents, err error) {
	block, _ := pem.Decode([]byte(b.PublicKey))
	if block == nil {
		return c, failure.New(failure.Invalid, "the backup %s has no public key", path).WithHint("use another copy")
	}
	if c.public, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		return c, damaged(path, err)
	}
	if spec, err := key.SpecOf(c.public); err != nil || string(spec.Name) != b.Spec {
		return c, damaged(path, fmt.Errorf("its public key is not of spec %q", b.Spec))
	}
	if c.id, err = hex.DecodeString(b.ID); err != nil {
		return c, damaged(path, err)
	}
	c.wrapped = key.Wrapped{Bytes: b.Wrapped, Mechanism: b.Mechanism, By: key.WrappingKey{Label: b.WrappingKey.Label}}
	if c.wrapped.By.ID, err = hex.DecodeString(b.WrappingKey.ID); err != nil {
		return c, damaged(path, err)
	}
	if b.Certificates == "" {
		return c, nil
	}
	if c.chain, err = certs.Parse([]byte(b.Certificates)); err != nil {
		return c, damaged(path, err)
	}
	if !certs.SameKey(c.chain[0].PublicKey, c.public) {
		return c, failure.New(failure.Invalid, "the certificate in the backup %s is another key's", path).
			WithHint("use another copy")
	}
	return c, nil
}
