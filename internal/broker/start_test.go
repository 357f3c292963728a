package broker

import (
	"database/sql"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// killed ends the broker as a crash does: nothing is published or logged any more.
func (f *fixture) killed() {
	f.t.Helper()
	f.noLog.Store(true)
	_ = f.Close()
	_ = f.store.Close()
	f.Broker = nil
	f.noLog.Store(false)
}

// edit changes the database by hand.
func (f *fixture) edit(statement string) {
	f.t.Helper()
	db, err := sql.Open("sqlite", f.database())
	if err != nil {
		f.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		f.t.Fatal(err)
	}
}

// published waits until a checkpoint covers the log.
func (f *fixture) publishAll() {
	f.t.Helper()
	if err := f.covered(f.t.Context(), f.durable.Load()-1); err != nil {
		f.t.Fatal(err)
	}
	// The checkpoint is announced before the store has it, and the store has it once a later step has ended.
	if err := f.do(f.t.Context(), func(*decision) error { return nil }); err != nil {
		f.t.Fatal(err)
	}
}

// later lets time pass, once the log is signed.
func (f *fixture) later(d time.Duration) {
	f.t.Helper()
	f.publishAll()
	f.clock.pass(d, 0)
}

// TestRestart has the same state after a start.
func TestRestart(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	first := f.signs("ci", 1)
	f.stop()
	f.start()
	if again := f.signs("ci", 1); again.Request != first.Request || f.keys.uses.Load() != 1 {
		t.Errorf("request %s, %d uses", again.Request, f.keys.uses.Load())
	}
}

// TestLost logs an intent without an outcome as lost, and signs the same again with a new one.
func TestLost(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.keys.before = func() error { return failure.New(failure.Timeout, "the module hangs") }
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1))
	failsWith(t, err, failure.Timeout, "hangs")
	f.keys.before = nil
	f.signs("ci", 1)
	if got := f.events(); !slices.Equal(got, []string{opened, intended, lost, intended, signed}) {
		t.Errorf("%q", got)
	}
}

// TestKilledWhileSigning starts after a crash between the intent and the outcome.
func TestKilledWhileSigning(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	began, end := make(chan bool), make(chan bool)
	f.keys.before = func() error { close(began); <-end; return errors.New("too late") }
	go func() { _, _ = f.Sign(t.Context(), caller("ci"), "release", f.image(1)) }()
	<-began
	data, err := os.ReadFile(f.checkpointFile())
	if err != nil {
		t.Fatal(err)
	}
	copied := f.dir + "/copy.db"
	if err := f.store.Backup(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	close(end)
	f.killed()
	f.keys.before = nil
	f.restore(copied)
	if err := os.WriteFile(f.checkpointFile(), data, 0o600); err != nil { // as it was when it was killed
		t.Fatal(err)
	}
	f.start()
	if got := f.events(); !slices.Equal(got, []string{opened, intended, lost}) {
		t.Errorf("%q", got)
	}
	f.clock.pass(time.Second, 0)
	f.signs("ci", 1)
	all, err := f.Requests(t.Context(), caller("ci"), Query{Limit: 10})
	if err != nil || len(all.Requests) != 2 || all.Requests[1].State != brokerapi.Lost {
		t.Errorf("%+v, %v", all, err)
	}
}

// restore replaces the database by a copy.
func (f *fixture) restore(copied string) {
	f.t.Helper()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		_ = os.Remove(f.database() + suffix)
	}
	if err := os.Rename(copied, f.database()); err != nil {
		f.t.Fatal(err)
	}
}

