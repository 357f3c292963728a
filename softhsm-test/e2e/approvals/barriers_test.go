package approvals

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/browser"
)

// barriersPolicy has something for each part of the pages to show.
const barriersPolicy = `version: 1
people:
  alice: [{issuer: mtls, subject: "CN=alice"}]
  bob: [{issuer: mtls, subject: "CN=bob"}]
groups:
  signers: [alice, bob]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - {name: images, when: artifact.repository == "REGISTRY/app", approvals: [{group: signers, quorum: 2}], same: [ref]}
    - name: later
      when: artifact.repository == "" && caller.issuer == "ISSUER"
      approvals: [{group: signers, quorum: 1, kinds: [key, ssh]}]
      time-lock: 1h
      timeout: 3h
    block: [{approvals: [{group: signers, quorum: 1}]}]
    unblock: [{approvals: [{group: signers, quorum: 1}]}]
    modify: [{approvals: [{group: signers, quorum: 1}]}]
`

// TestPages looks at all pages as people do: with light and dark colours, on a phone, by the keyboard alone. axe finds
// no barrier in any, nothing is wider than the screen, nothing comes from elsewhere, and nothing that the
// Content-Security-Policy forbids is tried.
func TestPages(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, options{policy: barriersPolicy, people: []person{{name: "alice", kind: "passkey"},
		{name: "bob", kind: "ssh"}}})
	b := browser.Start(t, s.CA)
	s.enrol(b, "alice")
	alice := s.people["alice"].page
	s.looks("/enrol/done?state=signed", "/enrol", "/signin")
	s.signIn("alice", "/")
	s.looks("/")

	const ref = "refs/tags/v1"
	name, digest := s.image("app", "one")
	byKeyboard := s.create(ref, name+"@"+digest).ID
	s.approveByKeyboard("alice", byKeyboard)
	s.decide("bob", byKeyboard, approval.Approve)
	s.signs(ref, name+"@"+digest)
	name, digest = s.image("app", "two")
	refused := s.create(ref, name+"@"+digest).ID
	s.decide("bob", refused, approval.Reject)
	name, digest = s.image("app", "three")
	open := s.create(ref, name+"@"+digest).ID
	s.decide("bob", open, approval.Approve)
	locked := s.asks(ref, "release", "locked")
	s.decide("bob", locked, approval.Approve)
	s.must("bob", http.MethodPost, brokerapi.KeyPath("release")+"/block", nil, nil)
	policy := strings.ReplaceAll(softhsmtest.Read(t, s.Dir+"/policy.yaml"), "timeout: 3h", "timeout: 4h")
	var change, enrolment brokerapi.Request
	s.must("bob", http.MethodPost, brokerapi.PolicyPath, brokerapi.NewPolicy{Policy: policy}, &change)
	var invitation brokerapi.Invitation
	s.must("alice", http.MethodPost, brokerapi.InvitationsPath("bob"), nil, &invitation)
	_, token, _ := strings.Cut(invitation.URL, "#")
	s.people["bob"].invitation = token
	s.enrolsAnother(b, "bob")
	var pending brokerapi.Requests
	s.must("alice", http.MethodGet, brokerapi.RequestsPath+"?state=pending", nil, &pending)
	for _, r := range pending.Requests {
		if r.What == "enrol" {
			enrolment = r
		}
	}
	var approvers brokerapi.Approvers
	s.must("alice", http.MethodGet, brokerapi.ApproversPath, nil, &approvers)
	credential := approvers.Approvers[0].Credentials[0].ID

	paths := []string{"/", "/requests", "/keys", "/keys/release/block", "/policy", "/approvers", "/log",
		"/credentials/" + url.PathEscape(credential) + "/remove"}
	for _, id := range []string{byKeyboard, refused, open, locked, change.ID, enrolment.ID} {
		paths = append(paths, "/requests/"+id)
	}
	s.looks(paths...)
	s.open("alice", "/approvers")
	alice.Click("Invite bob to enrol a passkey")
	alice.WaitURL("/invite")
	s.look(alice, "the page of a new invitation")
	if errors := alice.Errors(); len(errors) != 0 {
		t.Errorf("the console shows %q", errors)
	}
	s.looks("/requests/none", "/none")
	if others := alice.Elsewhere(s.URL); len(others) != 0 {
		t.Errorf("the pages asked for %q", others)
	}
}

// looks has alice look at pages in each way that people do.
func (s *site) looks(paths ...string) {
	s.t.Helper()
	page := s.people["alice"].page
	for _, look := range browser.Looks {
		page.Look(look)
		for _, path := range paths {
			if page.Open(s.URL + path); strings.Contains(page.URL(), "/signin?") { // the session is over
				s.signIn("alice", path)
			}
			s.look(page, path+" ("+look.Name+")")
		}
	}
	page.Look(browser.Looks[0])
}

// look looks at the page as it is.
func (s *site) look(page *browser.Page, what string) {
	s.t.Helper()
	browser.Evaluate[any](page, `document.querySelectorAll("details").forEach(e => { e.open = true })`)
	for _, finding := range page.Axe() {
		s.t.Errorf("%s: %s", what, finding)
	}
	if wide := browser.Evaluate[int](page, "document.documentElement.scrollWidth - window.innerWidth"); wide > 0 {
		s.t.Errorf("%s is %d pixels wider than the screen", what, wide)
	}
	if dir := softhsmtest.Getenv(s.t, "SCREENSHOTS"); dir != "" { // of somebody who looks at them
		page.Screenshot(dir + "/" + strings.NewReplacer("/", "_", " ", "_").Replace(what) + ".png")
	}
}

// approveByKeyboard has a person approve a request without a mouse.
func (s *site) approveByKeyboard(name, id string) {
	s.t.Helper()
	s.open(name, "/requests/"+id)
	page := s.people[name].page
	var passed []string
	for focused := ""; focused != "Approve"; {
		page.Press(kb.Tab)
		focused = page.Focused()
		if passed = append(passed, focused); len(passed) > 100 {
			s.t.Fatalf("the keyboard does not reach the button: it passes %q", passed)
		}
	}
	if passed[0] != "Skip to the content" {
		s.t.Errorf("the keyboard reaches %q first", passed[0])
	}
	page.Press(kb.Enter)
	page.WaitURL("done=approve")
}

// enrolsAnother has a person make a passkey that others have to agree to.
func (s *site) enrolsAnother(b *browser.Browser, name string) {
	s.t.Helper()
	page := b.Person(s.t, browser.Synced)
	page.Open(s.URL + "/enrol#" + s.people[name].invitation)
	page.Click("Make a passkey")
	page.WaitURL("/enrol/done")
	page.WaitText("It counts once other approvers have agreed to it")
	s.look(page, "the page of a passkey that does not count yet")
}
