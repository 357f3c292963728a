package broker

import (
	"maps"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// retryWindow is how long after its first signature a request is signed again for its requester: a rerun of notation
// sign has other bytes, of another signing time.
const retryWindow = 15 * time.Minute

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

	callerPeriod time.Duration // of the limit of requests of a caller

	byPayload   map[string]*request            // by caller and payload
	byStatement map[string]map[string]*request // by statement, then by ID
	swept       time.Time
}

// request is what decides about a request.
type request struct {
	ID         string          `json:"id"`
	State      brokerapi.State `json:"state"`
	What       string          `json:"what,omitempty"`
	Key        string          `json:"key,omitempty"`
	Rule       string          `json:"rule,omitempty"`
	RuleDigest string          `json:"rule_digest,omitempty"`
	Statement  string          `json:"statement,omitempty"`
	Requester  string          `json:"requester"`
	Same       []string        `json:"same,omitempty"`
	Caller     string          `json:"caller"`
	Payload    string          `json:"payload,omitempty"` // of the signature that was asked for last
	Signature  string          `json:"signature,omitempty"`
	Policy     string          `json:"policy,omitempty"` // that is proposed
	Config     string          `json:"config,omitempty"`
	Repository string          `json:"repository,omitempty"`
	Direct     bool            `json:"direct,omitempty"` // made by its first signature
	Bare       bool            `json:"bare,omitempty"`   // no checkpoint covered it at a start: it permits nothing
	Created    time.Time       `json:"created"`
	First      time.Time       `json:"first,omitzero"` // of the first signature
	NotBefore  int64           `json:"not_before,omitempty"`
	NotAfter   int64           `json:"not_after,omitempty"`
	Entries    []int64         `json:"entries"`
}

// token is a token that callers have used.
type token struct {
	Ends    int64           `json:"ends"` // Unix time
	Triples map[string]bool `json:"triples"`
}

func newState(callerPeriod time.Duration) *state {
	s := &state{callerPeriod: callerPeriod, Blocked: map[string]time.Time{},
		Requests: map[string]*request{}, Tokens: map[string]*token{},
		Uses: map[string]*window{}, Callers: map[string]*window{}, Open: map[string]int{}}
	s.index()
	return s
}

// index makes what is not in snapshots.
func (s *state) index() {
	s.byPayload, s.byStatement = map[string]*request{}, map[string]map[string]*request{}
	for _, r := range s.Requests {
		s.link(r)
	}
}

