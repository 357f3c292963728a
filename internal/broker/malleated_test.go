package broker

import (
	"crypto/elliptic"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestMalleated has an approval that was withdrawn not count again, when someone else has changed its signature into
// the other one that ECDSA has for it.
func TestMalleated(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	r := f.waits("pipeline", 1)
	first, err := approval.DecodeEnvelope(f.envelope("alice", r.ID, approval.Approve, ""))
	if err != nil {
		t.Fatal(err)
	}
	var pair struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(first.Signature, &pair); err != nil {
		t.Fatal(err)
	}
	data, _ := first.Encode()
	if _, err := f.Approve(t.Context(), caller("pipeline"), r.ID, data); err != nil {
		t.Fatal(err)
	}
	if _, err := f.decide("alice", r.ID, approval.Withdraw); err != nil {
		t.Fatal(err)
	}
	pair.S.Sub(elliptic.P256().Params().N, pair.S)
	first.Signature, _ = asn1.Marshal(pair)
	data, _ = first.Encode()
	_, err = f.Approve(t.Context(), caller("pipeline"), r.ID, data)
	failsWith(t, err, failure.Conflict, "given before")
}
