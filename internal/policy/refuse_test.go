package policy_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// mistakes returns what Parse refuses in a text, a mistake a line, without hints.
func mistakes(t testing.TB, text string) string {
	t.Helper()
	_, err := policy.Parse([]byte(text))
	if err == nil {
		return ""
	}
	var all policy.Problems
	if !errors.As(err, &all) || !failure.Is(err, failure.Invalid) || len(all) == 0 {
		t.Fatalf("the failure has no problems: %v", err)
	}
	var lines []string
	for _, p := range all {
		p.Hint = ""
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

func TestRefuseRules(t *testing.T) {
	t.Parallel()
	const at = "line 8: keys.k.use[0]"
	for fields, want := range map[string]string{
		"": "", "wen: x": at + `: unknown field "wen"`, "When: x": at + `: unknown field "When"`,
		"name: s": at + `: the name "name" is there twice`, "when: ''": at + ".when: it is empty",
		"when: ' '": at + ".when: it is empty", "when: 1": at + ".when: it is a number, not a text",
		"when: [a]": at + ".when: it is a list, not a text", "when: true": at + ".when: it is true or false, not a text",
		"when: 'caller.isuer == \"x\"'": at + ".when: unknown variable caller.isuer",
		"when: 'caller.issuer'": at +
			".when: its result is a string, not true or false",
		"when: 'caller.issuer == 1'": at +
			".when: column 15 of the condition: found no matching overload for '_==_'",
		"when: 'caller.claims.ref'": at +
			".when: its result is a dyn, not true or false",
		"when: 'artifact.size == \"1\"'": at +
			".when: column 15 of the condition: found no matching overload",
		"when: 'nothing(1)'": at +
			".when: undeclared reference to 'nothing'",
		"when: 'now.getHours(\"UTC\") == 1'": at +
			".when: column 13 of the condition: found no matching overload",
		"when: '1 =='": at +
			".when: column 5 of the condition: Syntax error",
		"limit: 200": at + ".limit: it is a number, not a text",
		"limit: 0 per hour": at +
			".limit: the limit 0 is not from 1 to 1000000",
		"limit: 1000001 per day": at + ".limit: the limit 1000001 is not from 1",
		"limit: 5 per week":      at + `.limit: invalid limit "5 per week"`,
		"limit: -1 per hour":     at + `.limit: invalid limit`,
		"approvals: []":          at + ".approvals: it is empty",
		"approvals: {}":          at + ".approvals: it is a mapping, not a list",
		"approvals: [{group: team, quorum: 0}]": at +
			".approvals[0].quorum: 0 is not from 1 to 100",
		"approvals: [{group: team, quorum: 4}]": at +
			".approvals[0].quorum: the quorum 4 is greater than the group team",
		"approvals: [{group: team}]":          at + ".approvals[0]: there is no quorum",
		"approvals: [{quorum: 1}]":            at + ".approvals[0]: there is no group",
		"approvals: [{group: x, quorum: 1}]":  at + ".approvals[0].group: unknown group x",
		"approvals: [{group: '', quorum: 1}]": at + ".approvals[0].group: it is empty",
		"approvals: [{group: team, quorum: a}]": at +
			".approvals[0].quorum: it is a text, not a decimal number",
		"approvals: [{group: team, quorum: 1.}]": at +
			".approvals[0].quorum: it is a number, not a decimal number",
		"approvals: [{group: team, quorum: 1, kinds: [fax]}]": at +
			`.approvals[0].kinds[0]: unknown kind "fax"`,
		"approvals: [{group: team, quorum: 1, kinds: []}]": at + `.approvals[0].kinds: it is empty`,
		"approvals: [{group: team, quorum: 1, kinds: [ssh, ssh]}]": at +
			`.approvals[0].kinds[1]: ssh is there twice`,
		"approvals: [{group: team, quorum: 1}, {group: team, quorum: 1}]": at +
			".approvals[1].group: the group team is there twice",
		"approvals: [{group: team, quorum: 3}, {group: security, quorum: 2}]": at +
			".approvals: the groups team and security need 5 people and have 4",
		"approvals: [{group: team, quorum: 2}, {group: security, quorum: 2}]": "",
		"approvals: [{group: team, quorum: 1, attestation: true}]": at +
			".approvals[0].attestation: it is true or false, not a text",
		"approvals: [{group: team, quorum: 1, attestation: none}]": at +
			`.approvals[0].attestation: unknown attestation "none"`,
		"approvals: [{group: team, quorum: 1, device-bound: 1}]": at +
			".approvals[0].device-bound: it is a number, not true or false",
		"approvals: [{group: team, quorum: 1, device_bound: true}]": at +
			`.approvals[0]: unknown field "device_bound"`,
		"approvals: [{group: team, quorum: 1, kinds: [key, ssh], attestation: required}]": at +
			".approvals[0].attestation: it is a demand on passkeys, and none count",
		"approvals: [{group: team, quorum: 1, kinds: [ssh], device-bound: true}]": at +
			".approvals[0].device-bound: it is a demand on passkeys, and none count",
		"approvals: [{group: team, quorum: 1, kinds: [ssh], device-bound: false}]":                           "",
		"approvals: [{group: team, quorum: 1, kinds: [passkey], device-bound: true, attestation: required}]": "",
		"uses: 0":           at + ".uses: 0 is not from 1 to 1000",
		"uses: 1001":        at + ".uses: 1001 is not from 1 to 1000",
		"uses: many":        at + ".uses: it is a text, not a decimal number",
		"uses: 1":           "",
		"break-glass: true": at + ".break-glass: nobody must agree to this rule for emergencies",
		"break-glass: yes":  at + ".break-glass: it is a text, not true or false",
		"break-glass: []":   at + ".break-glass: it is a list, not true or false",
		"break-glass: true, approvals: [{group: team, quorum: 1}]": "",
		"break-glass: false":              "",
		"same: []":                        at + ".same: it is empty",
		"same: ['a b']":                   at + `.same[0]: invalid claim "a b"`,
		"same: ['']":                      at + `.same[0]: it is empty`,
		"same: [ref, ref]":                at + `.same[1]: ref is there twice`,
		"same: ref":                       at + `.same: it is a text, not a list`,
		"time-lock: 1d":                   at + `.time-lock: invalid duration "1d"`,
		"time-lock: 0s":                   at + `.time-lock: the duration 0s is not from 1s to 720h`,
		"time-lock: -1h":                  at + `.time-lock: the duration -1h is not from 1s`,
		"time-lock: 1500ms":               at + `.time-lock: invalid duration`,
		"time-lock: 721h":                 at + `.time-lock: the duration 721h is not from 1s to 720h`,
		"time-lock: 60":                   at + `.time-lock: it is a number, not a text`,
		"timeout: 2161h":                  at + `.timeout: the duration 2161h is not from 1s to 2160h`,
		"after: request":                  at + `.after: there is no time lock`,
		"time-lock: 1h, after: approvals": at + `.after: the rule needs no approvals`,
		"time-lock: 1h, after: lunch":     at + `.after: unknown moment "lunch"`,
		"time-lock: 1h, timeout: 1h":      at + `.timeout: the timeout 1h is not longer than the time lock 1h`,
		"time-lock: 1h, timeout: 30m":     at + `.timeout: the timeout 30m is not longer`,
		"time-lock: 1h, timeout: 1h1s":    "",
		"when: \"key == '\u202ea'\"":      "line 8: the character U+202E cannot be seen by a reviewer",
		"when: \"key == '\\u202ea'\"":     "line 8: the character U+202E cannot be seen by a reviewer",
		"when: &a 'true'":                 "line 8: there is a YAML anchor or alias",
		"when: !!str 'true'":              "line 8: there is a YAML tag",
		"<<: {when: 'true'}":              "line 8: there is a YAML merge",
		"when: '" + strings.Repeat("(", 4) + strings.Repeat("1", 4096) + "'": at + ".when: it has 4100 bytes, more than 4096",
	} {
		got := mistakes(t, rule(fields))
		if !strings.HasPrefix(got, want) || (got == "") != (want == "") || strings.Contains(got, "\n") {
			t.Errorf("%s:\n got %s\nwant %s", fields, got, want)
		}
	}
}

func TestRefuseFiles(t *testing.T) {
	t.Parallel()
	const uri = "version: 1\nkeys: {k: {key: "
	const one = uri + "'nethsm:k', formats: [tuf], "
	const key = "keys: {k: {key: 'nethsm:k', formats: [notation]}}\n"
	for text, want := range map[string]string{
		"": "it is empty", "# only a comment": "it is empty", "[]": "line 1: it is a list, not a mapping",
		"version: 1\n" + key:   "",
		key:                    "line 1: there is no version",
		"version: 2\n" + key:   "line 1: version: unknown version 2",
		"version: '1'\n" + key: "line 1: version: it is a text, not a decimal number",
		"version: 1\npeople: {a: [{issuer: approver, subject: a}]}\n" + key: "line 2: people.a[0]: the issuer approver is " +
			"reserved",
		"version: 1\n":                             "line 1: keys: there is no key",
		"version: 1\nversion: 1\n" + key:           `line 2: `,
		"version: 1\nrules: []\n" + key:            `line 2: unknown field "rules"`,
		"version: 1\n" + key + "---\na: 1":         "line 3: a second document follows",
		"version: 1\n" + key + "...\n[":            "a second document follows",
		"version: [1":                              "line 2: it is not YAML",
		"version: 1\nkeys:\n\tk: 1":                "line 3: it is not YAML",
		uri + "'nethsm:k', formats: []}}":          "line 2: keys.k.formats: it is empty",
		uri + "'nethsm:k'}}":                       "line 2: keys.k: there are no formats",
		uri + "'nethsm:k', formats: [jpeg]}}":      `line 2: keys.k.formats[0]: unknown format "jpeg"`,
		uri + "'nethsm:k', formats: [tuf, tuf]}}":  "line 2: keys.k.formats[1]: tuf is there twice",
		"version: 1\nkeys: {k: {formats: [tuf]}}":  "line 2: keys.k: there is no key",
		uri + "'broker:k', formats: [tuf]}}":       "line 2: keys.k.key: it is a key of another broker",
		uri + "'pkcs11:token=t', formats: [tuf]}}": "line 2: keys.k.key: it names no key",
		uri + "'pkcs11:object=t?pin-source=file:/x', formats: [tuf]}}": "line 2: keys.k.key: a policy says " +
			"nothing about modules and PINs",
		uri + "'pkcs11:object=t?module-path=/x', formats: [tuf]}}": "line 2: keys.k.key: a policy says " +
			"nothing about modules and PINs",
		uri + "'pkcs11:color=t', formats: [tuf]}}": "line 2: keys.k.key: ",
		"version: 1\nkeys:\n  a: {key: 'pkcs11:token=t;object=o', formats: [tuf]}\n  b: {key: 'pkcs11:object=%6f;token=t', " +
			"formats: [tuf]}": "line 4: keys.b.key: the key a is the same, in line 3",
		uri + "[], formats: [tuf]}}":                       "line 2: keys.k.key: it is empty",
		uri + "{a: b}, formats: [tuf]}}":                   "line 2: keys.k.key: it is a mapping, not a text",
		uri + "['nethsm:k', 1], formats: [tuf]}}":          "line 2: keys.k.key[1]: it is a number, not a text",
		uri + "['nethsm:k', [a]], formats: [tuf]}}":        "line 2: keys.k.key[1]: it is a list, not a text",
		uri + "['nethsm:k', 'broker:k'], formats: [tuf]}}": "line 2: keys.k.key[1]: it is a key of another broker",
		uri + "['pkcs11:token=t;object=o', 'pkcs11:object=%6f;token=t'], formats: [tuf]}}": "line 2: keys.k.key[1]: " +
			"pkcs11:token=t;object=o is there twice",
		uri + "[" + strings.Repeat("'nethsm:k',", 17) + "], formats: [tuf]}}": "line 2: keys.k.key: it has more than " +
			"16 items",
		"version: 1\nkeys:\n  a: {key: ['nethsm:a', 'nethsm:b'], formats: [tuf]}\n  b: {key: ['nethsm:c', 'nethsm:b'], " +
			"formats: [tuf]}": "line 4: keys.b.key[1]: the key a is the same, in line 3",
		one + "block: [{limit: 1 per day}]}}": "line 2: keys.k.block[0]: " +
			`unknown field "limit"`,
		one + "block: [{when: 'artifact.size == 1'}]}}": "line 2: " +
			"keys.k.block[0].when: unknown variable artifact.size",
		one + "use: [{when: 'true'}]}}": "line 2: keys.k.use[0]: the rule has " +
			"no name",
		one + "use: [{name: ''}]}}":           "line 2: keys.k.use[0].name: it is empty",
		one + "use: [{name: 'a b'}]}}":        `line 2: keys.k.use[0].name: invalid name "a b"`,
		one + "use: [{name: a}, {name: a}]}}": "line 2: keys.k.use[1]: the rule a is there twice",
		one + "block: [{name: block-2}, {}]}}": "line 2: keys.k.block[1]: the rule block-2 is " +
			"there twice",
		"version: 1\nkeys: {'': {key: 'nethsm:k', formats: [tuf]}}": `line 2: keys: invalid name ""`,
		"version: 1\nkeys: {1: {key: 'nethsm:k', formats: [tuf]}}":  "line 2: keys: a name is a number, not a text",
		"version: 1\nkeys:\n  a: {key: 'nethsm:a', formats: [tuf], modify: [{when: 'true'}]}\n  b: {key: 'nethsm:b', " +
			"formats: [tuf]}": "" +
			"line 4: keys.b.modify: it differs from the one of the key a",
		"version: 1\nmodify: []\nkeys:\n  a: {key: 'nethsm:a', formats: [tuf], modify: [{when: 'true'}]}\n  b: {key: " +
			"'nethsm:b', formats: [tuf]}": "",
		"version: 1\ngroups: {team: [alice, alice]}\n" + key:   "line 2: groups.team[1]: alice is in the group twice",
		"version: 1\ngroups: {team: [true]}\n" + key:           "line 2: groups.team[0]: it is true or false, not a text",
		"version: 1\ngroups: {team: [7]}\n" + key:              "line 2: groups.team[0]: it is a number, not a text",
		"version: 1\ngroups: {'': [alice]}\n" + key:            `line 2: groups: invalid name ""`,
		"version: 1\npeople: {}\ngroups: {team: [al]}\n" + key: "line 3: groups.team[0]: unknown person al",
		"version: 1\npeople: {al: [{issuer: a}]}\n" + key:      "line 2: people.al[0]: there is no subject",
		"version: 1\npeople:\n  al: [{issuer: a, subject: b}]\n  alice: [{issuer: a, subject: b}]\n" + key: "line 4: " +
			"people.alice[0]: al has this identity already, in line 3: a person counts once",
		"version: 1\npeople: {al: [{issuer: a, subject: b, email: c}]}\n" +
			key: `line 2: people.al[0]: unknown field "email"`,
		"version: 1\na: &a [x, x]\nb: &b [*a, *a]\n" + key: "line 2: there is a YAML anchor or alias",
		"version: 1\na: " + strings.Repeat("[", 5000):      "line 3: it is not YAML",
		"version: 1\na: " + strings.Repeat("[", 20) + strings.Repeat("]", 20): "line 2: it is not YAML: " +
			"line 2 is nested deeper",
		strings.Repeat("#", 256<<10) + "\n": "it has 262145 bytes, more than 262144",
		"version: 1\na: [" + strings.Repeat("x,", 21000) + "]": "it is not YAML: it has more than " +
			"20000 values",
		"version: 1\xff":   "line 1: the character U+FFFD cannot be seen",
		"version: 1\n\x00": "line 2: the character U+0000 cannot be seen",
	} {
		got := mistakes(t, text)
		if !strings.HasPrefix(got, want) || (got == "") != (want == "") || strings.Count(got, "\n") > 1 {
			t.Errorf("%.200s:\n got %.300s\nwant %s", text, got, want)
		}
	}
}

// TestAllMistakes finds every mistake of a policy at once.
func TestAllMistakes(t *testing.T) {
	t.Parallel()
	text := strings.NewReplacer("notation]", "jpeg]", "quorum: 2}, {", "quorum: 9}, {", "1h", "1 h", "caller.issuer",
		"caller.user",
		"carol", "alice").Replace(example)
	const greater = "the quorum 9 is greater than the group release-managers, which has 2"
	want := "line 3: groups.release-managers[2]: alice is in the group twice\n" +
		"line 8: keys.release.formats[0]: unknown format \"jpeg\"\n" +
		"line 11: keys.release.use[0].when: unknown variable caller.user\n" +
		"line 16: keys.release.use[1].approvals[0].quorum: " + greater + "\n" +
		"line 18: keys.release.use[1].time-lock: invalid duration \"1 h\"\n" +
		"line 22: keys.release.modify[0].approvals[0].quorum: " + greater
	if got := mistakes(t, text); got != want {
		t.Error(got)
	}
	if got := strings.Count(mistakes(t, "version: 1\ngroups: {a: ["+strings.Repeat("1,", 500)+"]}"), "\n"); got != 99 {
		t.Errorf("%d lines", got)
	}
}

// TestBombs refuses conditions whose cost has no bound, or stops them at the limit.
func TestBombs(t *testing.T) {
	t.Parallel()
	for when, want := range map[string]string{
		`[1].all(x, [1].all(y, x == y))`:      "all or exists is within another all or exists",
		`"a".matches(caller.issuer)`:          "the pattern of matches is not a text",
		`matches("a", caller.issuer + "a")`:   "the pattern of matches is not a text",
		`"a".matches("((a{100}){100}){100}")`: "error parsing regexp",
		`"a".matches("(a{900})(b{900})")`:     "regex",
		`"a".matches("(")`:                    "error parsing regexp",
		`[1].map(x, x) == [1]`:                "undeclared reference to 'map'",
		`caller.claims.a.exists(x, x.matches("` + strings.Repeat("a", 400) + `"))`: "its cost is up to",
		strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100):               "recursion",
		strings.Repeat("!", 3000) + "true":                                         "-",
		strings.Repeat("[", 500):                                                   "",
		strings.Repeat("true && ", 500) + "true":                                   "-",
		strings.Repeat("key.", 1000) + "a":                                         "",
	} {
		got := mistakes(t, rule("when: '"+when+"'"))
		if want != "-" && (got == "" || !strings.Contains(got, want)) {
			t.Errorf("%.60s: %.300s", when, got)
		}
	}
}

// TestHostileClaims decides about claims of every size and shape, within bounds that it counts, not measures.
func TestHostileClaims(t *testing.T) {
	t.Parallel()
	deep := any("x")
	for range 9 {
		deep = map[string]any{"a": deep}
	}
	many := make([]any, 990)
	for i := range many {
		many[i] = strings.Repeat("a", 100)
	}
	p := parse(t, rule("when: 'caller.claims.a.exists(x, x == 0"+strings.Repeat(" || x == 1", 60)+")'"))
	for what, test := range map[string]struct {
		claims map[string]any
		want   string
	}{
		"deep":     {map[string]any{"a": deep}, "nested deeper than 8"},
		"too many": {map[string]any{"a": make([]any, 1001)}, "more than 1000 values"},
		"wide":     {map[string]any{"a": map[string]any{"b": many, "c": many}}, "more than 1000 values"},
		"long":     {map[string]any{"a": strings.Repeat("a", 1<<20)}, "more than 131072 bytes"},
		"costly":   {map[string]any{"a": many}, "the condition costs more than 100000 to evaluate"},
		"number":   {map[string]any{"a": json.Number("1e999")}, "cannot be represented"},
		"type":     {map[string]any{"a": time.Now()}, "a value is a time.Time"},
		"null":     {map[string]any{"a": nil}, "cannot be evaluated"},
		"nested": {map[string]any{"a": map[string]any{"b": []any{nil, true, 1, int64(2), json.Number("3"),
			[]string{"a"}}}}, "the condition is false"},
	} {
		in := github()
		in.Key, in.Caller.Claims = "k", test.claims
		if d := p.Decide(policy.Use, in); len(d.Rules) != 0 || !strings.Contains(names(d), test.want) {
			t.Errorf("%s: %s", what, names(d))
		}
	}
	in := github()
	numbered := func(count int) map[string]string {
		all := map[string]string{}
		for i := range count {
			all[strconv.Itoa(i)] = "a"
		}
		return all
	}
	for what, annotations := range map[string]map[string]string{"long": {"a": strings.Repeat("a", 2<<20)},
		"too many": numbered(20001)} {
		in.Key, in.Artifact.Annotations = "k", annotations
		if d := p.Decide(policy.Use, in); !strings.Contains(names(d), "too large") {
			t.Errorf("%s: %s", what, names(d))
		}
	}
	in.Artifact.Annotations = numbered(19000)
	if d := p.Decide(policy.Use, in); strings.Contains(names(d), "too large") {
		t.Error(names(d))
	}
}

// FuzzParse reads any text: it fails with problems, or gives a policy that decides.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{example, rule("when: 'caller.claims.a.exists(x, x == 1)'"), "version: 1", "a: &a [*a]",
		rule("time-lock: 1h, timeout: 2h, after: request, limit: 1 per day, same: [ref]"), "{a: b, ? c}",
		"%YAML 1.1\n---\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := policy.Parse(data)
		if err != nil {
			mistakes(t, string(data))
			return
		}
		again, err := policy.Parse(p.Source())
		if err != nil || again.Digest() != p.Digest() || len(policy.Compare(p, again).Changes) != 0 {
			t.Fatalf("it is another when it is read again: %v", err)
		}
		for _, k := range p.Keys() {
			for _, action := range policy.Actions {
				in := github()
				in.Key = k.Name
				d := p.Decide(action, in)
				if n := len(p.Rules(action, k.Name)); n > 0 && action != policy.Use && len(d.Rules)+len(d.Refused) != n {
					t.Fatalf("%d rules, and %s", n, names(d))
				}
			}
			for _, r := range p.Rules(policy.Use, k.Name) {
				if !json.Valid(r.Resolved()) {
					t.Fatalf("%s", r.Resolved())
				}
			}
		}
	})
}

