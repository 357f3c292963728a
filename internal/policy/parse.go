package policy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// Bounds of locks.
const (
	maxTimeLock = 30 * 24 * time.Hour
	maxTimeout  = 90 * 24 * time.Hour
	maxCount    = 1_000_000
	maxUses     = 1000
)

// issuerApprover is the issuer of people who have signed in to approve: who they are, is what they enrolled.
const issuerApprover = "approver"

// parser reads a policy.
type parser struct {
	reader
	policy *Policy
	groups map[string]*Group
	people map[string]*Person
	rules  int
}

// Parse reads a policy. It fails with kind Invalid and all mistakes: the cause is of type Problems.
func Parse(data []byte) (*Policy, error) {
	p := &parser{
		policy: &Policy{
			source: bytes.Clone(data), digest: sha256.Sum256(data), byName: map[string]*Key{}, person: map[Identity]string{},
		},
		groups: map[string]*Group{}, people: map[string]*Person{},
	}
	if root := p.root(data); root != nil {
		p.file(root)
	}
	if len(p.problems) > 0 {
		noun := "mistakes"
		if len(p.problems) == 1 {
			noun = "mistake"
		}
		return nil, failure.New(failure.Invalid, "invalid policy: %d %s:\n%w", len(p.problems), noun,
			Problems(sorted(p.problems))).WithHint("see docs/policy.md for every field")
	}
	p.policy.warn()
	return p.policy, nil
}

// file reads the top level: people, then groups, then the rules that name them.
func (p *parser) file(root *yaml.Node) {
	values := p.fields(root, "", "version", "people", "groups", "keys", "modify")
	if version := values["version"]; version == nil {
		p.report(root.Line, "", "add: version: 1", "there is no version")
	} else if n, ok := p.number(version, "version", 0, 1<<30); ok && n != 1 {
		p.report(version.Line, "version", "write: version: 1", "unknown version %d", n)
	}
	named := values["people"] != nil
	if named {
		p.readPeople(values["people"])
	}
	if node := values["groups"]; node != nil {
		for _, e := range p.entries(node, "groups") {
			if path := "groups." + e.name; p.checkName(e.name, e.line, "groups") {
				p.readGroup(e, path, named)
			}
		}
	}
	if node := values["keys"]; node != nil {
		for _, e := range p.entries(node, "keys") {
			if p.checkName(e.name, e.line, "keys") {
				p.readKey(e, "keys."+e.name)
			}
		}
	}
	if node := values["modify"]; node != nil {
		p.policy.own = true
		p.policy.modify = p.readRules(node, "modify", Modify, "")
	} else if len(p.problems) == 0 {
		p.checkAgreement()
	}
	if len(p.policy.keys) == 0 && len(p.problems) == 0 {
		p.report(root.Line, "keys", "see docs/policy.md for an example", "there is no key")
	}
}

// checkAgreement reports keys whose modify rules differ, where the top level has none.
func (p *parser) checkAgreement() {
	demands := func(k *Key) (all []string) {
		for _, rule := range k.rules[Modify] {
			all = append(all, string(rule.resolved))
		}
		return all
	}
	for _, k := range p.policy.keys {
		if first := p.policy.keys[0]; !slices.Equal(demands(first), demands(k)) {
			p.report(k.line, "keys."+k.Name+".modify", "add modify at the top level, for groups and for which keys there are",
				"it differs from the one of the key %s", first.Name)
		}
	}
}

// readPeople reads who a person is.
func (p *parser) readPeople(node *yaml.Node) {
	lines := map[Identity]int{}
	for _, e := range p.entries(node, "people") {
		if !p.checkName(e.name, e.line, "people") {
			continue
		}
		person := &Person{Name: e.name}
		path := "people." + e.name
		for i, item := range p.items(e.value, path) {
			values := p.fields(item, index(path, i), "issuer", "subject")
			var identity Identity
			complete := true
			for name, into := range map[string]*string{"issuer": &identity.Issuer, "subject": &identity.Subject} {
				value := values[name]
				if value == nil {
					p.report(item.Line, index(path, i), "add "+name, "there is no %s", name)
					complete = false
					continue
				}
				var ok bool
				*into, ok = p.text(value, index(path, i)+"."+name, maxText)
				complete = complete && ok
			}
			if !complete {
				continue
			}
			if identity.Issuer == issuerApprover {
				p.report(item.Line, index(path, i), "leave it out: the broker knows who has signed in to approve",
					"the issuer %s is reserved", issuerApprover)
				continue
			}
			if other, exists := p.policy.person[identity]; exists {
				p.report(item.Line, index(path, i), "keep the identity at one name",
					"%s has this identity already, in line %d: a person counts once", other, lines[identity])
				continue
			}
			p.policy.person[identity], lines[identity] = e.name, item.Line
			person.Identities = append(person.Identities, identity)
		}
		slices.SortFunc(person.Identities, func(a, b Identity) int {
			return cmp.Or(strings.Compare(a.Issuer, b.Issuer), strings.Compare(a.Subject, b.Subject))
		})
		p.people[e.name] = person
		p.policy.people = append(p.policy.people, *person)
	}
}

