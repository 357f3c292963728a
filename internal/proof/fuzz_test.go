package proof_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
)

// FuzzDecode verifies that a bundle that is read has one encoding.
func FuzzDecode(f *testing.F) {
	f.Add(prooftest.Encode(f, newScene(f).good().Bundle()))
	f.Add(prooftest.Encode(f, &proof.Bundle{}))
	f.Add([]byte(`{"approvals":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := proof.Decode(data)
		if err != nil {
			return
		}
		if again := prooftest.Encode(t, b); !bytes.Equal(again, data) {
			t.Errorf("%q was read, and is written as %q", data, again)
		}
	})
}

// part returns a part of a bundle by its number.
func part(b *proof.Bundle, number int) *[]byte {
	parts := []*[]byte{&b.Statement, &b.Rules[0]}
	for i := range b.Approvals {
		parts = append(parts, &b.Approvals[i])
	}
	for i := range b.Entries {
		parts = append(parts, &b.Entries[i].Entry)
		for j := range b.Entries[i].Hashes {
			parts = append(parts, &b.Entries[i].Hashes[j])
		}
	}
	return parts[number%len(parts)]
}

// FuzzVerify verifies that a bundle verifies with no other part than it was made with. Beyond the parts, it is the
// checkpoint, in which signatures of unknown keys do not count.
func FuzzVerify(f *testing.F) {
	s := newScene(f)
	r := s.request(nil)
	approve(r, s.alice, s.bob, s.carol)
	r.Sign(s.wanted, nil)
	s.demand.Groups[0].Quorum = 3
	good := prooftest.Encode(f, r.Bundle())
	for i := range 40 {
		b, err := proof.Decode(good)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), *part(b, i)) //nolint:gosec // up to 40
	}
	f.Add(uint8(255), s.log.Checkpoint())
	f.Add(uint8(254), good)
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		b, err := proof.Decode(good)
		if err != nil {
			t.Fatal(err)
		}
		encoded, same := data, false
		switch which {
		case 255:
			text, _, _ := strings.Cut(b.Checkpoint, "\n\n")
			same = strings.HasPrefix(string(data), text+"\n\n")
			b.Checkpoint = string(data)
			encoded, err = b.Encode()
		case 254:
			same = true // whole bundles of other processes have other signatures of the same keys
		default:
			p := part(b, int(which))
			same = bytes.Equal(*p, data)
			*p = data
			encoded, err = b.Encode()
		}
		if err != nil {
			return // it is too long
		}
		shown, err := proof.Verify(encoded, s.wanted, s.demand, s.log.Now)
		if err == nil && (!same || shown.Request != r.ID || len(shown.Approvers) != 3) {
			t.Errorf("part %d as %q verifies: %+v", which, data, shown)
		}
	})
}

// FuzzOfEnvelope verifies that what is read of an envelope is there, in one way.
func FuzzOfEnvelope(f *testing.F) {
	recorder := ecRecorder(f)
	for _, mediaType := range []string{jws.MediaTypeEnvelope, cose.MediaTypeEnvelope} {
		f.Add(mediaType == jws.MediaTypeEnvelope, recorder.envelope(f, mediaType))
	}
	f.Fuzz(func(t *testing.T, json bool, data []byte) {
		mediaType := cose.MediaTypeEnvelope
		if json {
			mediaType = jws.MediaTypeEnvelope
		}
		payload, signature, err := proof.OfEnvelope(mediaType, data)
		if err == nil && (!approval.IsHash(payload) || !approval.IsHash(signature)) {
			t.Errorf("%q: %q, %q", data, payload, signature)
		}
	})
}
