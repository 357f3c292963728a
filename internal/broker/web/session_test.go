package web

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker/session"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// TestSession ends a session when its time is over, when its credential is removed, when its person is in the policy no
// more, and when the person signs out.
func TestSession(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*fixture, *person){
		"expired":     func(f *fixture, _ *person) { f.pass(session.Life) },
		"removed":     func(f *fixture, p *person) { delete(f.broker.credentials, p.id) },
		"other owner": func(f *fixture, p *person) { f.broker.owners[p.id] = "bob" },
		"no person":   func(f *fixture, _ *person) { f.broker.policy = strings.ReplaceAll(f.broker.policy, "alice", "zoe") },
		"signed out": func(_ *fixture, p *person) {
			kept := *p.cookie
			if to := p.post("/signout", http.StatusSeeOther); to != "/signin?done=signed-out" {
				t.Errorf("signed out to %s", to)
			}
			p.cookie = &kept // somebody has a copy of it
		},
		"forged": func(_ *fixture, p *person) { p.cookie.Value += "0" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			r := f.add(1)
			p := f.signIn("alice")
			p.get("/requests/" + r.ID)
			end(f, p)
			answer, _ := p.do(p.request(http.MethodGet, "/requests/"+r.ID, "", nil))
			want := "/signin?next=" + url.QueryEscape("/requests/"+r.ID)
			if answer.StatusCode != http.StatusSeeOther || answer.Header.Get("Location") != want {
				t.Errorf("status %d to %s", answer.StatusCode, answer.Header.Get("Location"))
			}
			p.script("/requests/"+r.ID+"/begin", deciding{"approve", "", r.Statement}, http.StatusUnauthorized)
		})
	}
}

// TestCSRF refuses forms and requests of the script without the token of the session.
func TestCSRF(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := f.add(1)
	p, other := f.signIn("alice"), f.signIn("bob")
	theirs, err := f.web.options.Sessions.Read(t.Context(), other.cookie.Value)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"", "x", theirs.CSRF} {
		for _, path := range []string{"/keys/release/block", "/requests/" + r.ID + "/cancel", "/approvers/bob/invite",
			"/credentials/" + other.id + "/remove", "/signout"} {
			form := url.Values{csrfField: {token}}.Encode()
			answer, body := p.do(p.request(http.MethodPost, path, "application/x-www-form-urlencoded", []byte(form)))
			if answer.StatusCode != http.StatusForbidden || !strings.Contains(body, "not come from a page of your session") {
				t.Errorf("%s with %q: %d", path, token, answer.StatusCode)
			}
		}
		for _, step := range []string{"begin", "finish"} {
			q := p.request(http.MethodPost, "/requests/"+r.ID+"/"+step, "application/json",
				mustJSON(deciding{"approve", "", r.Statement}))
			q.Header.Set(csrfHeader, token)
			if answer, _ := p.do(q); answer.StatusCode != http.StatusForbidden {
				t.Errorf("%s with %q: %d", step, token, answer.StatusCode)
			}
		}
	}
	if len(f.broker.changes) > 0 || len(f.broker.invitations) > 0 || len(f.broker.approved) > 0 {
		t.Error("something was done")
	}
}

// TestLocal goes on to pages of the broker alone.
func TestLocal(t *testing.T) {
	t.Parallel()
	for next, want := range map[string]string{"/requests/1?x=y": "/requests/1?x=y", "/": "/", "": "/",
		"https://evil.example.com": "/", "//evil.example.com": "/", `/\evil.example.com`: "/", "javascript:alert(1)": "/",
		"/a\nb": "/", "\t//evil.example.com": "/", "requests": "/", "/" + strings.Repeat("a", 2000): "/"} {
		if got := local(next); got != want {
			t.Errorf("%q: %q", next, got)
		}
	}
	f := newFixture(t)
	p := f.enrol("alice")
	body := p.get("/signin?next=" + url.QueryEscape("https://evil.example.com"))
	if !strings.Contains(body, `data-next="/"`) {
		t.Error("the page leads elsewhere")
	}
	answer := p.answer(read[question](f, p.script("/signin/begin", struct{}{}, http.StatusOK)))
	answer.Next = "//evil.example.com"
	if to := read[going](f, p.script("/signin/finish", answer, http.StatusOK)); to.Location != "/" {
		t.Errorf("on to %s", to.Location)
	}
}

