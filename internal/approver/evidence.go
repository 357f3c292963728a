// Package approver shows an approver what a request is before they sign: it verifies the evidence that a broker gives
// of a request, fetches the artifacts from their registry, and puts both into words. It believes a broker in nothing
// that the statement or the registry says otherwise.
package approver

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// Seen is a request as its evidence shows it.
type Seen struct {
	*approval.Agreement

	ID        string            // of the request
	Hash      string            // of the statement: what is signed
	Requester *approval.Opening // as the statement commits to it
	// Before and After are the policy in force when the request was made and the proposed one; nil unless it proposes one.
	Before, After *policy.Policy
	Config        []byte               // that is proposed, as JSON; nil for none
	Credential    *approval.Credential // that is added or removed; nil for none
	You           string               // id of the caller; "" for one who cannot approve

	erased      string // what the broker does not show any more; "" if it shows all
	rules       []*approval.Rule
	credentials map[string]*approval.Credential
	names       map[string]string // by id, as the rules name people
}

// Read verifies the evidence of a request: who agreed, as approval.Verify does, that the opening is that of the
// requester's commitment, and that each other document has the hash by which the statement names it. broker is the URL
// that the statement has to name; "" for any. It fails with Denied for evidence that does not hold together.
func Read(e *brokerapi.Evidence, id, broker string) (*Seen, error) {
	s := &Seen{ID: id, Hash: approval.Hash(e.Statement), You: e.You, names: map[string]string{},
		credentials: map[string]*approval.Credential{}}
	var err error
	s.Agreement, err = approval.Verify(approval.Evidence{Statement: e.Statement, Rules: e.Rules,
		Credentials: e.Credentials,
		Approvals:   e.Approvals})
	if err != nil {
		return nil, s.refuse(err)
	}
	p := s.Statement.Predicate
	switch {
	case p.Request != id:
		return nil, s.refuse(fmt.Errorf("the statement is of request %.50q", p.Request))
	case broker != "" && p.Broker != broker:
		return nil, failure.New(failure.Denied, "cannot trust the evidence of request %s: the statement is of the broker "+
			"%.100q, not of %s", id, p.Broker, broker).WithHint("name the broker by its public-url, if that is " + p.Broker)
	}
	for _, read := range []func(*brokerapi.Evidence) error{s.checkSubjects, s.readRequester, s.readRules,
		s.readCredentials,
		s.readChange} {
		if err := read(e); err != nil {
			return nil, s.refuse(err)
		}
	}
	return s, nil
}

func (s *Seen) refuse(err error) error {
	return failure.New(failure.Denied, "cannot trust the evidence of request %s: %w", s.ID, err).
		WithHint("do not approve it, and tell the operators of the broker")
}

// checkSubjects checks that the subjects of the statement are its targets.
func (s *Seen) checkSubjects(*brokerapi.Evidence) error {
	p := s.Statement.Predicate
	if (p.Change == nil) == (len(p.Targets) == 0) {
		return fmt.Errorf("it is for %d artifacts, and for a change: %t", len(p.Targets), p.Change != nil)
	}
	if p.Change != nil {
		return nil
	}
	if len(s.Statement.Subjects) != len(p.Targets) {
		return fmt.Errorf("the statement has %d subjects for %d artifacts", len(s.Statement.Subjects), len(p.Targets))
	}
	for i, t := range p.Targets {
		named := s.subject(i)
		if named == "" || t.Digest != "" && named != t.Digest {
			return fmt.Errorf("subject %d of the statement is not the artifact %.150q", i+1, t.Digest)
		}
	}
	return nil
}

// subject returns the digest of a subject of the statement, or "" unless it has one.
func (s *Seen) subject(i int) string {
	all := s.Statement.Subjects[i].Digest
	for algorithm, hex := range all {
		if len(all) == 1 {
			return algorithm + ":" + hex
		}
	}
	return ""
}

// readRequester opens the commitment to the requester.
func (s *Seen) readRequester(e *brokerapi.Evidence) error {
	if len(e.Opening) == 0 {
		s.erased, s.Requester = "who asked", &approval.Opening{}
		return nil
	}
	if approval.Hash(e.Opening) != s.Statement.Predicate.Requester.Commitment {
		return fmt.Errorf("the requester that it names is not that of the statement")
	}
	s.Requester = &approval.Opening{}
	if err := json.Unmarshal(e.Opening, s.Requester); err != nil {
		return fmt.Errorf("cannot read the requester: %w", err)
	}
	if again, err := s.Requester.Encode(); err != nil || string(again) != string(e.Opening) {
		return fmt.Errorf("cannot read the requester: it is not in its canonical form")
	}
	return nil
}

// readRules reads the names of the people of the rules, which approval.Verify has verified. A rule is what its names
// demand, with ids for names: who approves is shown the people whose ids the rule has.
func (s *Seen) readRules(e *brokerapi.Evidence) error {
	for _, n := range s.Needs {
		for _, a := range n.Alternatives {
			s.rules = append(s.rules, a.Rule)
			data, exists := e.Names[a.Rule.Names]
			if !exists {
				s.erased = "the names of the people of rule " + a.Name
				continue
			}
			names, err := a.Rule.Open(data)
			if err != nil {
				return err
			}
			for id, name := range names.People {
				if other, known := s.names[id]; known && other != name {
					return fmt.Errorf("the rules name one person %.50q and %.50q", other, name)
				}
				s.names[id] = name
			}
		}
	}
	return nil
}

