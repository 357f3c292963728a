package migrate_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/migrate"
	"github.com/notation-hsm/notation-hsm/internal/notaryv1"
)

const name = "registry.example.com/team/app"

// role is a role of Notary with a key and paths.
func role(name string, threshold int, paths ...string) notaryv1.Role {
	return notaryv1.Role{Name: name, Threshold: threshold, Paths: paths, Version: 1, SignedBy: []string{"a"},
		Keys: []notaryv1.Key{{ID: "a", Algorithm: "ecdsa"}}}
}

// top are the four roles that every repository has.
func top(roles ...notaryv1.Role) *notaryv1.Repository {
	return &notaryv1.Repository{GUN: name, Roles: append([]notaryv1.Role{role("root", 1), role("targets", 1),
		role("snapshot", 1), role("timestamp", 1)}, roles...)}
}

// sign adds a tag whose digest is that of a text.
func sign(r *notaryv1.Repository, role, tag, text string, pulled bool) {
	r.Targets = append(r.Targets, notaryv1.Target{Role: "targets" + role, Tag: tag, Digest: digest.FromString(text),
		Length: 10, Pulled: pulled})
}

func plan(t *testing.T, r *notaryv1.Repository, given migrate.Given) *migrate.Plan {
	t.Helper()
	p, err := migrate.New(r, name, given)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// expect compares what a plan says of each tag, each role and all notes.
func expect(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%s\nnot\n%s", what, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func tagsOf(p *migrate.Plan) (all []string) {
	for _, t := range p.Tags {
		for _, text := range []string{"one", "two", "three"} {
			if t.Digest == digest.FromString(text) {
				all = append(all, fmt.Sprint(t.Tag, " ", text, " ", t.Role, " ", t.From))
			}
		}
	}
	return all
}

func signersOf(p *migrate.Plan) (all []string) {
	for _, s := range p.Signers {
		all = append(all, fmt.Sprint(s.Name, " ", s.Paths, " ", s.Threshold, " ", s.Keys, " ", s.Tags))
	}
	return all
}

func leftOf(p *migrate.Plan) (all []string) {
	for _, l := range p.Left {
		all = append(all, fmt.Sprintf("%.20s: %.30s %t", l.What, l.Reason, l.Lost))
	}
	return all
}

// TestPriority plans tags that several roles have, with the digest that docker pull takes, for one role here.
func TestPriority(t *testing.T) {
	t.Parallel()
	r := top(role("targets/releases", 1, ""), role("targets/alice", 1, "v", "w"), role("targets/bob", 1, "v"))
	sign(r, "", "v1", "one", true)
	sign(r, "", "v2", "one", false)
	sign(r, "", "v4", "one", true)
	sign(r, "/releases", "v2", "two", true)
	sign(r, "/releases", "v3", "two", true)
	sign(r, "/releases", "v5", "two", true)
	sign(r, "/alice", "v1", "one", false)
	sign(r, "/alice", "v2", "two", false)
	sign(r, "/alice", "v6", "three", false)
	sign(r, "/bob", "v2", "two", false)
	sign(r, "/bob", "v3", "two", false)
	sign(r, "/bob", "v4", "three", false)
	sign(r, "/bob", "v6", "one", false)
	p := plan(t, r, migrate.Given{})
	expect(t, "tags", tagsOf(p), "v1 one tags [targets targets/alice]",
		"v2 two alice [targets/releases targets/alice targets/bob]", "v3 two bob [targets/releases targets/bob]",
		"v4 one tags [targets]", "v5 two tags [targets/releases]", "v6 three alice [targets/alice]")
	expect(t, "signers", signersOf(p), "tags [*] 1 [] 3", "alice [v* w*] 1 [] 2", "bob [v*] 1 [] 1")
	expect(t, "left", leftOf(p), "tag v2 of targets, s: targets/releases has the tag w false",
		"tag v4 of targets/bo: targets has the tag with anoth false",
		"tag v6 of targets/bo: targets/alice has the tag with false")
	if p.Lost() != 0 || p.Todo() != 6 || p.Signatures != 5 {
		t.Errorf("%d lost, %d to do, %d signatures", p.Lost(), p.Todo(), p.Signatures)
	}

	p = plan(t, r, migrate.Given{Signers: map[string][]string{"releases": {"r"}, "bob": {"b"}}})
	expect(t, "tags with releases", tagsOf(p), "v1 one tags [targets targets/alice]",
		"v2 two bob [targets/releases targets/alice targets/bob]", "v3 two bob [targets/releases targets/bob]",
		"v4 one tags [targets]", "v5 two releases [targets/releases]", "v6 three tags [targets/alice]")

	p = plan(t, r, migrate.Given{Signers: map[string][]string{}})
	expect(t, "signers without keys", signersOf(p), "tags [*] 1 [] 6")
	if len(p.Notes) != 4 {
		t.Errorf("the notes are %q", p.Notes)
	}
	for _, wrong := range []string{"carol", "tags", "targets/alice"} {
		_, err := migrate.New(r, name, migrate.Given{Signers: map[string][]string{wrong: {"x"}}})
		if err == nil || failure.From(err).Kind != failure.Invalid || !strings.Contains(failure.From(err).Hint,
			"alice, bob") {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

// TestUnexpressible plans what Notary has, and what cannot be here.
func TestUnexpressible(t *testing.T) {
	t.Parallel()
	var many []string
	for i := range 33 {
		many = append(many, fmt.Sprint("p", 10+i))
	}
	refused := role("targets/eve", 1, "")
	refused.Refused = fmt.Errorf("no signatures")
	refused.Ignored = []notaryv1.Ignored{{Name: "a/\x1b", Reason: "it is not a tag"}}
	expired := role("targets/old", 1, "v", "v1", "v*", "a b", "v")
	expired.Expired, expired.Expires = true, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := top(role("targets/alice", 1, ""), role("targets/alice/ci", 1, "ci-"), role("targets/alice-ci", 1, ""),
		role("targets/tags", 1, ""), role("targets/_x", 1, ""), role("targets/none", 1), role("targets/many", 1, many...),
		refused, expired)
	sign(r, "/alice/ci", "ci-1", "one", false)
	sign(r, "/alice-ci", "v1", "two", false)
	sign(r, "", "tuf-metadata", "three", true)
	p := plan(t, r, migrate.Given{})
	expect(t, "signers", signersOf(p), "tags [*] 1 [] 1", "alice [*] 1 [] 0", "alice-ci [ci-*] 1 [] 1", "eve [*] 1 [] 0",
		"old [v*] 1 [] 0")
	expect(t, "tags", tagsOf(p), "ci-1 one alice-ci [targets/alice/ci]", "v1 two tags [targets/alice-ci]")
	expect(t, "left", leftOf(p), "all tags of targets/: no signatures false", `"a/\x1b" of targets/: it is not a tag false`,
		`tag tuf-metadata: the tag "tuf-metadata" is rese true`)
	notes := fmt.Sprint(p.Notes)
	for _, word := range []string{"targets/old expired on 2026-01-02",
		"targets/alice-ci is not made here, since there is another",
		"targets/tags is not made here", "targets/_x is not made", "targets/none is not made here, since it may sign no tag",
		"33 paths"} {
		if !strings.Contains(notes, word) {
			t.Errorf("no note says %q: %q", word, p.Notes)
		}
	}
	if p.Lost() != 1 {
		t.Errorf("%d lost", p.Lost())
	}
}

// TestThresholds plans the thresholds of Notary, and says which keys they lack.
func TestThresholds(t *testing.T) {
	t.Parallel()
	r := top(role("targets/alice", 3, "v"))
	r.Roles[0].Threshold, r.Roles[1].Threshold = 2, 2
	sign(r, "/alice", "v1", "one", false)
	given := migrate.Given{Signers: map[string][]string{"alice": {"a", "b"}},
		Top: map[string][]string{"root": {"r"}, "targets": {"t"}}}
	p := plan(t, r, given)
	expect(t, "signers", signersOf(p), "tags [*] 2 [t] 0", "alice [v*] 3 [a b] 1")
	notes := fmt.Sprint(p.Notes)
	for _, word := range []string{"root needs 2 of its keys in Notary, and 1 of them are given: repeat --root KEY",
		"targets needs 2", "targets/alice needs 3 of its keys in Notary, and 2 of them are given: repeat --signer alice=KEY"} {
		if !strings.Contains(notes, word) {
			t.Errorf("no note says %q: %q", word, p.Notes)
		}
	}
	given.Threshold = 1
	if p := plan(t, r, given); p.Threshold("root") != 1 || p.Threshold("alice") != 3 || p.Threshold("x") != 1 ||
		!strings.Contains(fmt.Sprint(p.Notes), "the threshold of root is 1 here, and 2 in Notary") {
		t.Errorf("%+v", p)
	}
	for roles, words := range map[string]string{"": "no key of the role alice",
		"alice": "targets/alice needs 3 of its keys"} {
		a := migrate.Apply{Signers: map[string]migrate.Signer{}}
		if roles != "" {
			a.Signers[roles] = migrate.Signer{}
		}
		if err := a.Check(p); err == nil || !strings.Contains(err.Error(), words) ||
			!strings.Contains(failure.From(err).Hint, "--signer alice=KEY") {
			t.Errorf("%q: %v", words, err)
		}
	}
}
