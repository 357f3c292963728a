package notaryv1_test

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestDelegations verifies what delegations may sign.
func TestDelegations(t *testing.T) {
	t.Parallel()
	f := newForgery(t)
	f.delegate("targets/releases", []string{""}, commonTag, "v2", "a/b", strings.Repeat("a", 129))
	f.delegate("targets/alice", []string{"release-", "rc-"}, "release-1", commonTag, "dev-1")
	f.delegate("targets/alice/ci", []string{"release-1.", "dev-", ""}, "release-1.1", "release-2", "dev-1")
	f.delegate("targets/bob", nil, "bob")
	f.delegate("targets/carol", []string{""}, "carol").signers = []forged{newKey(t, "ecdsa", "")}
	f.delegate("targets/carol/below", []string{""}, "below")
	f.delegate("targets/dave", []string{""}).unsigned = true
	f.delegate("targets/releases/below", []string{""}, "below", "v2")
	f.roles["targets"].targets["below"] = meta([]byte("below"))
	f.roles["targets"].targets["short"] = object{"length": 1, "hashes": object{"sha256": []byte("short")}}
	f.roles["targets"].targets["other"] = object{"length": 1, "hashes": object{"sha512": make([]byte, 64)}}
	r, err := f.read(f.pin())
	if err != nil {
		t.Fatal(err)
	}
	var roles, targets []string
	for _, role := range r.Roles[4:] {
		var ignored []string
		for _, i := range role.Ignored {
			ignored = append(ignored, fmt.Sprintf("%.9s %s", i.Name, i.Reason))
		}
		roles = append(roles, fmt.Sprintf("%s %q %d %t %q", role.Name, role.Paths, role.Version, role.Refused == nil,
			ignored))
	}
	for _, target := range r.Targets {
		targets = append(targets, fmt.Sprint(target.Role, " ", target.Tag, " ", target.Pulled))
	}
	outside := " it is outside of the role's paths"
	if want := []string{
		`targets/releases [""] 1 true ["a/b it is not a tag" "aaaaaaaaa it is not a tag"]`,
		`targets/releases/below [""] 1 true []`,
		`targets/alice ["release-" "rc-"] 1 true ["dev-1` + outside + `" "v1` + outside + `"]`,
		`targets/alice/ci ["release-1."] 1 true ["dev-1` + outside + `" "release-2` + outside + `"]`,
		`targets/bob [] 1 true ["bob` + outside + `"]`,
		`targets/carol [""] 1 false []`,
		`targets/dave [""] 0 true []`,
	}; !slices.Equal(roles, want) {
		t.Errorf("the roles are\n%s\nnot\n%s", strings.Join(roles, "\n"), strings.Join(want, "\n"))
	}
	if want := []string{"targets below false", "targets v1 false", "targets/releases v1 true", "targets/releases v2 true",
		"targets/releases/below below false", "targets/releases/below v2 false", "targets/alice release-1 false",
		"targets/alice/ci release-1.1 false"}; !slices.Equal(targets, want) {
		t.Errorf("the targets are %q, not %q", targets, want)
	}
	if ignored := role(t, r, "targets").Ignored; len(ignored) != 2 {
		t.Errorf("of targets, %+v are ignored", ignored)
	}
}

// TestDelegationThreshold verifies that a key counts once for a delegation.
func TestDelegationThreshold(t *testing.T) {
	t.Parallel()
	f := newForgery(t)
	alice := f.delegate("targets/alice", []string{""}, "a")
	first := newKey(t, "ecdsa-x509", "one")
	alice.keys, alice.threshold = []forged{first, first.as(t, "ecdsa-x509", &x509.Certificate{})}, 2
	r := must(f.read(f.pin()))
	if got := role(t, r, "targets/alice"); got.Refused == nil || digestOf(r, "targets/alice", "a") != "" {
		t.Errorf("%+v", got)
	}
	alice.keys = append(alice.keys, newKey(t, "rsa", ""))
	r = must(f.read(f.pin()))
	if got := role(t, r, "targets/alice"); got.Refused != nil || len(got.SignedBy) != 2 {
		t.Errorf("%+v", got)
	}
}
