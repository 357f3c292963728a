package proof_test

import (
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
)

// BenchmarkVerify verifies a bundle with two approvals.
func BenchmarkVerify(b *testing.B) {
	s := newScene(b)
	data := prooftest.Encode(b, s.good().Bundle())
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := proof.Verify(data, s.wanted, s.demand, s.log.Now); err != nil {
			b.Fatal(err)
		}
	}
}