// TestOldDatabase signs nothing with a database from before the newest checkpoint, until a new epoch begins.
func TestOldDatabase(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.signs("ci", 1)
	copied := f.dir + "/copy.db"
	if err := f.store.Backup(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	f.signs("ci", 2)
	f.publishAll()
	f.stop()
	f.restore(copied)
	f.start()
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(3))
	failsWith(t, err, failure.Unavailable, older)
	_, err = f.Propose(t.Context(), caller("ci"), Change{What: ChangeEpoch})
	failsWith(t, err, failure.Denied, "admins")
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeEpoch}); err != nil {
		t.Fatal(err)
	}
	f.signs("ci", 4)
	f.stop()
	f.start() // the new epoch has a checkpoint of its own
	f.signs("ci", 5)
	old, err := os.ReadFile(f.checkpointFile() + ".epoch-1")
	if err != nil || !strings.HasPrefix(string(old), "broker.example.com/log\n") {
		t.Errorf("%q, %v", old, err)
	}
	now, err := os.ReadFile(f.checkpointFile())
	if err != nil || !strings.HasPrefix(string(now), "broker.example.com/log/2\n") {
		t.Errorf("%q, %v", now, err)
	}
}

// TestEditedDatabase edits the database in each way that could permit something. Either the broker does not start, or
// it decides as the log says.
func TestEditedDatabase(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		edit   string
		starts bool
	}{
		"state of a request":   {"update requests set state='approved', body=cast(replace(cast(body as text),'signed','approved') as blob)", true},
		"an entry":             {"update entries set entry=cast(replace(cast(entry as text), 'intent', 'ended_') as blob) where idx=1", false},
		"no last entries":      {"delete from entries where idx>=(select max(idx)-1 from entries)", false},
		"no entry in between":  {"delete from entries where idx=1", false},
		"a tile":               {"update tiles set hashes=zeroblob(length(hashes))", false},
		"no checkpoint":        {"delete from meta where name='checkpoint'", true},
		"another policy":       {"update documents set data=cast(replace(cast(data as text),'ci','xx') as blob)", false},
		"no documents":         {"delete from documents", false},
		"another checkpoint":   {"update meta set value=cast('other' as blob) where name='checkpoint'", false},
		"a snapshot of nobody": {`insert into snapshots values(1, cast('{"size":1}' as blob))`, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.policy = strings.Replace(f.policy, "1000 per hour", "2 per hour", 1)
			f.start()
			f.signs("ci", 1)
			f.signs("ci", 2)
			f.stop()
			f.edit(one.edit)
			err := f.open()
			if (err == nil) != one.starts && !errorsSealed(f) {
				t.Fatalf("start: %v", err)
			}
			if err != nil {
				return
			}
			if _, err := f.Sign(t.Context(), caller("ci"), "release", f.image(3)); err == nil {
				t.Error("it signs what the log does not allow")
			}
			if _, err := f.Sign(t.Context(), caller("other"), "release", f.image(4)); err == nil {
				t.Error("it signs what the policy does not allow")
			}
		})
	}
}

// errorsSealed reports whether a broker that has started adds nothing to the log.
func errorsSealed(f *fixture) bool { return f.Broker != nil && f.sealed.Load() }

// TestUnsignedPermission ignores an entry after the newest checkpoint that permits something: whoever edits the
// database can add one.
func TestUnsignedPermission(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.signs("ci", 1)
	f.publishAll()
	f.stop()
	s, err := sqlite.Open(t.Context(), f.database())
	if err != nil {
		t.Fatal(err)
	}
	size, err := s.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	loose := []byte(strings.Replace(testPolicy, `caller.subject == "ci" && `, "", 1))
	e := Event{Type: policySet, Policy: hashOf(loose), Time: f.clock.now().Format(eventTime)}
	entry, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	tree, err := translog.NewTree(t.Context(), size, s.Tile)
	if err != nil {
		t.Fatal(err)
	}
	_, tiles := tree.Append([][]byte{entry})
	batch := &store.Batch{First: size, Entries: [][]byte{entry}, Documents: [][]byte{loose}}
	for _, one := range tiles {
		batch.Tiles = append(batch.Tiles, store.Tile(one))
	}
	if err := s.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	s.Close()
	for range 2 { // also when a checkpoint covers it later
		f.start()
		_, err = f.Sign(t.Context(), caller("other"), "release", f.image(2))
		failsWith(t, err, failure.Denied, "no rule")
		if got := f.events(); !slices.Contains(got, voided) {
			t.Errorf("%q", got)
		}
		f.publishAll()
		f.stop()
	}
}

