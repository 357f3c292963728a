package translog

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Witness verifies the cosignatures of a witness: a server that signs a checkpoint only if it continues all that it has
// signed before (C2SP tlog-cosignature, with Ed25519). It is a Verifier of golang.org/x/mod/sumdb/note.
type Witness struct {
	name string
	key  ed25519.PublicKey
	id   uint32
}

// Types of the keys of cosigners that C2SP tlog-cosignature assigns.
const (
	kindCosignature = 4 // cosignature/v1, with Ed25519
	kindMLDSA44     = 6
)

// timestampSize is the size in bytes of the time before the Ed25519 signature of a cosignature.
const timestampSize = 8

// ParseWitness returns the witness of a verifier key: NAME+ID+KEY with an Ed25519 key of type 4 (cosignature/v1), or of
// type 1, as older witnesses publish it. It fails with Invalid, and with Unsupported for ML-DSA keys.
func ParseWitness(vkey string) (*Witness, error) {
	w, err := parseWitness(strings.TrimSpace(vkey))
	if err != nil {
		kind := failure.Invalid
		if failure.Is(err, failure.Unsupported) {
			kind = failure.Unsupported
		}
		return nil, failure.New(kind, "cannot read the verifier key %.100q of a witness: %w", vkey, err).
			WithHint("give NAME+ID+KEY with an Ed25519 key, as the witness's operator publishes it")
	}
	return w, nil
}

func parseWitness(vkey string) (*Witness, error) {
	name, id, data, err := splitVerifierKey(vkey)
	if err != nil {
		return nil, err
	}
	if !validName(name) {
		return nil, fmt.Errorf("%.100q cannot be the name of a witness", name)
	}
	switch kind := data[0]; kind {
	case kindCosignature, kindEd25519:
	case kindMLDSA44:
		return nil, failure.New(failure.Unsupported, "ML-DSA-44 is not supported")
	default:
		return nil, fmt.Errorf("signature type %d is not that of a cosignature with Ed25519", kind)
	}
	if len(data) != 1+ed25519.PublicKeySize {
		return nil, fmt.Errorf("its Ed25519 key has %d bytes", len(data)-1)
	}
	if verifierKey(name, keyID(name, data[0], data[1:]), data[0], data[1:]) != vkey {
		return nil, fmt.Errorf("its identifier %.20q or encoding is not that of the key", id)
	}
	return &Witness{name, data[1:], keyID(name, kindCosignature, data[1:])}, nil
}

// String returns the verifier key: NAME+ID+KEY with the key as type 4, ID in 8 hexadecimal digits and KEY in base64.
func (w *Witness) String() string { return verifierKey(w.name, w.id, kindCosignature, w.key) }

// Name returns the name of the witness.
func (w *Witness) Name() string { return w.name }

// SameKey reports whether another witness has the same key, under any name.
func (w *Witness) SameKey(other *Witness) bool { return w.key.Equal(other.key) }

// KeyHash returns the identifier of the key, which is short and not unique.
func (w *Witness) KeyHash() uint32 { return w.id }

// Verify reports whether a cosignature, 8 bytes of time and an Ed25519 signature, of a checkpoint's text verifies.
func (w *Witness) Verify(text, signature []byte) bool {
	_, ok := w.open(text, signature)
	return ok
}

// maxTime is the last second of the year 9999. JSON has no time after it.
const maxTime = 253402300799

// open returns the time of a cosignature that verifies.
func (w *Witness) open(text, signature []byte) (time.Time, bool) {
	if len(signature) != timestampSize+ed25519.SignatureSize {
		return time.Time{}, false
	}
	seconds := binary.BigEndian.Uint64(signature)
	message := append(fmt.Appendf(nil, "cosignature/v1\ntime %d\n", seconds), text...)
	if seconds > maxTime || !ed25519.Verify(w.key, message, signature[timestampSize:]) {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0).UTC(), true
}

// Cosignature is a verified cosignature of a checkpoint.
type Cosignature struct {
	Witness string    // name
	Time    time.Time // of the witness's clock
	line    string    // of the note
}

// maxSignatures is the largest number of signatures that Cosigned looks at, as in golang.org/x/mod/sumdb/note.
const maxSignatures = 100

// Cosigned returns the cosignatures of a checkpoint that the witnesses made, in their order: one of each key, the
// newest, also if two witnesses have the same key. It fails with Denied when a cosignature of a witness does not
// verify, and with Invalid when the note is not a checkpoint. It does not verify the signature of the log: Open does.
func Cosigned(data []byte, witnesses []*Witness) ([]Cosignature, error) {
	if len(data) > maxCheckpoint {
		return nil, failure.New(failure.Invalid, "the checkpoint has more than %d bytes", maxCheckpoint)
	}
	text, lines, found := strings.Cut(string(data), "\n\n")
	text += "\n"
	if _, err := parseText(text); err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the log's checkpoint: %w", err)
	}
	signatures, err := splitSignatures(lines)
	if err != nil || !found {
		return nil, failure.New(failure.Invalid, "cannot read the signatures of the log's checkpoint: %w", err)
	}
	newest := map[string]Cosignature{} // by key
	for _, s := range signatures {
		named, verified := false, false
		for _, w := range witnesses {
			if w.name != s.name || w.id != s.id {
				continue
			}
			named = true
			if at, ok := w.open([]byte(text), s.signature); ok {
				verified = true
				if old, exists := newest[string(w.key)]; !exists || at.After(old.Time) {
					newest[string(w.key)] = Cosignature{Witness: w.name, Time: at, line: s.line}
				}
			}
		}
		if named && !verified {
			return nil, failure.New(failure.Denied, "the cosignature of the witness %.100q does not verify", s.name).
				WithHint("get the checkpoint again: it was changed after the witness cosigned it")
		}
	}
	var cosignatures []Cosignature
	for _, w := range witnesses {
		if c, exists := newest[string(w.key)]; exists {
			cosignatures = append(cosignatures, c)
			delete(newest, string(w.key))
		}
	}
	return cosignatures, nil
}

// signatureLine is a line of a note with a signature.
type signatureLine struct {
	name      string
	id        uint32
	signature []byte // after the identifier
	line      string // with its newline
}

// splitSignatures returns the signatures of a note's lines after the empty line.
func splitSignatures(lines string) (all []signatureLine, err error) {
	for line := range strings.Lines(lines) {
		rest, begins := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "— ")
		name, encoded, _ := strings.Cut(rest, " ")
		signature, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if !begins || !strings.HasSuffix(line, "\n") || !validName(name) || err != nil || len(signature) < 5 {
			return nil, fmt.Errorf("signature %d is not a line of a signed note", len(all)+1)
		}
		if len(all) == maxSignatures {
			return nil, fmt.Errorf("it has more than %d signatures", maxSignatures)
		}
		all = append(all, signatureLine{name, binary.BigEndian.Uint32(signature), signature[4:], line})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("it has no signature")
	}
	return all, nil
}
