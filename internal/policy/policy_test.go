package policy_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// example is a whole policy. Its keys have the modify rules that the tests of differences need.
const example = `version: 1
groups:
  release-managers: [alice, bob, carol]
  security: [dave, erin]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: nightly
      when: caller.issuer == "https://token.actions.githubusercontent.com" && caller.claims.repository == "example/app"
            && artifact.repository == "registry.example.com/nightly/app"
      limit: 200 per hour
    - name: release
      when: caller.claims.ref.startsWith("refs/tags/v")
      approvals: [{group: release-managers, quorum: 2}, {group: security, quorum: 1, kinds: [ssh, key]}]
      same: [repository, ref, sha]
      time-lock: 1h
      timeout: 72h
    block:   [{approvals: [{group: security, quorum: 1}]}]
    unblock: [{approvals: [{group: security, quorum: 2}]}]
    modify:  [{approvals: [{group: release-managers, quorum: 2}, {group: security, quorum: 1}]}]
`

func parse(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, err := policy.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// rule returns a policy with one rule of use, in the flow style of YAML.
func rule(fields string) string {
	return "version: 1\ngroups: {team: [alice, bob, carol], security: [dave, alice]}\nkeys:\n  k:\n" +
		"    key: pkcs11:token=t;object=o\n    formats: [notation]\n    use:\n    - {name: r, " + fields + "}\n"
}

func github() policy.Input {
	return policy.Input{
		Key: "release", Time: time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC),
		Caller: policy.Caller{
			Issuer: "https://token.actions.githubusercontent.com", Subject: "repo:example/app:ref:refs/tags/v1.2.0",
			Claims: map[string]any{
				"actor": "octocat", "aud": "https://broker.example.com", "base_ref": "", "event_name": "push", "exp": 1.7e9,
				"head_ref": "", "iat": 1.7e9, "job_workflow_ref": "example/app/.github/workflows/release.yml@refs/tags/v1.2.0",
				"ref": "refs/tags/v1.2.0", "ref_type": "tag", "repository": "example/app", "repository_id": "74",
				"repository_owner": "example", "repository_owner_id": "65", "repository_visibility": "private", "run_attempt": "2",
				"run_id": "9", "run_number": "10", "runner_environment": "github-hosted", "sha": strings.Repeat("a", 40),
				"sub": "repo:example/app:ref:refs/tags/v1.2.0", "workflow": "release",
			},
		},
		Artifact: policy.Artifact{
			Format: payload.Notation, MediaType: "application/vnd.oci.image.manifest.v1+json",
			Digest: "sha256:" + strings.Repeat("0", 64), Size: 525, Repository: "registry.example.com/nightly/app",
			Annotations: map[string]string{"stage": "prod"},
		},
	}
}

// names returns the rules that apply, and why the others do not.
func names(d policy.Decision) string {
	var all []string
	for _, r := range d.Rules {
		all = append(all, r.Name)
	}
	for _, r := range d.Refused {
		all = append(all, r.Rule+": "+r.Why)
	}
	return strings.Join(all, "\n")
}

func TestDecide(t *testing.T) {
	t.Parallel()
	p := parse(t, example)
	for what, test := range map[string]struct {
		change func(*policy.Input)
		action policy.Action
		want   string
	}{
		"both apply": {func(*policy.Input) {}, policy.Use, "nightly\nrelease"},
		"another repository": {func(in *policy.Input) { in.Artifact.Repository = "" }, policy.Use,
			"release\nnightly: the condition is false"},
		"a missing claim": {
			func(in *policy.Input) { delete(in.Caller.Claims, "ref") }, policy.Use,
			"nightly\nrelease: the caller has no claim \"ref\"",
		},
		"no claims": {
			func(in *policy.Input) { in.Caller.Claims = nil }, policy.Use,
			"nightly: the caller has no claim \"repository\"\nrelease: the caller has no claim \"ref\"",
		},
		"a claim of another type": {
			func(in *policy.Input) { in.Caller.Claims["ref"] = 7.0 }, policy.Use,
			"nightly\nrelease: the condition cannot be evaluated: no such overload",
		},
		"another format": {
			func(in *policy.Input) { in.Artifact.Format = payload.TUF }, policy.Use,
			`: the key does not sign the format "tuf"`,
		},
		"another key":    {func(in *policy.Input) { in.Key = "other" }, policy.Use, `: the policy has no key "other"`},
		"block":          {func(*policy.Input) {}, policy.Block, "block-1"},
		"modify a key":   {func(*policy.Input) {}, policy.Modify, "modify-1"},
		"modify the top": {func(in *policy.Input) { in.Key = "" }, policy.Modify, "modify-1"},
		"use of no key":  {func(in *policy.Input) { in.Key = "" }, policy.Use, `: the policy has no key ""`},
		"no action":      {func(*policy.Input) {}, "sign", `: there is no action "sign"`},
	} {
		in := github()
		test.change(&in)
		if got := names(p.Decide(test.action, in)); got != test.want {
			t.Errorf("%s: %s", what, got)
		}
	}
	if got := names(parse(t, rule("when: 'true'")).Decide(policy.Block, policy.Input{Key: "k"})); got !=
		": the policy has no rule for block" {
		t.Error(got)
	}
}