// TestReplay restores an older backup, and replays what a copy of the log has besides: then nothing is lost.
func TestReplay(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.policy = strings.Replace(f.policy, "1000 per hour", "2 per hour", 1)
	f.start()
	f.signs("ci", 1)
	backup := f.dir + "/copy.db"
	if err := f.store.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	f.signs("ci", 2)
	f.publishAll()
	exported := f.dir + "/log"
	v, err := translog.NewVerifier("broker.example.com/log", f.log.Public())
	if err != nil {
		t.Fatal(err)
	}
	verifiers := []*translog.Verifier{v}
	if _, err := translog.Export(t.Context(), f.Log().File, exported, verifiers); err != nil {
		t.Fatal(err)
	}
	f.stop()
	f.restore(backup)
	s, err := sqlite.Open(t.Context(), f.database())
	if err != nil {
		t.Fatal(err)
	}
	n, err := Replay(t.Context(), s, translog.Dir(exported), verifiers)
	if err != nil || n == 0 {
		t.Errorf("%d entries, %v", n, err)
	}
	_, err = Replay(t.Context(), s, translog.Dir(exported), verifiers)
	failsWith(t, err, failure.Conflict, "the database has")
	s.Close()
	f.start()
	_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(3))
	failsWith(t, err, failure.Throttled, "limit of 2") // the use after the backup counts
	f.stop()
	other := newFixture(t)
	other.start()
	other.signs("ci", 9)
	other.publishAll()
	_, err = Replay(t.Context(), other.store, translog.Dir(exported), verifiers)
	failsWith(t, err, failure.Conflict, "is not that of the database")
}

// TestNoCheckpointFile signs nothing without the checkpoint outside of the database.
func TestNoCheckpointFile(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.signs("ci", 1)
	f.stop()
	if err := os.Remove(f.checkpointFile()); err != nil {
		t.Fatal(err)
	}
	f.start()
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(2))
	failsWith(t, err, failure.Unavailable, noFile)
}

// TestLogKeyAway signs on for a while without the log's key, and then no more.
func TestLogKeyAway(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.noLog.Store(true)
	var err error
	n := 0
	for ; n < 1000 && err == nil; n++ {
		_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(n))
	}
	failsWith(t, err, failure.Unavailable, "the log's key is unavailable")
	if n < 400 {
		t.Errorf("after %d signatures", n)
	}
	f.noLog.Store(false)
	f.publishAll()
	f.signs("ci", 2000)
}

// TestIdle signs after a long time without a signature.
func TestIdle(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.publishAll()
	f.noLog.Store(true)
	f.clock.pass(24*time.Hour, 0)
	f.signs("ci", 1)
	f.signs("ci", 2)
	f.clock.pass(2*time.Hour, 0)
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(3))
	failsWith(t, err, failure.Unavailable, "the log's key is unavailable")
}

// TestLogKey does not sign with the log's key, whatever the policy says.
func TestLogKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.keys.private = f.log
	f.start()
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1))
	failsWith(t, err, failure.Denied, "it is the log's")
}

// TestSnapshot starts from a snapshot.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.policy = strings.Replace(f.policy, "limit: 1000 per hour", "limit: 100000 per hour", 1)
	f.snapshots = 40
	f.start()
	for n := range 100 {
		f.signs("ci", n)
		f.later(20 * time.Minute)
	}
	f.publishAll()
	f.stop()
	f.edit("delete from entries where idx < 40") // the start does not read them
	f.start()
	if f.state.Size < 200 || f.snapped < 40 {
		t.Errorf("%d entries, the last snapshot at %d", f.state.Size, f.snapped)
	}
	f.signs("ci", 99)
}
