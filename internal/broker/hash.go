package broker

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

const hashPrefix = "sha256:"

// hashOf returns the SHA-256 of data as sha256:HEX.
func hashOf(data []byte) string {
	hash := sha256.Sum256(data)
	return hashPrefix + hex.EncodeToString(hash[:])
}

func parseHash(text string) (hash [sha256.Size]byte, err error) {
	data, err := hex.DecodeString(strings.TrimPrefix(text, hashPrefix))
	if err != nil || len(data) != len(hash) {
		return hash, fmt.Errorf("%.80q is not sha256:HEX", text)
	}
	return [sha256.Size]byte(data), nil
}

// pseudonym returns a name for what must not be in the log: the same one each time, which tells nothing without the
// secret of the store.
func (b *Broker) pseudonym(of ...string) string {
	mac := hmac.New(sha256.New, b.secret)
	for _, part := range of {
		fmt.Fprintf(mac, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

// callerOf returns the pseudonym of a caller.
func (b *Broker) callerOf(c identity.Caller) string {
	return b.pseudonym("caller", c.Issuer, c.Subject)
}

// requesterOf returns the pseudonym of all callers who may use a grant of one of them: those with the same issuer and
// the same values of some claims, or the caller alone if a rule lists no claims.
func (b *Broker) requesterOf(c identity.Caller, same []string) string {
	if len(same) == 0 {
		return b.callerOf(c)
	}
	of := []string{"requester", c.Issuer}
	for _, name := range slices.Sorted(slices.Values(same)) {
		value, exists := c.Claims[name]
		if !exists { // nobody else is like a caller without the claim
			return b.callerOf(c)
		}
		text, err := json.Marshal(value)
		if err != nil {
			return b.callerOf(c)
		}
		of = append(of, name, string(text))
	}
	return b.pseudonym(of...)
}

// newID returns the ID of a request: later ones are greater, and nobody can guess one.
func newID(now time.Time) string {
	var random [10]byte
	_, _ = rand.Read(random[:]) // never fails
	return fmt.Sprintf("%012x%x", now.UnixMilli(), random)
}

// writeFile replaces a file, and has it on the disk.
func writeFile(path string, data []byte) error {
	if err := renameio.WriteFile(path, data, 0o644); err != nil {
		return failure.New(failure.Unavailable, "cannot write the checkpoint to %s: %w", path, err).
			WithHint("make room on its disk, and let the broker write there")
	}
	return nil
}