// FuzzDecide decides about any claims: it never panics, and each rule either applies or says why not.
func FuzzDecide(f *testing.F) {
	for _, seed := range []string{`{}`, `{"ref":"refs/tags/v1"}`, `{"ref":[[[[[[[[[[]]]]]]]]]]}`, `{"ref":{"a":1e300}}`,
		`{"a":null}`} {
		f.Add([]byte(seed))
	}
	var p []*policy.Policy
	for _, when := range []string{`caller.claims.ref.startsWith("refs")`, `caller.claims == {"a": 1}`,
		`caller.claims.a.b.c[0] > 1`,
		`caller.claims.a.all(x, x in ["a", "b"])`, `size(caller.claims.a) > caller.claims.b`} {
		p = append(p, parse(f, rule(fmt.Sprintf("when: '%s'", when))))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		in := github()
		in.Key, in.Caller.Claims = "k", nil
		if json.Unmarshal(data, &in.Caller.Claims) != nil {
			return
		}
		for _, p := range p {
			d := p.Decide(policy.Use, in)
			if len(d.Rules)+len(d.Refused) != 1 ||
				len(d.Refused) == 1 && (d.Refused[0].Why == "" || len(d.Refused[0].Why) > 400) {
				t.Fatal(names(d))
			}
		}
	})
}
