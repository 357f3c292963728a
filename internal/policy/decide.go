package policy

import (
	"fmt"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// Input is what a rule is applied to.
type Input struct {
	Caller   Caller
	Artifact Artifact // zero, but for Use
	Key      string   // name of the key; "" for what belongs to no single key
	Time     time.Time
	// BreakGlass is the name of the rule for emergencies that the requester asks for; "" for none.
	BreakGlass string
}

// Caller is who makes a request, as it was authenticated.
type Caller struct {
	Issuer, Subject string
	Claims          map[string]any // values as encoding/json makes them
}

// Artifact is what a signature is for.
type Artifact struct {
	Format      payload.Format
	MediaType   string
	Digest      string // as ALGORITHM:HEX
	Size        int64  // in bytes
	Annotations map[string]string
	Repository  string // only if the broker has found the digest there; else ""
	Name        string // as its signer claims it
	Expiry      int64  // seconds that the signature is valid; 0 without an end
}

// Decision is which rules allow an action.
type Decision struct {
	Rules   []*Rule  // that apply, in the order of the policy; none refuses the action
	Refused []Reason // why the others do not apply, in the same order
}

// Reason is why a rule does not apply.
type Reason struct {
	Rule string // its name; "" if no rule can apply
	Why  string
}

// Decide returns which rules allow an action. The broker must enforce what a rule demands, such as approvals, limits
// and a time lock.
func (p *Policy) Decide(action Action, in Input) Decision {
	refuse := func(format string, args ...any) Decision {
		return Decision{Refused: []Reason{{Why: fmt.Sprintf(format, args...)}}}
	}
	if !slices.Contains(Actions, action) {
		return refuse("there is no action %.50q", string(action))
	}
	var rules []*Rule
	switch key := p.byName[in.Key]; {
	case action == Modify && in.Key == "":
		rules = p.Rules(Modify, "")
	case key == nil:
		return refuse("the policy has no key %.100q", in.Key)
	case action == Use && !slices.Contains(key.Formats, in.Artifact.Format):
		return refuse("the key does not sign the format %.50q", string(in.Artifact.Format))
	default:
		rules = key.rules[action]
	}
	if len(rules) == 0 {
		return refuse("the policy has no rule for %s", action)
	}
	if name := in.BreakGlass; name != "" && !slices.ContainsFunc(rules, func(r *Rule) bool { return r.Name == name }) {
		return refuse("the policy has no rule %.100q for %s", name, action)
	}
	if action != Use {
		in.Artifact = Artifact{}
	}
	if err := checkArtifact(&in.Artifact); err != nil {
		return refuse("the annotations and names of the artifact are too large: %v", err)
	}
	a := &activation{in: &in}
	var err error
	if a.claims, err = claims(in.Caller.Claims); err != nil {
		return refuse("the claims of the caller cannot be read: %v", err)
	}
	var d Decision
	for _, rule := range rules {
		if why := emergency(rule, in.BreakGlass); why != "" {
			d.Refused = append(d.Refused, Reason{rule.Name, why})
			continue
		}
		if rule.condition != nil {
			if ok, why := rule.condition.holds(a); !ok {
				d.Refused = append(d.Refused, Reason{rule.Name, why})
				continue
			}
		}
		d.Rules = append(d.Rules, rule)
	}
	return d
}

// emergency returns why a rule does not apply to a request that asks for a rule for emergencies, or for none; "" if it
// may.
func emergency(rule *Rule, asked string) string {
	switch {
	case asked == "" && rule.BreakGlass:
		return "it is for emergencies: name it, with a reason"
	case asked != "" && asked != rule.Name:
		return "the request asks for another rule"
	case asked != "" && !rule.BreakGlass:
		return "it is not for emergencies: do not name it"
	}
	return ""
}
