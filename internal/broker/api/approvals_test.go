package api

import (
	"bytes"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi/brokerapitest"
	"github.com/notation-hsm/notation-hsm/internal/proof"
)

// TestWithdrawn lets nobody give an approval again that was withdrawn: not in the encoding that was given, and not in
// another one that verifies, which everyone can make who has seen the evidence.
func TestWithdrawn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ci := f.token("people")
	made := read[brokerapi.Request](t, ci.want(201, wish(1)))
	for name, change := range map[string]func([]byte) []byte{"alice": otherECDSA, "bob": otherArmour} {
		ci.want(201, f.decision(name, made.ID, approval.Approve))
		evidence := read[brokerapi.Evidence](t, ci.want(200, get(brokerapi.EvidencePath(made.ID))))
		given, err := approval.DecodeEnvelope(evidence.Approvals[len(evidence.Approvals)-1])
		if err != nil {
			t.Fatal(err)
		}
		again := func() brokerapi.SignedApproval { return brokerapi.SignedApproval{Envelope: encode(t, given)} }
		ci.want(201, f.decision(name, made.ID, approval.Withdraw))
		ci.want(409, post(brokerapi.ApprovalsPath(made.ID), again()))
		given.Signature = change(given.Signature)
		credential, err := approval.DecodeCredential(evidence.Credentials[given.Credential])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := given.Verify(credential); err != nil {
			t.Fatalf("the other encoding of %s: %v", name, err)
		}
		ci.want(409, post(brokerapi.ApprovalsPath(made.ID), again()))
	}
	if got := read[brokerapi.Request](t, ci.want(200, get(brokerapi.RequestPath(made.ID)))); len(got.Approvals) != 4 ||
		got.Needs[0].Alternatives[0].Groups[0].Lacking != 2 {
		t.Errorf("%+v", got)
	}
}

// otherECDSA returns the second signature of P-256 that verifies when a first one does.
func otherECDSA(signature []byte) []byte {
	r, s := new(big.Int), new(big.Int)
	input, inner := cryptobyte.String(signature), cryptobyte.String{}
	if !input.ReadASN1(&inner, asn1.SEQUENCE) || !inner.ReadASN1Integer(r) || !inner.ReadASN1Integer(s) {
		return nil
	}
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s.Sub(elliptic.P256().Params().N, s))
	})
	return b.BytesOrPanic()
}

// otherArmour returns an SSHSIG in lines of another length.
func otherArmour(signature []byte) []byte {
	block, _ := pem.Decode(signature)
	if block == nil {
		return nil
	}
	text := []byte(base64.StdEncoding.EncodeToString(block.Bytes))
	lines := [][]byte{[]byte("-----BEGIN " + block.Type + "-----")}
	for len(text) > 70 {
		lines, text = append(lines, text[:70]), text[70:]
	}
	lines = append(lines, text, []byte("-----END "+block.Type+"-----\n"))
	return bytes.Join(lines, []byte("\n"))
}

// TestApprovals has people approve and reject over the API, whoever posts what they have signed, and refuses what is
// not theirs or of another request.
func TestApprovals(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ci := f.token("people")
	made, other := read[brokerapi.Request](t, ci.want(202, sign(1))), read[brokerapi.Request](t, ci.want(202, sign(2)))
	approves := f.decision("alice", made.ID, approval.Approve)
	elsewhere := approves
	elsewhere.path = brokerapi.ApprovalsPath(other.ID)
	ci.want(403, elsewhere)

	// As somebody else, with the key of alice.
	var message brokerapi.SignedApproval
	if err := json.Unmarshal([]byte(approves.body), &message); err != nil {
		t.Fatal(err)
	}
	e, err := approval.DecodeEnvelope(message.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	e.Credential = f.id("bob")
	ci.want(403, post(approves.path, brokerapi.SignedApproval{Envelope: encode(t, e)}))
	e.Credential = approval.Hash(nil)
	ci.want(404, post(approves.path, brokerapi.SignedApproval{Envelope: encode(t, e)}))

	ci.want(201, approves)
	ci.want(404, get(brokerapi.EvidencePath("r-1")))
	f.token("ci").want(404, get(brokerapi.EvidencePath(made.ID)))
	approved := read[brokerapi.Request](t, f.signedIn("bob").want(201, f.decision("bob", made.ID, approval.Approve)))
	if approved.State != brokerapi.Approved {
		t.Errorf("%+v", approved)
	}
	ci.want(201, sign(1))
	rejected := read[brokerapi.Request](t, ci.want(201, f.decision("bob", other.ID, approval.Reject)))
	if rejected.State != brokerapi.Rejected {
		t.Errorf("%+v", rejected)
	}
	ci.want(202, sign(2)) // it is another request

	// Who agreed can be verified without the server.
	evidence := read[brokerapi.Evidence](t, ci.want(200, get(brokerapi.EvidencePath(made.ID))))
	agreed, err := approval.Verify(approval.Evidence{Statement: evidence.Statement, Rules: evidence.Rules,
		Credentials: evidence.Credentials, Approvals: evidence.Approvals})
	if err != nil || !agreed.Needs[0].Alternatives[0].Agreed() || evidence.You != "" {
		t.Errorf("%+v, %v", agreed, err)
	}
	f.bundle(ci, made.ID, evidence.Statement)
}

// bundle gets the bundle of a signed request, as soon as a checkpoint covers it: all entries of the request are in it.
func (f *fixture) bundle(c *client, id string, statement []byte) {
	f.Helper()
	b, err := proof.Decode(read[brokerapi.Bundle](f.T, c.covered(id)).Bundle)
	if err != nil {
		f.Fatal(err)
	}
	var types []string
	for _, e := range b.Entries {
		one, err := entry.Decode(e.Entry)
		if err != nil {
			f.Fatal(err)
		}
		types = append(types, one.Type)
	}
	want := []string{entry.Requested, entry.Approved, entry.Approved, entry.Intended, entry.Signed}
	if !slices.Equal(types, want) || len(b.Approvals) != 2 || len(b.Rules) != 1 || !bytes.Equal(b.Statement, statement) {
		f.Errorf("entries %v, %d approvals, %d rules", types, len(b.Approvals), len(b.Rules))
	}
}

// covered returns the answer with the bundle of a request, once a checkpoint covers it.
func (c *client) covered(id string) brokerapitest.Answer {
	c.Helper()
	for {
		if answer := c.do(get(brokerapi.BundlePath(id))); answer.Status != http.StatusServiceUnavailable {
			return answer
		}
		time.Sleep(10 * time.Millisecond)
	}
}
