package verification

import (
	"bytes"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/gate"
)

// TestPrintDecisions verifies that the output has each decision, the signer of the image, and why other signatures do
// not count.
func TestPrintDecisions(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 1, 7, 12, 0, time.UTC)
	signature := func(timestamp *gate.Timestamp) *gate.Signature {
		return &gate.Signature{Subject: "CN=alice", Issuer: "CN=ca", Fingerprint: "0aa4", SigningTime: &at,
			Timestamp: timestamp}
	}
	var out bytes.Buffer
	if err := PrintDecisions(&out, []gate.Decision{
		{Reference: "a:1", Digest: "sha256:1", Verdict: gate.Pass, Policy: "all", Level: "strict",
			Tag: &gate.Tag{Name: "1", Role: "alice", Versions: gate.Versions{Timestamp: 12}},
			Approvals: &gate.Approvals{Request: "r1", Key: "release", Log: "broker.example.com/log", Index: 7, Signed: at,
				Rule: "urgent", BreakGlass: true, Reason: "fix", Witnesses: []string{"w1", "w2"}, Approvers: []gate.Approver{
					{Name: "ann", ID: "1f", Kind: "ssh", Time: at, Counts: true}, {ID: "2f", Time: at}}},
			Signature: signature(&gate.Timestamp{Time: at, Verified: true}), Warnings: []string{"revocation failed"}},
		{Reference: "b:1", Verdict: gate.Pass, Policy: "all", Level: "audit",
			Signature: signature(&gate.Timestamp{Time: at})},
		{Reference: "c:1", Verdict: gate.Refuse, Reason: "no signature is valid",
			Refused: []gate.Signature{{Digest: "sha256:2", Subject: "CN=mallory", Reason: "not trusted"}}},
	}); err != nil {
		t.Fatal(err)
	}
	want := `a:1: pass
  digest       sha256:1
  policy       all (strict)
  tag          1 (role alice, timestamp 12)
  signer       CN=alice
  issuer       CN=ca
  fingerprint  sha256:0aa4
  signed       2026-11-22T01:07:12Z
  expires      -
  timestamp    2026-11-22T01:07:12Z (verified)
  approved     by ann, ssh, 2026-11-22T01:07:12Z
  approved     by 2f, -, 2026-11-22T01:07:12Z (does not count)
  request      r1, key release: fix
  rule         urgent (for an emergency)
  log          broker.example.com/log, entry 7, 2026-11-22T01:07:12Z
  witnesses    w1, w2
  warning      revocation failed

b:1: pass
  digest       -
  policy       all (audit)
  signer       CN=alice
  issuer       CN=ca
  fingerprint  sha256:0aa4
  signed       2026-11-22T01:07:12Z
  expires      -
  timestamp    2026-11-22T01:07:12Z (not verified: the trust policy does not ask for it)

c:1: refuse
  digest   -
  policy   -
  refused  sha256:2: the signature by CN=mallory is refused: not trusted
  reason   no signature is valid
`
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
}
