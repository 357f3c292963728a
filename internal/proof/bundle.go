// Package proof shows, without a server, that people agreed to the signature of an artifact. A bundle carries what
// shows it to where the artifact is used: the statement, the approvals, and the entries of the broker's log with their
// inclusion proofs. Who may approve, and which log counts, is a Demand of whoever verifies, never the bundle's.
package proof

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// MediaType is the media type of a bundle, and the artifact type of its manifest in a registry.
const MediaType = "application/vnd.notation-hsm.approvals.v1+json"

// AnnotationPayload is the annotation of a bundle's manifest that says which signature it is of: the Payload of one of
// its signatures. It is a hint.
const AnnotationPayload = "io.github.notation-hsm.payload"

// bundleType is the type of a Bundle.
const bundleType = "approvals/v1"

// MaxBundle is the limit of the size of a bundle in bytes.
const MaxBundle = 1 << 20

// Bounds of a bundle besides its size.
const (
	maxApprovals = 256
	maxRules     = 64
	maxEntries   = 512
	maxHashes    = 64 // of an inclusion proof
)

var bundleLimits = bound.Limits{Bytes: MaxBundle, Depth: bound.Depth, Elements: 50_000}

// Bundle is all that shows who agreed to the signatures of one request. Its fields are in the order of their names, and
// bytes are in base64. It has no name of a person and no public key: people and credentials are in it by ids and by
// salted hashes, which the verifier's own documents open.
type Bundle struct {
	Approvals  [][]byte `json:"approvals"`  // envelopes (approval.Envelope) in their encoding, in the order of the log
	Checkpoint string   `json:"checkpoint"` // a signed note (C2SP tlog-checkpoint), with the cosignatures of witnesses
	Entries    []Entry  `json:"entries"`    // of the request, by index
	Rules      [][]byte `json:"rules"`      // rule documents (approval.Rule) of the statement; any can be left out
	Statement  []byte   `json:"statement"`  // approval.Statement in its encoding
	Type       string   `json:"type"`
}

// Entry is an entry of the log with its inclusion proof (RFC 6962 section 2.1.1) under the bundle's checkpoint.
type Entry struct {
	Entry  []byte   `json:"entry"`
	Hashes [][]byte `json:"hashes"` // from the leaf to the root
	Index  int64    `json:"index"`
}

// Encode returns a bundle as canonical JSON (RFC 8785), with its type. It fails with Invalid for a bundle that is
// larger than MaxBundle.
func (b *Bundle) Encode() ([]byte, error) {
	typed := *b
	typed.Type = bundleType
	typed.Approvals, typed.Rules = listed(b.Approvals), listed(b.Rules) // [] and null would be two encodings
	typed.Entries = make([]Entry, len(b.Entries))
	for i, e := range b.Entries {
		e.Hashes = listed(e.Hashes)
		typed.Entries[i] = e
	}
	data, err := translog.Canonical(typed)
	if err == nil && len(data) > MaxBundle {
		err = failure.New(failure.Invalid, "the bundle of approvals has %d bytes, and %d are the most", len(data), MaxBundle)
	}
	return data, err
}

// listed returns a list that is encoded as [] if it is empty.
func listed(list [][]byte) [][]byte {
	if list == nil {
		return [][]byte{}
	}
	return list
}

// Decode reads a bundle. It fails with Invalid for bytes that are not the one encoding of a bundle, or that are larger
// than the limits. It verifies nothing.
func Decode(data []byte) (*Bundle, error) {
	b, err := decode(data)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the bundle of approvals: %w", err).
			WithHint("attach it again: hsm-image approvals attach IMAGE")
	}
	return b, nil
}

func decode(data []byte) (*Bundle, error) {
	if err := bound.JSON(data, bundleLimits); err != nil {
		return nil, err
	}
	b := &Bundle{}
	if err := json.Unmarshal(data, b); err != nil {
		return nil, err
	}
	switch again, err := b.Encode(); {
	case b.Type != bundleType:
		return nil, fmt.Errorf("its type is %.40q", b.Type)
	case err != nil || string(again) != string(data):
		return nil, errors.New("it is not in its canonical form")
	case len(b.Approvals) > maxApprovals:
		return nil, fmt.Errorf("it has more than %d approvals", maxApprovals)
	case len(b.Rules) > maxRules:
		return nil, fmt.Errorf("it has more than %d rules", maxRules)
	case len(b.Entries) > maxEntries:
		return nil, fmt.Errorf("it has more than %d entries", maxEntries)
	}
	for _, e := range b.Entries {
		if len(e.Hashes) > maxHashes {
			return nil, fmt.Errorf("an inclusion proof of it has more than %d hashes", maxHashes)
		}
	}
	return b, nil
}
