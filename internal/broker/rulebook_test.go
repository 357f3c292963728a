package broker

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// ruleBook is a policy as the model of TestModel knows it: it writes it, and never reads what the broker made of it.
type ruleBook struct {
	people map[string][]string               // subjects of identities, by name
	groups map[string][]string               // names, by group
	rules  map[string]map[string][]*bookRule // by key ("" for the top level), by action
	text   string
}

// bookRule is a rule of a ruleBook.
type bookRule struct {
	name    string
	callers []string // subjects
	digits  string   // with one of which the digest of the artifact ends; "" for all
	groups  []bookGroup
	lock    time.Duration
	after   string // approvals, or ""
	timeout time.Duration
	uses    int // 0 for one
	same    bool
	glass   bool // for emergencies
}

// bookGroup is how many people of a group a rule asks for.
type bookGroup struct {
	group  string
	quorum int
	kinds  []string // nil for all
}

// knobs are what the rule books of one run differ in. Each is an index into the choices of its name.
type knobs struct {
	Managers, Security, Directors, Identity, QuorumManagers, QuorumSecurity, Kinds, Timeout, Uses, Same, Lock, After,
	CI, Modify, Nightly, Order int
}

var modelPeople = []string{"alice", "bob", "carol", "dave", "erin"}

// choices are the numbers of choices of knobs, in the order of their fields.
var choices = []int{4, 3, 2, 3, 2, 2, 3, 3, 2, 2, 3, 2, 2, 4, 3, 2}

// field returns a knob by its number.
func (k *knobs) field(n int) *int {
	return []*int{&k.Managers, &k.Security, &k.Directors, &k.Identity, &k.QuorumManagers, &k.QuorumSecurity, &k.Kinds,
		&k.Timeout, &k.Uses, &k.Same, &k.Lock, &k.After, &k.CI, &k.Modify, &k.Nightly, &k.Order}[n]
}

