package translog

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Checkpoint is the state of a log at one size (C2SP tlog-checkpoint).
type Checkpoint struct {
	Origin string // name of the log: its URL without scheme
	Size   int64  // number of entries
	Root   Hash   // of the tree of these entries
}

// maxCheckpoint bounds the size of a signed checkpoint in bytes.
const maxCheckpoint = 64 << 10

// text returns what is signed.
func (c Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// parseText returns the checkpoint of a note's text. It ignores extension lines, as the specification says.
func parseText(text string) (Checkpoint, error) {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) < 3 || lines[0] == "" {
		return Checkpoint{}, fmt.Errorf("it lacks an origin, a size or a root")
	}
	for _, extension := range lines[3:] {
		if extension == "" {
			return Checkpoint{}, fmt.Errorf("it has an empty line")
		}
	}
	size, err := parseSize(lines[1])
	if err != nil {
		return Checkpoint{}, err
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != tlog.HashSize {
		return Checkpoint{}, fmt.Errorf("its root %.60q is not a SHA-256 hash in base64", lines[2])
	}
	return Checkpoint{lines[0], size, Hash(root)}, nil
}

// Sign returns the checkpoint as a note that the keys signed: all of them, while one replaces another. A key is ECDSA,
// in a module or not, or Ed25519. It fails with Unsupported for other keys, since C2SP signed-note assigns them no
// type, and with Internal when a signature does not verify.
func (c Checkpoint) Sign(keys ...crypto.Signer) ([]byte, error) {
	var signers []note.Signer
	for _, key := range keys {
		v, err := NewVerifier(c.Origin, key.Public())
		if err != nil {
			return nil, err
		}
		signers = append(signers, signer{v, key})
	}
	if len(signers) == 0 {
		return nil, failure.New(failure.Invalid, "no key was given to sign a checkpoint with")
	}
	data, err := note.Sign(&note.Note{Text: c.text()}, signers...)
	if err != nil {
		return nil, fmt.Errorf("cannot sign the log's checkpoint of %d entries: %w", c.Size, err)
	}
	return data, nil
}

// signer signs notes with a key.
type signer struct {
	*Verifier
	key crypto.Signer
}

// Sign returns a signature of a note's text.
func (s signer) Sign(text []byte) ([]byte, error) {
	message, opts := text, crypto.SignerOpts(crypto.Hash(0))
	if s.kind == kindECDSA {
		digest := sha256.Sum256(text)
		message, opts = digest[:], crypto.SHA256
	}
	signature, err := s.key.Sign(rand.Reader, message, opts)
	if err != nil {
		return nil, err
	}
	if !s.Verify(text, signature) {
		return nil, failure.New(failure.Internal, "the signature that the key of %s made does not verify", s.origin).
			WithHint("check that the private and the public key of the module belong together")
	}
	return signature, nil
}

// Types of signatures that C2SP signed-note assigns.
const (
	kindEd25519 = 1
	kindECDSA   = 2 // over SHA-256, in ASN.1 DER
)

// Verifier verifies checkpoints of a log with one public key. It is a Verifier of golang.org/x/mod/sumdb/note.
type Verifier struct {
	origin  string
	kind    byte
	encoded []byte // the public key as its type has it
	id      uint32
	verify  func(text, signature []byte) bool
}

// NewVerifier returns a verifier for a log's public key: ECDSA with P-256, P-384 or P-521, or Ed25519. It fails with
// Unsupported for other keys, and with Invalid for an origin that a note cannot name.
func NewVerifier(origin string, public crypto.PublicKey) (*Verifier, error) {
	if !validName(origin) {
		return nil, failure.New(failure.Invalid, "%.100q cannot be the origin of a log", origin).
			WithHint("use its URL without https://, such as broker.example.com/log")
	}
	v := &Verifier{origin: origin}
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, failure.New(failure.Invalid, "the public key of the log %s is not a valid EC key: %w", origin, err)
		}
		v.kind, v.encoded = kindECDSA, der
		hash := sha256.Sum256(der) // type 2 alone has an identifier without the name
		v.id = binary.BigEndian.Uint32(hash[:])
		v.verify = func(text, signature []byte) bool {
			digest := sha256.Sum256(text)
			return ecdsa.VerifyASN1(key, digest[:], signature)
		}
	case ed25519.PublicKey:
		v.kind, v.encoded = kindEd25519, key
		v.id = keyID(origin, kindEd25519, key)
		v.verify = func(text, signature []byte) bool { return ed25519.Verify(key, text, signature) }
	default:
		return nil, failure.New(failure.Unsupported, "a key of type %T cannot sign a log's checkpoints", public).
			WithHint("use an EC key with P-256: C2SP signed-note has no signature type for RSA")
	}
	return v, nil
}

// validName reports whether a note can name a signer so.
func validName(name string) bool {
	control := func(r rune) bool { return r < ' ' || unicode.IsSpace(r) }
	return name != "" && utf8.ValidString(name) && !strings.Contains(name, "+") && !strings.ContainsFunc(name, control)
}

