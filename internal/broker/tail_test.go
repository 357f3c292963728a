package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// append adds entries to the database of a broker that does not run, as someone can who edits it: the tree fits them,
// and no checkpoint covers them.
func (f *fixture) append(batch *store.Batch, events ...Event) {
	f.t.Helper()
	s, err := sqlite.Open(f.t.Context(), f.database())
	if err != nil {
		f.t.Fatal(err)
	}
	defer s.Close()
	if batch.First, err = s.Size(f.t.Context()); err != nil {
		f.t.Fatal(err)
	}
	for _, e := range events {
		if e.Time == "" {
			e.Time = f.clock.now().Format(eventTime)
		}
		entry, err := e.Encode()
		if err != nil {
			f.t.Fatal(err)
		}
		batch.Entries = append(batch.Entries, entry)
	}
	tree, err := translog.NewTree(f.t.Context(), batch.First, s.Tile)
	if err != nil {
		f.t.Fatal(err)
	}
	_, tiles := tree.Append(batch.Entries)
	for _, one := range tiles {
		batch.Tiles = append(batch.Tiles, store.Tile(one))
	}
	if err := s.Commit(f.t.Context(), batch); err != nil {
		f.t.Fatal(err)
	}
}

// restarts calls check after each of several starts: also when a checkpoint covers later what was appended.
func (f *fixture) restarts(check func()) {
	f.t.Helper()
	for range 3 {
		f.start()
		check()
		f.publishAll()
		f.stop()
	}
}

// TestAppendedVoid keeps a policy in force that an appended entry says is void.
func TestAppendedVoid(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	strict := strings.Replace(testPolicy, `caller.subject == "ci" && `, "false && ", 1)
	_, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy, Policy: []byte(strict)})
	if err != nil {
		t.Fatal(err)
	}
	index := f.Policy().Index
	f.stop()
	f.append(&store.Batch{}, Event{Type: voided, Index: index}, Event{Type: voided, Index: index})
	f.restarts(func() {
		_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1))
		failsWith(t, err, failure.Denied, "no rule")
	})
}

// TestAppendedSnapshot does not start from a snapshot whose entry was appended.
func TestAppendedSnapshot(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "release"}); err != nil {
		t.Fatal(err)
	}
	still := f.state.clone()
	f.stop()
	clear(still.Blocked)
	data, err := json.Marshal(still)
	if err != nil {
		t.Fatal(err)
	}
	f.append(&store.Batch{Snapshot: &store.Snapshot{Size: still.Size, Data: data},
		Meta: map[string][]byte{snapshotEntry: strconv.AppendInt(nil, still.Size, 10)}},
		Event{Type: snapshot, Snapshot: hashOf(data), Index: still.Size})
	f.restarts(func() {
		_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1))
		failsWith(t, err, failure.Denied, "is blocked")
	})
}

// TestAppendedIntent signs nothing that people did not approve when entries say that it was signed before.
func TestAppendedIntent(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	people := caller("people")
	waiting, err := f.Create(t.Context(), people, newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	w, err := f.read(t.Context(), people, "release", f.image(2))
	if err != nil {
		t.Fatal(err)
	}
	f.publishAll()
	var digest, first string
	for _, r := range f.state.Requests {
		digest, first = r.Needs[0].Rules[0].Digest, r.Targets[0].Subject
	}
	policy, pseudonym := f.Policy().SHA256, f.callerOf(people)
	f.stop()
	payload := hashOf([]byte("x"))
	made := Event{Type: intended, Request: newID(f.clock.now()), Key: "release", Rule: "people", RuleDigest: digest,
		Subjects:  []string{w.digest},
		Requester: pseudonym, Caller: pseudonym, Payload: payload, Policy: policy}
	again := Event{Type: intended, Request: waiting.ID, Key: "release", Rule: "people", RuleDigest: digest,
		Payload:  payload,
		Subjects: []string{first}, Caller: pseudonym, Policy: policy}
	outcome := func(what, id string) Event { return Event{Type: what, Request: id, Key: "release", Payload: payload} }
	for _, events := range [][]Event{
		{made, outcome(signed, made.Request)},
		{outcome(failed, waiting.ID)}, {outcome(signed, waiting.ID)}, {outcome(lost, waiting.ID)},
		{again}, {again, outcome(failed, waiting.ID)}, {again, outcome(signed, waiting.ID)},
	} {
		f.append(&store.Batch{}, events...)
		f.restarts(func() {
			for n := range 2 {
				o, err := f.Sign(t.Context(), people, "release", f.image(n+1))
				if err != nil {
					t.Fatal(err)
				}
				if o.Signature != nil || f.keys.uses.Load() > 0 {
					t.Fatalf("it has signed after %+v", events)
				}
			}
			f.clock.pass(time.Second, 0)
		})
	}
}

// TestAppendedBeforeEpoch does not put a policy into force that was appended to a database whose log begins anew.
func TestAppendedBeforeEpoch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	copied := f.dir + "/copy.db"
	if err := f.store.Backup(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	f.signs("ci", 1)
	f.stop()
	f.restore(copied)
	loose := []byte(strings.Replace(testPolicy, `caller.subject == "ci" && `, "", 1))
	f.append(&store.Batch{Documents: [][]byte{loose}}, Event{Type: policySet, Policy: hashOf(loose)})
	f.start()
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeEpoch}); err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.restarts(func() {
		_, err := f.Sign(t.Context(), caller("other"), "release", f.image(2))
		failsWith(t, err, failure.Denied, "no rule")
	})
}

