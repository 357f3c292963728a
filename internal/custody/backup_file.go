package custody

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// backupFile is a private key outside its token. Only a module that holds the wrapping key can decrypt it. A change of
// any field is detected: the checksum covers all other fields, and the MAC covers the checksum. Only someone who can
// use the wrapping key can make that MAC.
type backupFile struct {
	Version      int              `json:"version"`
	Made         time.Time        `json:"made"`
	Token        string           `json:"token"` // label of the token that the key was on
	Label        string           `json:"label"`
	ID           string           `json:"id"` // CKA_ID in hex
	Spec         string           `json:"spec"`
	PublicKey    string           `json:"publicKey"`    // PEM
	Certificates string           `json:"certificates"` // PEM: the key's own and its issuers
	Attributes   backupAttributes `json:"attributes"`
	WrappingKey  wrappingRef      `json:"wrappingKey"`
	Mechanism    string           `json:"mechanism"` // name of the PKCS#11 mechanism that wrapped the key
	Wrapped      []byte           `json:"wrapped"`
	Checksum     string           `json:"sha256"`        // of the compact JSON without this field and the MAC, in hex
	MAC          *backupMAC       `json:"mac,omitempty"` // since version 2
}

// backupMAC is a key.MAC of authenticatedText.
type backupMAC struct {
	Key   []byte `json:"key"`
	Value []byte `json:"hmacSHA256"`
}

type backupAttributes struct {
	Sign            bool `json:"sign"`
	Sensitive       bool `json:"sensitive"`
	Extractable     bool `json:"extractable"`
	WrapWithTrusted bool `json:"wrapWithTrusted"`
}

type wrappingRef struct {
	Label string `json:"label"`
	ID    string `json:"id"` // CKA_ID in hex, which is derived from the key and so the same on every token
}

const (
	backupVersion = 2
	// unauthenticatedVersion has no MAC: whoever could write the file could change the usage, the names and the
	// certificates.
	unauthenticatedVersion = 1
)

// authenticatedText returns the text that the MAC of a backup covers.
func authenticatedText(checksum string) []byte {
	return []byte("notation-hsm backup v2\nsha256 " + checksum + "\n")
}

func (b backupFile) checksum() (string, error) {
	b.Checksum, b.MAC = "", nil
	data, err := json.Marshal(b)
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), err
}

func (b *backupFile) usage() key.Usage {
	if b.Attributes.Sign {
		return key.Sign
	}
	return key.Decrypt
}

// backupBounds are far above the size of a backup, which has a few thousand bytes in some twenty fields.
var backupBounds = bound.Limits{Bytes: 256 << 10, Depth: 2, Elements: 64}

func damaged(path string, err error) error {
	return failure.New(failure.Invalid, "the backup %s is damaged: %w", path, err).
		WithHint("use the file as 'notation-hsm key backup' wrote it, or another copy")
}

func readBackup(path string) (*backupFile, error) {
	data, err := bound.ReadFile(path, backupBounds.Bytes)
	if err != nil {
		return nil, unreadable(path, err)
	}
	return parseBackup(path, data)
}

// parseBackup parses a backup and verifies its checksum. The MAC is verified on a token, with Restore.
func parseBackup(path string, data []byte) (*backupFile, error) {
	version, err := versionOf(data, backupBounds)
	if err != nil {
		return nil, damaged(path, err)
	}
	if version > backupVersion {
		return nil, unknownVersion(path, version)
	}
	var b backupFile
	if err := decodeExactly(data, &b); err != nil {
		return nil, damaged(path, err)
	}
	if sum, err := b.checksum(); err != nil || sum != b.Checksum {
		return nil, damaged(path, errors.New("its checksum does not match its contents"))
	}
	if b.Version < unauthenticatedVersion || (b.Version == unauthenticatedVersion) != (b.MAC == nil) {
		return nil, damaged(path, fmt.Errorf("version %d has a MAC: %t", b.Version, b.MAC != nil))
	}
	return &b, nil
}

// unknownVersion returns the failure of a backup or share that a newer program wrote.
func unknownVersion(path string, version int) error {
	return failure.New(failure.Unsupported, "cannot read %s: this program does not know version %d of the file", path,
		version).WithHint("update this program")
}

// backupContents are the decoded fields of a backup.
type backupContents struct {
	public  crypto.PublicKey
	chain   []*x509.Certificate // leaf first
	id      []byte
	wrapped key.Wrapped
}

func (b *backupFile) contents(path string) (c backupContents, err error) {
	block, _ := pem.Decode([]byte(b.PublicKey))
	if block == nil {
		return c, damaged(path, errors.New("it has no public key in PEM"))
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
		return c, damaged(path, errors.New("its certificate belongs to another key"))
	}
	return c, nil
}
