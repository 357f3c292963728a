package broker

import (
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// retryWindow is how long after a first signature the same artifact is signed again for the requester, without another
// use: a rerun of notation sign has other bytes, of another signing time.
const retryWindow = 15 * time.Minute

// request is what decides about a request. A grant is one whose needs are allowed.
type request struct {
	ID         string          `json:"id"`
	State      brokerapi.State `json:"state"`
	What       string          `json:"what,omitempty"`
	Key        string          `json:"key,omitempty"`
	Rule       string          `json:"rule,omitempty"` // name of the first one, or of the one that it was signed by
	Needs      []need          `json:"needs"`
	Targets    []target        `json:"targets,omitempty"`
	Uses       int64           `json:"uses"` // of each target
	Statement  string          `json:"statement,omitempty"`
	Payload    string          `json:"payload,omitempty"` // that is being signed
	Intent     int64           `json:"intent,omitempty"`  // index of the entry that says so
	Replica    int64           `json:"replica,omitempty"` // that has the module sign
	Votes      []vote          `json:"votes,omitempty"`   // approvals that stand, in the order of the log
	Seen       []string        `json:"seen,omitempty"`    // documents of decisions that were given, also those withdrawn
	Requester  string          `json:"requester"`
	Person     string          `json:"person,omitempty"` // id of the requester
	Same       []string        `json:"same,omitempty"`
	Caller     string          `json:"caller"`
	Policy     string          `json:"policy,omitempty"` // that is proposed
	Base       string          `json:"base,omitempty"`   // policy that the proposal changes
	Config     string          `json:"config,omitempty"`
	Credential string          `json:"credential,omitempty"` // that is added or removed
	Enrol      *credential     `json:"enrol,omitempty"`      // that is added
	Repository string          `json:"repository,omitempty"`
	Direct     bool            `json:"direct,omitempty"` // made by its first signature
	Bare       bool            `json:"bare,omitempty"`   // no checkpoint covered it at a start: it permits nothing
	Closed     bool            `json:"closed,omitempty"` // it does not count as open
	Created    time.Time       `json:"created"`
	NotAfter   int64           `json:"not_after,omitempty"`
	Entries    []int64         `json:"entries"`
}

// target is an artifact of a request.
type target struct {
	Subject   string    `json:"subject"`
	Count     int64     `json:"count,omitempty"`     // uses
	First     time.Time `json:"first,omitzero"`      // signature of the newest use
	Payload   string    `json:"payload,omitempty"`   // of the signature that was asked for last
	Signature string    `json:"signature,omitempty"` // of it
	Retry     bool      `json:"retry,omitempty"`     // it is no use of its own
}

// open reports whether a request can still be approved, used, cancelled and so on.
func (r *request) open() bool {
	return r.State == brokerapi.Pending || r.State == brokerapi.Approved
}

// of returns the target with a subject, and nil if the request has none.
func (r *request) of(subject string) *target {
	for i := range r.Targets {
		if r.Targets[i].Subject == subject {
			return &r.Targets[i]
		}
	}
	return nil
}

// signing returns the target whose payload is being signed or was signed last.
func (r *request) signing(payload string) *target {
	for i := range r.Targets {
		if r.Targets[i].Payload == payload && payload != "" {
			return &r.Targets[i]
		}
	}
	return nil
}

// usedUp reports whether no target can be signed again but as a retry.
func (r *request) usedUp() bool {
	return !slices.ContainsFunc(r.Targets, func(t target) bool { return t.Count < r.Uses })
}

// retries reports whether a target was signed a short while ago.
func (t *target) retries(now time.Time) bool {
	return !t.First.IsZero() && now.Sub(t.First) <= retryWindow
}

// begin adds a request.
func (s *state) begin(e *Event, index int64, now brokerapi.State) *request {
	r := &request{ID: e.Request, State: now, What: e.What, Key: e.Key, Rule: e.Rule, Needs: e.Needs, Uses: max(e.Uses, 1),
		Statement: e.Statement, Requester: e.Requester, Person: e.Person, Same: e.Same, Caller: e.Caller, Created: e.At(),
		NotAfter: e.NotAfter, Repository: e.Repository, Base: e.Base, Config: e.Config, Credential: e.Credential,
		Entries: []int64{index}}
	if r.What == ChangePolicy {
		r.Policy = e.Policy
	}
	if r.What == ChangeEnrol {
		r.Enrol = &credential{Person: e.Approver, Kind: approval.Kind(e.Kind), Attested: e.Attested, Device: e.Device,
			Public: e.Public}
	}
	for _, subject := range e.Subjects {
		r.Targets = append(r.Targets, target{Subject: subject})
	}
	s.Requests[r.ID] = r
	s.link(r)
	return r
}

// intend takes an intent to sign into account: the first of a request, or of a request that is signed again.
func (s *state) intend(e *Event, index int64, covered bool) {
	r := s.own(e.Request)
	if r == nil {
		r = s.begin(e, index, brokerapi.Signing)
		r.Direct, r.Closed, r.Bare = true, true, !covered
	} else {
		r.Entries = append(r.Entries, index)
		r.State, r.Rule = brokerapi.Signing, e.Rule
	}
	r.Payload, r.Intent, r.Replica = e.Payload, index, e.Replica
	if !e.Retry {
		w := s.Uses[e.Key+"\x00"+e.Rule]
		if w == nil {
			w = &window{}
			s.Uses[e.Key+"\x00"+e.Rule] = w
		}
		w.add(e.At())
	}
	for _, subject := range e.Subjects {
		if t := r.of(subject); t != nil {
			s.unlinkPayload(r, t)
			t.Payload, t.Retry = e.Payload, e.Retry
			if !e.Retry {
				t.Count++
				t.First = time.Time{}
			}
		}
	}
	s.link(r)
	s.countCaller(e)
}

// outcome takes the end of an intent into account.
func (s *state) outcome(e *Event, index int64) {
	if r := s.Requests[e.Request]; r == nil || r.State != brokerapi.Signing {
		return
	}
	r := s.own(e.Request)
	r.Entries = append(r.Entries, index)
	t := r.signing(e.Payload)
	r.Payload, r.Intent, r.Replica = "", 0, 0
	switch {
	case t == nil: // entries that no checkpoint covers can say anything
		s.end(r, brokerapi.Lost)
		return
	case e.Type == signed:
		if t.First.IsZero() {
			t.First = e.At()
		}
		t.Signature = e.Signature
	default:
		s.unlinkPayload(r, t)
		if !t.Retry { // the grant is as good as before
			t.Count--
		}
	}
	switch {
	case r.usedUp():
		s.close(r)
		r.State = brokerapi.Signed
	case e.Type != signed && r.Direct && e.Type == failed:
		s.end(r, brokerapi.Failed)
	case e.Type != signed && r.Direct:
		s.end(r, brokerapi.Lost)
	default:
		r.State = brokerapi.Approved
	}
}

// unlinkPayload has the same bytes signed anew when they are asked for again.
func (s *state) unlinkPayload(r *request, t *target) {
	if s.byPayload[r.Caller+t.Payload] == r {
		delete(s.byPayload, r.Caller+t.Payload)
	}
	t.Payload, t.Signature = "", ""
}

// settle ends a request whose wish is fulfilled.
func (s *state) settle(id string, index int64) {
	if r := s.own(id); r != nil {
		r.Entries = append(r.Entries, index)
		s.end(r, brokerapi.Signed)
	}
}

// end ends a request for ever.
func (s *state) end(r *request, as brokerapi.State) {
	s.close(r)
	r.State = as
	s.forget(r)
}

// close counts an open request off. One that was made by its first signature has waited for nobody.
func (s *state) close(r *request) {
	if r.Closed {
		return
	}
	r.Closed = true
	if s.Open[r.Caller]--; s.Open[r.Caller] <= 0 {
		delete(s.Open, r.Caller)
	}
}
