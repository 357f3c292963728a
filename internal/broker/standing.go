package broker

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// alternative is a rule of a request, and what it still lacks.
type alternative struct {
	name      ruleName
	rule      *policy.Rule // nil if the policy does not have it any more
	lacking   []int        // people, by group of the rule
	notBefore time.Time    // zero without a time lock, and while the last approval that it counts from is lacking
	notAfter  time.Time
}

// agreed reports whether enough people have agreed.
func (a *alternative) agreed() bool {
	return a.rule != nil && !slices.ContainsFunc(a.lacking, func(n int) bool { return n > 0 })
}

// inTime reports whether the time lock is over and the timeout is not.
func (a *alternative) inTime(now time.Time) bool {
	return !now.Before(a.notBefore) && now.Before(a.notAfter)
}

// standing returns what each need of a request lacks: for each the alternatives in the order of the policy.
func (d *decision) standing(r *request) [][]alternative {
	all := make([][]alternative, len(r.Needs))
	for i, n := range r.Needs {
		for _, name := range n.Rules {
			all[i] = append(all[i], d.alternative(r, n, name))
		}
	}
	return all
}

func (d *decision) alternative(r *request, n need, name ruleName) alternative {
	a := alternative{name: name, rule: d.b.inForce.Load().rules[ruleID{policy.Action(n.Action), n.Key, name.Digest}]}
	if a.rule == nil {
		return a
	}
	a.notAfter = r.Created.Add(lifeOf(a.rule)).Truncate(time.Second)
	groups := d.b.inForce.Load().groups[a.rule]
	a.lacking = approval.Lacking(groups, d.votes(r, nil))
	if a.rule.TimeLock == 0 || !a.agreed() && a.rule.After == policy.AfterApprovals {
		return a
	}
	from := r.Created
	if a.rule.After == policy.AfterApprovals {
		from = d.agreedAt(r, groups)
	}
	a.notBefore = from.Add(a.rule.TimeLock).Truncate(time.Second).Add(time.Second)
	return a
}

// lifeOf returns how long after a request its rule can be fulfilled.
func lifeOf(r *policy.Rule) time.Duration {
	if r.Timeout > 0 {
		return r.Timeout
	}
	return grantLife + r.TimeLock
}

// agreedAt returns when the approvals of a request became enough for groups.
func (d *decision) agreedAt(r *request, groups []approval.Group) time.Time {
	for i := range r.Votes {
		lacking := approval.Lacking(groups, d.votes(r, r.Votes[:i+1]))
		if !slices.ContainsFunc(lacking, func(n int) bool { return n > 0 }) {
			return r.Votes[i].At
		}
	}
	return r.Created // nobody had to agree
}

// votes returns what counts of the approvals of a request, or of some of them: those with a credential that is enrolled
// since before the request, of people who have not made the request themselves.
func (d *decision) votes(r *request, of []vote) (all []approval.Vote) {
	if of == nil {
		of = r.Votes
	}
	for _, v := range of {
		if d.discounted(r, v.Person, v.Credential) == "" {
			c := d.Credentials[v.Credential]
			all = append(all, approval.Vote{Person: c.Person, Kind: c.Kind, Attested: c.Attested, DeviceBound: c.Device})
		}
	}
	return all
}

// discounted returns why an approval of a person with a credential does not count for a request, whatever its rules
// are; "" if it does.
func (d *decision) discounted(r *request, person, credential string) string {
	c := d.Credentials[credential]
	switch {
	case c == nil || c.Person != person:
		return "the credential was removed"
	case c.Index > r.Entries[0]:
		return "the credential was enrolled after the request was made"
	case d.asks(r, person):
		return "nobody approves their own request"
	}
	return ""
}

// asks reports whether a person has made a request, by any of their identities.
func (d *decision) asks(r *request, person string) bool {
	return person == r.Person || person == d.b.inForce.Load().callers[r.Caller]
}

// allowed returns an alternative of each need that is allowed at this moment. It fails when a need has none, and says
// what it waits for. late also takes alternatives whose timeout is over, for what was signed in time.
func (d *decision) allowed(r *request, late bool) ([]alternative, error) {
	chosen := make([]alternative, 0, len(r.Needs))
	closed := d.b.clock.frozen(d.Last) != 0 // time locks do not open while the clock is wrong
	for i, all := range d.standing(r) {
		good := slices.IndexFunc(all, func(a alternative) bool {
			return a.agreed() && (a.notBefore.IsZero() || !closed) && (a.inTime(d.now) || late && !d.now.Before(a.notBefore))
		})
		if good < 0 {
			return nil, d.lacks(r, r.Needs[i], all)
		}
		chosen = append(chosen, all[good])
	}
	return chosen, nil
}

// agreed reports whether enough people have agreed to a request, whatever its times are.
func (d *decision) agreed(r *request) bool {
	return !slices.ContainsFunc(d.standing(r), func(all []alternative) bool {
		return !slices.ContainsFunc(all, func(a alternative) bool { return a.agreed() })
	})
}

