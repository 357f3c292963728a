package web

import (
	"crypto/sha256"
	"net/http"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
)

func hashOf(data []byte) [sha256.Size]byte { return sha256.Sum256(data) }

// TestDecide signs each decision over the statement that the page has shown.
func TestDecide(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := f.add(1)
	p := f.signIn("alice")
	for _, d := range []deciding{{approval.Approve, "", r.Statement}, {approval.Withdraw, "a mistake", r.Statement},
		{approval.Reject, "not tested", r.Statement}} {
		asked := read[question](f, p.script("/requests/"+r.ID+"/begin", d, http.StatusOK))
		options := read[getOptions](f, mustJSON(asked.Options))
		if len(options.AllowCredentials) != 1 || options.UserVerification != required {
			t.Errorf("options: %+v", options)
		}
		to := read[going](f, p.script("/requests/"+r.ID+"/finish", p.answer(asked), http.StatusOK))
		if to.Location != "/requests/"+r.ID+"?done="+string(d.Decision) {
			t.Errorf("on to %s", to.Location)
		}
		if !strings.Contains(p.get(to.Location), `id="done"`) {
			t.Error("the page does not say so")
		}
		sent := f.broker.approved[len(f.broker.approved)-1]
		a, err := sent.Verify(f.broker.credentials[sent.Credential])
		if err != nil || a.Statement != r.Statement || a.Decision != d.Decision || a.Reason != d.Reason ||
			a.Approver != "id-of-alice" {
			t.Errorf("%+v, %v", a, err)
		}
	}
}

// TestRefuseDecision begins no decision that makes no sense.
func TestRefuseDecision(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r, other := f.add(1), f.add(2)
	p := f.signIn("alice")
	for name, c := range map[string]struct {
		id     string
		what   deciding
		status int
	}{
		"other statement": {r.ID, deciding{approval.Approve, "", other.Statement}, http.StatusConflict},
		"no statement":    {r.ID, deciding{approval.Approve, "", ""}, http.StatusConflict},
		"no request":      {"x", deciding{approval.Approve, "", r.Statement}, http.StatusNotFound},
		"no reason":       {r.ID, deciding{approval.Reject, "", r.Statement}, http.StatusBadRequest},
		"long reason":     {r.ID, deciding{approval.Reject, strings.Repeat("a", 1001), r.Statement}, http.StatusBadRequest},
		"no decision":     {r.ID, deciding{"sign", "", r.Statement}, http.StatusBadRequest},
	} {
		t.Run(name, func(*testing.T) { p.script("/requests/"+c.id+"/begin", c.what, c.status) })
	}
	for id := range f.broker.credentials {
		f.broker.credentials[id].Kind = approval.SSH
	}
	p.script("/requests/"+r.ID+"/begin", deciding{approval.Approve, "", r.Statement}, http.StatusForbidden)
}

// TestMismatch hands the broker no approval that was begun for another request, by another person or in another
// session, or that another passkey signed, and none twice.
func TestMismatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r, other := f.add(1), f.add(2)
	alice, bob := f.signIn("alice"), f.signIn("bob")
	begin := func(p *person) question {
		d := deciding{approval.Approve, "", r.Statement}
		return read[question](f, p.script("/requests/"+r.ID+"/begin", d, http.StatusOK))
	}
	path := "/requests/" + r.ID + "/finish"
	asked := begin(alice)
	answer := alice.answer(asked)
	alice.script("/requests/"+other.ID+"/finish", answer, http.StatusForbidden)
	bob.script(path, answer, http.StatusForbidden)
	bob.script(path, bob.answer(asked), http.StatusForbidden)
	alice.script(path, bob.answer(asked), http.StatusForbidden)

	again := &person{fixture: f, name: "alice", authenticator: alice.authenticator, passkey: alice.passkey}
	again.signIn()
	again.script(path, answer, http.StatusForbidden)

	signIn := read[question](f, alice.script("/signin/begin", struct{}{}, http.StatusOK))
	alice.script(path, alice.answer(signIn), http.StatusForbidden)
	tampered := answer
	tampered.Document = []byte(strings.Replace(string(answer.Document), `"approve"`, `"reject"`, 1))
	alice.script(path, tampered, http.StatusForbidden)

	f.pass(decideTime - 1)
	if len(f.broker.approved) > 0 {
		t.Error("the broker got an approval")
	}
	alice.script(path, answer, http.StatusOK)
	alice.script(path, answer, http.StatusConflict)
	late := alice.answer(begin(alice))
	f.pass(decideTime)
	alice.script(path, late, http.StatusForbidden)
	if len(f.broker.approved) != 1 {
		t.Errorf("the broker got %d approvals", len(f.broker.approved))
	}
}