// readGroup reads the members of a group.
func (p *parser) readGroup(e entry, path string, named bool) {
	group := Group{Name: e.name}
	for i, item := range p.items(e.value, path) {
		name, ok := p.name(item, index(path, i))
		if !ok {
			continue
		}
		person, exists := p.people[name]
		switch {
		case slices.ContainsFunc(group.Members, func(p Person) bool { return p.Name == name }):
			p.report(item.Line, index(path, i), "remove one of them", "%s is in the group twice", name)
			continue
		case named && !exists:
			p.report(item.Line, index(path, i), "add the person to people, with all identities", "unknown person %s", name)
		case !exists:
			person = &Person{Name: name}
		}
		if person != nil {
			group.Members = append(group.Members, *person)
		}
	}
	slices.SortFunc(group.Members, func(a, b Person) int { return strings.Compare(a.Name, b.Name) })
	p.groups[e.name] = &group
	p.policy.groups = append(p.policy.groups, group)
}

// readKey reads a key and its rules.
func (p *parser) readKey(e entry, path string) {
	key := &Key{Name: e.name, rules: map[Action][]*Rule{}, line: e.line}
	values := p.fields(e.value, path, "key", "formats", "use", "block", "unblock", "modify")
	if node := values["key"]; node == nil {
		p.report(e.line, path, `add: key: "pkcs11:token=...;object=..."`, "there is no key")
	} else {
		key.URIs = p.uris(node, path+".key")
	}
	if node := values["formats"]; node == nil {
		p.report(e.line, path, "add formats, with some of "+join(payload.Formats), "there are no formats")
	} else {
		key.Formats = several(&p.reader, node, path+".formats", "format", payload.Formats)
	}
	for _, action := range Actions {
		if node := values[string(action)]; node != nil {
			key.rules[action] = p.readRules(node, path+"."+string(action), action, e.name)
		}
	}
	p.policy.keys = append(p.policy.keys, key)
	p.policy.byName[key.Name] = key
}

// uris returns the URIs of a key: one, or a list of those in several modules.
func (p *parser) uris(node *yaml.Node, path string) (all []string) {
	if node.Kind != yaml.SequenceNode {
		if text, ok := p.text(node, path, maxText); ok {
			all = append(all, p.uri(text, node.Line, path))
		}
		return all
	}
	items := p.items(node, path)
	switch {
	case len(items) == 0:
		p.report(node.Line, path, `add "pkcs11:token=...;object=..."`, "it is empty")
	case len(items) > maxURIs:
		p.report(node.Line, path, "", "it has more than %d items", maxURIs)
		return nil
	}
	for i, item := range items {
		text, ok := p.text(item, index(path, i), maxText)
		if !ok {
			continue
		}
		uri := p.uri(text, item.Line, index(path, i))
		if slices.Contains(all, uri) && uri != "" {
			p.report(item.Line, index(path, i), "remove one of them", "%s is there twice", uri)
		}
		all = append(all, uri)
	}
	return all
}

// uri returns the URI of a key in a fixed form.
func (p *parser) uri(text string, line int, path string) string {
	uri, err := config.ParseURI(text)
	if err != nil {
		f := failure.From(err)
		p.report(line, path, f.Hint, "%s", f.What)
		return ""
	}
	switch {
	case uri.Broker:
		p.report(line, path, "name the key in a module", "it is a key of another broker")
		return ""
	case len(uri.Query) > 0:
		p.report(line, path, "set module-path and pin-source in the config of the broker",
			"a policy says nothing about modules and PINs")
		return ""
	case uri.Object == "" && len(uri.ID) == 0:
		p.report(line, path, "add object=LABEL or id=BYTES", "it names no key")
		return ""
	}
	canonical := uri.String()
	for _, other := range p.policy.keys {
		if slices.Contains(other.URIs, canonical) {
			p.report(line, path, "give one key one name, so that one set of rules is for it",
				"the key %s is the same, in line %d", other.Name, other.line)
		}
	}
	return canonical
}

