package broker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// tampered is a broker that does not run, and the IDs of its requests by the number of their image: of 1 an approval is
// missing, 2 was signed, 3 was rejected, 4 has a time lock, and 5 is approved. The key sealed is blocked.
type tampered struct {
	*fixture
	requests  map[int]string
	policy    string   // sha256:HEX
	envelopes []string // of request 5, sha256:HEX
	rule      string   // of request 5, its document
	names     string   // of its people
	still     *state
}

func newTampered(t *testing.T) *tampered {
	t.Helper()
	f := approvers(t)
	f.snapshots = 8
	f.fixturePolicy()
	f.start()
	x := &tampered{fixture: f, requests: map[int]string{}}
	for n := range 5 {
		x.requests[n+1] = f.waits("pipeline", n+1).ID
	}
	f.approves(x.requests[1], "alice", "dave")
	f.approves(x.requests[2], "alice", "bob", "dave")
	f.signs("pipeline", 2)
	if _, err := f.decide("erin", x.requests[3], approval.Reject); err != nil {
		t.Fatal(err)
	}
	f.later(16 * time.Minute)
	f.approves(x.requests[4], "erin")
	f.approves(x.requests[5], "alice", "bob", "dave")
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "sealed"}); err != nil {
		t.Fatal(err)
	}
	f.publishAll()
	for range 40 { // until there is a snapshot of all this
		kept, err := f.store.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if kept != nil && bytes.Contains(kept.Data, []byte(`"blocked":{"sealed"`)) {
			break
		}
		f.clock.pass(time.Second, 0)
		f.signs("ci", 9)
	}
	x.policy = f.Policy().SHA256
	err := f.look(t.Context(), func(d *decision) {
		x.still = d.clone()
		for _, v := range d.Requests[x.requests[5]].Votes {
			x.envelopes = append(x.envelopes, v.Envelope)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := f.Document(t.Context(), x.still.Requests[x.requests[5]].Statement)
	if err != nil {
		t.Fatal(err)
	}
	s, err := approval.DecodeStatement(data)
	if err != nil {
		t.Fatal(err)
	}
	x.rule = s.Predicate.Needs[0].Rules[0].Digest
	if data, err = f.Document(t.Context(), x.rule); err != nil {
		t.Fatal(err)
	}
	rule, _, err := approval.DecodeRule(data)
	if err != nil {
		t.Fatal(err)
	}
	x.names = rule.Names
	f.stop()
	return x
}

// fixturePolicy adds a key that is blocked later.
func (f *fixture) fixturePolicy() {
	f.policy = strings.Replace(f.policy, "groups:\n", `  sealed:
    key: pkcs11:token=test;object=sealed
    formats: [notation]
    use: [{name: all, when: caller.subject == "ci"}]
    block: [{name: anyone, when: caller.subject == "admin"}]
    unblock: [{approvals: [{group: security, quorum: 1}]}]
    modify: [{name: managers, approvals: [{group: managers, quorum: 2}]}]
groups:
`, 1)
}

// blob returns the expression of a document's name in SQL.
func blob(hash string) string { return "x'" + strings.TrimPrefix(hash, hashPrefix) + "'" }

// replaces has a document be another one, under its old name.
func (x *tampered) replaces(hash, old, replacement string) {
	x.t.Helper()
	x.edit(fmt.Sprintf("update documents set data=cast(replace(cast(data as text), '%s', '%s') as blob) where sha256=%s",
		old, replacement, blob(hash)))
}

// snapshotWith replaces the newest snapshot by an edited one. With an entry, the log has it as well.
func (x *tampered) snapshotWith(entry bool, edit func(*state)) {
	x.t.Helper()
	data, err := json.Marshal(x.still)
	if err != nil {
		x.t.Fatal(err)
	}
	edited := newState(0)
	if err := json.Unmarshal(data, edited); err != nil {
		x.t.Fatal(err)
	}
	edit(edited)
	if data, err = json.Marshal(edited); err != nil {
		x.t.Fatal(err)
	}
	if !entry {
		x.edit(fmt.Sprintf("update snapshots set data=x'%x'", data))
		return
	}
	x.append(&store.Batch{Snapshot: &store.Snapshot{Size: edited.Size, Data: data},
		Meta: map[string][]byte{snapshotEntry: strconv.AppendInt(nil, edited.Size, 10)}},
		Event{Type: snapshot, Snapshot: hashOf(data), Index: edited.Size})
}

// loosen edits a state so that everything is signed.
func (x *tampered) loosen(s *state) {
	clear(s.Blocked)
	for n, id := range x.requests {
		r := x.still.Requests[x.requests[5]]
		if one := s.Requests[id]; one != nil {
			one.Votes, one.State, one.Closed = r.Votes, brokerapi.Approved, false
			one.Created = one.Created.Add(-2 * time.Hour)
			for i := range one.Targets {
				one.Targets[i] = target{Subject: one.Targets[i].Subject}
			}
		} else if n != 5 {
			again := *r
			again.ID = id
			s.Requests[id] = &again
		}
	}
	s.Uses = map[string]*window{}
}

// TestTampered edits the database of a broker that does not run. It signs nothing afterwards that people did not
// approve: it reads what decides from the log, and verifies the approvals' own signatures.
func TestTampered(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		edit func(x *tampered)
		five bool // request 5 is still signed
	}{
		"nothing": {func(*tampered) {}, true},
		"rows": {func(x *tampered) {
			x.edit(`update requests set state='approved', body=cast(replace(replace(replace(cast(body as text), '"pending"', ` +
				`'"approved"'), '"rejected"', '"approved"'), '"people":true', '"people":false') as blob)`)
		}, true},
		"rows of another request": {func(x *tampered) {
			x.edit(fmt.Sprintf("update requests set state='approved', body=(select body from requests where id='%s')",
				x.requests[5]))
		}, true},
		"no rows": {func(x *tampered) { x.edit("delete from requests") }, true},
		"the statement": {func(x *tampered) {
			x.replaces(x.still.Requests[x.requests[5]].Statement, strings.Repeat("0", 62)+"05", strings.Repeat("0", 62)+"01")
		}, false},
		"the rule":  {func(x *tampered) { x.replaces(x.rule, `"quorum":2`, `"quorum":1`) }, false},
		"the names": {func(x *tampered) { x.replaces(x.names, `"quorum":2`, `"quorum":1`) }, false},
		"an approval": {func(x *tampered) {
			x.edit(fmt.Sprintf("update documents set data=(select data from documents where sha256=%s) where sha256=%s",
				blob(x.envelopes[0]), blob(x.envelopes[1])))
		}, false},
		"no approval": {func(x *tampered) { x.edit("delete from documents where sha256=" + blob(x.envelopes[2])) }, false},
		"a credential": {func(x *tampered) {
			votes := x.still.Requests[x.requests[5]].Votes
			x.edit(fmt.Sprintf("update documents set data=(select data from documents where sha256=%s) where sha256=%s",
				blob(votes[0].Credential), blob(votes[1].Credential)))
		}, false},
		"the policy":             {func(x *tampered) { x.replaces(x.policy, "quorum: 2", "quorum: 1") }, false},
		"the snapshot":           {func(x *tampered) { x.snapshotWith(false, x.loosen) }, true},
		"the snapshot, appended": {func(x *tampered) { x.snapshotWith(true, x.loosen) }, true},
		"an entry": {func(x *tampered) {
			x.edit("update entries set entry=cast(replace(cast(entry as text), 'rejected/v1', 'approved/v1') as blob)")
			x.edit("delete from snapshots")
		}, false},
		"a blocked key": {func(x *tampered) {
			x.edit(`update entries set entry=cast(replace(cast(entry as text), '"blocked/v1"', '"unblocked/v1"') as blob)`)
			x.edit("delete from snapshots")
		}, false},
		"approvals, appended": {func(x *tampered) {
			var events []Event
			for n, id := range x.requests {
				for _, v := range x.still.Requests[x.requests[5]].Votes {
					e := Event{Type: approved, Request: id, Key: "release", Approver: v.Person, Credential: v.Credential,
						Approval: v.Envelope, Signed: hashOf([]byte(strconv.Itoa(n)))}
					if r := x.still.Requests[id]; r != nil {
						e.Statement = r.Statement
					}
					events = append(events, e)
				}
			}
			x.append(&store.Batch{}, events...)
		}, true},
		"a credential, appended": {func(x *tampered) {
			vote := x.still.Requests[x.requests[5]].Votes[0]
			x.append(&store.Batch{}, Event{Type: enrolled, Approver: vote.Person, Credential: hashOf(nil), Kind: "key"},
				Event{Type: approved, Request: x.requests[1], Key: "release", Approver: vote.Person, Credential: hashOf(nil)})
		}, true},
		"a policy, appended": {func(x *tampered) {
			loose := []byte(strings.ReplaceAll(x.fixture.policy, "quorum: 2", "quorum: 1"))
			x.append(&store.Batch{Documents: [][]byte{loose}}, Event{Type: policySet, Policy: hashOf(loose)})
		}, true},
		"an end of a block, appended": {func(x *tampered) {
			x.append(&store.Batch{}, Event{Type: unblocked, Key: "sealed"})
		}, true},
		"a request, appended": {func(x *tampered) {
			r := x.still.Requests[x.requests[1]]
			x.append(&store.Batch{}, Event{Type: requested, Request: newID(x.clock.now()), Key: "release", Caller: r.Caller,
				Requester: r.Requester, Subjects: []string{r.Targets[0].Subject}, Policy: x.policy,
				State: string(brokerapi.Approved), NotAfter: r.NotAfter})
		}, true},
		"the secret": {func(x *tampered) { x.edit("update meta set value=randomblob(32) where name='secret'") }, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := newTampered(t)
			uses := x.keys.uses.Load()
			one.edit(x)
			for range 3 { // also when a checkpoint covers later what was appended
				if err := x.open(); err != nil {
					if one.five {
						t.Fatal(err)
					}
					return
				}
				for n := range 4 {
					if o, err := x.Sign(t.Context(), caller("pipeline"), "release", x.image(n+1)); err == nil && o.Signature != nil {
						t.Errorf("image %d is signed", n+1)
					}
				}
				if o, err := x.Sign(t.Context(), caller("ci"), "sealed", x.image(8)); err == nil && o.Signature != nil {
					t.Error("the blocked key signs")
				}
				if x.keys.uses.Load() != uses {
					t.Error("the module was used")
				}
				x.mature(t.Context())
				if x.Broker.Policy().SHA256 != x.policy {
					t.Error("another policy is in force")
				}
				if !x.sealed.Load() {
					x.publishAll()
				}
				x.stop()
			}
			x.start()
			o, err := x.Sign(t.Context(), caller("pipeline"), "release", x.image(5))
			if signed := err == nil && o.Signature != nil; signed != one.five {
				t.Errorf("image 5 is signed: %v, %+v, %v", signed, o, err)
			}
		})
	}
}
