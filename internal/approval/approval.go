// Package approval has what people sign when they agree to a request of a broker, and verifies it without a server: the
// statement of a request, the approvals of it, and the credentials that they were signed with.
//
// A statement binds what is signed or changed, and the rules that say who must agree. An approval names the statement
// by its SHA-256, and is signed with a key in a module (DSSE), an SSH key (SSHSIG) or a passkey (WebAuthn). Each
// document is canonical JSON (RFC 8785) and is named by its SHA-256 as sha256:HEX. People are in it by ids that only
// the broker can tell the names of.
package approval

import (
	"encoding/hex"
	"fmt"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Kind is how an approver signs.
type Kind string

// The kinds of approvals.
const (
	Key     Kind = "key"     // a key in a module: a DSSE signature
	SSH     Kind = "ssh"     // an SSH key: an SSHSIG signature
	Passkey Kind = "passkey" // a WebAuthn assertion
)

// Decision is what an approver decides.
type Decision string

// The decisions.
const (
	Approve  Decision = "approve"
	Reject   Decision = "reject"   // ends the request
	Withdraw Decision = "withdraw" // takes back an earlier approval of the same approver
)

// approvalType is the type of an Approval.
const approvalType = "approval/v1"

// maxReason is the length of the longest reason, in bytes.
const maxReason = 1000

// Approval is what an approver signs.
type Approval struct {
	Approver  string    // id of the person
	Decision  Decision  // about the statement
	Random    [32]byte  // so that no two approvals are the same
	Reason    string    // of the approver, up to 1000 bytes; "" for none
	Statement string    // sha256:HEX of the statement
	Time      time.Time // of the approver's clock, in whole seconds
}

// approvalJSON is the encoding of an Approval, in the order of its names.
type approvalJSON struct {
	Approver  string   `json:"approver"`
	Decision  Decision `json:"decision"`
	Random    string   `json:"random"` // hex
	Reason    string   `json:"reason,omitempty"`
	Statement string   `json:"statement"`
	Time      string   `json:"time"` // RFC 3339, in UTC
	Type      string   `json:"type"`
}

// Encode returns an approval as canonical JSON: the bytes that are signed.
func (a *Approval) Encode() ([]byte, error) {
	return canonical(approvalJSON{Approver: a.Approver, Decision: a.Decision, Random: hex.EncodeToString(a.Random[:]),
		Reason: a.Reason, Statement: a.Statement, Time: a.Time.UTC().Format(time.RFC3339), Type: approvalType})
}

// Decode reads an approval. It fails with Invalid for bytes that are not the one encoding of an approval.
func Decode(data []byte) (*Approval, error) {
	var read approvalJSON
	if err := strict(data, maxDocument, &read); err != nil {
		return nil, invalid("approval", err)
	}
	a := &Approval{Approver: read.Approver, Decision: read.Decision, Reason: read.Reason, Statement: read.Statement}
	random, err := hex.DecodeString(read.Random)
	switch {
	case read.Type != approvalType:
		return nil, invalid("approval", fmt.Errorf("its type is %.40q", read.Type))
	case err != nil || len(random) != len(a.Random):
		return nil, invalid("approval", fmt.Errorf("random is not 32 bytes in hexadecimal digits"))
	case a.Decision != Approve && a.Decision != Reject && a.Decision != Withdraw:
		return nil, invalid("approval", fmt.Errorf("its decision is %.40q", a.Decision))
	case len(a.Reason) > maxReason:
		return nil, invalid("approval", fmt.Errorf("its reason is longer than %d bytes", maxReason))
	case !IsHash(a.Statement):
		return nil, invalid("approval", fmt.Errorf("its statement is not sha256:HEX"))
	}
	a.Random = [32]byte(random)
	if a.Time, err = time.Parse(time.RFC3339, read.Time); err != nil {
		return nil, invalid("approval", err)
	}
	if again, err := a.Encode(); err != nil || string(again) != string(data) {
		return nil, invalid("approval", fmt.Errorf("it is not in its canonical form"))
	}
	return a, nil
}

// invalid is the failure of a document that cannot be read.
func invalid(what string, err error) error {
	return failure.New(failure.Invalid, "cannot read the %s: %w", what, err).
		WithHint("use a tool of the same version as the broker")
}
