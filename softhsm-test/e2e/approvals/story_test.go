package approvals

import (
	"regexp"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/browser"
)

// storyPolicy has a rule for releases, and others whose time runs out or does not come.
const storyPolicy = `version: 1
groups:
  release-managers: [alice, bob]
  security: [carol]
  cards: [dave]
  shells: [erin]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: release
      when: caller.issuer == "ISSUER" && artifact.repository == "REGISTRY/app"
      approvals:
      - {group: release-managers, quorum: 2, kinds: [passkey]}
      - {group: security, quorum: 1, kinds: [passkey]}
      - {group: cards, quorum: 1, kinds: [key]}
      - {group: shells, quorum: 1, kinds: [ssh]}
      same: [repository, ref]
      timeout: 72h
    - name: short
      when: caller.issuer == "ISSUER" && artifact.repository == "REGISTRY/short"
      approvals: [{group: shells, quorum: 1}]
      timeout: 1s
    - name: locked
      when: caller.issuer == "ISSUER" && artifact.repository == "REGISTRY/locked"
      approvals: [{group: shells, quorum: 1}]
      time-lock: 700h
      timeout: 2000h
    block: [{name: security, approvals: [{group: security, quorum: 1}]}]
    unblock: [{name: security, approvals: [{group: security, quorum: 1}]}]
    modify: [{name: security, approvals: [{group: security, quorum: 1}]}]
`

// TestStory is a release from beginning to end: two release managers and one of security approve in the browser with
// passkeys, one with a key in a module, one with an SSH key, and the signature is made. Where one is missing, has
// refused or has lost the passkey, where a time has passed or has not come, and where the key is blocked, there is
// none, and the job is told why.
func TestStory(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, options{policy: storyPolicy, people: []person{{name: "alice", kind: "passkey"},
		{name: "bob", kind: "passkey"}, {name: "carol", kind: "passkey"}, {name: "dave", kind: "key"},
		{name: "erin", kind: "ssh"}}})
	b := browser.Start(t, s.CA)
	for _, name := range []string{"alice", "bob", "carol"} {
		s.enrol(b, name)
		s.signIn(name, "/")
	}
	const ref = "refs/tags/v1"
	name, digest := s.image("app", "release")
	image := name + "@" + digest
	made := s.create(ref, image)
	if made.State != brokerapi.Pending {
		t.Fatalf("the request is %s", made.State)
	}

	// Each of them approves; until the last has, nothing is signed.
	s.refuses(ref, image, "waits for approvals")
	s.refuses(ref, image, made.ID)
	s.approve("alice", made.ID)
	s.approve("carol", made.ID)
	s.runAs("dave", 0, digest, "approve", made.ID, "--yes", "--plain-http")
	s.runAs("erin", 0, digest, "approve", made.ID, "--yes", "--plain-http")
	s.refuses(ref, image, "release-managers")
	s.ends(5, "release-managers", s.job(ref), s.program, "request", "wait", made.ID, "--for", "1ms")
	waits := softhsmtest.Command(t, s.program, "request", "wait", made.ID, "--for", "24h")
	waits.Env = append(waits.Env, s.job(ref)...)
	if err := waits.Start(); err != nil {
		t.Fatal(err)
	}
	s.approve("bob", made.ID)
	if err := waits.Wait(); err != nil {
		t.Errorf("whoever waits for the request: %v", err)
	}
	s.refuses("refs/tags/v2", image, "release-managers") // another ref has no share in the grant
	s.signs(ref, image)

	s.rejected(ref)
	s.expired(ref)
	s.timeLocked(ref)
	s.blocked(ref)
	s.removed(ref)
}

