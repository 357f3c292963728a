package approval

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// namesType is the type of Names.
const namesType = "rule-names/v1"

// Names is what a Rule leaves out: who its people are, and the rule as the policy has it. A rule has the hash of it, so
// that it can be published, and whoever has the names as well sees that the ids are these people. Its fields are in the
// order of their names.
type Names struct {
	People map[string]string `json:"people"` // names by id
	Rule   json.RawMessage   `json:"rule"`   // what policy.Rule.Resolved returns
	Salt   string            `json:"salt"`   // so that nobody can guess the rule by the hash
	Type   string            `json:"type"`
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

// demandsType is the type of Demands.
const demandsType = "rule/v1"

// Encode returns names as canonical JSON, with their type.
func (n *Names) Encode() ([]byte, error) {
	typed := *n
	typed.Type = namesType
	return canonical(typed)
}

// Commitment returns what the log has of the rule: the SHA-256 of the salt and of the SHA-256 of the resolved rule, as
// sha256:HEX.
func (n *Names) Commitment() string { return Commitment(n.Salt, Hash(n.Rule)) }

// Commitment returns what the log has of a rule: see Names.Commitment. resolved is the SHA-256 of the resolved rule as
// sha256:HEX.
func Commitment(salt, resolved string) string { return Hash([]byte(salt + " " + resolved)) }

// Demands returns what the rule demands. It fails for bytes that are not the one encoding of it, so that nothing in it
// can be read in two ways.
func (n *Names) Demands() (*Demands, error) {
	d := &Demands{}
	if err := strict(n.Rule, maxDocument, d); err != nil {
		return nil, err
	}
	if d.Type != demandsType {
		return nil, fmt.Errorf("what it demands is of type %.40q", d.Type)
	}
	if again, err := canonical(d); err != nil || string(again) != string(n.Rule) {
		return nil, errors.New("what it demands is not in its canonical form")
	}
	return d, nil
}

// Publish returns the rule of the names, with credentials by the ids of their people, and the encoding of the names. It
// fails unless the names are those of all people of the rule, and of nobody else.
func (n *Names) Publish(credentials map[string][]string) (rule *Rule, names []byte, err error) {
	if names, err = n.Encode(); err != nil {
		return nil, nil, err
	}
	rule, err = n.publish(Hash(names), credentials)
	return rule, names, err
}

// publish returns the rule of names with a hash.
func (n *Names) publish(hash string, credentials map[string][]string) (*Rule, error) {
	d, err := n.Demands()
	if err != nil {
		return nil, err
	}
	ids := make(map[string]string, len(n.People)) // by name
	for id, name := range n.People {
		ids[name] = id
	}
	if len(ids) != len(n.People) || ids[""] != "" || n.People[""] != "" {
		return nil, errors.New("its names and ids are not those of one person each")
	}
	r := &Rule{Action: d.Action, BreakGlass: d.BreakGlass, Groups: []RuleGroup{}, Limit: d.Limit, Members: []Member{},
		Names: hash, Same: d.Same, TimeLock: d.TimeLock, Timeout: d.Timeout, Uses: d.Uses}
	used := map[string]bool{}
	for _, a := range d.Approvals {
		g := RuleGroup{Attestation: a.Attestation, DeviceBound: a.DeviceBound, Group: a.Group, Kinds: a.Kinds,
			Members: make([]string, len(a.Members)), Quorum: a.Quorum}
		for i, m := range a.Members {
			g.Members[i] = ids[m.Name]
			if g.Members[i] == "" {
				return nil, fmt.Errorf("the member %.40q has no id", m.Name)
			}
			used[g.Members[i]] = true
		}
		slices.Sort(g.Members)
		r.Groups = append(r.Groups, g)
	}
	if len(used) != len(ids) {
		return nil, errors.New("it names somebody who is in no group")
	}
	for _, id := range slices.Sorted(maps.Keys(used)) {
		r.Members = append(r.Members, Member{ID: id, Credentials: credentials[id]})
	}
	return r, r.check()
}

// Open returns the names of a rule by their encoding. It fails with Invalid for bytes that are not the one encoding of
// names, and with Denied for names that are not those of the rule, or whose rule demands something else than it.
func (r *Rule) Open(names []byte) (*Names, error) {
	if Hash(names) != r.Names {
		return nil, wrong(fmt.Errorf("the names %.80s of a rule are other ones", r.Names))
	}
	n, err := DecodeNames(names)
	if err != nil {
		return nil, err
	}
	credentials := map[string][]string{}
	for _, m := range r.Members {
		credentials[m.ID] = m.Credentials
	}
	made, err := n.publish(r.Names, credentials)
	if err != nil {
		return nil, invalid("names of a rule", err)
	}
	want, err := made.Encode()
	if err != nil {
		return nil, err
	}
	if got, err := r.Encode(); err != nil || string(got) != string(want) {
		return nil, wrong(errors.New("the names of a rule are those of another one"))
	}
	return n, nil
}

// DecodeNames reads names. It fails with Invalid for bytes that are not the one encoding of names. Whether they are
// those of a rule, Rule.Open says.
func DecodeNames(data []byte) (*Names, error) {
	n := &Names{}
	if err := strict(data, maxDocument, n); err != nil {
		return nil, invalid("names of a rule", err)
	}
	if n.Type != namesType {
		return nil, invalid("names of a rule", fmt.Errorf("their type is %.40q", n.Type))
	}
	if again, err := n.Encode(); err != nil || string(again) != string(data) {
		return nil, invalid("names of a rule", errors.New("they are not in their canonical form"))
	}
	if _, err := n.Demands(); err != nil {
		return nil, invalid("names of a rule", err)
	}
	for id := range n.People {
		for _, c := range []byte(id) {
			if c <= ' ' || c > '~' {
				return nil, invalid("names of a rule", fmt.Errorf("the id %.40q has a character besides visible ASCII", id))
			}
		}
	}
	return n, nil
}
