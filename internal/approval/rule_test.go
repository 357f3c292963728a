package approval

import (
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// TestRuleDocument checks that a rule can be read in one way alone.
func TestRuleDocument(t *testing.T) {
	t.Parallel()
	group := `{"group":"g","kinds":["ssh"],"members":["1","2"],"quorum":1}`
	rule := `{"action":"use","groups":[` + group + `],"members":[{"credentials":["a","b"],"id":"1"},{"id":"2"}],"names":"` +
		Hash(nil) + `","same":[],"timeout":0,"type":"approval-rule/v1"}`
	r, groups, err := DecodeRule([]byte(rule))
	if err != nil || len(groups) != 1 || groups[0].Name != "g" || groups[0].Members[1] != "2" {
		t.Fatal(groups, err)
	}
	if !r.Has("1", "b") || r.Has("1", "c") || r.Has("2", "a") || r.Has("3", "a") {
		t.Error("it has other credentials")
	}
	for what, changed := range map[string][2]string{
		"quorum of none":         {`"quorum":1`, `"quorum":0`},
		"quorum below none":      {`"quorum":1`, `"quorum":-1`},
		"quorum of all":          {`"quorum":1`, `"quorum":3`},
		"quorum twice":           {`"quorum":1`, `"quorum":1,"quorum":1`},
		"quorum in capitals":     {`"quorum"`, `"Quorum"`},
		"an unknown demand":      {`"same"`, `"moon":"full","same"`},
		"another type":           {"rule/v1", "rule/v2"},
		"another attestation":    {`{"group"`, `{"attestation":"none","group"`},
		"no members":             {`"members":[{"credentials":["a","b"],"id":"1"},{"id":"2"}]`, `"members":[]`},
		"a member less":          {`,{"id":"2"}`, ``},
		"a member more":          {`{"id":"2"}`, `{"id":"2"},{"id":"3"}`},
		"a member twice":         {`{"id":"2"}`, `{"id":"2"},{"id":"2"}`},
		"a name":                 {`{"id":"2"}`, `{"id":"2","name":"bob"}`},
		"another order":          {`["1","2"]`, `["2","1"]`},
		"an id twice in a group": {`["1","2"]`, `["1","1","2"]`},
		"no id":                  {`["1","2"]`, `["","1","2"]`},
		"a credential twice":     {`["a","b"]`, `["a","a"]`},
		"null for members":       {`"members":[{"credentials":["a","b"],"id":"1"},{"id":"2"}]`, `"members":null`},
		"null for groups":        {`[` + group + `]`, `null`},
		"null for same":          {`"same":[]`, `"same":null`},
		"nine groups":            {group, strings.Repeat(group+",", maxGroups) + group},
		"no names":               {Hash(nil), ""},
		"other names":            {Hash(nil), strings.ToUpper(Hash(nil))},
	} {
		document := strings.Replace(rule, changed[0], changed[1], 1)
		if document == rule {
			t.Errorf("%s: nothing changed", what)
		}
		if _, _, err := DecodeRule([]byte(document)); err == nil {
			t.Errorf("it reads a rule with %s", what)
		}
	}
}

// TestPublish checks that each rule of a policy is published with all that it demands and without any name, and that
// its names alone open it.
func TestPublish(t *testing.T) {
	t.Parallel()
	p, err := policy.Parse([]byte(team + emergency))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range p.Rules(policy.Use, "release") {
		n := namesOf(rule)
		published, names, err := n.Publish(map[string][]string{carol: {"a", "b"}})
		if err != nil {
			t.Errorf("%s: %v", rule.Resolved(), err)
			continue
		}
		data := encode(t, published)
		for _, name := range []string{`"alice"`, `"bob"`, `"carol"`, `"dave"`, "caller.issuer"} {
			if strings.Contains(string(data), name) {
				t.Errorf("%s has the name %s", data, name)
			}
		}
		r, groups, err := DecodeRule(data)
		if err != nil {
			t.Errorf("%s: %v", data, err)
			continue
		}
		if r.BreakGlass != rule.BreakGlass || r.Uses != rule.Uses || len(groups) != len(rule.Approvals) ||
			(r.TimeLock != nil) != (rule.TimeLock > 0) || (r.Limit != nil) != (rule.Limit != nil) ||
			r.Timeout != int64(rule.Timeout.Seconds()) || len(r.Same) != len(rule.Same) {
			t.Errorf("%s became %s", rule.Resolved(), data)
		}
		for i, a := range rule.Approvals {
			if g := groups[i]; g.DeviceBound != a.DeviceBound || g.Attested != a.Attested || g.Quorum != a.Quorum ||
				g.Name != a.Group || len(g.Members) != len(a.Members) || len(g.Kinds) != len(a.Kinds) {
				t.Errorf("%+v became %+v", a, g)
			}
		}
		opened, err := r.Open(names)
		if err != nil || string(opened.Rule) != string(rule.Resolved()) || opened.Commitment() != n.Commitment() {
			t.Errorf("%s: %v", names, err)
		}
	}
}

// namesOf returns the names of a rule of the tests.
func namesOf(rule *policy.Rule) *Names {
	n := &Names{People: map[string]string{}, Rule: rule.Resolved(), Salt: salt()}
	for _, a := range rule.Approvals {
		for _, m := range a.Members {
			n.People["id-"+m.Name] = m.Name
		}
	}
	return n
}

// TestOpen checks that names open no rule that demands something else than they do, or that has other people.
func TestOpen(t *testing.T) {
	t.Parallel()
	p, err := policy.Parse([]byte(team + emergency))
	if err != nil {
		t.Fatal(err)
	}
	rules := p.Rules(policy.Use, "release")
	for what, change := range map[string]func(*Rule, *Names){
		"another action":   func(r *Rule, _ *Names) { r.Action = "modify" },
		"another quorum":   func(r *Rule, _ *Names) { r.Groups[0].Quorum = 1 },
		"other kinds":      func(r *Rule, _ *Names) { r.Groups[1].Kinds = []Kind{Passkey} },
		"another member":   func(r *Rule, _ *Names) { r.Groups[1].Members = []string{alice, dave} },
		"another timeout":  func(r *Rule, _ *Names) { r.Timeout = 0 },
		"no time lock":     func(r *Rule, _ *Names) { r.TimeLock = nil },
		"no limit":         func(r *Rule, _ *Names) { r.Limit = nil },
		"an emergency":     func(r *Rule, _ *Names) { r.BreakGlass = true },
		"more uses":        func(r *Rule, _ *Names) { r.Uses = 2 },
		"no claims":        func(r *Rule, _ *Names) { r.Same = []string{} },
		"people exchanged": func(_ *Rule, n *Names) { n.People[alice], n.People[dave] = "dave", "alice" },
		"another rule":     func(_ *Rule, n *Names) { *n = *namesOf(rules[1]) },
		"a person more":    func(_ *Rule, n *Names) { n.People["id-mallory"] = "mallory" },
		"a person less":    func(_ *Rule, n *Names) { delete(n.People, bob) },
		"a name twice":     func(_ *Rule, n *Names) { n.People["id-bob2"] = "bob" },
		"an id of nothing": func(_ *Rule, n *Names) { n.People[""] = "mallory" },
		"no name":          func(_ *Rule, n *Names) { n.People["id-mallory"] = "" },
	} {
		n := namesOf(rules[0])
		published, _, err := n.Publish(nil)
		if err != nil {
			t.Fatal(err)
		}
		change(published, n)
		names := encode(t, n)
		published.Names = Hash(names)
		r, _, err := DecodeRule(encode(t, published))
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if _, err := r.Open(names); err == nil {
			t.Errorf("names open a rule with %s", what)
		}
	}
	published, names, err := namesOf(rules[0]).Publish(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = published.Open(append(names, ' '))
	refused(t, err, "other ones")
}
