package approval

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ruleType is the type of a Rule.
const ruleType = "approval-rule/v1"

// Rule is a rule with the credentials of all whom it names, as they were when a request was made. People are in it by
// their ids alone: their names, their identities and the condition are in a Names document, whose hash it has. Its
// fields are in the order of their names.
type Rule struct {
	Action     string      `json:"action"` // use, block, unblock, modify
	BreakGlass bool        `json:"break_glass,omitempty"`
	Groups     []RuleGroup `json:"groups"` // all must agree; in the order of their names
	Limit      *Limit      `json:"limit,omitempty"`
	Members    []Member    `json:"members"` // of all its groups, by id
	Names      string      `json:"names"`   // sha256:HEX of the Names
	Same       []string    `json:"same"`    // claims that whoever uses the grant shares with the requester
	TimeLock   *TimeLock   `json:"time_lock,omitempty"`
	Timeout    int64       `json:"timeout"` // seconds from the request; 0 without one
	Type       string      `json:"type"`
	Uses       int         `json:"uses,omitempty"` // of each digest; 0 for one
}

// RuleGroup is how many people of a group must agree. Its fields are in the order of their names.
type RuleGroup struct {
	Attestation string   `json:"attestation,omitempty"` // required, or ""
	DeviceBound bool     `json:"device_bound,omitempty"`
	Group       string   `json:"group"` // name in the policy
	Kinds       []Kind   `json:"kinds"`
	Members     []string `json:"members"` // ids, sorted
	Quorum      int      `json:"quorum"`
}

// Member is a person whom a rule names.
type Member struct {
	Credentials []string `json:"credentials,omitempty"` // sha256:HEX of credential documents, sorted
	ID          string   `json:"id"`                    // as approvals have it
}

// Limit is how often a rule may be used.
type Limit struct {
	Count int   `json:"count"`
	Per   int64 `json:"per"` // seconds
}

// TimeLock is how long nothing is signed.
type TimeLock struct {
	After   string `json:"after"` // request, or approvals: the last of them
	Seconds int64  `json:"seconds"`
}

// Bounds of a rule: those of a policy.
const (
	maxGroups  = 8
	maxMembers = 500 // of a group
)

// Encode returns a rule as canonical JSON, with its type.
func (r *Rule) Encode() ([]byte, error) {
	typed := *r
	typed.Type = ruleType
	return canonical(typed)
}

// DecodeRule reads a rule document, and returns its groups. It fails with Invalid for bytes that are not the one
// encoding of a rule.
func DecodeRule(data []byte) (*Rule, []Group, error) {
	r := &Rule{}
	if err := strict(data, maxDocument, r); err != nil {
		return nil, nil, invalid("rule", err)
	}
	if r.Type != ruleType {
		return nil, nil, invalid("rule", fmt.Errorf("its type is %.40q", r.Type))
	}
	if again, err := r.Encode(); err != nil || string(again) != string(data) {
		return nil, nil, invalid("rule", errors.New("it is not in its canonical form"))
	}
	if err := r.check(); err != nil {
		return nil, nil, invalid("rule", err)
	}
	groups := make([]Group, len(r.Groups))
	for i, g := range r.Groups {
		groups[i] = Group{Name: g.Group, Members: g.Members, Quorum: g.Quorum, Kinds: g.Kinds,
			Attested: g.Attestation != "", DeviceBound: g.DeviceBound}
	}
	return r, groups, nil
}

// check fails unless the groups are within their bounds, and the members are the people of the groups, each once.
func (r *Rule) check() error {
	if len(r.Groups) > maxGroups {
		return fmt.Errorf("it has more than %d groups", maxGroups)
	}
	if !IsHash(r.Names) {
		return errors.New("the hash of its names is not sha256:HEX")
	}
	if r.Groups == nil || r.Members == nil || r.Same == nil {
		return errors.New("a list of it is null")
	}
	inGroup := map[string]bool{}
	for _, g := range r.Groups {
		switch {
		case len(g.Members) > maxMembers:
			return fmt.Errorf("the group %.40q has more than %d members", g.Group, maxMembers)
		case g.Quorum < 1 || g.Quorum > len(g.Members):
			return fmt.Errorf("the quorum of the group %.40q is not from 1 to %d", g.Group, len(g.Members))
		case g.Attestation != "" && g.Attestation != "required":
			return fmt.Errorf("the attestation %.40q is unknown", g.Attestation)
		case !ascending(g.Members):
			return fmt.Errorf("the members of the group %.40q are not in the order of their ids, each once", g.Group)
		}
		for _, id := range g.Members {
			inGroup[id] = true
		}
	}
	last := ""
	for _, m := range r.Members {
		switch {
		case m.ID <= last:
			return errors.New("its members are not in the order of their ids, each once")
		case !inGroup[m.ID]:
			return fmt.Errorf("the member %.40q is in no group", m.ID)
		case !ascending(m.Credentials):
			return fmt.Errorf("the credentials of %.40q are not in their order, each once", m.ID)
		}
		last = m.ID
	}
	if len(r.Members) != len(inGroup) {
		return errors.New("somebody of a group is not among its members")
	}
	return nil
}

// ascending reports whether texts are sorted, each once, and none of them is empty.
func ascending(all []string) bool {
	last := ""
	for _, text := range all {
		if text <= last {
			return false
		}
		last = text
	}
	return true
}

// Has reports whether a person had a credential when the rule was resolved.
func (r *Rule) Has(id, credential string) bool {
	i, found := slices.BinarySearchFunc(r.Members, id, func(m Member, id string) int { return strings.Compare(m.ID, id) })
	return found && slices.Contains(r.Members[i].Credentials, credential)
}
