package broker

import (
	"context"
	"crypto/ecdsa"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
)

// waits asks for a signature of image number n that waits for people.
func (f *fixture) waits(subject string, n int) *brokerapi.Request {
	f.t.Helper()
	o, err := f.Sign(f.t.Context(), caller(subject), "release", f.image(n))
	if err != nil || o.Request == nil || o.Request.State != brokerapi.Pending {
		f.t.Fatalf("%+v, %v", o, err)
	}
	return o.Request
}

// TestApproved signs once enough people have agreed, each counted for one group, and after a start as well.
func TestApproved(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	r := f.waits("pipeline", 1)
	if !strings.Contains(r.Reason, "2 of managers, 1 of security; or 1 of directors") {
		t.Error(r.Reason)
	}
	if now := f.approves(r.ID, "alice", "carol"); now.State != brokerapi.Pending || len(now.Needs) != 1 {
		t.Errorf("%+v", now) // carol counts for one group
	}
	f.waits("pipeline", 1)
	f.stop()
	f.start()
	f.waits("pipeline", 1)
	if now := f.approves(r.ID, "dave"); now.State != brokerapi.Approved || len(now.Approvals) != 3 {
		t.Errorf("%+v", now)
	}
	f.stop()
	f.start()
	if s := f.signs("pipeline", 1); s.Request != r.ID {
		t.Errorf("signed by request %s", s.Request)
	}
	if now, err := f.Request(t.Context(), caller("pipeline"), r.ID); err != nil || now.State != brokerapi.Signed {
		t.Errorf("%+v, %v", now, err)
	}
	f.later(retryWindow + time.Minute)
	f.waits("pipeline", 1) // it was for one signature
}

// meanwhile is a store after whose next read of a row something happens.
type meanwhile struct {
	store.Store
	next atomic.Pointer[func()]
}

func (m *meanwhile) Request(ctx context.Context, id string) (*store.Request, error) {
	r, err := m.Store.Request(ctx, id)
	if happen := m.next.Swap(nil); happen != nil {
		(*happen)()
	}
	return r, err
}

