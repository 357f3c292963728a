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

// resolved is what of a resolved rule says who must agree.
type resolved struct {
	Approvals []struct {
		Attestation string `json:"attestation"`
		DeviceBound bool   `json:"device_bound"`
		Group       string `json:"group"`
		Kinds       []Kind `json:"kinds"`
		Members     []struct {
			Name string `json:"name"`
		} `json:"members"`
		Quorum int `json:"quorum"`
	} `json:"approvals"`
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
	var read resolved
	if err := json.Unmarshal(r.Rule, &read); err != nil {
		return nil, nil, invalid("rule", err)
	}
	ids := map[string]string{}
	for _, m := range r.Members {
		ids[m.Name] = m.ID
	}
	var groups []Group
	for _, a := range read.Approvals {
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

// Has reports whether a person had a credential when the rule was resolved.
func (r *Rule) Has(id, credential string) bool {
	return slices.ContainsFunc(r.Members, func(m Member) bool {
		return m.ID == id && slices.Contains(m.Credentials, credential)
	})
}