// TestSnapshotOfVoid does not bring back a request that ended with the broker that made a snapshot with it.
func TestSnapshotOfVoid(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.publishAll()
	f.noLog.Store(true)
	r, err := f.Create(t.Context(), caller("ci"), newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	still := f.state.clone()
	f.killed()
	data, err := json.Marshal(still)
	if err != nil || !bytes.Contains(data, []byte(r.ID)) {
		t.Fatal(err)
	}
	f.append(&store.Batch{Snapshot: &store.Snapshot{Size: still.Size, Data: data},
		Meta: map[string][]byte{snapshotEntry: strconv.AppendInt(nil, still.Size, 10)}},
		Event{Type: snapshot, Snapshot: hashOf(data), Index: still.Size})
	f.restarts(func() {
		if now, err := f.Request(t.Context(), caller("ci"), r.ID); err != nil || now.State != brokerapi.Expired ||
			f.state.Requests[r.ID] != nil {
			t.Errorf("%+v, %v", now, err)
		}
	})
}

// TestFirstEntry does not begin a log with a policy that somebody has put into an empty database.
func TestFirstEntry(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	loose := []byte(strings.Replace(testPolicy, `caller.subject == "ci" && `, "", 1))
	f.append(&store.Batch{Documents: [][]byte{loose, []byte(f.config)}}, Event{Type: opened, Policy: hashOf(loose),
		Origin: "broker.example.com/log", Config: hashOf([]byte(f.config))})
	failsWith(t, f.open(), failure.Conflict, "another policy, config or first approver")
}

// TestAppendedOpening does not begin the log a second time.
func TestAppendedOpening(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.stop()
	loose := []byte(strings.Replace(testPolicy, `caller.subject == "ci" && `, "", 1))
	f.append(&store.Batch{Documents: [][]byte{loose}}, Event{Type: opened, Policy: hashOf(loose)})
	failsWith(t, f.open(), failure.Conflict, "was edited")
}

// TestTwoPolicies decides about no policy by one that another replaces as soon as a checkpoint covers it.
func TestTwoPolicies(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.publishAll()
	f.noLog.Store(true)
	strict := []byte(strings.Replace(testPolicy, `modify: [{name: admins, when: caller.subject == "admin"}]`, "modify: []", 1))
	applied := make(chan error)
	go func() {
		_, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy, Policy: strict})
		applied <- err
	}()
	for f.durable.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := f.Propose(ctx, caller("admin"), Change{What: ChangePolicy, Policy: append([]byte(testPolicy), '\n')})
	failsWith(t, err, failure.Unavailable, "about to be in force")
	f.noLog.Store(false)
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
}

// TestEncode logs nothing that would not be read again.
func TestEncode(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"\xff", "\u2028", strings.Repeat("x", 16<<10)} {
		_, err := (&Event{Type: requested, Digest: text}).Encode()
		failsWith(t, err, failure.Invalid, "cannot log the request")
	}
	for _, text := range []string{"\x00\b\f\x7f<&>", "\ufffd", `\n"`, "é\U0001f600"} {
		entry, err := (&Event{Type: requested, Digest: text, Time: "2026-11-27T12:00:00.000Z"}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		if e, err := decodeEvent(entry); err != nil || e.Digest != text {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestAppendedTime does not let uses be forgotten because an appended entry says that they are long ago.
func TestAppendedTime(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.policy = strings.Replace(f.policy, "1000 per hour", "1 per hour", 1)
	f.start()
	f.signs("ci", 1)
	f.stop()
	f.append(&store.Batch{}, Event{Type: ended, Time: f.clock.now().Add(2 * time.Hour).Format(eventTime)})
	f.start()
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(2))
	failsWith(t, err, failure.Unavailable, future)
	f.stop()
	f.clock.pass(2*time.Hour, 0) // it can have been the clock's fault
	f.start()
	f.signs("ci", 2)
}

// TestKilledOften adds one entry to the log at each start that follows one that was killed.
func TestKilledOften(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.publishAll()
	f.noLog.Store(true)
	r, err := f.Create(t.Context(), caller("ci"), newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	for range 9 {
		f.killed()
		f.noLog.Store(true)
		f.start()
	}
	if got := f.events(); len(got) != 11 {
		t.Errorf("%q", got)
	}
	f.noLog.Store(false)
	f.publishAll()
	f.stop()
	f.restarts(func() {
		if now, err := f.Request(t.Context(), caller("ci"), r.ID); err != nil || now.State != brokerapi.Expired {
			t.Errorf("%+v, %v", now, err)
		}
	})
}
