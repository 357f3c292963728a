package proof_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// north and south are witnesses.
var (
	north = prooftest.Witness{Name: "north.example.com", Key: prooftest.Ed25519(30)}
	south = prooftest.Witness{Name: "south.example.com", Key: prooftest.Ed25519(31)}
)

// witnessed are bundles with another checkpoint than the witnesses cosigned.
var witnessed = []attack{
	after("no cosignature", "0 of 1 witnesses", func(s *scene, _ *proof.Bundle) { trust(s, 1, north) }),
	after("one cosignature of two", "1 of 2 witnesses", func(s *scene, b *proof.Bundle) {
		trust(s, 2, north, south)
		b.Checkpoint = north.Cosign(b.Checkpoint, s.log.Now)
	}),
	after("two cosignatures of one", "1 of 2 witnesses", func(s *scene, b *proof.Bundle) {
		trust(s, 2, north, south)
		b.Checkpoint = north.Cosign(north.Cosign(b.Checkpoint, s.log.Now), s.log.Now.Add(time.Second))
	}),
	after("the cosignature of another witness", "0 of 1 witnesses", func(s *scene, b *proof.Bundle) {
		trust(s, 1, north)
		b.Checkpoint = south.Cosign(b.Checkpoint, s.log.Now)
	}),
	after("the cosignature of another checkpoint", "does not verify", func(s *scene, b *proof.Bundle) {
		trust(s, 1, north)
		_, signatures, _ := strings.Cut(north.Cosign(fork(s), s.log.Now), "\n\n")
		lines := strings.SplitAfter(signatures, "\n")
		b.Checkpoint += lines[1]
	}),
}

// trust has the demand ask for the cosignatures of witnesses.
func trust(s *scene, count int, witnesses ...prooftest.Witness) {
	s.demand.Cosigned = count
	for _, w := range witnesses {
		s.demand.Witnesses = append(s.demand.Witnesses, w.Verifier(s.t))
	}
}

// TestWitnesses shows which witnesses have cosigned the checkpoint.
func TestWitnesses(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	b := s.good().Bundle()
	b.Checkpoint = south.Cosign(north.Cosign(b.Checkpoint, s.log.Now), s.log.Now)
	trust(s, 2, north, south)
	shown, err := s.verify(b)
	if err != nil || !slices.Equal(shown.Witnesses, []string{"north.example.com", "south.example.com"}) {
		t.Errorf("%+v, %v", shown, err)
	}
	s.demand.Witnesses, s.demand.Cosigned = []*translog.Witness{north.Verifier(t)}, 0
	if shown, err = s.verify(b); err != nil || !slices.Equal(shown.Witnesses, []string{"north.example.com"}) {
		t.Errorf("%+v, %v", shown, err)
	}
}