// rejected refuses a release in the browser.
func (s *site) rejected(ref string) {
	s.t.Helper()
	name, digest := s.image("app", "refused")
	made := s.create(ref, name+"@"+digest)
	s.approve("alice", made.ID)
	s.open("bob", "/requests/"+made.ID)
	page := s.people["bob"].page
	page.Fill("#reason-text", "not tested on arm64")
	page.Click("Reject")
	page.WaitURL("done=reject")
	s.ends(3, "not tested on arm64", s.job(ref), s.program, "request", "wait", made.ID)
	s.ends(0, "not tested on arm64", s.job(ref), s.program, "request", "show", made.ID)
	s.runAs("dave", 0, "rejected", "request", "show", made.ID)
	s.refuses(ref, name+"@"+digest, "waits for approvals") // by another request
}

// expired lets the time of a request pass.
func (s *site) expired(ref string) {
	s.t.Helper()
	name, digest := s.image("short", "late")
	made := s.create(ref, name+"@"+digest)
	s.ends(5, "expired", s.job(ref), s.program, "request", "wait", made.ID)
	s.runAs("erin", 1, "has expired", "approve", made.ID, "--yes", "--plain-http")
}

// timeLocked has everybody approve a request whose time has not come.
func (s *site) timeLocked(ref string) {
	s.t.Helper()
	name, digest := s.image("locked", "early")
	made := s.create(ref, name+"@"+digest)
	s.runAs("erin", 0, digest, "approve", made.ID, "--yes", "--plain-http")
	s.refuses(ref, name+"@"+digest, "time lock")
	s.ends(5, "time lock", s.job(ref), s.program, "request", "wait", made.ID, "--for", "1ms")
}

// blocked blocks the key once everybody has approved, and unblocks it.
func (s *site) blocked(ref string) {
	s.t.Helper()
	name, digest := s.image("app", "blocked")
	made := s.create(ref, name+"@"+digest)
	for _, person := range []string{"alice", "bob", "carol"} {
		s.approve(person, made.ID)
	}
	s.runAs("dave", 0, digest, "approve", made.ID, "--yes", "--plain-http")
	s.runAs("erin", 0, digest, "approve", made.ID, "--yes", "--plain-http")
	s.change("alice", "block", "Block", "Block the key")
	s.refuses(ref, name+"@"+digest, "blocked")
	s.change("alice", "unblock", "Unblock", "Unblock the key")
	s.signs(ref, name+"@"+digest)
}

// change has a person ask for a change of the key in the browser, and carol approve it there.
func (s *site) change(asks, what, button, confirm string) {
	s.t.Helper()
	s.open(asks, "/keys")
	page := s.people[asks].page
	page.Click(button + " the key release")
	page.WaitURL("/keys/release/" + what)
	page.Click(confirm)
	page.WaitURL("/requests/")
	id := browser.Evaluate[string](page, `document.getElementById("request-id").innerText`)
	s.approve("carol", id)
	s.people["carol"].page.WaitText("Done")
}

// removed has somebody who has approved lose the passkey: once the credential is removed, the approval counts no more.
func (s *site) removed(ref string) {
	s.t.Helper()
	name, digest := s.image("app", "lost")
	made := s.create(ref, name+"@"+digest)
	for _, person := range []string{"alice", "bob", "carol"} {
		s.approve(person, made.ID)
	}
	s.runAs("dave", 0, digest, "approve", made.ID, "--yes", "--plain-http")
	output := s.runAs("erin", 0, "pending", "approver", "remove", "alice")
	s.approve("carol", regexp.MustCompile(`\b[0-9a-f]{32}\b`).FindString(output))
	s.people["carol"].page.WaitText("Done")
	s.runAs("erin", 0, digest, "approve", made.ID, "--yes", "--plain-http")
	s.refuses(ref, name+"@"+digest, "1 of release-managers")
	s.ends(5, "1 of release-managers", s.job(ref), s.program, "request", "wait", made.ID, "--for", "1ms")
	// Whoever has the passkey cannot sign in with it any more.
	page := s.people["alice"].page
	page.Open(s.URL + "/")
	page.Click("Sign in with a passkey")
	page.WaitText("does not know this passkey")
}
