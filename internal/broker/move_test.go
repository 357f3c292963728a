package broker

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/postgres"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// openPostgres opens a database.
func openPostgres(t testing.TB, url string) *postgres.Store {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	s, err := postgres.Open(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

var replicasKey = bytes.Repeat([]byte{7}, 32)

// move returns how the stopped broker of a fixture is moved to a database.
func (f *fixture) move(to store.Target) *Move {
	f.t.Helper()
	from, err := sqlite.OpenToMove(f.t.Context(), f.database())
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { from.Close() })
	note, err := os.ReadFile(f.checkpointFile())
	if err != nil {
		f.t.Fatal(err)
	}
	verifier, err := translog.NewVerifier("broker.example.com/log", f.log.Public())
	if err != nil {
		f.t.Fatal(err)
	}
	checkpoint, err := translog.Open(note, []*translog.Verifier{verifier})
	if err != nil {
		f.t.Fatal(err)
	}
	return &Move{From: from, To: to, Name: "postgres://db.example.com/broker", Key: replicasKey,
		Origin: "broker.example.com/log", Checkpoint: checkpoint}
}

// replicaOn starts a replica on a database, as another fixture.
func (f *fixture) replicaOn(url, name string) *fixture {
	f.t.Helper()
	s := openPostgres(f.t, url)
	other := &fixture{t: f.t, dir: f.t.TempDir(), store: s, unpublished: f.unpublished, policy: f.policy, config: f.config,
		clock: f.clock, keys: f.keys, log: f.log, people: f.people, notices: f.notices}
	note, err := os.ReadFile(f.checkpointFile())
	if err == nil {
		err = os.WriteFile(other.checkpointFile(), note, 0o600)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	o := other.options(s)
	o.Replica, o.Clock = &Replica{Store: s, Key: replicasKey, Name: name, Version: "1"}, Clock{}
	if other.Broker, err = Open(f.t.Context(), o); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(other.stop)
	return other
}

// installation is a stopped broker with open requests, approvals, a grant, a blocked key and notices.
func installation(t *testing.T) (f *fixture, open, granted *brokerapi.Request) {
	t.Helper()
	f = approvers(t)
	f.clock.wall = time.Now().UTC()
	f.notices = (&told{}).rows
	f.policy = strings.Replace(f.policy, "groups:", `  other:
    key: pkcs11:token=test;object=other
    formats: [notation]
    use: [{name: nightly, when: caller.subject == "ci"}]
    block: [{name: anyone, when: caller.subject == "admin"}]
    unblock: [{approvals: [{group: security, quorum: 1}]}]
    modify: [{name: managers, approvals: [{group: managers, quorum: 2}]}]
groups:`, 1)
	f.start()
	open = f.waits("pipeline", 1)
	f.approves(open.ID, "alice")
	granted = f.waits("pipeline", 2)
	f.approves(granted.ID, "alice", "bob", "dave")
	f.signs("ci", 3)
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "other"}); err != nil {
		t.Fatal(err)
	}
	waiting, err := f.store.Notices(t.Context(), "", f.clock.now(), 10)
	if err != nil || len(waiting) < 2 {
		t.Fatalf("%d notices, %v", len(waiting), err)
	}
	if err := f.store.Noticed(t.Context(), waiting[0].ID, f.clock.now()); err != nil {
		t.Fatal(err)
	}
	f.stop()
	return f, open, granted
}

// TestMove goes on with everything after a broker was moved to PostgreSQL, with two replicas, and never with the old
// database.
func TestMove(t *testing.T) {
	t.Parallel()
	f, open, granted := installation(t)
	url := softhsmtest.Postgres(t).Database(t)
	m := f.move(openPostgres(t, url))
	due := f.clock.now().Add(time.Hour)
	before, err := m.From.Notices(t.Context(), "", due, 100)
	if err != nil {
		t.Fatal(err)
	}
	moved, err := m.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if size, err := m.From.Size(t.Context()); err != nil || moved.Entries != size || moved.Requests < 3 ||
		moved.Documents == 0 || moved.Tiles == 0 || moved.Values < 2 || moved.Notices != int64(len(before))+1 {
		t.Errorf("%+v of %d entries, %v", moved, size, err)
	}
	m.From.Close()
	_, err = sqlite.Open(t.Context(), f.database())
	failsWith(t, err, failure.Conflict, "was moved to postgres://db.example.com/broker")
	first, second := f.replicaOn(url, "broker-1"), f.replicaOn(url, "broker-2")
	after, err := second.store.Notices(t.Context(), "", due, 100)
	if err != nil || !slices.EqualFunc(before, after, func(a, b store.Notice) bool {
		return a.ID == b.ID && a.Due.Equal(b.Due) && bytes.Equal(a.Body, b.Body)
	}) {
		t.Errorf("notices: %d before, %d after, %v", len(before), len(after), err)
	}
	if !first.Blocked("other") || first.Blocked("release") {
		t.Error("another key is blocked than before")
	}
	if now := first.approves(open.ID, "bob", "dave"); now.State != brokerapi.Approved || len(now.Approvals) != 3 {
		t.Errorf("the open request: %+v", now)
	}
	for n, want := range map[int]string{1: open.ID, 2: granted.ID} {
		if s := second.signs("pipeline", n); s.Request != want {
			t.Errorf("image %d is signed by request %s, not %s", n, s.Request, want)
		}
	}
	first.signs("ci", 4)
	if list, err := first.Requests(t.Context(), caller("admin"), Query{Limit: 100}); err != nil ||
		len(list.Requests) != int(moved.Requests)+1 {
		t.Errorf("%+v, %v", list, err)
	}
	second.events()
	for _, why := range []string{"a replica of a broker uses it", "it is not empty"} {
		again := f.move(openPostgres(t, url))
		_, err := again.Run(t.Context())
		failsWith(t, err, failure.Conflict, why)
		again.From.Close()
		first.stop()
		second.stop()
	}
}