// readRules reads the alternatives of an action.
func (p *parser) readRules(node *yaml.Node, path string, action Action, key string) (rules []*Rule) {
	for i, item := range p.items(node, path) {
		if p.rules++; p.rules > maxRules {
			p.report(item.Line, index(path, i), "split the policy among brokers", "there are more than %d rules", maxRules)
			return rules
		}
		rule := p.readRule(item, index(path, i), &Rule{Key: key, Action: action, line: item.Line})
		if rule.Name == "" && action != Use {
			rule.Name = fmt.Sprintf("%s-%d", action, i+1)
		}
		if slices.ContainsFunc(rules, func(r *Rule) bool { return r.Name == rule.Name && r.Name != "" }) {
			p.report(item.Line, index(path, i), "give each rule a name of its own", "the rule %s is there twice", rule.Name)
		}
		if err := rule.resolve(); err != nil {
			p.report(item.Line, index(path, i), "", "%v", err)
		}
		rules = append(rules, rule)
	}
	return rules
}

// readRule reads one alternative.
func (p *parser) readRule(node *yaml.Node, path string, rule *Rule) *Rule {
	known := []string{"name", "when", "limit", "approvals", "same", "time-lock", "after", "timeout", "uses", "break-glass"}
	if rule.Action != Use {
		known = []string{"name", "when", "approvals", "time-lock", "after", "timeout"}
	}
	values := p.fields(node, path, known...)
	if name := values["name"]; name != nil {
		rule.Name, _ = p.name(name, path+".name")
	} else if rule.Action == Use && node.Kind == yaml.MappingNode {
		p.report(node.Line, path, "add name", "the rule has no name")
	}
	if when := values["when"]; when != nil {
		p.readCondition(when, path+".when", rule)
	}
	if limit := values["limit"]; limit != nil {
		p.readLimit(limit, path+".limit", rule)
	}
	if approvals := values["approvals"]; approvals != nil {
		p.readApprovals(approvals, path+".approvals", rule)
	}
	if same := values["same"]; same != nil {
		p.readSame(same, path+".same", rule)
	}
	if uses := values["uses"]; uses != nil {
		if n, ok := p.number(uses, path+".uses", 1, maxUses); ok {
			rule.Uses = n
		}
	}
	if node := values["break-glass"]; node != nil {
		rule.BreakGlass = p.flag(node, path+".break-glass")
		if rule.BreakGlass && values["approvals"] == nil {
			p.report(node.Line, path+".break-glass", "add approvals", "nobody must agree to this rule for emergencies")
		}
	}
	p.readLocks(values, path, rule)
	return rule
}

func (p *parser) readCondition(node *yaml.Node, path string, rule *Rule) {
	text, ok := p.text(node, path, maxCondition)
	if !ok {
		return
	}
	rule.When = text
	var hint string
	var err error
	if rule.condition, hint, err = compile(rule.Action, text); err != nil {
		p.report(node.Line, path, hint, "%v", err)
	}
}

var limitFormat = regexp.MustCompile(`^([0-9]{1,9}) per (second|minute|hour|day)$`)

var periods = map[string]time.Duration{
	"second": time.Second, "minute": time.Minute, "hour": time.Hour, "day": 24 * time.Hour,
}

func (p *parser) readLimit(node *yaml.Node, path string, rule *Rule) {
	text, ok := p.text(node, path, maxText)
	if !ok {
		return
	}
	match := limitFormat.FindStringSubmatch(text)
	if match == nil {
		p.report(node.Line, path, `write it like "200 per hour", with second, minute, hour or day`, "invalid limit %.50q",
			text)
		return
	}
	count, err := strconv.Atoi(match[1])
	if err != nil || count < 1 || count > maxCount {
		p.report(node.Line, path, "", "the limit %s is not from 1 to %d", match[1], maxCount)
		return
	}
	rule.Limit = &Limit{Count: count, Per: periods[match[2]]}
}

// readApprovals reads which groups must agree.
func (p *parser) readApprovals(node *yaml.Node, path string, rule *Rule) {
	items := p.items(node, path)
	switch {
	case node.Kind == yaml.SequenceNode && len(items) == 0:
		p.report(node.Line, path, "leave approvals out if nobody must agree", "it is empty")
	case len(items) > maxGroups:
		p.report(node.Line, path, "", "it has more than %d groups", maxGroups)
		return
	}
	before := len(p.problems)
	for i, item := range items {
		p.readApproval(item, index(path, i), rule)
	}
	if len(p.problems) == before {
		p.checkQuorums(node, path, rule.Approvals)
	}
}