// TestReadMeanwhile reads a request that others change meanwhile: the state and the approvals that it finds are of one
// moment.
func TestReadMeanwhile(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	s, err := sqlite.Open(t.Context(), f.database())
	if err != nil {
		t.Fatal(err)
	}
	m := &meanwhile{Store: s}
	f.store = m
	if f.Broker, err = Open(t.Context(), f.options(m)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.stop)
	id := f.waits("pipeline", 1).ID
	read := func(happens func()) *brokerapi.Request {
		t.Helper()
		m.next.Store(&happens)
		now, err := f.Request(t.Context(), caller("pipeline"), id)
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	now := read(func() { f.approves(id, "alice") })
	if now.State != brokerapi.Pending || len(now.Approvals) != 1 || !now.Approvals[0].Counts {
		t.Errorf("%+v", now)
	}
	now = read(func() {
		if _, err := f.decide("dave", id, approval.Reject); err != nil {
			t.Error(err)
		}
	})
	if now.State != brokerapi.Rejected {
		t.Errorf("%+v", now)
	}
}

// TestSay has no decision of people count who have no say, nor one that is not theirs.
func TestSay(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	r, other := f.waits("pipeline", 1), f.waits("pipeline", 2)
	own := f.waits("alice", 3)
	_, err := f.decide("alice", own.ID, approval.Approve)
	failsWith(t, err, failure.Denied, "nobody approves their own request")
	_, err = f.decide("erin", own.ID, approval.Approve)
	failsWith(t, err, failure.Denied, "asks for this person")
	_, err = f.Approve(t.Context(), identity.Approver("alice"), r.ID, f.envelope("alice", other.ID, approval.Approve, ""))
	failsWith(t, err, failure.Denied, "another request")
	once := f.envelope("alice", r.ID, approval.Approve, "")
	for _, want := range []string{"", "given before"} {
		_, err := f.Approve(t.Context(), identity.Approver("alice"), r.ID, once)
		if want != "" || err != nil {
			failsWith(t, err, failure.Conflict, want)
		}
	}
	_, err = f.decide("alice", r.ID, approval.Approve)
	failsWith(t, err, failure.Conflict, "already")
	f.clock.pass(0, 10*time.Minute)
	_, err = f.decide("bob", r.ID, approval.Approve)
	failsWith(t, err, failure.Denied, "is not the broker's")
}

// TestReject ends a request, with a reason, and TestWithdraw takes an approval back until the signature is made.
func TestReject(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	r := f.waits("pipeline", 1)
	f.approves(r.ID, "alice", "bob", "dave")
	now, err := f.decide("erin", r.ID, approval.Reject)
	if err != nil || now.State != brokerapi.Rejected || now.Reason != "erin has rejected it: because" {
		t.Fatalf("%+v, %v", now, err)
	}
	_, err = f.decide("carol", r.ID, approval.Approve)
	failsWith(t, err, failure.Conflict, "not open: it is rejected")
	old := f.waits("pipeline", 2)
	f.later(100 * time.Hour)
	for range 2 { // before and after the broker ends it
		now, err := f.Request(t.Context(), caller("pipeline"), old.ID)
		if err != nil || now.State != brokerapi.Expired || now.Reason != "it was not approved in time" {
			t.Errorf("%+v, %v", now, err)
		}
		_, err = f.decide("carol", old.ID, approval.Approve)
		failsWith(t, err, failure.Conflict, "has expired")
		f.expire()
	}
	if again := f.waits("pipeline", 1); again.ID == r.ID {
		t.Error("the request goes on")
	}
}

// TestWithdraw has an approval not count that was taken back.
func TestWithdraw(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	r := f.waits("pipeline", 1)
	f.approves(r.ID, "alice", "bob", "dave")
	if now, err := f.decide("bob", r.ID, approval.Withdraw); err != nil || now.State != brokerapi.Pending {
		t.Fatalf("%+v, %v", now, err)
	}
	_, err := f.decide("bob", r.ID, approval.Withdraw)
	failsWith(t, err, failure.Conflict, "to withdraw")
	f.waits("pipeline", 1)
	f.approves(r.ID, "bob")
	f.signs("pipeline", 1)
}

// TestLockAfterApprovals counts a time lock from the last approval that was needed.
func TestLockAfterApprovals(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	r := f.waits("pipeline", 1)
	f.later(5 * time.Hour)
	now := f.approves(r.ID, "erin")
	if now.State != brokerapi.Pending || now.NotBefore == nil || now.NotBefore.Sub(f.clock.now()) < 59*time.Minute {
		t.Fatalf("%+v", now)
	}
	f.waits("pipeline", 1)
	f.later(time.Hour + 2*time.Second)
	f.signs("pipeline", 1)
}

// TestChanges makes changes when people have agreed to them: a policy, a key that is not blocked any more, an enrolment
// and a removal.
func TestChanges(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	r := f.waits("pipeline", 1)
	f.approves(r.ID, "alice", "bob")
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "release"}); err != nil {
		t.Fatal(err)
	}
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(9))
	failsWith(t, err, failure.Denied, "is blocked")
	unblock, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeUnblock, Key: "release"})
	if err != nil || unblock.State != brokerapi.Pending {
		t.Fatalf("%+v, %v", unblock, err)
	}
	if now := f.approves(unblock.ID, "dave"); now.State != brokerapi.Signed {
		t.Fatalf("%+v", now)
	}
	f.signs("ci", 9)

	frank := generate(t)
	_, err = f.Enrol(t.Context(), caller("admin"), "frank", *keyCredential(t, frank), "")
	failsWith(t, err, failure.NotFound, `no person "frank"`)
	next := strings.Replace(peoplePolicy, "security: [carol, dave]", "security: [carol, dave, frank]", 1)
	change, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy, Policy: []byte(next)})
	if err != nil || change.State != brokerapi.Pending {
		t.Fatalf("%+v, %v", change, err)
	}
	if now := f.approves(change.ID, "alice", "bob"); now.State != brokerapi.Signed {
		t.Fatalf("%+v", now)
	}
	if f.Policy().Policy != next {
		t.Error("the policy is not in force")
	}
	f.expire()
	if now, err := f.Request(t.Context(), caller("pipeline"), r.ID); err != nil || now.State != brokerapi.Pending {
		t.Errorf("its second rule is as before: %+v, %v", now, err)
	}

	enrol, err := f.Enrol(t.Context(), caller("admin"), "frank", *keyCredential(t, frank), "")
	if err != nil {
		t.Fatal(err)
	}
	r = f.waits("pipeline", 2)
	f.approves(enrol.ID, "carol", "bob")
	f.people["frank"] = frank
	_, err = f.decide("frank", r.ID, approval.Approve)
	failsWith(t, err, failure.Denied, "enrolled after the request")
	r = f.waits("pipeline", 3)
	if now := f.approves(r.ID, "alice", "bob", "frank"); now.State != brokerapi.Approved {
		t.Fatalf("%+v", now)
	}
	all, err := f.Approvers(t.Context(), "erin", 10)
	if err != nil || len(all.Approvers) != 1 || all.Approvers[0].Credentials[0].Label != keyCredential(t,
		frank).Fingerprint() {
		t.Errorf("%+v, %v", all, err)
	}
	remove, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeRemove, Credential: f.credentialOf("frank")})
	if err != nil {
		t.Fatal(err)
	}
	f.approves(remove.ID, "alice", "bob")
	f.waits("pipeline", 3)
	if now, err := f.Request(t.Context(), caller("pipeline"), r.ID); err != nil || now.State != brokerapi.Pending {
		t.Errorf("%+v, %v", now, err)
	}
	f.stop()
	delete(f.people, "frank")
	f.start()
	f.waits("pipeline", 3)
	f.exports(frank)
}

