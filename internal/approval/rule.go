package approval

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// ruleType is the type of a Rule.
const ruleType = "resolved-rule/v1"

// Rule is a rule with the credentials of all whom it names, as they were when a request was made. Its fields are in the
// order of their names.
type Rule struct {
	Members []Member        `json:"members"` // of all its groups, by name
	Rule    json.RawMessage `json:"rule"`    // what policy.Rule.Resolved returns
	Salt    string          `json:"salt"`    // hex; so that nobody can guess the rule by its hash
	Type    string          `json:"type"`
}

// Member is a person whom a rule names.
type Member struct {
	Credentials []string `json:"credentials,omitempty"` // sha256:HEX of credential documents, sorted
	ID          string   `json:"id"`                    // as approvals have it
	Name        string   `json:"name"`
}

// Encode returns a rule as canonical JSON, with its type.
func (r *Rule) Encode() ([]byte, error) {
	typed := *r
	typed.Type = ruleType
	return canonical(typed)
}

// Demands is what a rule demands, as policy.Rule.Resolved encodes it. Its fields are in the order of their names.
type Demands struct {
	Action     string    `json:"action"`
	Approvals  []Demand  `json:"approvals"`
	BreakGlass bool      `json:"break_glass,omitempty"`
	Limit      *Limit    `json:"limit,omitempty"`
	Same       []string  `json:"same"`
	TimeLock   *TimeLock `json:"time_lock,omitempty"`
	Timeout    int64     `json:"timeout"` // seconds from the request; 0 without one
	Type       string    `json:"type"`
	Uses       int       `json:"uses,omitempty"` // of each digest; 0 for one
	When       string    `json:"when"`           // condition; "" if the rule always applies
}

// Demand is how many people of a group must agree.
type Demand struct {
	Attestation string   `json:"attestation,omitempty"` // required, or ""
	DeviceBound bool     `json:"device_bound,omitempty"`
	Group       string   `json:"group"`
	Kinds       []Kind   `json:"kinds"`
	Members     []Person `json:"members"`
	Quorum      int      `json:"quorum"`
}

// Person is someone who can approve, with their identities besides.
type Person struct {
	Identities []Identity `json:"identities"`
	Name       string     `json:"name"`
}

// Identity is who a caller is.
type Identity struct {
	Issuer  string `json:"issuer"`
	Subject string `json:"subject"`
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

// demandsType is the type of Demands.
const demandsType = "rule/v1"

// Bounds of a rule: those of a policy.
const (
	maxGroups  = 8
	maxMembers = 500 // of a group
)

// Demands returns what a rule demands. It fails for bytes that are not the one encoding of it, so that nothing in it
// can be read in two ways.
func (r *Rule) Demands() (*Demands, error) {
	d := &Demands{}
	if err := strict(r.Rule, maxDocument, d); err != nil {
		return nil, err
	}
	switch again, err := canonical(d); {
	case d.Type != demandsType:
		return nil, fmt.Errorf("what it demands is of type %.40q", d.Type)
	case err != nil || string(again) != string(r.Rule):
		return nil, errors.New("what it demands is not in its canonical form")
	case len(d.Approvals) > maxGroups:
		return nil, fmt.Errorf("it has more than %d groups", maxGroups)
	}
	for _, a := range d.Approvals {
		switch {
		case len(a.Members) > maxMembers:
			return nil, fmt.Errorf("the group %.40q has more than %d members", a.Group, maxMembers)
		case a.Quorum < 1 || a.Quorum > len(a.Members):
			return nil, fmt.Errorf("the quorum of the group %.40q is not from 1 to %d", a.Group, len(a.Members))
		case a.Attestation != "" && a.Attestation != "required":
			return nil, fmt.Errorf("the attestation %.40q is unknown", a.Attestation)
		}
	}
	return d, nil
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
	demands, err := r.Demands()
	if err != nil {
		return nil, nil, invalid("rule", err)
	}
	ids, err := r.ids()
	if err != nil {
		return nil, nil, invalid("rule", err)
	}
	var groups []Group
	for _, a := range demands.Approvals {
		g := Group{Name: a.Group, Quorum: a.Quorum, Kinds: a.Kinds, Attested: a.Attestation != "",
			DeviceBound: a.DeviceBound}
		for _, m := range a.Members {
			id := ids[m.Name]
			if id == "" {
				return nil, nil, invalid("rule", fmt.Errorf("the member %.40q has no id", m.Name))
			}
			g.Members = append(g.Members, id)
		}
		groups = append(groups, g)
	}
	return r, groups, nil
}

// ids returns the ids of the members by name. It fails unless the members are in the order of their names, each person
// once.
func (r *Rule) ids() (map[string]string, error) {
	ids, names := map[string]string{}, map[string]string{}
	last := ""
	for _, m := range r.Members {
		switch {
		case m.Name <= last:
			return nil, errors.New("its members are not in the order of their names, each once")
		case m.ID == "" || names[m.ID] != "":
			return nil, fmt.Errorf("the member %.40q has no id of their own", m.Name)
		case !slices.IsSorted(m.Credentials):
			return nil, fmt.Errorf("the credentials of %.40q are not in their order", m.Name)
		}
		ids[m.Name], names[m.ID], last = m.ID, m.Name, m.Name
	}
	return ids, nil
}

// Has reports whether a person had a credential when the rule was resolved.
func (r *Rule) Has(id, credential string) bool {
	return slices.ContainsFunc(r.Members, func(m Member) bool {
		return m.ID == id && slices.Contains(m.Credentials, credential)
	})
}
