package policy

import (
	"slices"
	"strings"
)

// warn notes what is allowed but probably not meant.
func (p *Policy) warn() {
	for _, key := range p.keys {
		var repositories []string
		for i, rule := range key.rules[Use] {
			path := index("keys."+key.Name+".use", i)
			note := func(what, hint string) {
				p.warnings = append(p.warnings, Problem{rule.line, path, what, hint})
			}
			if rule.condition != nil {
				repositories = append(repositories, rule.condition.repositories...)
			}
			switch {
			case len(rule.Approvals) > 0:
			case rule.condition == nil:
				note("any caller may sign anything", "add when or approvals")
			case !rule.condition.issuer:
				note("the condition reads no caller.issuer, so claims of every issuer count", "compare caller.issuer in when")
			}
			if rule.BreakGlass {
				warnBreakGlass(note, rule, key.rules[Use])
			}
		}
		slices.Sort(repositories)
		if repositories = slices.Compact(repositories); len(repositories) > 1 {
			p.warnings = append(p.warnings, Problem{
				key.line, "keys." + key.Name,
				"rules for different repositories share the key: " + strings.Join(repositories, ", "),
				"use a key for each repository: no signature binds one, so a copied image verifies in the other",
			})
		}
	}
	p.warnings = sorted(p.warnings)
}

// warnBreakGlass notes a rule for emergencies that saves nothing: no other rule needs more people or a longer wait.
func warnBreakGlass(note func(what, hint string), rule *Rule, all []*Rule) {
	people := func(r *Rule) (n int) {
		for _, a := range r.Approvals {
			n += a.Quorum
		}
		return n
	}
	others := slices.DeleteFunc(slices.Clone(all), func(r *Rule) bool { return r.BreakGlass })
	switch {
	case len(others) == 0:
		note("the rule for emergencies is alone: nothing can be signed otherwise", "add a rule without break-glass")
	case !slices.ContainsFunc(others, func(r *Rule) bool {
		return people(r) > people(rule) || r.TimeLock > rule.TimeLock
	}):
		note("the rule for emergencies needs as many people and as long as the others", "lower its quorums, or remove it")
	}
}
