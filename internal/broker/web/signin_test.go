package web

import (
	"net/http"
	"strings"
	"testing"
)

// TestSignIn signs in with a passkey, once for each challenge.
func TestSignIn(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := f.enrol("alice")
	asked := read[question](f, p.script("/signin/begin", struct{}{}, http.StatusOK))
	answer := p.answer(asked)
	p.script("/signin/finish", answer, http.StatusOK)
	if p.cookie == nil || !p.cookie.Secure || !p.cookie.HttpOnly || p.cookie.SameSite != http.SameSiteStrictMode ||
		p.cookie.Path != "/" || p.cookie.Domain != "" {
		t.Fatalf("cookie: %+v", p.cookie)
	}
	if !strings.Contains(p.get("/"), "Signed in as <strong>alice</strong>") {
		t.Error("the page does not name the person")
	}
	again := &person{fixture: f, name: "alice"}
	again.script("/signin/finish", answer, http.StatusConflict)
	if again.cookie != nil {
		t.Error("the answer was taken twice")
	}
}

// TestRefuseSignIn refuses answers that are not those of an enrolled passkey to a question of the sign-in page.
func TestRefuseSignIn(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(f *fixture, p *person, a *answered){
		"late":         func(f *fixture, _ *person, _ *answered) { f.pass(signInTime) },
		"other person": func(f *fixture, _ *person, a *answered) { a.Assertion.UserHandle = f.web.handleOf("bob") },
		"nobody":       func(_ *fixture, _ *person, a *answered) { a.Assertion.UserHandle = nil },
		"a name":       func(_ *fixture, _ *person, a *answered) { a.Assertion.UserHandle = []byte("alice") },
		"unknown":      func(_ *fixture, _ *person, a *answered) { a.Assertion.ID = []byte("other") },
		"removed":      func(f *fixture, p *person, _ *answered) { delete(f.broker.credentials, p.id) },
		"no seal":      func(_ *fixture, _ *person, a *answered) { a.Seal = "" },
		"later seal": func(_ *fixture, _ *person, a *answered) {
			_, mac, _ := strings.Cut(a.Seal, ".")
			a.Seal = "99999999999." + mac
		},
		"own document": func(_ *fixture, _ *person, a *answered) { a.Document = append(a.Document, ' ') },
		"seal of a decision": func(f *fixture, _ *person, a *answered) {
			a.Seal = f.web.seal(forDecision, "", a.Document, signInTime)
		},
		"seal of an enrolment": func(f *fixture, _ *person, a *answered) {
			a.Seal = f.web.seal(forEnrol, "", a.Document, signInTime)
		},
		"signature": func(_ *fixture, _ *person, a *answered) { a.Assertion.Signature[8] ^= 1 },
		"data":      func(_ *fixture, _ *person, a *answered) { a.Assertion.AuthenticatorData[36] ^= 1 },
		"no data":   func(_ *fixture, _ *person, a *answered) { a.Assertion.AuthenticatorData = []byte{} },
		"other challenge": func(f *fixture, p *person, a *answered) {
			other := read[question](f, p.script("/signin/begin", struct{}{}, http.StatusOK))
			a.Assertion = p.answer(other).Assertion
		},
		"not verified": func(f *fixture, p *person, a *answered) {
			p.authenticator.Options.UserNotVerified = true
			*a = p.answer(question{Document: a.Document, Seal: a.Seal, Options: optionsOf(f, a)})
		},
		"other origin": func(f *fixture, p *person, a *answered) {
			p.rp.Origin = "https://evil.example.com"
			*a = p.answer(question{Document: a.Document, Seal: a.Seal, Options: optionsOf(f, a)})
			p.rp.Origin = base
		},
		"other key": func(f *fixture, p *person, a *answered) {
			p.passkey.Key = newPasskey().Key
			*a = p.answer(question{Document: a.Document, Seal: a.Seal, Options: optionsOf(f, a)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			p := f.enrol("alice")
			f.enrol("bob")
			answer := p.answer(read[question](f, p.script("/signin/begin", struct{}{}, http.StatusOK)))
			change(f, p, &answer)
			p.script("/signin/finish", answer, http.StatusForbidden)
			if p.cookie != nil {
				t.Error("there is a session")
			}
		})
	}
}

// optionsOf returns the options of the question that was answered.
func optionsOf(f *fixture, a *answered) getOptions {
	hash := hashOf(a.Document)
	return getOptions{Challenge: hash[:], RPID: f.web.options.RPID}
}

// TestCounter refuses a passkey whose signature counter went back.
func TestCounter(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := f.enrol("alice")
	for _, step := range []struct {
		counter uint32
		status  int
	}{{5, 200}, {6, 200}, {6, 403}, {3, 403}, {0, 403}, {7, 200}} {
		p.passkey.Counter = step.counter
		asked := read[question](f, p.script("/signin/begin", struct{}{}, http.StatusOK))
		p.script("/signin/finish", p.answer(asked), step.status)
	}
}