// spoiled changes rows on their way, or fails at one.
type spoiled struct {
	store.Source
	change func(n int, r *store.Row) error
}

func (s spoiled) Rows(ctx context.Context) store.Rows { return changed(s.Source.Rows(ctx), s.change) }

// changed returns rows that are changed, or fail.
func changed(rows store.Rows, change func(n int, r *store.Row) error) store.Rows {
	return func(yield func(store.Row, error) bool) {
		n := 0
		for row, err := range rows {
			if err == nil {
				err = change(n, &row)
			}
			if n++; !yield(row, err) {
				return
			}
		}
	}
}

// failingTarget has what was stored be something else, or fails to commit.
type failingTarget struct {
	store.Target
	change func(n int, r *store.Row) error
	commit error
}

func (f failingTarget) Import(ctx context.Context, rows store.Rows, seal []byte,
	ready func(context.Context, store.Rows) error) error {
	return f.Target.Import(ctx, rows, seal, func(ctx context.Context, stored store.Rows) error {
		if f.change != nil {
			stored = changed(stored, f.change)
		}
		return errors.Join(ready(ctx, stored), f.commit)
	})
}

// TestMoveFails moves nothing when anything is wrong, leaves the old database in use, and moves all when it is run
// again.
func TestMoveFails(t *testing.T) {
	t.Parallel()
	f, _, _ := installation(t)
	url := softhsmtest.Postgres(t).Database(t)
	cut := errors.New("the connection was cut")
	entry := func(_ int, r *store.Row) error {
		if r.Entry != nil && r.Entry.Index == 2 {
			r.Entry.Data[0] ^= 1
		}
		return nil
	}
	for name, c := range map[string]struct {
		change func(m *Move)
		text   string
	}{
		"read in part": {func(m *Move) {
			m.From = spoiled{m.From, func(n int, _ *store.Row) error {
				if n == 20 {
					return cut
				}
				return nil
			}}
		}, "was cut"},
		"an entry is read wrong": {func(m *Move) { m.From = spoiled{m.From, entry} }, "not those of its tree"},
		"an entry is stored wrong": {func(m *Move) { m.To = failingTarget{Target: m.To, change: entry} },
			"not those of its tree"},
		"a request is stored wrong": {func(m *Move) {
			m.To = failingTarget{Target: m.To, change: func(_ int, r *store.Row) error {
				if r.Request != nil {
					r.Request.State = "signed"
				}
				return nil
			}}
		}, "not what was read"},
		"not committed":          {func(m *Move) { m.To = failingTarget{Target: m.To, commit: cut} }, "was cut"},
		"another checkpoint":     {func(m *Move) { m.Checkpoint.Root[0] ^= 1 }, "not those of the checkpoint file"},
		"an older database":      {func(m *Move) { m.Checkpoint.Size += 100 }, "it is older"},
		"a checkpoint of before": {func(m *Move) { m.Checkpoint.Size-- }, "not those of the checkpoint file"},
	} {
		m := f.move(openPostgres(t, url))
		c.change(m)
		if _, err := m.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		m.From.Close()
		s, err := sqlite.Open(t.Context(), f.database())
		if err != nil {
			t.Fatalf("%s: the old database: %v", name, err)
		}
		s.Close()
		to := openPostgres(t, url)
		if n, err := to.Size(t.Context()); err != nil || n != 0 {
			t.Errorf("%s: %d entries, %v", name, n, err)
		}
	}
	m := f.move(openPostgres(t, url))
	m.To = failingTarget{Target: m.To, commit: errors.Join(store.ErrUnknown, cut)} // it was interrupted while it ended
	if _, err := m.Run(t.Context()); !errors.Is(err, store.ErrUnknown) {
		t.Fatal(err)
	}
	m.From.Close()
	_, err := sqlite.Open(t.Context(), f.database())
	failsWith(t, err, failure.Conflict, "was moved")
	again := f.move(openPostgres(t, url))
	if _, err := again.Run(t.Context()); err != nil {
		t.Errorf("again: %v", err)
	}
	f.replicaOn(url, "broker-1").signs("ci", 5)
}

// TestMoveAppended moves entries that somebody has appended to the database, and that no checkpoint covers: they permit
// nothing afterwards either.
func TestMoveAppended(t *testing.T) {
	t.Parallel()
	f, _, _ := installation(t)
	loose := []byte(strings.Replace(f.policy, `caller.subject == "ci"`, `caller.subject == "intruder"`, 1))
	f.append(&store.Batch{Documents: [][]byte{loose}}, Event{Type: policySet, Policy: hashOf(loose)})
	url := softhsmtest.Postgres(t).Database(t)
	if _, err := f.move(openPostgres(t, url)).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"broker-1", "broker-2"} {
		r := f.replicaOn(url, name)
		_, err := r.Sign(t.Context(), caller("intruder"), "release", f.image(5))
		failsWith(t, err, failure.Denied, "no rule")
		r.signs("ci", 6)
	}
}
