package tags

import (
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestStory signs the tags of a repository as a team does: a root of which two of three custodians sign, each on a
// token of their own, the team's targets key, and two signers with paths, of whom one is found to be compromised.
func TestStory(t *testing.T) {
	s := newScene(t)
	var roots []string
	for _, name := range []string{"root-1", "root-2", "root-3"} {
		s.token.Init(t, name)
		roots = append(roots, "--root", s.key(name, "EC-256", "root"))
	}
	s.keys("targets", "snapshot", "timestamp", "alice", "bob")
	s.tag(slices.Concat([]string{"init", s.name, "--threshold", "2", "--targets", s.uri("targets"), "--to", s.root}, roots,
		s.online())...)
	if r := s.role("root"); r.Threshold != 2 || len(r.Keys) != 3 {
		t.Errorf("the root is %+v", r)
	}
	s.fails("has a root for the tags of", append([]string{"init", s.name, "--targets", s.uri("targets"), "--to", s.root,
		"--root", s.uri("targets")}, s.online()...)...)

	publisher := s.publisher()
	delegate := func(name, paths string) {
		s.tag("delegate", "add", s.name, name, "--paths", paths, "--key", s.uri(name), "--targets", s.uri("targets"),
			"--wait", patience)
	}
	delegate("alice", "release-*")
	delegate("bob", "nightly-*")

	v1, release, nightly := s.push("v1"), s.push("release-1"), s.push("nightly-1")
	for tag, key := range map[string]string{"v1": "targets", "release-1": "alice", "nightly-1": "bob"} {
		if text := s.tag("sign", s.name+":"+tag, "--key", s.uri(key), "--wait", patience); !strings.Contains(text,
			": published") {
			t.Errorf("sign %s: %s", tag, text)
		}
	}
	s.resolves("v1", v1, "tags")
	s.resolves("release-1", release, "alice")
	s.resolves("nightly-1", nightly, "bob")
	if list := s.list(); len(list) != 3 {
		t.Errorf("%d tags are listed: %v", len(list), list)
	}
	if r := s.role("alice"); r.Tags != 1 || !slices.Equal(r.Paths, []string{"release-*"}) {
		t.Errorf("alice is %+v", r)
	}

	// What is not signed, or not by whom it must be.
	s.push("unsigned")
	s.fails("tag unsigned is not signed: no role that may sign it lists it", "show", s.name+":unsigned")
	s.push("v2")
	s.fails("the key is one of the role alice, which may not sign tag v2", "sign", s.name+":v2", "--key", s.uri("alice"))
	s.fails("the key is of no role that signs tags", "sign", s.name+":v2", "--key", s.uri("snapshot"))
	s.fails("cannot find v3", "sign", s.name+":v3", "--key", s.uri("targets"))
	s.fails("reserved for metadata", "sign", s.name+":tuf-metadata", "--key", s.uri("targets"))

	// The registry has another image under a tag: the signed one counts. A digest of the repository can be signed instead.
	s.pushAs("v1", "another image")
	s.resolves("v1", v1, "tags")
	s.tag("sign", s.name+":v2@"+v1.String(), "--key", s.uri("targets"), "--wait", patience)
	s.resolves("v2", v1, "tags")
	s.tag("remove", s.name+":v2", "--key", s.uri("targets"), "--wait", patience)
	s.fails("tag v2 is not signed", "show", s.name+":v2")

	// Alice's key is stolen: what it has signed does not count any more, and others sign what is good.
	s.tag("delegate", "remove", s.name, "alice", "--targets", s.uri("targets"), "--wait", patience)
	s.fails("tag release-1 is no longer signed: the delegation alice, which signed it, was removed", "show",
		s.name+":release-1")
	s.fails("the key is of no role that signs tags", "sign", s.name+":release-1", "--key", s.uri("alice"))
	s.resolves("nightly-1", nightly, "bob")
	s.tag("sign", s.name+":release-1", "--key", s.uri("targets"), "--wait", patience)
	s.resolves("release-1", release, "tags")

	if output := publisher.Stop(); strings.Contains(output, "error") || strings.Contains(output, "warning") {
		t.Errorf("the publisher says:\n%s", output)
	}
	if left := s.status(); len(left.Proposals)+len(left.Held)+len(left.Refused) > 0 {
		t.Errorf("what is left: %+v", left)
	}
}

// TestCustodians verifies that a root whose keys are elsewhere is passed around as a file, from the first on.
func TestCustodians(t *testing.T) {
	s := newScene(t)
	s.keys("targets", "snapshot", "timestamp")
	var uris, publics []string
	for _, name := range []string{"root-1", "root-2", "root-3", "root-4"} {
		s.token.Init(t, name)
		uris = append(uris, s.key(name, "EC-256", "root"))
		publics = append(publics, s.public(uris[len(uris)-1]))
	}
	text := s.tag(slices.Concat([]string{"init", s.name, "--threshold", "2", "--to", s.root, "--targets", s.uri("targets"),
		"--root", uris[0], "--root", publics[1], "--root", publics[2]}, s.online())...)
	if !strings.Contains(text, "lacks 1 signatures") {
		t.Errorf("init: %s", text)
	}
	push := slices.Concat([]string{"root", "push", s.name, s.root, "--targets", s.uri("targets")}, s.online())
	s.fails("the root lacks 1 signatures", push...)
	s.fails("none of the keys is a root key", "root", "sign", s.root, "--key", s.uri("targets"))
	// the custodian's machine has neither the registry nor the trust manifest
	if text := softhsmtest.Run(t, s.image, "tag", "root", "sign", s.root, "--key", uris[1]); !strings.Contains(text,
		"lacks 0 signatures") {
		t.Errorf("root sign: %s", text)
	}
	s.tag(push...)
	v1 := s.sign("v1", s.uri("targets"))
	s.resolves("v1", v1, "tags")

	// The third custodian leaves, and the fourth comes: the first signs here, and the others elsewhere.
	next := s.root + ".2"
	rotate := s.tag("rotate", s.name, "root", "--new", publics[0], "--new", publics[1], "--new", publics[3], "--threshold",
		"3", "--root", uris[0], "--to", next)
	if !strings.Contains(rotate, "lacks 2 signatures") {
		t.Errorf("rotate: %s", rotate)
	}
	for i, lacks := range []string{"lacks 1 signatures", "lacks 0 signatures"} {
		if text := s.tag("root", "sign", next, "--key", []string{uris[3], uris[1]}[i]); !strings.Contains(text, lacks) {
			t.Errorf("root sign: %s, which does not say %s", text, lacks)
		}
		if i == 0 {
			s.fails("lacks", append([]string{"root", "push", s.name, next}, s.online()...)...)
		}
	}
	s.tag(append([]string{"root", "push", s.name, next, "--wait", patience}, s.online()...)...)
	if r := s.role("root"); r.Version != 2 || r.Threshold != 3 {
		t.Errorf("the root is %+v", r)
	}
	s.resolves("v1", v1, "tags")
	v2 := s.sign("v2", s.uri("targets"))
	s.resolves("v2", v2, "tags")
	// All custodians are elsewhere.
	last := s.root + ".3"
	s.tag("rotate", s.name, "targets", "--new", s.public(s.uri("targets")), "--to", last)
	for _, uri := range []string{uris[0], uris[1], uris[3]} {
		s.tag("root", "sign", last, "--key", uri)
	}
	s.tag(slices.Concat([]string{"root", "push", s.name, last, "--targets", s.uri("targets"), "--wait", patience},
		s.online())...)
	// the pin of the first root leads to the third also where nothing was seen before
	s.forget()
	s.resolves("v2", v2, "tags")
}

// TestThreshold verifies that two signers of a delegation sign a change together, by the same command.
func TestThreshold(t *testing.T) {
	s := newScene(t)
	s.init()
	s.keys("alice", "carol")
	s.tag(slices.Concat([]string{"delegate", "add", s.name, "release", "--paths", "release-*", "--key",
		s.public(s.uri("alice")), "--key", s.public(s.uri("carol")), "--threshold", "2", "--targets", s.uri("targets"),
		"--wait", patience}, s.online())...)
	first := s.push("release-1")
	s.fails("the delegation release, which may sign it, has signed nothing yet", "show", s.name+":release-1")
	sign := func(tag, key string) string {
		return s.tag(slices.Concat([]string{"sign", s.name + ":" + tag, "--key", s.uri(key), "--wait", patience},
			s.online())...)
	}
	if text := sign("release-1", "alice"); !strings.Contains(text, "the role release lacks 1 signatures") {
		t.Errorf("the first signer: %s", text)
	}
	s.fails("has signed nothing yet", "show", s.name+":release-1")
	if text := sign("release-1", "alice"); !strings.Contains(text, "the role release lacks 1 signatures") {
		t.Errorf("the first signer again: %s", text)
	}
	if text := sign("release-1", "carol"); !strings.Contains(text, ": published") {
		t.Errorf("the second signer: %s", text)
	}
	s.resolves("release-1", first, "release")

	second := s.push("release-2")
	sign("release-2", "carol")
	s.fails("tag release-2 is not signed", "show", s.name+":release-2")
	sign("release-2", "alice")
	s.resolves("release-1", first, "release")
	s.resolves("release-2", second, "release")
}

// TestRotations rotates the keys of every role, while tags that are signed stay so.
func TestRotations(t *testing.T) {
	s := newScene(t)
	s.init()
	s.keys("alice", "root-2", "targets-2", "snapshot-2", "timestamp-2", "alice-2", "alice-3")
	s.tag(slices.Concat([]string{"delegate", "add", s.name, "alice", "--paths", "release-*", "--key", s.uri("alice"),
		"--targets", s.uri("targets"), "--wait", patience}, s.online())...)
	v1, release := s.sign("v1", s.uri("targets")), s.sign("release-1", s.uri("alice"))
	root, snapshot, timestamp := "root", "snapshot", "timestamp"
	online := func() []string { return []string{"--snapshot", s.uri(snapshot), "--timestamp", s.uri(timestamp)} }
	check := func(what string) {
		t.Helper()
		s.resolves("v1", v1, "tags")
		s.resolves("release-1", release, "alice")
		if t.Failed() {
			t.Fatalf("after the rotation of %s", what)
		}
	}

	timestamp = "timestamp-2"
	s.tag(slices.Concat([]string{"rotate", s.name, "timestamp", "--new", s.uri(timestamp), "--root", s.uri(root), "--wait",
		patience}, online())...)
	check("timestamp")
	s.fails("1 more keys of timestamp are needed", append([]string{"refresh", s.name}, s.online()...)...)
	snapshot = "snapshot-2"
	s.tag(slices.Concat([]string{"rotate", s.name, "snapshot", "--new", s.uri(snapshot), "--root", s.uri(root), "--wait",
		patience}, online())...)
	check("snapshot")

	// Who has the new root keys alone cannot rotate the root.
	s.tag("rotate", s.name, "root", "--new", s.uri("root-2"), "--to", s.root+".try")
	s.fails("lacks 1 signatures", append([]string{"root", "push", s.name, s.root + ".try"}, online()...)...)
	s.tag(slices.Concat([]string{"rotate", s.name, "root", "--new", s.uri("root-2"), "--root", s.uri(root), "--wait",
		patience}, online())...)
	root = "root-2"
	check("root")

	s.tag(slices.Concat([]string{"rotate", s.name, "targets", "--new", s.uri("targets-2"), "--root", s.uri(root), "--wait",
		patience}, online())...)
	targets := "targets-2"
	check("targets")
	s.push("v2")
	s.fails("the key is of no role that signs tags", "sign", s.name+":v2", "--key", s.uri("targets"))

	s.tag(slices.Concat([]string{"rotate", s.name, "alice", "--new", s.uri("alice-2"), "--targets", s.uri(targets),
		"--wait",
		patience}, online())...)
	check("alice")
	s.push("release-2")
	s.fails("the key is of no role that signs tags", "sign", s.name+":release-2", "--key", s.uri("alice"))

	// The next key of alice is elsewhere. What the role has signed counts until the key's holder has signed it again.
	text := s.tag(slices.Concat([]string{"rotate", s.name, "alice", "--new", s.public(s.uri("alice-3")), "--targets",
		s.uri(targets), "--wait", "0"})...)
	if !strings.Contains(text, ": proposed") {
		t.Errorf("rotate: %s", text)
	}
	s.tag(append([]string{"refresh", s.name}, online()...)...)
	check("alice, which is proposed")
	if held := s.status().Held; !slices.ContainsFunc(held, func(why string) bool {
		return strings.Contains(why,
			"alice")
	}) {
		t.Errorf("held: %q", held)
	}
	s.tag("refresh", s.name, "--key", s.uri("alice-3"))
	s.tag(append([]string{"refresh", s.name}, online()...)...)
	check("alice, to a key elsewhere")
	s.fails("the key is of no role that signs tags", "sign", s.name+":release-2", "--key", s.uri("alice-2"))
	s.tag(slices.Concat([]string{"sign", s.name + ":release-2", "--key", s.uri("alice-3"), "--wait", patience},
		online())...)
	if list := s.list(); len(list) != 3 || list["release-2"].Role != "alice" {
		t.Errorf("%v", list)
	}
	// Whoever pins the first root, and has seen nothing since, follows all of it.
	s.forget()
	check("all roles, for who was not there")
	if versions := s.role("root"); versions.Version != 5 {
		t.Errorf("the root has version %d after four rotations", versions.Version)
	}
}

// TestRootLost begins anew after so many root keys are lost that none can be rotated, as docs/tags.md says.
func TestRootLost(t *testing.T) {
	s := newScene(t)
	s.init()
	v1 := s.sign("v1", s.uri("targets"))
	verifier := s.dir + "/verifier.yaml"
	pin := func(arguments ...string) {
		t.Helper()
		softhsmtest.Run(t, s.Plugin, append([]string{"trust", "tags", "add", s.name, "--root", s.root, "--manifest",
			verifier},
			arguments...)...)
	}
	softhsmtest.Run(t, s.Plugin, "trust", "init", "--manifest", verifier)
	pin()
	show := []string{"show", s.name + ":v1", "--manifest", verifier}
	home, away := softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), t.TempDir()
	softhsmtest.Setenv(t, "XDG_CONFIG_HOME", away)
	s.tag(show...)
	softhsmtest.Setenv(t, "XDG_CONFIG_HOME", home)

	s.deleteTag("tuf-metadata")
	softhsmtest.Run(t, s.Plugin, "trust", "tags", "remove", s.name)
	s.keys("root-2")
	s.tag(slices.Concat([]string{"init", s.name, "--root", s.uri("root-2"), "--targets", s.uri("targets"), "--to", s.root},
		s.online())...)
	s.fails("tag v1 is not signed", "show", s.name+":v1")
	// A verifier with the old root refuses the new metadata, until it is given the new root.
	softhsmtest.Setenv(t, "XDG_CONFIG_HOME", away)
	s.fails("it went back to an older version", show...)
	softhsmtest.Setenv(t, "XDG_CONFIG_HOME", home)
	s.tag(slices.Concat([]string{"sign", s.name + ":v1", "--key", s.uri("targets"), "--wait", patience}, s.online())...)
	s.resolves("v1", v1, "tags")

	softhsmtest.Setenv(t, "XDG_CONFIG_HOME", away)
	pin("--replace")
	if text := s.tag(show...); !strings.Contains(text, v1.String()) {
		t.Errorf("with the new root: %s", text)
	}
}