// keyID returns the identifier of a key, for all types but 2: a hash of name, type and key.
func keyID(name string, kind byte, key []byte) uint32 {
	hash := sha256.Sum256(append(append([]byte(name), '\n', kind), key...))
	return binary.BigEndian.Uint32(hash[:])
}

// ParseVerifier returns the verifier of a verifier key: NAME+ID+KEY, as String returns it. It fails with Invalid.
func ParseVerifier(vkey string) (*Verifier, error) {
	v, err := parseVerifier(strings.TrimSpace(vkey))
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the verifier key %.100q: %w", vkey, err).
			WithHint("give ORIGIN+ID+KEY, as the log's operator publishes it, or a PEM file of the public key")
	}
	return v, nil
}

func parseVerifier(vkey string) (*Verifier, error) {
	name, id, data, err := splitVerifierKey(vkey)
	if err != nil {
		return nil, err
	}
	var public crypto.PublicKey
	switch data[0] {
	case kindECDSA:
		if public, err = x509.ParsePKIXPublicKey(data[1:]); err != nil {
			return nil, err
		}
		if _, ok := public.(*ecdsa.PublicKey); !ok {
			return nil, fmt.Errorf("its key is %T instead of an EC key", public)
		}
	case kindEd25519:
		if len(data) != 1+ed25519.PublicKeySize {
			return nil, fmt.Errorf("its Ed25519 key has %d bytes", len(data)-1)
		}
		public = ed25519.PublicKey(data[1:])
	default:
		return nil, fmt.Errorf("signature type %d is not supported", data[0])
	}
	v, err := NewVerifier(name, public)
	if err != nil {
		return nil, err
	}
	if v.String() != vkey {
		return nil, fmt.Errorf("its identifier %.20q or encoding is not that of the key", id)
	}
	return v, nil
}

// splitVerifierKey returns the parts of a verifier key. data is the type, in one byte, and at least one byte of the
// key.
func splitVerifierKey(vkey string) (name, id string, data []byte, err error) {
	const limit = 4096
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 || len(vkey) > limit {
		return "", "", nil, fmt.Errorf("it does not have three parts")
	}
	data, err = base64.StdEncoding.Strict().DecodeString(parts[2])
	if err != nil || len(data) < 2 {
		return "", "", nil, fmt.Errorf("its key is not in base64")
	}
	return parts[0], parts[1], data, nil
}

// verifierKey returns NAME+ID+KEY, with ID in 8 hexadecimal digits and KEY, after its type, in base64.
func verifierKey(name string, id uint32, kind byte, key []byte) string {
	return fmt.Sprintf("%s+%08x+%s", name, id, base64.StdEncoding.EncodeToString(append([]byte{kind}, key...)))
}

// String returns the verifier key: ORIGIN+ID+KEY, with ID in 8 hexadecimal digits and KEY in base64.
func (v *Verifier) String() string { return verifierKey(v.origin, v.id, v.kind, v.encoded) }

// Name returns the origin of the log.
func (v *Verifier) Name() string { return v.origin }

// KeyHash returns the identifier of the key, which is short and not unique.
func (v *Verifier) KeyHash() uint32 { return v.id }

// Verify reports whether a signature of a note's text verifies.
func (v *Verifier) Verify(text, signature []byte) bool { return v.verify(text, signature) }

// Open returns a signed checkpoint. It fails with Denied unless one of the verifiers verifies it, and with Invalid when
// it is not a checkpoint. Signatures of keys that are not known, such as those of witnesses, are ignored.
func Open(data []byte, verifiers []*Verifier) (Checkpoint, error) {
	if len(data) > maxCheckpoint {
		return Checkpoint{}, failure.New(failure.Invalid, "the checkpoint has more than %d bytes", maxCheckpoint)
	}
	known := map[string]bool{}
	var list []note.Verifier
	for _, v := range verifiers {
		if !known[v.String()] { // VerifierList takes one that is listed twice for an ambiguity
			list = append(list, v)
		}
		known[v.String()] = true
	}
	opened, err := note.Open(data, note.VerifierList(list...))
	if err != nil {
		return Checkpoint{}, failure.New(failure.Denied, "cannot verify the log's checkpoint: %w", err).
			WithHint("check that the key is that of the log")
	}
	c, err := parseText(opened.Text)
	if err == nil {
		err = checkEncoding(data[len(opened.Text):])
	}
	if err != nil {
		return Checkpoint{}, failure.New(failure.Invalid, "cannot read the log's checkpoint: %w", err)
	}
	for _, signature := range opened.Sigs {
		if signature.Name == c.Origin {
			return c, nil
		}
	}
	return Checkpoint{}, failure.New(failure.Denied, "the checkpoint of the log %.100q has no signature of its own key",
		c.Origin).WithHint("check that the key is that of the log")
}

// checkEncoding fails when the base64 of a signature has bits that do not count: two notes would be the same.
func checkEncoding(signatures []byte) error {
	for line := range bytes.Lines(signatures) {
		text := strings.TrimSuffix(string(line), "\n")
		if _, err := base64.StdEncoding.Strict().DecodeString(text[strings.LastIndex(text, " ")+1:]); err != nil {
			return fmt.Errorf("a signature is not in base64: %w", err)
		}
	}
	return nil
}
