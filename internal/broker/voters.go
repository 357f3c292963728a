package broker

import (
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// credential is what decides about a credential of a person. Its document has the public key.
type credential struct {
	Person   string        `json:"person"` // id
	Kind     approval.Kind `json:"kind"`
	Attested bool          `json:"attested,omitempty"`
	Device   bool          `json:"device,omitempty"`  // it cannot leave its authenticator
	Public   string        `json:"public"`            // pseudonym of the public key
	Counter  int64         `json:"counter,omitempty"` // of the newest signature
	Enrolled time.Time     `json:"enrolled"`
	Index    int64         `json:"index"` // of the entry
}

// invitation lets a person enrol a passkey, once.
type invitation struct {
	Person string `json:"person"` // id
	Ends   int64  `json:"ends"`   // Unix time
	First  bool   `json:"first"`  // of the first approvers: the passkey counts without further approvals
}

// vote is an approval that stands.
type vote struct {
	Person     string    `json:"person"` // id
	Credential string    `json:"credential"`
	Envelope   string    `json:"envelope"` // sha256:HEX
	At         time.Time `json:"at"`
}

// enrol adds a credential.
func (s *state) enrol(e *Event, index int64) {
	s.ruleDocuments = nil
	s.Credentials[e.Credential] = &credential{Person: e.Approver, Kind: approval.Kind(e.Kind), Attested: e.Attested,
		Device: e.Device, Public: e.Public, Counter: e.Counter, Enrolled: e.At(), Index: index}
	delete(s.Invitations, e.Invitation)
	s.settle(e.Request, index)
}

// vote adds an approval to a request, or takes those of a person away.
func (s *state) vote(e *Event, index int64) {
	r := s.own(e.Request)
	if r == nil {
		return
	}
	r.Entries = append(r.Entries, index)
	r.Seen = append(slices.Clip(r.Seen), e.Signed)
	if c := s.Credentials[e.Credential]; c != nil && e.Counter > c.Counter {
		counted := *c
		counted.Counter = e.Counter
		s.Credentials[e.Credential] = &counted
	}
	switch e.Type {
	case approved:
		r.Votes = append(slices.Clip(r.Votes), vote{Person: e.Approver, Credential: e.Credential, Envelope: e.Approval,
			At: e.At()})
	case withdrawn:
		r.Votes = slices.DeleteFunc(slices.Clone(r.Votes), func(v vote) bool { return v.Person == e.Approver })
	case rejected:
		s.end(r, brokerapi.Rejected)
	}
}
