package broker

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// withoutAlice is peoplePolicy after alice has left.
var withoutAlice = strings.NewReplacer("managers: [alice, bob, carol]", "managers: [bob, carol, erin]",
	`  alice: [{issuer: "https://issuer.example.com", subject: alice}]`+"\n", "", ` || caller.subject == "alice"`, "").
	Replace(peoplePolicy)

// TestForget erases the name of a person who has made, approved and rejected requests. Afterwards the database does not
// have it, a broker starts with it, and all requests verify as before.
func TestForget(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	id := f.personID("alice")
	agreed := f.waits("pipeline", 1)
	f.approves(agreed.ID, "alice", "bob", "dave")
	f.signs("pipeline", 1)
	own := f.waits("alice", 2)
	f.approves(own.ID, "bob", "carol", "dave")
	f.signs("alice", 2)
	rejected := f.waits("pipeline", 3)
	if _, err := f.decide("alice", rejected.ID, approval.Reject); err != nil {
		t.Fatal(err)
	}
	_, err := f.Forget(t.Context(), caller("pipeline"), "alice")
	failsWith(t, err, failure.Denied, "no administrator")
	refused := func(text string) {
		t.Helper()
		_, err := f.Forget(t.Context(), caller("admin"), "alice")
		failsWith(t, err, failure.Conflict, text)
	}
	refused("the policy names the person")
	f.changes(Change{What: ChangePolicy, Policy: []byte(withoutAlice)}, "bob", "carol")
	refused("has credentials")
	f.changes(Change{What: ChangeRemove, Credential: f.credentialOf("alice")}, "bob", "carol")
	delete(f.people, "alice")
	proposed, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy, Policy: []byte(peoplePolicy)})
	if err != nil {
		t.Fatal(err)
	}
	refused("is open")
	if _, err := f.Cancel(t.Context(), caller("admin"), proposed.ID); err != nil {
		t.Fatal(err)
	}
	f.later(retryWindow + time.Minute)

	if !f.databaseHas("alice") {
		t.Error("the database never had the name: the test sees nothing")
	}
	before := f.events()
	done, err := f.Forget(t.Context(), caller("admin"), "alice")
	if err != nil || done.Documents == 0 || done.Requests == 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	f.stop()
	if f.databaseHas("alice") {
		t.Error("the database has the name")
	}
	f.start()
	if after := f.events(); len(after) < len(before) {
		t.Errorf("%d entries of %d are left", len(after), len(before))
	}
	for _, one := range []string{agreed.ID, own.ID, rejected.ID} {
		e, err := f.Evidence(t.Context(), caller("admin"), one)
		if err != nil {
			t.Fatal(err)
		}
		a, err := approval.Verify(approval.Evidence{Statement: e.Statement, Rules: e.Rules, Credentials: e.Credentials,
			Approvals: e.Approvals})
		if err != nil || a.Agreed() == (one == rejected.ID) || (len(e.Opening) == 0) != (one == own.ID) {
			t.Errorf("%s: %+v, %v", one, a, err)
		}
		r, err := f.Request(t.Context(), caller("admin"), one)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case one == agreed.ID && r.Approvals[0].Person != id, one == own.ID && r.Requester.Subject != id,
			one == rejected.ID && !strings.HasPrefix(r.Reason, id+" has rejected"):
			t.Errorf("%+v", r)
		}
	}
	again, err := f.Forget(t.Context(), caller("admin"), "alice")
	if err != nil || *again != (brokerapi.Forgotten{}) {
		t.Errorf("%+v, %v", again, err)
	}
	more := f.waits("pipeline", 5)
	f.approves(more.ID, "bob", "erin", "dave")
	f.signs("pipeline", 5)
	f.exportsRemoved(id)
}

// exportsRemoved checks that the credential of somebody who was forgotten is exported without a name.
func (f *fixture) exportsRemoved(id string) {
	f.t.Helper()
	all, err := f.Export(f.t.Context(), "", 10, true)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, one := range all.Approvers {
		if one.ID == id && one.Name == id && len(one.Credentials) == 1 {
			return
		}
	}
	f.t.Errorf("%+v", all)
}

// changes makes a change that people approve.
func (f *fixture) changes(c Change, people ...string) {
	f.t.Helper()
	r, err := f.Propose(f.t.Context(), caller("admin"), c)
	if err != nil {
		f.t.Fatal(err)
	}
	if now := f.approves(r.ID, people...); now.State != brokerapi.Signed {
		f.t.Fatalf("%+v", now)
	}
}

// databaseHas looks for a text in the files of the database.
func (f *fixture) databaseHas(text string) bool {
	f.t.Helper()
	for _, suffix := range []string{"", "-wal"} {
		data, err := os.ReadFile(f.database() + suffix)
		if err != nil && !os.IsNotExist(err) {
			f.t.Fatal(err)
		}
		if bytes.Contains(data, []byte(text)) {
			return true
		}
	}
	return false
}

// TestHasWord finds names that are no parts of longer ones.
func TestHasWord(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{"[alice, bob]": true, "alice": true, "malice": false, "alice-2": false,
		"malice alice": true, "": false, "alicealice": false, "# alice.": true, "älice alicé": false} {
		if got := hasWord([]byte(text), "alice"); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	if hasWord([]byte("text"), "") {
		t.Error("it finds what is not there")
	}
}
