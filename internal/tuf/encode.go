package tuf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// maxDepth is the depth of JSON in metadata: the members of a target's hashes are the innermost.
const maxDepth = 16

// checkJSON verifies that metadata are within the limits that the parsers of JSON and go-tuf need.
func checkJSON(name string, data []byte, size int64) error {
	if err := bound.JSON(data, bound.Limits{Bytes: int(size), Depth: maxDepth, Elements: int(size) / 8}); err != nil {
		return unreadable(name, err)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	for {
		token, err := decoder.Token()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return unreadable(name, err)
		case token == nil: // go-tuf uses members that are null without a check, and crashes
			return unreadable(name, errors.New("it has a null"))
		}
	}
}

func unreadable(name string, err error) error {
	return failure.New(failure.Denied, "cannot read the tag metadata %s: %w", name, err).
		WithHint("check who can write to the repository")
}

// parse reads the metadata of a role.
func parse[T metadata.Roles](name string, data []byte, size int64) (*metadata.Metadata[T], error) {
	if err := checkJSON(name, data, size); err != nil {
		return nil, err
	}
	m, err := (&metadata.Metadata[T]{}).FromBytes(data)
	if err != nil {
		return nil, unreadable(name, err)
	}
	return m, nil
}

// encode returns metadata with their signatures as JSON.
func encode[T metadata.Roles](m *metadata.Metadata[T]) ([]byte, error) { return m.ToBytes(false) }

// encodeRoot returns a root as indented JSON: people review it where it is pinned.
func encodeRoot(m *rootFile) ([]byte, error) {
	if m.Signatures == nil { // custodians have to be able to read a root that nobody has signed
		m.Signatures = []metadata.Signature{}
	}
	return json.MarshalIndent(m, "", " ")
}

// payload returns what is signed of a role: its canonical JSON (OLPC).
func payload[T metadata.Roles](m *metadata.Metadata[T]) ([]byte, error) {
	return cjson.EncodeCanonical(m.Signed)
}

// sign adds a signature by each signer that is one of the role's keys, and replaces earlier ones by the same keys. It
// returns how many signers there were.
func sign[T metadata.Roles](ctx context.Context, m *metadata.Metadata[T], ids []string, signers []*Signer) (int,
	error) {
	data, err := payload(m)
	if err != nil {
		return 0, err
	}
	made := 0
	for _, s := range signers {
		if !s.in(ids) {
			continue
		}
		signature, err := s.Sign(ctx, data)
		if err != nil {
			return made, err
		}
		m.Signatures = slices.DeleteFunc(m.Signatures, func(other metadata.Signature) bool { return other.KeyID == s.ID })
		m.Signatures = append(m.Signatures, metadata.Signature{KeyID: s.ID, Signature: signature})
		made++
	}
	return made, nil
}