func TestConditions(t *testing.T) {
	t.Parallel()
	for when, want := range map[string]string{
		`true`: "r", `key == "k"`: "r", `now < timestamp("2027-01-01T00:00:00Z")`: "r", `now.getDayOfWeek() == 5`: "r",
		`has(caller.claims.nothing)`:                                  "r: the condition is false",
		`!has(caller.claims.nothing)`:                                 "r",
		`caller.claims["nothing"] == "x"`:                             `r: the caller has no claim "nothing"`,
		`artifact.annotations["nothing"] == "x"`:                      `r: the artifact has no annotation "nothing"`,
		`artifact.annotations.stage == "prod"`:                        "r",
		`artifact.size < 1000 && artifact.expiry == 0`:                "r",
		`caller.claims.exp == 1700000000 && caller.claims.exp > 1600`: "r",
		`caller.claims.ref.matches("^refs/tags/v[0-9.]+$")`:           "r",
		`caller.claims.repository in ["example/app", "example/lib"]`:  "r",
		`["a", "b"].exists(x, x == caller.claims.workflow)`:           "r: the condition is false",
		`caller.claims.nothing == "x" || true`:                        "r",
		`int(caller.claims.run_number) > 9`:                           "r",
	} {
		in := github()
		in.Key = "k"
		p := parse(t, rule("when: '"+strings.ReplaceAll(when, "'", "''")+"'"))
		if got := names(p.Decide(policy.Use, in)); got != want {
			t.Errorf("%s: %s", when, got)
		}
	}
}

func TestRule(t *testing.T) {
	t.Parallel()
	p := parse(t, example)
	r := p.Rules(policy.Use, "release")[1]
	const want = `{"action":"use","approvals":[{"group":"release-managers","kinds":["key","ssh","passkey"],"members":[` +
		`{"identities":[],"name":"alice"},{"identities":[],"name":"bob"},{"identities":[],"name":"carol"}],"quorum":2},` +
		`{"group":"security","kinds":["key","ssh"],"members":[{"identities":[],"name":"dave"},` +
		`{"identities":[],"name":"erin"}` +
		`],"quorum":1}],"same":["ref","repository","sha"],"time_lock":{"after":"request","seconds":3600},"timeout":259200,` +
		`"type":"rule/v1","when":"caller.claims.ref.startsWith(\"refs/tags/v\")"}`
	if got := string(r.Resolved()); got != want {
		t.Errorf("%s", got)
	}
	for old, changed := range map[string]string{
		"[alice, bob, carol]": "[alice, bob, erin2]", "refs/tags/v": "refs/tags/", "time-lock: 1h": "time-lock: 2h",
		"timeout: 72h": "timeout: 71h", "[ssh, key]": "[ssh]", "quorum: 2}, {group": "quorum: 3}, {group", "ref, sha": "ref",
	} {
		if parse(t, strings.Replace(example, old, changed, 1)).Rules(policy.Use, "release")[1].Digest() == r.Digest() {
			t.Errorf("%s has the same digest as %s", changed, old)
		}
	}
	renamed := parse(t, strings.Replace(example, "name: release", "name: other", 1)).Rules(policy.Use, "release")[1]
	if renamed.Digest() != r.Digest() || renamed.Name != "other" {
		t.Error("the name is part of the resolved rule")
	}
	if got := p.Rules(policy.Use, "release")[0].Limit; got == nil || *got != (policy.Limit{Count: 200, Per: time.Hour}) {
		t.Error(got)
	}
}

