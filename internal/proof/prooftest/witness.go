package prooftest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Witness cosigns checkpoints (C2SP tlog-cosignature). It looks at nothing.
type Witness struct {
	Name string
	Key  ed25519.PrivateKey
}

// id returns the identifier of the key.
func (w Witness) id() []byte {
	hash := sha256.Sum256(append([]byte(w.Name+"\n\x04"), w.public()...))
	return hash[:4]
}

func (w Witness) public() ed25519.PublicKey {
	return w.Key.Public().(ed25519.PublicKey) //nolint:forcetypeassert // that of any ed25519.PrivateKey
}

// Verifier returns the verifier of the witness's key.
func (w Witness) Verifier(t testing.TB) *translog.Witness {
	t.Helper()
	v, err := translog.ParseWitness(fmt.Sprintf("%s+%x+%s", w.Name, w.id(),
		base64.StdEncoding.EncodeToString(append([]byte{4}, w.public()...))))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Cosign returns a checkpoint with the cosignature of the witness.
func (w Witness) Cosign(note string, at time.Time) string {
	text, _, _ := strings.Cut(note, "\n\n")
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s\n", at.Unix(), text)
	line := binary.BigEndian.AppendUint64(w.id(), uint64(at.Unix())) //nolint:gosec // after 1970
	line = append(line, ed25519.Sign(w.Key, []byte(message))...)
	return note + "— " + w.Name + " " + base64.StdEncoding.EncodeToString(line) + "\n"
}