func (s *state) link(r *request) {
	if r.Payload != "" {
		s.byPayload[r.Caller+r.Payload] = r
	}
	if r.Statement != "" {
		of := s.byStatement[r.Statement]
		if of == nil {
			of = map[string]*request{}
			s.byStatement[r.Statement] = of
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
	s.Requests[id] = &r
	if s.byPayload[r.Caller+r.Payload] == old {
		s.byPayload[r.Caller+r.Payload] = &r
	}
	if r.Statement != "" {
		s.byStatement[r.Statement][id] = &r
	}
	return &r
}

// clone returns a copy that does not change, to be encoded while the state goes on.
func (s *state) clone() *state {
	c := *s
	c.byPayload, c.byStatement = nil, nil
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
	if s.byPayload[r.Caller+r.Payload] == r {
		delete(s.byPayload, r.Caller+r.Payload)
	}
	if of := s.byStatement[r.Statement]; of != nil {
		if delete(of, r.ID); len(of) == 0 {
			delete(s.byStatement, r.Statement)
		}
	}
}

// apply takes an entry into account. covered tells whether a signed checkpoint covered it.
func (s *state) apply(e *Event, covered bool) {
	index, at := s.Size, e.at()
	s.Size++
	if at.After(s.Last) {
		s.Last = at
	}
	switch e.Type {
	case opened:
		s.Policy, s.Config, s.Epoch = e.Policy, e.Config, 1
		s.Since, s.Index = at, index
	case policySet:
		s.Policy, s.Since, s.Index = e.Policy, at, index
		s.settle(e.Request, index)
	case configSet:
		s.Config = e.Config
		s.settle(e.Request, index)
	case epochBegun:
		s.Epoch = e.Epoch
		s.settle(e.Request, index)
		for id, r := range s.Requests { // open grants expire
			if r.State == brokerapi.Pending || r.State == brokerapi.Approved || r.State == brokerapi.Signed {
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
		r.What, r.Policy, r.Config, r.Bare = e.What, e.Policy, e.Config, !covered
		s.Open[r.Caller]++
		s.countCaller(e)
	case intended:
		s.intend(e, index, covered)
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

// begin adds a request.
func (s *state) begin(e *Event, index int64, now brokerapi.State) *request {
	r := &request{ID: e.Request, State: now, Key: e.Key, Rule: e.Rule, RuleDigest: e.RuleDigest, Statement: e.Statement,
		Requester: e.Requester, Same: e.Same, Caller: e.Caller, Created: e.at(), NotBefore: e.NotBefore,
		NotAfter: e.NotAfter, Repository: e.Repository, Entries: []int64{index}}
	s.Requests[r.ID] = r
	s.link(r)
	return r
}

// intend takes an intent to sign into account: the first of a request, or of a request that is signed again.
func (s *state) intend(e *Event, index int64, covered bool) {
	r := s.own(e.Request)
	if r == nil {
		r = s.begin(e, index, brokerapi.Signing)
		r.Direct, r.Bare = true, !covered
	} else {
		r.Entries = append(r.Entries, index)
		r.Bare = r.Bare || !covered && r.State == brokerapi.Pending // only who decides knows that it waits no more
		r.State = brokerapi.Signing
	}
	if !e.Retry {
		w := s.Uses[e.Key+"\x00"+e.Rule]
		if w == nil {
			w = &window{}
			s.Uses[e.Key+"\x00"+e.Rule] = w
		}
		w.add(e.at())
	}
	r.Payload = e.Payload
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
	switch {
	case e.Type == signed:
		if r.First.IsZero() {
			r.First = e.at()
			s.close(r)
		}
		r.State, r.Signature = brokerapi.Signed, e.Signature
	case !r.First.IsZero(): // another signature failed
		r.State = brokerapi.Signed
		s.unlinkPayload(r)
	case r.Direct && e.Type == failed:
		s.end(r, brokerapi.Failed)
	case r.Direct:
		s.end(r, brokerapi.Lost)
	default: // the grant is as good as before
		r.State = brokerapi.Approved
		s.unlinkPayload(r)
	}
}

// unlinkPayload has the same bytes signed anew when they are asked for again.
func (s *state) unlinkPayload(r *request) {
	delete(s.byPayload, r.Caller+r.Payload)
	r.Payload, r.Signature = "", ""
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
	if r.First.IsZero() {
		s.close(r)
	}
	r.State = as
	s.forget(r)
}

// close counts an open request off. One that was made by its first signature has waited for nobody.
func (s *state) close(r *request) {
	if r.Direct {
		return
	}
	if s.Open[r.Caller]--; s.Open[r.Caller] <= 0 {
		delete(s.Open, r.Caller)
	}
}

// countCaller counts a request of a caller, and the use of its token.
func (s *state) countCaller(e *Event) {
	w := s.Callers[e.Caller]
	if w == nil {
		w = &window{}
		s.Callers[e.Caller] = w
	}
	w.add(e.at())
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
	return e.Key + " " + e.Statement + e.Policy + e.Config + e.What
}

// sweep forgets, once in a minute, what decides nothing any more: it is cheap, as it is seldom.
func (s *state) sweep() {
	if s.Last.Sub(s.swept) < sweepInterval {
		return
	}
	s.swept = s.Last
	for _, r := range s.Requests {
		if r.State == brokerapi.Signed && s.Last.Sub(r.First) > retryWindow {
			s.forget(r)
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
