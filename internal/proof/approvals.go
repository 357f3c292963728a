package proof

import (
	"fmt"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// decision is a decision of a person that the log has.
type decision struct {
	event

	missing  bool               // the bundle does not have its envelope
	approval *approval.Approval // that has verified; nil if it is missing, or the demand does not have its credential
	vote     approval.Vote      // what it counts as, if it has verified
}

// decisions are the types of entries of decisions, and what people signed for them.
var decisions = map[string]approval.Decision{entry.Approved: approval.Approve, entry.Rejected: approval.Reject,
	entry.Withdrawn: approval.Withdraw}

// readApprovals verifies the approvals: that each is signed under a credential of the demand, is about the statement,
// and has an entry in the log. An approval is known by the hash of its document, since a signature can have several
// encodings. The entry has the hash of both.
func (v *verification) readApprovals() error {
	left := v.bundle.Approvals
	seen := map[string]bool{}
	for _, e := range v.events {
		if decisions[e.Type] == "" {
			continue
		}
		if e.Statement != v.digest {
			return v.refuse("entry %d of the log is about another statement", e.index)
		}
		if len(left) == 0 || approval.Hash(left[0]) != e.Approval {
			continue
		}
		one := decision{event: e}
		if err := v.readApproval(&one, left[0]); err != nil {
			return err
		}
		if seen[e.Signed] {
			return v.refuse("an approval is in the log twice")
		}
		seen[e.Signed], left = true, left[1:]
		v.decisions[e.index] = one
	}
	if len(left) > 0 {
		return v.refuse("an approval is not in the log, or not in its order")
	}
	return nil
}

// readApproval verifies an approval of an entry.
func (v *verification) readApproval(of *decision, data []byte) error {
	envelope, err := approval.DecodeEnvelope(data)
	if err != nil {
		return err
	}
	if approval.Hash(envelope.Approval) != of.Signed || envelope.Credential != of.Credential {
		return v.refuse("entry %d of the log is of another approval", of.index)
	}
	document, known := v.demand.Credentials[envelope.Credential]
	if !known {
		return nil
	}
	if approval.Hash(document) != envelope.Credential {
		return failure.New(failure.Invalid, "the credential %.80q that is trusted has another SHA-256", envelope.Credential)
	}
	credential, err := approval.DecodeCredential(document)
	if err != nil {
		return err
	}
	a, err := envelope.Verify(credential)
	if err != nil {
		return err
	}
	switch {
	case a.Statement != v.digest:
		return v.refuse("an approval is of another statement")
	case a.Approver != of.Approver || a.Decision != decisions[of.Type]:
		return v.refuse("entry %d of the log is of another decision than its approval", of.index)
	}
	of.approval, of.vote = a, credential.Vote()
	return nil
}

// counts reports whether a decision counts for a group of the demand.
func (v *verification) counts(d decision) bool { return v.discounted(d) == "" }

// discounted says why a decision counts for no group of the demand; "" if it does for one.
func (v *verification) discounted(d decision) string {
	who := fmt.Sprintf("the approver %.80q", d.Approver)
	if name := v.demand.Names[d.Approver]; name != "" {
		who = fmt.Sprintf("%.80q", name)
	}
	groups := v.demand.Groups
	switch {
	case d.missing:
		return "the bundle lacks an approval of " + who
	case d.approval == nil && v.demand.Names[d.Approver] == "":
		return who + " is not in the trust manifest"
	case d.approval == nil:
		return "the credential of " + who + " is not in the trust manifest"
	case d.Approver == v.found.request.Person:
		return who + " asked for the signature, and nobody approves their own request"
	case slices.ContainsFunc(groups, func(g Group) bool { return g.Counts(d.vote) }):
		return ""
	case slices.ContainsFunc(groups, func(g Group) bool { return slices.Contains(g.Members, d.Approver) }):
		return fmt.Sprintf("%s approved by %s, which does not count", who, kindText(d.vote))
	}
	return who + " is in no group of the trust manifest"
}

// kindText says what an approval was signed with.
func kindText(v approval.Vote) string {
	text := string(v.Kind)
	if v.Kind == approval.Passkey && !v.Attested {
		text += " without attestation"
	}
	if v.Kind == approval.Passkey && !v.DeviceBound {
		text += " that can be copied"
	}
	return text
}