// book returns the rule book of knobs.
func (k knobs) book() *ruleBook {
	b := &ruleBook{people: map[string][]string{"alice": {"alice", "alice2"}, "bob": {"bob"}, "carol": {}, "dave": {},
		"erin": {}}}
	switch k.Identity {
	case 1:
		b.people["bob"] = append(b.people["bob"], "p1")
	case 2:
		b.people["dave"] = []string{"p2"}
	}
	b.groups = map[string][]string{
		"managers": [][]string{{"alice", "bob", "carol"}, {"alice", "bob", "carol", "dave"}, {"alice", "carol"},
			{"bob", "carol", "erin"}}[k.Managers],
		"security":  [][]string{{"carol", "dave"}, {"dave", "erin", "alice"}, {"bob", "carol", "dave", "erin"}}[k.Security],
		"everyone":  modelPeople, // who is in no group can have no credential
		"directors": [][]string{{"erin"}, {"erin", "alice"}}[k.Directors],
	}
	team := &bookRule{name: "team", callers: []string{"p1", "p2", "alice", "alice2"}, groups: []bookGroup{
		{"managers", 1 + k.QuorumManagers, nil},
		{"security", 1 + k.QuorumSecurity, [][]string{nil, {"ssh"}, {"key"}}[k.Kinds]}},
		timeout: []time.Duration{0, 3 * time.Hour, 72 * time.Hour}[k.Timeout], uses: []int{0, 2}[k.Uses], same: k.Same == 1}
	if k.Managers == 2 && k.Security == 0 { // three people in all
		team.groups[1].quorum = 1
	}
	director := &bookRule{name: "director", callers: []string{"p1", "alice"}, digits: "0123",
		groups: []bookGroup{{"directors", 1, nil}}, lock: []time.Duration{0, time.Hour, 20 * time.Minute}[k.Lock]}
	if k.After == 1 && director.lock > 0 {
		director.after = "approvals"
	}
	ci := &bookRule{name: "ci", callers: [][]string{{"ci"}, {"ci", "p2"}}[k.CI], digits: "01"}
	use := []*bookRule{ci, team, director,
		{name: "slow", callers: []string{"slow"}, lock: time.Hour, timeout: 5 * time.Hour},
		{name: "emergency", callers: []string{"p1", "p2", "bob"}, groups: []bookGroup{{"security", 1, nil}}, glass: true}}
	if k.Order == 1 {
		use[1], use[2] = use[2], use[1]
	}
	night := [][]*bookRule{{{name: "all", callers: []string{"ci", "p1"}}},
		{{name: "asked", callers: []string{"ci", "p1", "bob"}, groups: []bookGroup{{"security", 1, nil}}}},
		{{name: "two", callers: []string{"ci", "p1"}, groups: []bookGroup{{"managers", 1, nil}, {"security", 1, nil}}}},
	}[k.Nightly]
	admin := []string{"admin"}
	all := []string{"admin", "alice", "bob", "p1"}
	modify := [][]*bookRule{
		{{name: "managers", callers: all, groups: []bookGroup{{"managers", 2, nil}}}},
		{{name: "managers", callers: all, groups: []bookGroup{{"managers", 1, nil}, {"security", 1, nil}}},
			{name: "directors", callers: all, groups: []bookGroup{{"directors", 1, nil}}, lock: time.Hour, after: "approvals"}},
		{{name: "managers", callers: all, groups: []bookGroup{{"managers", 1, nil}}, lock: 20 * time.Minute}},
		{{name: "security", callers: all, groups: []bookGroup{{"security", 2, []string{"key"}}}, timeout: 2 * time.Hour}},
	}[k.Modify]
	b.rules = map[string]map[string][]*bookRule{
		"": {"modify": modify},
		"release": {"use": use, "block": {{name: "anyone", callers: admin}},
			"unblock": {{name: "security", callers: all, groups: []bookGroup{{"security", 1, nil}}}},
			"modify":  {{name: "managers", callers: all, groups: []bookGroup{{"managers", 2, nil}}}}},
		"nightly": {"use": night, "block": {{name: "anyone", callers: admin}}, "unblock": {{name: "anyone", callers: admin}},
			"modify": {{name: "admin", callers: admin}, {name: "managers", callers: []string{"alice"},
				groups: []bookGroup{{"managers", 1, nil}}}}},
	}
	b.text = b.write()
	return b
}

// write returns the policy in YAML.
func (b *ruleBook) write() string {
	var y strings.Builder
	y.WriteString("version: 1\npeople:\n")
	for _, name := range modelPeople {
		var all []string
		for _, subject := range b.people[name] {
			all = append(all, fmt.Sprintf(`{issuer: "https://issuer.example.com", subject: %s}`, subject))
		}
		fmt.Fprintf(&y, "  %s: [%s]\n", name, strings.Join(all, ", "))
	}
	y.WriteString("groups:\n")
	for _, g := range slices.Sorted(maps.Keys(b.groups)) {
		fmt.Fprintf(&y, "  %s: [%s]\n", g, strings.Join(b.groups[g], ", "))
	}
	fmt.Fprintf(&y, "modify: [%s]\nkeys:\n", b.list("", "modify"))
	for _, key := range []string{"release", "nightly"} {
		fmt.Fprintf(&y, "  %s:\n    key: pkcs11:token=test;object=%s\n    formats: [notation]\n", key, key)
		for _, action := range []string{"use", "block", "unblock", "modify"} {
			fmt.Fprintf(&y, "    %s: [%s]\n", action, b.list(key, action))
		}
	}
	return y.String()
}

func (b *ruleBook) list(key, action string) string {
	var all []string
	for _, r := range b.rules[key][action] {
		all = append(all, r.yaml())
	}
	return strings.Join(all, ",\n      ")
}

