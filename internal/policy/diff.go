package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Difference is what a new policy changes, and what must agree to it.
type Difference struct {
	Changes []Change
	// Modify has the keys whose modify rules must all allow the change, in the order of the old policy. An empty name
	// means what belongs to no single key. It is empty if nothing changes.
	Modify []string
}

// Change is one change in words.
type Change struct {
	Path string // what changes, such as keys.release.use.nightly
	What string
}

// Compare returns what a new policy changes. A change of a group or of people counts as a change of what belongs to no
// single key, and of each key whose rules it changes.
func Compare(before, after *Policy) Difference {
	var d Difference
	needed := map[string]bool{}
	note := func(key, path, format string, args ...any) {
		d.Changes = append(d.Changes, Change{path, fmt.Sprintf(format, args...)})
		needed[key] = true
	}
	compareLists(note, "people", peopleOf(before), peopleOf(after))
	compareLists(note, "groups", groupsOf(before), groupsOf(after))
	for _, k := range before.keys {
		other := after.byName[k.Name]
		path := "keys." + k.Name
		if other == nil {
			note("", path, "the key is removed")
			needed[k.Name] = true
			continue
		}
		if !slices.Equal(k.URIs, other.URIs) {
			compareURIs(note, k, other, path+".key")
			needed[""] = true // one key goes and another comes
		}
		if !sameSet(k.Formats, other.Formats) {
			note(k.Name, path+".formats", "%s becomes %s", join(k.Formats), join(other.Formats))
		}
		for _, action := range Actions {
			compareRules(note, k.Name, path+"."+string(action), k.rules[action], other.rules[action])
		}
	}
	for _, k := range after.keys {
		if before.byName[k.Name] == nil {
			note("", "keys."+k.Name, "the key is added: %s", strings.Join(k.URIs, ", "))
		}
	}
	compareRules(note, "", "modify", before.Rules(Modify, ""), after.Rules(Modify, ""))
	if needed[""] {
		d.Modify = append(d.Modify, "")
	}
	for _, k := range before.keys {
		if needed[k.Name] {
			d.Modify = append(d.Modify, k.Name)
		}
	}
	return d
}

// compareURIs notes in which modules a key is now.
func compareURIs(note noting, before, after *Key, path string) {
	if len(before.URIs) == 1 && len(after.URIs) == 1 {
		note(before.Name, path, "%s becomes %s", before.URIs[0], after.URIs[0])
		return
	}
	if sameSet(before.URIs, after.URIs) {
		note(before.Name, path, "the order of the modules changes: %s becomes %s", strings.Join(before.URIs, ", "),
			strings.Join(after.URIs, ", "))
	}
	for _, uri := range before.URIs {
		if !slices.Contains(after.URIs, uri) {
			note(before.Name, path, "%s is removed", uri)
		}
	}
	for _, uri := range after.URIs {
		if !slices.Contains(before.URIs, uri) {
			note(before.Name, path, "%s is added", uri)
		}
	}
}

// noting adds a change that the modify rules of a key must allow.
type noting func(key, path, format string, args ...any)

// A list has names and what each holds.
type list struct {
	name  string
	holds []string
}

func peopleOf(p *Policy) (all []list) {
	for _, person := range p.people {
		all = append(all, list{person.Name, identitiesOf(person)})
	}
	return all
}

func identitiesOf(p Person) (all []string) {
	for _, i := range p.Identities {
		all = append(all, fmt.Sprintf("%q at %s", i.Subject, i.Issuer))
	}
	return all
}

func groupsOf(p *Policy) (all []list) {
	for _, group := range p.groups {
		all = append(all, list{group.Name, namesOf(group.Members)})
	}
	return all
}

func namesOf(people []Person) (all []string) {
	for _, p := range people {
		all = append(all, p.Name)
	}
	return all
}