// TestNewDemands checks that what a rule can demand besides changes its digest, and that a rule without is as it was.
func TestNewDemands(t *testing.T) {
	t.Parallel()
	const plain = "approvals: [{group: team, quorum: 1}]"
	was := parse(t, rule(plain)).Rules(policy.Use, "k")[0]
	for fields, want := range map[string]string{
		"uses: 1, " + plain: "", "break-glass: false, " + plain: "",
		"approvals: [{group: team, quorum: 1, device-bound: false}]": "",
		"uses: 2, " + plain:           `"uses":2`,
		"break-glass: true, " + plain: `"break_glass":true`,
		"approvals: [{group: team, quorum: 1, attestation: required}]": `{"attestation":"required","group":"team"`,
		"approvals: [{group: team, quorum: 1, device-bound: true}]":    `{"device_bound":true,"group":"team"`,
	} {
		r := parse(t, rule(fields)).Rules(policy.Use, "k")[0]
		if (r.Digest() == was.Digest()) != (want == "") || !strings.Contains(string(r.Resolved()), want) {
			t.Errorf("%s: %s", fields, r.Resolved())
		}
	}
	r := parse(t, rule("uses: 3, break-glass: true, approvals: [{group: team, quorum: 2, kinds: [ssh, passkey], "+
		"attestation: required, device-bound: true}]")).Rules(policy.Use, "k")[0]
	if got := r.String(); got != "always applies; approvals by 2 of team (ssh, passkey; passkeys attested; passkeys "+
		"device-bound); uses 3; for emergencies: a request must name it, with a reason" {
		t.Error(got)
	}
	if r.Uses != 3 || !r.BreakGlass || !r.Approvals[0].Attested || !r.Approvals[0].DeviceBound {
		t.Errorf("%+v", r)
	}
}

func TestPeople(t *testing.T) {
	t.Parallel()
	p := parse(t, `{version: 1, people: {alice: [{issuer: unix, subject: "1000"}, {issuer: mtls, subject: "CN=alice"}]},
groups: {team: [alice]}, keys: {k: {key: "nethsm:k", formats: [notation], use: [{name: r, approvals:
[{group: team, quorum: 1}]}]}}}`)
	if p.Person(policy.Identity{Issuer: "mtls", Subject: "CN=alice"}) != "alice" ||
		p.Person(policy.Identity{Issuer: "unix", Subject: "CN=alice"}) != "" {
		t.Error("another person")
	}
	if got := string(p.Rules(policy.Use, "k")[0].Resolved()); !strings.Contains(got,
		`{"identities":[{"issuer":"mtls","subject":"CN=alice"},{"issuer":"unix","subject":"1000"}],"name":"alice"}`) {
		t.Error(got)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		example:                                  "",
		rule(`when: 'caller.claims.ref == "x"'`): "line 8: keys.k.use[0]: the condition reads no caller.issuer",
		rule(`limit: 1 per day`):                 "line 8: keys.k.use[0]: any caller may sign anything",
		rule(`when: 'caller.issuer == "unix" && artifact.repository in ["a", "b"]'`): "line 4: keys.k: rules for different " +
			"repositories share the key: a, b",
		rule(`when: 'caller.issuer == "unix" && artifact.repository == "a"'`): "",
		strings.Replace(rule(`when: 'caller.issuer == "unix" && artifact.repository == "a"'`), "    - {",
			"    - {name: s, when: 'caller.issuer == \"unix\" && artifact.repository.startsWith(\"b\")'}\n"+
				"    - {", 1): "share the " +
			"key: a, b",
		rule(`break-glass: true, approvals: [{group: team, quorum: 1}]`): "line 8: keys.k.use[0]: the rule for emergencies " +
			"is alone",
		rule(`approvals: [{group: team, quorum: 1}]}` + "\n    - " +
			`{name: e, break-glass: true, approvals: [{group: security, quorum: 1}]`): "line 9: keys.k.use[1]: the rule for " +
			"emergencies needs as many people",
		rule(`approvals: [{group: team, quorum: 2}]}` + "\n    - " +
			`{name: e, break-glass: true, approvals: [{group: security, quorum: 1}]`): "",
		rule(`time-lock: 2h, approvals: [{group: team, quorum: 1}]}` + "\n    - " +
			`{name: e, break-glass: true, time-lock: 1h, approvals: [{group: security, quorum: 1}]`): "",
	} {
		var lines []string
		for _, w := range parse(t, text).Warnings() {
			lines = append(lines, w.String())
		}
		if got := strings.Join(lines, "\n"); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s\n%s", text, got)
		}
	}
}

// TestConcurrentUse decides in many goroutines at once.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	p := parse(t, example)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				if got := names(p.Decide(policy.Use, github())); got != "nightly\nrelease" {
					t.Error(got)
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkDecide(b *testing.B) {
	p := parse(b, example)
	in := github()
	b.ReportAllocs()
	for b.Loop() {
		if d := p.Decide(policy.Use, in); len(d.Rules) != 2 {
			b.Fatal(names(d))
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		parse(b, example)
	}
}
