package policy_test

import (
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// TestCompare names each change, and the keys whose modify rules are needed.
func TestCompare(t *testing.T) {
	t.Parallel()
	before := example + `  tags:
    key: nethsm:tags
    formats: [tuf]
    use: [{name: timestamp}, {name: snapshot, when: 'caller.issuer == "unix"'}]
  copied: {key: [nethsm:a, nethsm:b], formats: [dsse]}
modify: [{approvals: [{group: security, quorum: 2}]}]
`
	for _, test := range []struct{ old, with, want string }{
		{"version: 1", "# a comment\nversion: 1", ""},
		{"[alice, bob, carol]", "[carol, bob, alice]", ""},
		{"[ssh, key]", "[key, ssh]", ""},
		{"[repository, ref, sha]", "[sha, ref, repository]", ""},
		{"bob, carol]", "bob, erin]", "groups.release-managers: carol is removed\ngroups.release-managers: erin is added\n" +
			"keys.release.use.release.approvals: the members of release-managers, alice, bob, carol, become alice, bob, erin\n" +
			"keys.release.modify.modify-1.approvals: the members of release-managers, alice, bob, carol, become alice, " +
			"bob, erin\n" +
			"needs: , release"},
		{"[dave, erin]", "[dave, erin, frank]", "groups.security: frank is added"},
		{"[alice, bob, carol]", "[alice, bob]", "become alice, bob\nneeds: , release"},
		{"  security: [", "  others: [frank]\n  security: [", "groups.others: it is added: frank\nneeds: "},
		{"    - name: nightly\n", "    - name: daily\n", "keys.release.use.nightly: the rule is removed: when " +
			"caller.issuer == " +
			"\"https://token.actions.githubusercontent.com\" && caller.claims.repository == \"example/app\" && " +
			"artifact.repository " +
			"== \"registry.example.com/nightly/app\"; limit 200 per hour\nkeys.release.use.daily: the rule is added: when " +
			"caller.issuer == \"https://token.actions.githubusercontent.com\" && caller.claims.repository == " +
			"\"example/app\" && " +
			"artifact.repository == \"registry.example.com/nightly/app\"; limit 200 per hour\nneeds: release"},
		{"200 per hour", "300 per day", "keys.release.use.nightly.limit: 200 per hour becomes 300 per day\nneeds: release"},
		{"quorum: 1, kinds: [ssh, key]", "quorum: 2, kinds: [ssh]",
			"keys.release.use.release.approvals: 2 of release-managers, 1 " +
				"of security (key, ssh) becomes 2 of release-managers, 2 of security (ssh)\nneeds: release"},
		{"time-lock: 1h", "time-lock: 90m\n      after: approvals",
			"keys.release.use.release.time-lock: 1h after the request " +
				"becomes 1h30m after the last approval\nneeds: release"},
		{"quorum: 1, kinds: [ssh, key]", "quorum: 1, attestation: required",
			"keys.release.use.release.approvals: 2 of release-managers, 1 of security (key, ssh) becomes 2 of " +
				"release-managers, 1 of security (passkeys attested)\nneeds: release"},
		{"time-lock: 1h", "time-lock: 1h\n      uses: 2",
			"keys.release.use.release.uses: 1 becomes 2\nneeds: release"},
		{"time-lock: 1h", "time-lock: 1h\n      break-glass: true",
			"keys.release.use.release.break-glass: false becomes true\nneeds: release"},
		{"      timeout: 72h\n", "", "keys.release.use.release.timeout: 72h becomes none\nneeds: release"},
		{"      same: [repository, ref, sha]\n", "", "keys.release.use.release.same: repository, ref, sha becomes " +
			"none\nneeds: release"},
		{"when: caller.claims.ref", "when: true || caller.claims.ref", "keys.release.use.release.when: caller.claims.ref" +
			".startsWith(\"refs/tags/v\") becomes true || caller.claims.ref.startsWith(\"refs/tags/v\")\nneeds: release"},
		{"formats: [notation]", "formats: [notation, x509]", "keys.release.formats: notation becomes notation, " +
			"x509\nneeds: release"},
		{"nethsm:tags", "nethsm:other", "keys.tags.key: nethsm:tags becomes nethsm:other\nneeds: , tags"},
		{"nethsm:tags", "[nethsm:tags]", ""},
		{"nethsm:tags", "[nethsm:tags, nethsm:copy]", "keys.tags.key: nethsm:copy is added\nneeds: , tags"},
		{"[nethsm:a, nethsm:b]", "[nethsm:b, nethsm:a]", "keys.copied.key: the order of the modules changes: nethsm:a, " +
			"nethsm:b becomes nethsm:b, nethsm:a\nneeds: , copied"},
		{"[nethsm:a, nethsm:b]", "nethsm:c", "keys.copied.key: nethsm:a is removed\nkeys.copied.key: nethsm:b is " +
			"removed\nkeys.copied.key: nethsm:c is added\nneeds: , copied"},
		{"copied:", "renamed:", "keys.renamed: the key is added: nethsm:a, nethsm:b"},
		{"  tags:", "  other:", "keys.tags: the key is removed\nkeys.other: the key is added: nethsm:tags\nneeds: , tags"},
		{"modify: [{approvals: [{group: security, quorum: 2}]}]\n", "modify: []\n",
			"modify.modify-1: the rule is removed: always " +
				"applies; approvals by 2 of security\nneeds: "},
		{"[{name: timestamp}, {name: snapshot, when: 'caller.issuer == \"unix\"'}]",
			"[{name: snapshot, when: 'caller.issuer == " +
				"\"unix\"'}, {name: timestamp}]", "keys.tags.use: the order of the rules changes\nneeds: tags"},
		{"version: 1", "version: 1\npeople: {alice: [{issuer: a, subject: b}], bob: [], carol: [], dave: [], erin: []}",
			"members of release-managers, alice, bob, carol, become alice (\"b\" at a), bob, carol"},
	} {
		if !strings.Contains(before, test.old) {
			t.Fatalf("no %q", test.old)
		}
		d := policy.Compare(parse(t, before), parse(t, strings.Replace(before, test.old, test.with, 1)))
		var lines []string
		for _, change := range d.Changes {
			lines = append(lines, change.Path+": "+change.What)
		}
		if len(d.Modify) > 0 {
			lines = append(lines, "needs: "+strings.Join(d.Modify, ", "))
		}
		if got := strings.Join(lines, "\n"); !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
			t.Errorf("%q becomes %q:\n%s", test.old, test.with, got)
		}
	}
}
