package proof

import (
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Demand is who must have agreed to a signature, as a trust manifest says it. All groups are needed; a person counts
// for one of them.
type Demand struct {
	Groups []Group
	// Credentials are the documents of the approvers' credentials in their encoding, by sha256:HEX. A credential that is
	// not there counts for nothing.
	Credentials map[string][]byte
	Names       map[string]string // names of people by their ids, for what is shown
	// Log are the verifiers of the keys that sign checkpoints of the log that counts. All have its origin, or the origin
	// of one of its epochs.
	Log       []*translog.Verifier
	Witnesses []*translog.Witness // whose cosignatures count
	Cosigned  int                 // number of witnesses that must have cosigned the checkpoint
	MaxAge    time.Duration       // since the signature was logged; 0 without an end
}

// Group is how many people must agree, and with what.
type Group = approval.Group

// Signature is the signature of an artifact that a bundle must be for.
type Signature struct {
	Digest    string // of the artifact, as ALGORITHM:HEX
	Leaf      string // sha256:HEX of the signing certificate in DER
	Payload   string // sha256:HEX of the bytes that were signed
	Signature string // sha256:HEX of the signature value, as the log has it: ECDSA in DER

	// What else was signed, which people have agreed to. A broker could sign an artifact they approved with other
	// annotations.
	Annotations map[string]string // of the artifact, as Notation's user metadata
	Expiry      int64             // seconds from the signing time to the expiry; 0 without an end
	MediaType   string            // of the artifact; "" does not compare it: the digest binds it
	Size        int64             // of the artifact in bytes; 0 does not compare it, either
}

// Shown is what a bundle shows after it has verified.
type Shown struct {
	Request    string     // ID
	Key        string     // name in the broker's policy
	Log        string     // origin
	Size       int64      // entries of the checkpoint
	Index      int64      // of the entry of the signature
	Signed     time.Time  // when the log has it
	Repository string     // in which the broker found the artifact; "" if it did not look
	Rule       string     // name of the rule that the broker applied
	BreakGlass bool       // the rule is for emergencies
	Reason     string     // the requester's
	Approvers  []Approver // those who agreed, in the order of the log
	Witnesses  []string   // names of those that cosigned the checkpoint
}

// Approver is a person who agreed. The demand may not have the credential of their approval: then Kind is "", and there
// is no more than the log's word for it.
type Approver struct {
	ID     string        // pseudonym in the log
	Name   string        // as the demand has it; "" if it has none
	Kind   approval.Kind // how they signed
	Time   time.Time     // of the approver's clock; of the log's entry if Kind is ""
	Reason string
	Counts bool // for a group of the demand
}
