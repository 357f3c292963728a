package approval

import (
	"errors"
	"fmt"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Bounds of the evidence of one request.
const (
	maxEnvelopes = 4096
	maxNeeds     = 1000 // the rules of all needs together
)

// Evidence is all that shows who agreed to a request. Documents are in their encoding.
type Evidence struct {
	Statement   []byte
	Rules       map[string][]byte // by sha256:HEX
	Credentials map[string][]byte // by sha256:HEX
	Approvals   [][]byte          // envelopes, in the order in which the broker got them
	// Counts reports whether approvals by a credential count, which has the name sha256:HEX: not those of one that was
	// removed. Nil means that all count.
	Counts func(credential string) bool
	// Never are the ids of people whose approvals never count: the requester's.
	Never []string
}

// Agreement is who agreed to a request, as their signatures show.
type Agreement struct {
	Statement *Statement
	Decisions []Decided // that stand, in the order of the evidence: a withdrawal takes all earlier ones of its person
	Needs     []Outcome // in the order of the statement
	Rejected  bool      // someone has refused, which ends a request
}

// Decided is a decision of a person whose signature has verified.
type Decided struct {
	*Approval
	Credential *Credential
	Hash       string // sha256:HEX of the credential
	// Why says why it counts for no rule; "" for an approval that counts for those rules that list its credential.
	Why string
}

// Outcome is a need, and what its alternatives lack.
type Outcome struct {
	Need         Need
	Alternatives []Alternative // in the order of the need's rules
}

// Alternative is a rule, and what it lacks.
type Alternative struct {
	Name    string // of the rule, for information
	Rule    *Rule
	Groups  []Group
	Lacking []int // people, by group
}

// Agreed reports whether enough people have agreed to one rule. A time lock, a timeout and a limit are no matter of
// signatures, and the broker's to see to.
func (a *Alternative) Agreed() bool {
	return !slices.ContainsFunc(a.Lacking, func(n int) bool { return n > 0 })
}

// Agreed reports whether enough people have agreed to one of the rules.
func (o *Outcome) Agreed() bool {
	return slices.ContainsFunc(o.Alternatives, func(a Alternative) bool { return a.Agreed() })
}

// Agreed reports whether enough people have agreed to each need, and nobody has refused.
func (a *Agreement) Agreed() bool {
	return !a.Rejected && len(a.Needs) > 0 && !slices.ContainsFunc(a.Needs, func(o Outcome) bool { return !o.Agreed() })
}

// Verify returns who agreed to a request. It needs no server, and believes nothing but signatures: it verifies that
// each document has its name, that each envelope is signed for this statement by a credential that a rule of it lists
// for that person, and that no approval is there twice. It fails for evidence of which anything is missing or wrong.
//
// What it cannot see is what is left out: a withdrawal that the evidence lacks, and the removal of a credential, which
// Counts tells. The log of the broker has both.
func Verify(e Evidence) (*Agreement, error) {
	statement, err := DecodeStatement(e.Statement)
	if err != nil {
		return nil, err
	}
	rules, err := e.rules(statement)
	if err != nil {
		return nil, err
	}
	a := &Agreement{Statement: statement}
	if err := a.decide(e, rules); err != nil {
		return nil, err
	}
	for _, need := range statement.Predicate.Needs {
		outcome := Outcome{Need: need}
		for _, ref := range need.Rules {
			rule := rules[ref.Digest]
			outcome.Alternatives = append(outcome.Alternatives, Alternative{Name: ref.Name, Rule: rule.rule,
				Groups: rule.groups, Lacking: Lacking(rule.groups, a.votes(rule))})
		}
		a.Needs = append(a.Needs, outcome)
	}
	return a, nil
}

// ruleRead is a rule document that was read.
type ruleRead struct {
	rule   *Rule
	groups []Group
	listed map[listing]bool
}

// listing is a credential of a person that a rule lists.
type listing struct{ person, credential string }

// rules reads the rules of a statement, by their names.
func (e *Evidence) rules(s *Statement) (map[string]*ruleRead, error) {
	rules, count := map[string]*ruleRead{}, 0
	for _, need := range s.Predicate.Needs {
		for _, ref := range need.Rules {
			if count++; count > maxNeeds {
				return nil, wrong(fmt.Errorf("its statement has more than %d rules", maxNeeds))
			}
			if rules[ref.Digest] != nil {
				continue
			}
			data, err := document(e.Rules, ref.Digest, "rule")
			if err != nil {
				return nil, err
			}
			rule, groups, err := DecodeRule(data)
			if err != nil {
				return nil, err
			}
			if rule.Action != need.Action {
				return nil, wrong(fmt.Errorf("a rule for %.40q is an alternative for %.40q", rule.Action, need.Action))
			}
			read := &ruleRead{rule, groups, map[listing]bool{}}
			for _, m := range rule.Members {
				for _, c := range m.Credentials {
					read.listed[listing{m.ID, c}] = true
				}
			}
			rules[ref.Digest] = read
		}
	}
	return rules, nil
}

// decide verifies the envelopes, and keeps the decisions that stand.
func (a *Agreement) decide(e Evidence, rules map[string]*ruleRead) error {
	if len(e.Approvals) > maxEnvelopes {
		return wrong(fmt.Errorf("it has more than %d approvals", maxEnvelopes))
	}
	statement := Hash(e.Statement)
	seen := map[string]bool{}
	credentials := map[string]*Credential{}
	for _, data := range e.Approvals {
		envelope, err := DecodeEnvelope(data)
		if err != nil {
			return err
		}
		credential := credentials[envelope.Credential]
		if credential == nil {
			encoded, err := document(e.Credentials, envelope.Credential, "credential")
			if err != nil {
				return err
			}
			if credential, err = DecodeCredential(encoded); err != nil {
				return err
			}
			credentials[envelope.Credential] = credential
		}
		decision, err := envelope.Verify(credential)
		if err != nil {
			return err
		}
		listed := false
		for _, rule := range rules {
			listed = listed || rule.listed[listing{decision.Approver, envelope.Credential}]
		}
		switch name := Hash(envelope.Approval); {
		case decision.Statement != statement:
			return wrong(errors.New("an approval is of another statement"))
		case seen[name]:
			return wrong(errors.New("an approval is there twice"))
		case !listed:
			return wrong(errors.New("no rule of the statement lists the credential of an approval for its person"))
		default:
			seen[name] = true
		}
		a.add(Decided{Approval: decision, Credential: credential, Hash: envelope.Credential}, e)
	}
	return nil
}

// add adds a decision. Several approvals of one person stand beside each other: they can be by credentials of different
// kinds, and the person counts once in a rule whatever they are.
func (a *Agreement) add(d Decided, e Evidence) {
	switch {
	case d.Decision == Withdraw:
		a.Decisions = slices.DeleteFunc(a.Decisions, func(other Decided) bool { return other.Approver == d.Approver })
		return
	case d.Decision == Reject:
		d.Why, a.Rejected = "it is a rejection", true
	case slices.Contains(e.Never, d.Approver):
		d.Why = "it is of the requester"
	case e.Counts != nil && !e.Counts(d.Hash):
		d.Why = "its credential was removed"
	}
	a.Decisions = append(a.Decisions, d)
}

// votes returns the decisions that count for a rule: those by credentials that it lists.
func (a *Agreement) votes(r *ruleRead) []Vote {
	var votes []Vote
	for _, d := range a.Decisions {
		if d.Why == "" && r.listed[listing{d.Approver, d.Hash}] {
			votes = append(votes, d.Credential.Vote())
		}
	}
	return votes
}

// document returns the document with a name, which is verified.
func document(documents map[string][]byte, name, what string) ([]byte, error) {
	data, exists := documents[name]
	switch {
	case !exists:
		return nil, wrong(fmt.Errorf("the %s %.80q is missing", what, name))
	case Hash(data) != name:
		return nil, wrong(fmt.Errorf("the %s %.80q has another SHA-256", what, name))
	}
	return data, nil
}

// wrong is the failure of evidence that does not hold together.
func wrong(err error) error {
	return failure.New(failure.Denied, "cannot verify who agreed: %w", err).
		WithHint("get the evidence of the request from the broker again")
}
