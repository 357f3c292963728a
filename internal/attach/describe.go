package attach

import (
	"bytes"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/proof"
)

// Describe returns what a bundle says of the signature of a payload, for people who look at it. It verifies nothing.
// names are those of people by their ids. It fails with Invalid for a bundle that cannot be read, or that is of another
// signature.
func Describe(b *proof.Bundle, payload string, names map[string]string) (*proof.Shown, error) {
	statement, err := approval.DecodeStatement(b.Statement)
	if err != nil {
		return nil, err
	}
	p := &statement.Predicate
	s := &proof.Shown{Request: p.Request, Log: p.Log, Repository: p.Repository, Reason: p.Reason, Index: -1}
	if p.Key != nil {
		s.Key = p.Key.Name
	}
	for _, one := range b.Entries {
		e, err := entry.Decode(one.Entry)
		if err != nil {
			return nil, failure.New(failure.Invalid, "cannot read an entry in the bundle of approvals: %w", err).
				WithHint("use the same version as the broker")
		}
		switch {
		case e.Type == entry.Requested:
			s.BreakGlass = e.Why != ""
		case e.Type == entry.Intended && e.Payload == payload:
			s.Rule = e.Rule
		case e.Type == entry.Signed && e.Payload == payload:
			s.Index, s.Signed = one.Index, e.At()
		}
	}
	if s.Index < 0 {
		return nil, failure.New(failure.Invalid, "the bundle of approvals is of another signature").
			WithHint("attach the bundle of the request that the image was signed with")
	}
	for _, data := range b.Approvals {
		if err := describeApproval(s, data, names); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// describeApproval adds who approved, or removes who has taken it back.
func describeApproval(s *proof.Shown, data []byte, names map[string]string) error {
	envelope, err := approval.DecodeEnvelope(data)
	if err != nil {
		return err
	}
	a, err := approval.Decode(envelope.Approval)
	if err != nil {
		return err
	}
	switch a.Decision {
	case approval.Approve:
		s.Approvers = append(s.Approvers, proof.Approver{ID: a.Approver, Name: names[a.Approver], Kind: kindOf(envelope),
			Time: a.Time, Reason: a.Reason})
	case approval.Withdraw, approval.Reject:
		s.Approvers = slices.DeleteFunc(s.Approvers, func(p proof.Approver) bool { return p.ID == a.Approver })
	}
	return nil
}

// kindOf returns the kind of the credential that an approval looks as if it were signed with.
func kindOf(e *approval.Envelope) approval.Kind {
	switch {
	case len(e.ClientData) > 0:
		return approval.Passkey
	case bytes.HasPrefix(e.Signature, []byte("-----BEGIN SSH SIGNATURE-----")):
		return approval.SSH
	}
	return approval.Key
}