func (p *parser) readApproval(node *yaml.Node, path string, rule *Rule) {
	values := p.fields(node, path, "group", "quorum", "kinds", "attestation", "device-bound")
	if node.Kind != yaml.MappingNode {
		return
	}
	a := Approval{Kinds: Kinds}
	if kinds := values["kinds"]; kinds != nil {
		given := several(&p.reader, kinds, path+".kinds", "kind", Kinds)
		a.Kinds = slices.DeleteFunc(slices.Clone(Kinds), func(k Kind) bool { return !slices.Contains(given, k) })
	}
	p.readPasskeys(values, path, &a)
	quorum := values["quorum"]
	if quorum == nil {
		p.report(node.Line, path, "add quorum", "there is no quorum")
	} else if n, ok := p.number(quorum, path+".quorum", 1, maxQuorum); ok {
		a.Quorum = n
	}
	group := values["group"]
	if group == nil {
		p.report(node.Line, path, "add group", "there is no group")
		return
	}
	name, ok := p.name(group, path+".group")
	if !ok {
		return
	}
	found := p.groups[name]
	switch {
	case found == nil:
		p.report(group.Line, path+".group", "add it to groups", "unknown group %s", name)
		return
	case slices.ContainsFunc(rule.Approvals, func(a Approval) bool { return a.Group == name }):
		p.report(group.Line, path+".group", "raise the quorum instead", "the group %s is there twice", name)
		return
	case a.Quorum > len(found.Members):
		p.report(quorum.Line, path+".quorum", "lower the quorum, or add members",
			"the quorum %d is greater than the group %s, which has %d", a.Quorum, name, len(found.Members))
	}
	a.Group, a.Members = name, found.Members
	rule.Approvals = append(rule.Approvals, a)
}

// readPasskeys reads what a group demands of passkeys.
func (p *parser) readPasskeys(values map[string]*yaml.Node, path string, a *Approval) {
	if node := values["attestation"]; node != nil {
		_, a.Attested = one(&p.reader, node, path+".attestation", "attestation", []string{"required"})
	}
	if node := values["device-bound"]; node != nil {
		a.DeviceBound = p.flag(node, path+".device-bound")
	}
	for _, name := range []string{"attestation", "device-bound"} {
		if node := values[name]; node != nil && (a.Attested || a.DeviceBound) && !slices.Contains(a.Kinds, Passkey) {
			p.report(node.Line, path+"."+name, "remove it, or add passkey to kinds",
				"it is a demand on passkeys, and none count")
		}
	}
}

// checkQuorums reports quorums that cannot be reached together, since a person counts for one group of a rule. They can
// be reached if each choice of groups has as many people as its quorums need (Hall's theorem).
func (p *parser) checkQuorums(node *yaml.Node, path string, approvals []Approval) {
	for choice := 1; choice < 1<<len(approvals); choice++ {
		people, needed := map[string]bool{}, 0
		var names []string
		for i, a := range approvals {
			if choice&(1<<i) == 0 {
				continue
			}
			needed += a.Quorum
			names = append(names, a.Group)
			for _, person := range a.Members {
				people[person.Name] = true
			}
		}
		if len(people) < needed {
			p.report(node.Line, path, "lower a quorum, or add members",
				"the groups %s need %d people and have %d: a person counts for one group of a rule",
				strings.Join(names, " and "), needed, len(people))
			return
		}
	}
}

var claimFormat = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.:/-]*$`)

func (p *parser) readSame(node *yaml.Node, path string, rule *Rule) {
	items := p.items(node, path)
	if node.Kind == yaml.SequenceNode && len(items) == 0 {
		p.report(node.Line, path, "leave same out, or name claims", "it is empty")
	}
	for i, item := range items {
		name, ok := p.text(item, index(path, i), maxName)
		switch {
		case !ok:
		case !claimFormat.MatchString(name):
			p.report(item.Line, index(path, i), "name a claim of the caller, such as repository", "invalid claim %.50q", name)
		case slices.Contains(rule.Same, name):
			p.report(item.Line, index(path, i), "remove one of them", "%s is there twice", name)
		default:
			rule.Same = append(rule.Same, name)
		}
	}
}