// TestRates bounds how often one address begins something, and lets it begin again later.
func TestRates(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := f.enrol("alice")
	for range maxAttempts {
		p.script("/signin/begin", struct{}{}, http.StatusOK)
	}
	p.script("/signin/begin", struct{}{}, http.StatusTooManyRequests)
	f.pass(time.Minute)
	p.script("/signin/begin", struct{}{}, http.StatusOK)
}

// replicas returns pages of one broker that share what replicas do.
func replicas(t *testing.T) (first, second *fixture) {
	t.Helper()
	first = newFixture(t, func(o *Options) {
		o.Secret, o.Uses = []byte(strings.Repeat("s", 32)), session.NewMemory(100, o.Now)
		o.Sessions = session.New([]byte(strings.Repeat("k", 32)), o.Uses, o.Now)
	})
	second = &fixture{T: t, now: testTime, broker: first.broker}
	o := first.web.options
	o.Sessions = session.New([]byte(strings.Repeat("k", 32)), o.Uses, o.Now)
	second.serve(o)
	return first, second
}

// at returns a person in front of the page of another replica, with the same browser and authenticator.
func (p *person) at(f *fixture) *person {
	other := *p
	other.fixture = f
	return &other
}

// TestReplicas begins at one replica what ends at another: sign-ins, decisions, enrolments and sessions. Each answer
// counts once, at one of them.
func TestReplicas(t *testing.T) {
	t.Parallel()
	first, second := replicas(t)
	r := first.add(1, func(r *brokerapi.Request) { r.Needs[0].Alternatives[0].Groups[1].Members = []string{"alice"} })
	p := first.enrol("alice")
	signIn := p.answer(read[question](first, p.script("/signin/begin", struct{}{}, http.StatusOK)))
	there := p.at(second)
	there.script("/signin/finish", signIn, http.StatusOK)
	p.script("/signin/finish", signIn, http.StatusConflict)
	if p.cookie != nil || there.cookie == nil {
		t.Fatalf("sessions: %v at the first replica, %v at the second", p.cookie, there.cookie)
	}
	p.cookie = there.cookie
	if !strings.Contains(p.get("/requests/"+r.ID), "Signed in as <strong>alice</strong>") {
		t.Error("the session of one replica is none of the other")
	}
	asked := read[question](first, p.script("/requests/"+r.ID+"/begin", deciding{"approve", "", r.Statement},
		http.StatusOK))
	decision := p.answer(asked)
	there.script("/requests/"+r.ID+"/finish", decision, http.StatusOK)
	p.script("/requests/"+r.ID+"/finish", decision, http.StatusConflict)
	if n := len(first.broker.approved); n != 1 {
		t.Errorf("%d approvals", n)
	}
	there.post("/signout", http.StatusSeeOther)
	if answer, _ := p.do(p.request(http.MethodGet, "/requests/"+r.ID, "", nil)); answer.StatusCode != http.StatusSeeOther {
		t.Errorf("the session goes on at the other replica: status %d", answer.StatusCode)
	}
}

// TestOtherReplicas takes nothing from the pages of another broker.
func TestOtherReplicas(t *testing.T) {
	t.Parallel()
	ours, theirs := newFixture(t), newFixture(t)
	p := theirs.enrol("alice")
	asked := p.answer(read[question](theirs, p.script("/signin/begin", struct{}{}, http.StatusOK)))
	theirs.broker = ours.broker
	p.at(ours).script("/signin/finish", asked, http.StatusForbidden)
}