// lacks returns the failure of a need of a request that is not allowed.
func (d *decision) lacks(r *request, n need, all []alternative) error {
	var waits, locked []string
	alive := false
	for i := range all {
		a := &all[i]
		switch {
		case a.rule == nil || !d.now.Before(a.notAfter):
			alive = alive || a.rule != nil
		case !a.agreed():
			waits = append(waits, lackingText(a))
		default:
			locked = append(locked, a.notBefore.UTC().Format(time.RFC3339))
		}
	}
	switch jump := d.b.clock.frozen(d.Last); {
	case len(locked) > 0 && jump != 0:
		return failure.New(failure.Unavailable, "time locks stay closed: the broker's clock has jumped by %s", jump).
			WithHint("set the broker's clock right")
	case len(locked) > 0:
		return failure.New(failure.Unavailable, "the request %s waits for its time lock until %s", r.ID, slices.Min(locked)).
			WithHint("try again then")
	case len(waits) > 0:
		return failure.New(failure.Unavailable, "the request %s waits for approvals: %s", r.ID, strings.Join(waits, "; or ")).
			WithHint("ask them to approve it")
	case alive:
		return failure.New(failure.Denied, "the request %s has expired", r.ID).WithHint("make the request again")
	}
	return failure.New(failure.Denied, "the rule %q has changed since the request %s was made", ruleNames(n), r.ID).
		WithHint("make the request again")
}

// ruleNames returns the names of the rules of a need.
func ruleNames(n need) string {
	names := make([]string, len(n.Rules))
	for i, one := range n.Rules {
		names[i] = one.Name
	}
	return strings.Join(names, ", ")
}

// lackingText says whose approvals an alternative lacks.
func lackingText(a *alternative) string {
	var parts []string
	for i, n := range a.lacking {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d of %s", n, a.rule.Approvals[i].Group))
		}
	}
	return strings.Join(parts, ", ")
}

// dead reports whether a request can never be allowed any more, and why: each of its rules has changed, or another
// policy has come into force than the one that it changes.
func (d *decision) dead(r *request) (why string, is bool) {
	in := d.b.inForce.Load()
	if r.What == ChangePolicy && r.Base != in.digest {
		return "another policy has come into force since it was proposed", true
	}
	for _, n := range r.Needs {
		alive := slices.ContainsFunc(n.Rules, func(name ruleName) bool {
			return in.rules[ruleID{policy.Action(n.Action), n.Key, name.Digest}] != nil
		})
		if !alive {
			return fmt.Sprintf("the rule %q has changed since the request was made", ruleNames(n)), true
		}
	}
	return "", false
}

// ruleID names a rule of a policy.
type ruleID struct {
	action policy.Action
	key    string
	digest string // sha256:HEX
}

// people fills in what is derived from the policy in force: its rules by their digests, and who its people are.
func (b *Broker) people(in *inForce) {
	in.rules, in.groups = map[ruleID]*policy.Rule{}, map[*policy.Rule][]approval.Group{}
	in.names, in.callers, in.inGroups = map[string]string{}, map[string]string{}, map[string][]string{}
	in.asked = map[string]map[*policy.Rule]bool{}
	add := func(key string, rules []*policy.Rule) {
		for _, r := range rules {
			in.rules[ruleID{r.Action, key, b.ruleDigest(r)}] = r
			in.groups[r] = b.groupsOf(r)
			for _, g := range in.groups[r] {
				for _, person := range g.Members {
					if in.asked[person] == nil {
						in.asked[person] = map[*policy.Rule]bool{}
					}
					in.asked[person][r] = true
				}
			}
		}
	}
	for _, k := range in.policy.Keys() {
		for _, action := range policy.Actions {
			add(k.Name, in.policy.Rules(action, k.Name))
		}
	}
	for _, r := range in.policy.Rules(policy.Modify, "") { // the same rules as a key's, if the policy has none of its own
		if in.groups[r] == nil {
			add("", []*policy.Rule{r})
		}
		in.rules[ruleID{policy.Modify, "", b.ruleDigest(r)}] = r
	}
	for _, g := range in.policy.Groups() {
		for _, p := range g.Members {
			id := b.personID(p.Name)
			in.names[id] = p.Name
			in.inGroups[p.Name] = append(in.inGroups[p.Name], g.Name)
			in.callers[b.pseudonym("caller", identityApprover, p.Name)] = id
			for _, i := range p.Identities {
				in.callers[b.pseudonym("caller", i.Issuer, i.Subject)] = id
			}
		}
	}
}

// groupsOf returns the groups that a rule needs, with the ids of their members.
func (b *Broker) groupsOf(r *policy.Rule) (groups []approval.Group) {
	for _, a := range r.Approvals {
		g := approval.Group{Name: a.Group, Quorum: a.Quorum, Attested: a.Attested, DeviceBound: a.DeviceBound}
		for _, p := range a.Members {
			g.Members = append(g.Members, b.personID(p.Name))
		}
		for _, kind := range a.Kinds {
			g.Kinds = append(g.Kinds, approval.Kind(kind))
		}
		groups = append(groups, g)
	}
	return groups
}

// personID returns the id of a person by their name.
func (b *Broker) personID(name string) string { return b.pseudonym("person", name) }
