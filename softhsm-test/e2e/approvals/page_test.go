package approvals

import (
	"strings"

	"github.com/notation-hsm/notation-hsm/softhsm-test/browser"
)

// enrol has a person make a passkey by the one-time link of the invitation, in a tab of their own.
func (s *site) enrol(b *browser.Browser, name string) {
	s.t.Helper()
	p := s.people[name]
	if p.page == nil {
		p.page = b.Person(s.t)
	}
	p.page.Open(s.URL + "/enrol#" + p.invitation)
	p.page.WaitText("This invitation is for " + name)
	p.page.Click("Make a passkey")
	p.page.WaitURL("/enrol/done")
	p.page.WaitText("It counts from now on")
}

// signIn has a person sign in with the passkey, and go on to a page.
func (s *site) signIn(name, path string) {
	s.t.Helper()
	page := s.people[name].page
	page.Open(s.URL + "/signin?next=" + path)
	page.Click("Sign in with a passkey")
	page.WaitText("Signed in as " + name)
}

// open opens a page for a person, who signs in again if the session is over.
func (s *site) open(name, path string) {
	s.t.Helper()
	page := s.people[name].page
	if page.Open(s.URL + path); strings.Contains(page.URL(), "/signin") {
		s.signIn(name, path)
	}
	page.WaitText("Signed in as " + name)
}

// approve has a person approve a request in the browser.
func (s *site) approve(name, id string) {
	s.t.Helper()
	s.open(name, "/requests/"+id)
	page := s.people[name].page
	page.Click("Approve")
	page.Wait(`location.search.includes("done=approve") || document.getElementById("problem")?.hidden === false`)
	if problem := browser.Evaluate[string](page, `document.getElementById("problem")?.innerText || ""`); problem != "" {
		s.t.Fatalf("%s cannot approve: %s", name, problem)
	}
}