func (r *bookRule) yaml() string {
	when := fmt.Sprintf(`caller.subject in ["%s"]`, strings.Join(r.callers, `", "`))
	if r.digits != "" {
		when += fmt.Sprintf(` && artifact.digest.matches("[%s]$")`, r.digits)
	}
	parts := []string{"name: " + r.name, fmt.Sprintf("when: '%s'", when)}
	var groups []string
	for _, g := range r.groups {
		text := fmt.Sprintf("{group: %s, quorum: %d", g.group, g.quorum)
		if g.kinds != nil {
			text += ", kinds: [" + strings.Join(g.kinds, ", ") + "]"
		}
		groups = append(groups, text+"}")
	}
	if groups != nil {
		parts = append(parts, "approvals: ["+strings.Join(groups, ", ")+"]")
	}
	for name, d := range map[string]time.Duration{"time-lock": r.lock, "timeout": r.timeout} {
		if d > 0 {
			parts = append(parts, name+": "+d.String())
		}
	}
	if r.after != "" {
		parts = append(parts, "after: "+r.after)
	}
	if r.uses > 0 {
		parts = append(parts, fmt.Sprint("uses: ", r.uses))
	}
	if r.same {
		parts = append(parts, "same: [team]")
	}
	if r.glass {
		parts = append(parts, "break-glass: true")
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// demands returns all that a rule of the book demands, but its name.
func (b *ruleBook) demands(r *bookRule) string {
	var text strings.Builder
	fmt.Fprint(&text, r.callers, r.digits, r.lock, r.after, r.timeout, r.uses, r.same, r.glass)
	for _, g := range slices.SortedFunc(slices.Values(r.groups), func(x, y bookGroup) int {
		return strings.Compare(x.group, y.group)
	}) {
		fmt.Fprint(&text, g)
		for _, name := range slices.Sorted(slices.Values(b.groups[g.group])) {
			fmt.Fprint(&text, name, slices.Sorted(slices.Values(b.people[name])))
		}
	}
	return text.String()
}

// all returns the demands of all rules of an action on a key, with their names, in order.
func (b *ruleBook) all(key, action string) (all []string) {
	for _, r := range b.rules[key][action] {
		all = append(all, r.name+b.demands(r))
	}
	return all
}

// rule returns the rule with a name, or the one that demands the same, and nil if there is none.
func (b *ruleBook) rule(key, action string, is func(*bookRule) bool) *bookRule {
	if i := slices.IndexFunc(b.rules[key][action], is); i >= 0 {
		return b.rules[key][action][i]
	}
	return nil
}

// applies reports whether a rule applies to a caller and an artifact; digest is "" for a change.
func (r *bookRule) applies(subject, digest string) bool {
	return slices.Contains(r.callers, subject) &&
		(r.digits == "" || digest != "" && strings.Contains(r.digits, digest[len(digest)-1:]))
}

// touched returns the keys whose modify rules another book asks for; "" for what belongs to no single key.
func (b *ruleBook) touched(next *ruleBook) (keys []string) {
	same := func(key, action string) bool { return slices.Equal(b.all(key, action), next.all(key, action)) }
	asString := func(m map[string][]string) (all []string) {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			all = append(all, fmt.Sprint(name, slices.Sorted(slices.Values(m[name]))))
		}
		return all
	}
	if !slices.Equal(asString(b.people), asString(next.people)) ||
		!slices.Equal(asString(b.groups), asString(next.groups)) || !same("", "modify") {
		keys = append(keys, "")
	}
	for _, key := range []string{"release", "nightly"} {
		for _, action := range []string{"use", "block", "unblock", "modify"} {
			if !same(key, action) {
				keys = append(keys, key)
				break
			}
		}
	}
	return keys
}

// named returns the names of the people whose identity a subject is.
func (b *ruleBook) named(caller string) []string {
	if name, ok := strings.CutPrefix(caller, "approver/"); ok {
		return []string{name}
	}
	for name, subjects := range b.people {
		if slices.Contains(subjects, caller) {
			return []string{name}
		}
	}
	return nil
}
