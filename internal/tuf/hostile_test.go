package tuf

import (
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestNull has proposals of someone who has no key.
func TestNull(t *testing.T) {
	const begin = `{"signatures":[],"signed":{"_type":"targets","spec_version":"1.0.31","version":2,` +
		`"expires":"2040-01-01T00:00:00Z",`
	for _, text := range []string{begin + `"targets":{"v1":null}}}`, begin + `"targets":{},"delegations":null}}`,
		`{"signatures":[],"signed":null}`, `null`} {
		if _, err := ReadProposal("x", map[string][]byte{"2.tags.json": []byte(text)}); failure.From(err).Kind != failure.Denied {
			t.Errorf("%s: %v", text, err)
		}
	}
}