func (s *Seen) readCredentials(e *brokerapi.Evidence) error {
	for id, data := range e.Credentials {
		c, err := readCredential(id, data)
		if err != nil {
			return err
		}
		s.credentials[id] = c
	}
	return nil
}

func readCredential(id string, data []byte) (*approval.Credential, error) {
	if approval.Hash(data) != id {
		return nil, fmt.Errorf("the credential %.80s is another one", id)
	}
	return approval.DecodeCredential(data)
}

// changes are what a request can change.
var changes = []string{"policy", "config", "block", "unblock", "epoch", "enrol", "remove"}

// readChange reads what the request changes.
func (s *Seen) readChange(e *brokerapi.Evidence) error {
	change := s.Statement.Predicate.Change
	if change == nil {
		return nil
	}
	document := func(what, hash string) ([]byte, error) {
		data, exists := e.Documents[hash]
		if !exists || approval.Hash(data) != hash {
			return nil, fmt.Errorf("the %s %.80s is missing", what, hash)
		}
		return data, nil
	}
	parse := func(what, hash string) (*policy.Policy, error) {
		data, err := document(what, hash)
		if err != nil {
			return nil, err
		}
		return policy.Parse(data)
	}
	if !slices.Contains(changes, change.What) {
		return fmt.Errorf("it is for the change %.40q, which this version does not know", change.What)
	}
	var err error
	if change.Policy != "" {
		if err := s.readPolicies(e, parse); err != nil {
			return err
		}
	}
	if change.Config != "" {
		if s.Config, err = document("proposed config", change.Config); err != nil {
			return err
		}
	}
	if change.Credential != "" {
		data, err := document("credential", change.Credential)
		if err != nil {
			return err
		}
		if s.Credential, err = readCredential(change.Credential, data); err != nil {
			return err
		}
	}
	return nil
}

// readPolicies reads the policy in force and the proposed one.
func (s *Seen) readPolicies(e *brokerapi.Evidence, parse func(what, hash string) (*policy.Policy, error)) (err error) {
	before, after := s.Statement.Predicate.Policy, s.Statement.Predicate.Change.Policy
	if e.Documents[before] == nil || e.Documents[after] == nil {
		s.erased = "a policy"
		return nil
	}
	if s.Before, err = parse("policy in force", before); err != nil {
		return err
	}
	if s.After, err = parse("proposed policy", after); err != nil {
		return err
	}
	return s.checkModify()
}

// checkModify checks that a proposed policy needs all rules for modify that the policy in force demands for it.
func (s *Seen) checkModify() error {
	for _, key := range policy.Compare(s.Before, s.After).Modify {
		if !slices.ContainsFunc(s.Needs, func(o approval.Outcome) bool {
			return o.Need.Action == string(policy.Modify) && o.Need.Key == key
		}) {
			return fmt.Errorf("it lacks the rules for modify of %s, which the policy changes", orText(key, "the top level"))
		}
	}
	return nil
}

// Name returns the name of a person, as the rules have it, or else the beginning of the id.
func (s *Seen) Name(id string) string {
	if name := s.names[id]; name != "" {
		return name
	}
	return fmt.Sprintf("the person %.20q", id)
}

// Mine returns the id of the credential with a public key, of the person whom the broker takes the caller for. It fails
// with NotFound if the caller has no such credential, and with Denied if the caller is no person, if no rule of the
// request lists the credential, or, for an approval, if none counts its kind.
func (s *Seen) Mine(kind approval.Kind, public []byte, decision approval.Decision) (string, error) {
	if s.You == "" {
		return "", failure.New(failure.Denied, "cannot decide about request %s: the caller is no person of the policy", s.ID).
			WithHint("name the broker by its https URL, to sign in with the key")
	}
	if s.erased != "" && decision == approval.Approve {
		return "", failure.New(failure.Denied, "cannot approve request %s: the broker does not show %s", s.ID, s.erased).
			WithHint("have the request made again: names are erased of requests that have ended")
	}
	for id, c := range s.credentials {
		if c.Approver != s.You || c.Kind != kind || string(c.Public) != string(public) {
			continue
		}
		if !slices.ContainsFunc(s.rules, func(r *approval.Rule) bool { return r.Has(s.You, id) }) {
			return "", failure.New(failure.Denied, "cannot decide about request %s: no rule of it lists this key", s.ID).
				WithHint("have somebody decide whom it asks; a key counts for requests that are made after its enrolment")
		}
		if decision == approval.Approve && !s.counts(c.Vote()) {
			return "", failure.New(failure.Denied, "cannot approve request %s: its rules do not count keys of kind %s", s.ID,
				kind).WithHint("approve with another credential")
		}
		return id, nil
	}
	return "", failure.New(failure.NotFound, "cannot decide about request %s: this key is not enrolled for the caller",
		s.ID).
		WithHint("enrol it with 'hsm-broker approver add'; see 'hsm-broker approver list'")
}

// counts reports whether a group of a rule counts a vote.
func (s *Seen) counts(v approval.Vote) bool {
	for _, n := range s.Needs {
		for _, a := range n.Alternatives {
			if slices.ContainsFunc(a.Groups, func(g approval.Group) bool { return g.Counts(v) }) {
				return true
			}
		}
	}
	return false
}
