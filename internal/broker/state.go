package broker

import (
	"maps"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// state is what the entries of the log add up to. Everything in it is derived from them. It is encoded as JSON in
// snapshots.
type state struct {
	Size     int64                `json:"size"` // entries that are in it
	Last     time.Time            `json:"last"` // of the newest entry
	Epoch    int64                `json:"epoch"`
	Policy   string               `json:"policy"` // sha256:HEX
	Since    time.Time            `json:"since"`  // of the policy
	Index    int64                `json:"index"`  // of the policy's entry
	Config   string               `json:"config"`
	Blocked  map[string]time.Time `json:"blocked"`  // by key
	Requests map[string]*request  `json:"requests"` // by ID: those that are open, or that can be signed again
	Tokens   map[string]*token    `json:"tokens"`   // by sha256:HEX, until they expire
	Uses     map[string]*window   `json:"uses"`     // by key and rule
	Callers  map[string]*window   `json:"callers"`  // requests by caller
	Open     map[string]int       `json:"open"`     // open requests by caller

	Credentials map[string]*credential `json:"credentials"` // by sha256:HEX: those that are enrolled
	Removed     map[string]string      `json:"removed"`     // ids of people by sha256:HEX of credentials that were removed
	Invitations map[string]*invitation `json:"invitations"` // by sha256:HEX of the token, until they are used or expire

	callerPeriod time.Duration // of the limit of requests of a caller

	byPayload map[string]*request            // by caller and payload
	bySubject map[string]map[string]*request // by subject, then by ID
	changes   map[string]bool                // IDs of requests that change something
	swept     time.Time

	ruleDocuments map[*policy.Rule]ruleDocument // made since a credential or the policy has changed
}

// ruleDocument is a rule with the credentials of its members, and its names.
type ruleDocument struct {
	data   []byte
	names  []byte
	digest string // sha256:HEX
}

// token is a token that callers have used.
type token struct {
	Ends    int64           `json:"ends"` // Unix time
	Triples map[string]bool `json:"triples"`
}

func newState(callerPeriod time.Duration) *state {
	s := &state{callerPeriod: callerPeriod, Blocked: map[string]time.Time{},
		Requests: map[string]*request{}, Tokens: map[string]*token{},
		Uses: map[string]*window{}, Callers: map[string]*window{}, Open: map[string]int{},
		Credentials: map[string]*credential{}, Removed: map[string]string{}, Invitations: map[string]*invitation{}}
	s.index()
	return s
}

// index makes what is not in snapshots.
func (s *state) index() {
	s.byPayload, s.bySubject = map[string]*request{}, map[string]map[string]*request{}
	s.changes = map[string]bool{}
	for _, r := range s.Requests {
		s.link(r)
	}
}

func (s *state) link(r *request) {
	if r.What != "" {
		s.changes[r.ID] = true
	}
	for i := range r.Targets {
		t := &r.Targets[i]
		if t.Payload != "" {
			s.byPayload[r.Caller+t.Payload] = r
		}
		of := s.bySubject[t.Subject]
		if of == nil {
			of = map[string]*request{}
			s.bySubject[t.Subject] = of
		}
		of[r.ID] = r
	}
}

// own returns a request to be changed: a copy in the place of the one that a snapshot may have.
func (s *state) own(id string) *request {
	old := s.Requests[id]
	if old == nil {
		return nil
	}
	r := *old
	r.Targets = slices.Clone(r.Targets)
	s.Requests[id] = &r
	for i := range r.Targets {
		t := &r.Targets[i]
		if s.byPayload[r.Caller+t.Payload] == old {
			s.byPayload[r.Caller+t.Payload] = &r
		}
		s.bySubject[t.Subject][id] = &r
	}
	return &r
}

// clone returns a copy that does not change, to be encoded while the state goes on.
func (s *state) clone() *state {
	c := *s
	c.byPayload, c.bySubject, c.changes = nil, nil, nil
	c.Credentials, c.Invitations = maps.Clone(s.Credentials), maps.Clone(s.Invitations)
	c.Removed = maps.Clone(s.Removed)
	c.Blocked, c.Requests, c.Tokens = maps.Clone(s.Blocked), maps.Clone(s.Requests), maps.Clone(s.Tokens)
	c.Open, c.Uses, c.Callers = maps.Clone(s.Open), map[string]*window{}, map[string]*window{}
	for name, w := range s.Uses {
		c.Uses[name] = w.clone()
	}
	for name, w := range s.Callers {
		c.Callers[name] = w.clone()
	}
	return &c
}

// forget drops a request about which nothing is decided any more.
func (s *state) forget(r *request) {
	delete(s.Requests, r.ID)
	delete(s.changes, r.ID)
	for i := range r.Targets {
		t := &r.Targets[i]
		if s.byPayload[r.Caller+t.Payload] == r {
			delete(s.byPayload, r.Caller+t.Payload)
		}
		if of := s.bySubject[t.Subject]; of != nil {
			if delete(of, r.ID); len(of) == 0 {
				delete(s.bySubject, t.Subject)
			}
		}
	}
}

// apply takes an entry into account. covered tells whether a signed checkpoint covered it.
func (s *state) apply(e *Event, covered bool) {
	index, at := s.Size, e.At()
	s.Size++
	if at.After(s.Last) {
		s.Last = at
	}
	switch e.Type {
	case opened:
		s.Policy, s.Config, s.Epoch = e.Policy, e.Config, 1
		s.Since, s.Index = at, index
	case policySet:
		s.Policy, s.Since, s.Index, s.ruleDocuments = e.Policy, at, index, nil
		s.settle(e.Request, index)
	case configSet:
		s.Config = e.Config
		s.settle(e.Request, index)
	case epochBegun:
		s.Epoch = e.Epoch
		s.settle(e.Request, index)
		for id, r := range s.Requests { // open grants expire
			if r.open() || r.State == brokerapi.Signed {
				s.end(s.own(id), brokerapi.Expired)
			}
		}
	case blocked:
		s.Blocked[e.Key] = at
		s.settle(e.Request, index)
	case unblocked:
		delete(s.Blocked, e.Key)
		s.settle(e.Request, index)
	case requested:
		r := s.begin(e, index, brokerapi.State(e.State))
		r.Bare = !covered
		delete(s.Invitations, e.Invitation)
		s.Open[r.Caller]++
		s.countCaller(e)
	case intended:
		s.intend(e, index, covered)
	case approved, withdrawn, rejected:
		s.vote(e, index)
	case enrolled:
		s.enrol(e, index)
	case removed:
		s.ruleDocuments = nil
		if c := s.Credentials[e.Credential]; c != nil {
			s.Removed[e.Credential] = c.Person
		}
		delete(s.Credentials, e.Credential)
		s.settle(e.Request, index)
	case invited:
		s.Invitations[e.Invitation] = &invitation{Person: e.Approver, Ends: e.NotAfter, First: e.State != ""}
	case signed, failed, lost:
		s.outcome(e, index)
	case ended:
		if r := s.own(e.Request); r != nil {
			r.Entries = append(r.Entries, index)
			s.end(r, brokerapi.State(e.State))
		}
	}
	s.sweep()
}

// countCaller counts a request of a caller, and the use of its token.
func (s *state) countCaller(e *Event) {
	w := s.Callers[e.Caller]
	if w == nil {
		w = &window{}
		s.Callers[e.Caller] = w
	}
	w.add(e.At())
	if e.Token == "" {
		return
	}
	t := &token{Ends: e.TokenEnds, Triples: map[string]bool{}}
	if old := s.Tokens[e.Token]; old != nil {
		t = &token{Ends: old.Ends, Triples: maps.Clone(old.Triples)}
	}
	t.Triples[triple(e)] = true
	s.Tokens[e.Token] = t
}

// triple names what a token was used for: a key, and the payload or statement.
func triple(e *Event) string {
	if e.Payload != "" {
		return e.Key + " " + e.Payload
	}
	subject := ""
	if len(e.Subjects) > 0 {
		subject = e.Subjects[0]
	}
	return e.Key + " " + subject + e.Policy + e.Config + e.Credential + e.What
}

// sweep forgets, once in a minute, what decides nothing any more: it is cheap, as it is seldom.
func (s *state) sweep() {
	if s.Last.Sub(s.swept) < sweepInterval {
		return
	}
	s.swept = s.Last
	for _, r := range s.Requests {
		if r.State == brokerapi.Signed && !slices.ContainsFunc(r.Targets, func(t target) bool { return t.retries(s.Last) }) {
			s.forget(r)
		}
	}
	for id, i := range s.Invitations {
		if s.Last.Unix() > i.Ends {
			delete(s.Invitations, id)
		}
	}
	for id, t := range s.Tokens {
		if s.Last.Unix() > t.Ends+tokenGrace {
			delete(s.Tokens, id)
		}
	}
	forgetIdle(s.Uses, s.Last, maxPeriod*time.Second)
	forgetIdle(s.Callers, s.Last, s.callerPeriod) // each job can be a caller of its own
}

func forgetIdle(windows map[string]*window, now time.Time, period time.Duration) {
	for name, w := range windows {
		if w.idle(now, period) {
			delete(windows, name)
		}
	}
}

const (
	sweepInterval = time.Minute
	tokenGrace    = 300 // seconds that a token is remembered after it has expired: clocks differ
)
