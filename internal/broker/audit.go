package broker

import (
	"fmt"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Audit checks the entries of a broker's log in their order, as anyone can who has the log: that every use of a key has
// an intent before it and one outcome, that a policy of the log allowed it, that its key was not blocked, and that
// approvals are of requests that were open, by credentials that were enrolled.
type Audit struct {
	next     int64
	policies map[string]bool
	blocked  map[string]bool
	intents  map[string]string // payload by request: intents without an outcome
	asked    map[string]string // statement by request: open requests that people have to agree to
	enrolled map[string]string // person by credential
	made     []madeChange
	Uses     map[string]int64 // signatures by key; those that are lost count as well
}

// madeChange is a change whose request is open again if its entry becomes void.
type madeChange struct {
	index              int64
	request, statement string
}

// NewAudit returns an Audit of a log from its first entry.
func NewAudit() *Audit {
	return &Audit{policies: map[string]bool{}, blocked: map[string]bool{}, intents: map[string]string{},
		asked: map[string]string{}, enrolled: map[string]string{}, Uses: map[string]int64{}}
}

// Entry checks the next entry. It fails with Conflict for one that no broker logs.
func (a *Audit) Entry(index int64, entry []byte) error {
	e, err := decodeEvent(entry)
	if err == nil {
		err = a.check(index, e)
	}
	if err != nil {
		return failure.New(failure.Conflict, "entry %d of the log is not one that a broker logs: %w", index, err).
			WithHint("keep this copy of the log: the broker, or who has its log's key, misbehaved")
	}
	a.next++
	return nil
}

func (a *Audit) check(index int64, e *Event) error {
	if index != a.next || (index == 0) != (e.Type == opened) {
		return fmt.Errorf("%s is not what follows", e.Type)
	}
	switch e.Type {
	case opened, policySet:
		a.policies[e.Policy] = true
	case blocked:
		a.blocked[e.Key] = true
	case unblocked:
		delete(a.blocked, e.Key)
	case voided:
		if e.Index >= index {
			return fmt.Errorf("it voids entry %d, which comes later", e.Index)
		}
		for n := len(a.made); n > 0 && a.made[n-1].index >= e.Index; n-- {
			if made := a.made[n-1]; made.statement != "" {
				a.asked[made.request] = made.statement
			}
			a.made = a.made[:n-1]
		}
	case requested, intended:
		if e.What == "" && !a.policies[e.Policy] {
			return fmt.Errorf("the policy %s was not in force", e.Policy)
		}
		if e.Type == requested {
			if e.Statement != "" {
				a.asked[e.Request] = e.Statement
			}
			break
		}
		if a.blocked[e.Key] {
			return fmt.Errorf("the key %q was blocked", e.Key)
		}
		if _, open := a.intents[e.Request]; open {
			return fmt.Errorf("the intent before of request %s has no outcome", e.Request)
		}
		a.intents[e.Request] = e.Payload
	case signed, failed, lost:
		payload, open := a.intents[e.Request]
		if !open || payload != e.Payload {
			return fmt.Errorf("request %s has no intent to sign these bytes", e.Request)
		}
		delete(a.intents, e.Request)
		if e.Type != failed {
			a.Uses[e.Key]++
		}
	case approved, withdrawn, rejected:
		return a.decision(e)
	case enrolled:
		a.enrolled[e.Credential] = e.Approver
	case removed:
		delete(a.enrolled, e.Credential)
	case ended, configSet, snapshot, epochBegun, invited:
	default:
		return fmt.Errorf("its type %.40q is unknown", e.Type)
	}
	switch e.Type { // what ends a request, or makes the change that it asks for
	case ended, policySet, configSet, blocked, unblocked, enrolled, removed, epochBegun:
		if e.Permits() && e.Request != "" {
			a.made = append(a.made, madeChange{index, e.Request, a.asked[e.Request]})
		}
		delete(a.asked, e.Request)
	}
	return nil
}

// decision checks what a person has decided.
func (a *Audit) decision(e *Event) error {
	switch {
	case e.Statement == "" || a.asked[e.Request] != e.Statement:
		return fmt.Errorf("request %s asks nobody for an approval of this statement", e.Request)
	case a.enrolled[e.Credential] != e.Approver:
		return fmt.Errorf("the credential of the approval is not enrolled for its person")
	}
	if e.Type == rejected {
		delete(a.asked, e.Request)
	}
	return nil
}