// exports checks which credentials are exported, after that of frank was removed.
func (f *fixture) exports(frank *ecdsa.PrivateKey) {
	f.t.Helper()
	all := map[string]map[string][]*approval.Credential{} // by the query, then by name
	for _, query := range []string{"", "removed"} {
		all[query] = map[string][]*approval.Credential{}
		for after := ""; ; {
			page, err := f.Export(f.t.Context(), after, 2, query != "")
			if err != nil {
				f.t.Fatal(err)
			}
			for _, p := range page.Approvers {
				for _, data := range p.Credentials {
					c, err := approval.DecodeCredential(data)
					if err != nil || c.Approver != p.ID || p.ID != f.personID(p.Name) {
						f.t.Errorf("%s: %+v, %v", p.Name, c, err)
					}
					all[query][p.Name] = append(all[query][p.Name], c)
				}
			}
			if after = page.After; after == "" {
				break
			}
		}
	}
	for name := range f.people {
		if len(all[""][name]) != 1 || len(all["removed"][name]) != 1 {
			f.t.Errorf("%s: %v", name, all)
		}
	}
	removed := all["removed"]["frank"]
	if len(all[""]["frank"]) != 0 || len(removed) != 1 ||
		removed[0].Fingerprint() != keyCredential(f.t, frank).Fingerprint() {
		f.t.Errorf("of frank: %v", all)
	}
}

// TestEpoch begins a new epoch of a log that lacks entries when people have agreed to it, and nothing else before.
func TestEpoch(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	old := f.waits("pipeline", 9)
	f.publishAll()
	copied := f.dir + "/copy.db"
	if err := f.store.Backup(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	f.signs("ci", 1)
	f.publishAll()
	f.stop()
	f.restore(copied)
	f.start()
	_, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "release"})
	failsWith(t, err, failure.Unavailable, "cannot change anything")
	r, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeEpoch})
	if err != nil || r.State != brokerapi.Pending {
		t.Fatalf("%+v, %v", r, err)
	}
	f.approves(r.ID, "alice")
	_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(2))
	failsWith(t, err, failure.Unavailable, "signs nothing")
	if now := f.approves(r.ID, "bob"); now.State != brokerapi.Signed {
		t.Fatalf("%+v", now)
	}
	f.signs("ci", 2)
	for range 2 {
		if f.state.Epoch != 2 || f.state.Requests[old.ID] != nil {
			t.Errorf("epoch %d, and the request of before is %+v", f.state.Epoch, f.state.Requests[old.ID])
		}
		f.publishAll()
		f.stop()
		f.start()
		f.signs("ci", 3)
	}
}

// TestManyDecisions takes no more approvals of a request that has many decisions, and still refusals and withdrawals.
func TestManyDecisions(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	r := f.waits("pipeline", 1)
	f.approves(r.ID, "alice")
	err := f.do(t.Context(), func(d *decision) error {
		d.own(r.ID).Seen = make([]string, maxDecisions)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.decide("bob", r.ID, approval.Approve)
	failsWith(t, err, failure.Conflict, "has 1000 decisions")
	if _, err := f.decide("alice", r.ID, approval.Withdraw); err != nil {
		t.Error(err)
	}
	if now, err := f.decide("bob", r.ID, approval.Reject); err != nil || now.State != brokerapi.Rejected {
		t.Errorf("%+v, %v", now, err)
	}
}

// TestEditedRow shows approvers what they agree to, whatever somebody writes into the row of a request.
func TestEditedRow(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	other := f.waits("pipeline", 1)
	key := generate(t)
	enrol, err := f.Enrol(t.Context(), caller("admin"), "erin", *keyCredential(t, key), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, made := range []*brokerapi.Request{f.waits("pipeline", 2), enrol} {
		before, err := f.Request(t.Context(), identity.Approver("alice"), made.ID)
		if err != nil {
			t.Fatal(err)
		}
		f.edit(`UPDATE requests SET body = CAST(json_set(CAST(body AS TEXT), '$.request.artifact.digest',
			'` + other.Artifact.Digest + `', '$.request.repository', 'registry.example.com/other', '$.request.requester.subject',
			'nobody', '$.request.requester.claims', json('{"run_id": "1"}'), '$.request.person', 'alice', '$.request.credential', 'sha256:00', '$.request.why', 'tested',
			'$.request.statement', '` + other.Statement + `', '$.request.expiry', 1) AS BLOB) WHERE id = '` + made.ID + `'`)
		after, err := f.Request(t.Context(), identity.Approver("alice"), made.ID)
		if err != nil {
			t.Fatal(err)
		}
		before.Proof, after.Proof = nil, nil
		if !reflect.DeepEqual(after, before) {
			t.Errorf("%+v, want %+v", after, before)
		}
	}
}