// compareLists notes which lists come, go, and change what they hold.
func compareLists(note noting, path string, before, after []list) {
	find := func(in []list, name string) (list, bool) {
		i := slices.IndexFunc(in, func(l list) bool { return l.name == name })
		if i < 0 {
			return list{}, false
		}
		return in[i], true
	}
	for _, b := range before {
		a, exists := find(after, b.name)
		if !exists {
			note("", path+"."+b.name, "it is removed")
			continue
		}
		for _, one := range b.holds {
			if !slices.Contains(a.holds, one) {
				note("", path+"."+b.name, "%s is removed", one)
			}
		}
		for _, one := range a.holds {
			if !slices.Contains(b.holds, one) {
				note("", path+"."+b.name, "%s is added", one)
			}
		}
	}
	for _, a := range after {
		if _, exists := find(before, a.name); !exists {
			note("", path+"."+a.name, "it is added: %s", strings.Join(a.holds, ", "))
		}
	}
}

// compareRules notes which rules of an action come, go, change and move.
func compareRules(note noting, key, path string, before, after []*Rule) {
	find := func(in []*Rule, name string) *Rule {
		if i := slices.IndexFunc(in, func(r *Rule) bool { return r.Name == name }); i >= 0 {
			return in[i]
		}
		return nil
	}
	changed := false
	for _, b := range before {
		a := find(after, b.Name)
		if a == nil {
			note(key, path+"."+b.Name, "the rule is removed: %s", b)
			changed = true
			continue
		}
		if string(a.resolved) != string(b.resolved) {
			changed = true
			compareRule(note, key, path+"."+b.Name, b, a)
		}
	}
	for _, a := range after {
		if find(before, a.Name) == nil {
			note(key, path+"."+a.Name, "the rule is added: %s", a)
			changed = true
		}
	}
	if !changed && !slices.EqualFunc(before, after, func(b, a *Rule) bool { return b.Name == a.Name }) {
		note(key, path, "the order of the rules changes")
	}
}

// compareRule notes what changes in a rule.
func compareRule(note noting, key, path string, before, after *Rule) {
	noted := false
	for _, part := range []struct{ name, before, after string }{
		{"when", orNone(before.When, "always"), orNone(after.When, "always")},
		{"limit", before.Limit.String(), after.Limit.String()},
		{"approvals", approvalsOf(before), approvalsOf(after)},
		{"uses", before.uses(), after.uses()},
		{"same", orNone(strings.Join(before.Same, ", "), "none"), orNone(strings.Join(after.Same, ", "), "none")},
		{"time-lock", before.lock(), after.lock()},
		{"timeout", before.ends(), after.ends()},
		{"break-glass", fmt.Sprint(before.BreakGlass), fmt.Sprint(after.BreakGlass)},
	} {
		if part.before != part.after {
			note(key, path+"."+part.name, "%s becomes %s", part.before, part.after)
			noted = true
		}
	}
	for _, b := range before.Approvals {
		for _, a := range after.Approvals {
			if a.Group != b.Group {
				continue
			}
			was, is := peopleText(b.Members), peopleText(a.Members)
			if was != is {
				note(key, path+".approvals", "the members of %s, %s, become %s", a.Group, was, is)
				noted = true
			}
		}
	}
	if !noted { // never silent, whatever a rule will demand
		note(key, path, "%s becomes %s", before.resolved, after.resolved)
	}
}

// peopleText names people with their identities.
func peopleText(people []Person) string {
	all := make([]string, len(people))
	for i, p := range people {
		all[i] = p.Name
		if len(p.Identities) > 0 {
			all[i] += " (" + strings.Join(identitiesOf(p), ", ") + ")"
		}
	}
	return orNone(strings.Join(all, ", "), "nobody")
}

func orNone(text, none string) string {
	if text == "" {
		return none
	}
	return text
}

func sameSet[T comparable](a, b []T) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(one T) bool { return !slices.Contains(b, one) })
}
