package postgres

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// until waits until a condition holds, for two minutes at most.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestRestart has the server end during a turn: nothing of it is durable, and the next turn begins when the server
// runs.
func TestRestart(t *testing.T) {
	t.Parallel()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	s := open(t, server.Database(t))
	number, err := s.Join(t.Context(), store.Replica{})
	if err != nil {
		t.Fatal(err)
	}
	turn, err := s.Turn(t.Context(), number, 0)
	if err != nil {
		t.Fatal(err)
	}
	server.Stop(t)
	err = turn.Commit(t.Context(), full(0))
	failsWith(t, err, failure.Unavailable, "cannot write to the database")
	_, err = s.Head(t.Context())
	failsWith(t, err, failure.Unavailable, "cannot read the database")
	for _, secret := range []string{softhsmtest.PostgresRole, "127.0.0.1", "postgres://"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("%v has %s", err, secret)
		}
	}
	server.Start(t)
	until(t, "a commit", func() bool {
		err = s.Commit(t.Context(), full(0))
		if err != nil && !failure.Is(err, failure.Unavailable) {
			t.Fatal(err)
		}
		return err == nil
	})
	if n, err := s.Size(t.Context()); err != nil || n != 2 {
		t.Errorf("%d entries, %v", n, err)
	}
}

// TestChangesAfterFaults wakes who waits after the connection with the notifications has ended, and when there was no
// notification.
func TestChangesAfterFaults(t *testing.T) {
	t.Parallel()
	server := softhsmtest.Postgres(t)
	url := server.Database(t)
	l := defaults
	l.quiet = 50 * time.Millisecond
	s := open(t, url, l)
	ctx, cancel := context.WithCancel(t.Context())
	woken, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		s.Changes(ctx, func() {
			select {
			case woken <- struct{}{}:
			default:
			}
		})
	}()
	size := int64(0)
	see := func() {
		t.Helper()
		for size++; ; {
			<-woken // until the time limit of the tests
			if n, err := s.Size(t.Context()); err != nil || n > size {
				t.Fatalf("%d entries, %v", n, err)
			} else if n == size {
				return
			}
		}
	}
	database := url[strings.LastIndexByte(url, '/')+1 : strings.LastIndexByte(url, '?')]
	for range 3 {
		if err := s.Commit(t.Context(), &store.Batch{First: size, Entries: [][]byte{{1}}}); err != nil {
			t.Fatal(err)
		}
		see()
		if _, err := s.pool.Exec(t.Context(), "UPDATE head SET size = size + 1"); err != nil { // and notify nobody
			t.Fatal(err)
		}
		see()
		server.SQL(t, database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "+
			"WHERE datname = current_database() AND pid <> pg_backend_pid()")
		until(t, "the pool", func() bool { _, err := s.Size(t.Context()); return err == nil })
	}
	cancel()
	<-ended
}

// TestDurable has commits wait for the disk, whatever the settings of the database say by the time when a pooler
// connects to it anew. Connect refuses such settings only.
func TestDurable(t *testing.T) {
	t.Parallel()
	server := softhsmtest.Postgres(t)
	url := server.Database(t)
	database := url[strings.LastIndexByte(url, '/')+1 : strings.LastIndexByte(url, '?')]
	checked := pool(t, url)
	defer checked.Close()
	config := checked.Config()
	config.ConnConfig.ValidateConnect = nil
	for set, want := range map[string]string{"off": "on", "local": "on", "remote_apply": "remote_apply"} {
		server.SQL(t, "postgres", "ALTER DATABASE "+database+" SET synchronous_commit = "+set)
		unchecked, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer unchecked.Close()
		s, err := openWith(t.Context(), unchecked, embedded(), defaults)
		if err != nil {
			t.Fatal(err)
		}
		turn, err := s.begin(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		if err := turn.conn.QueryRow(t.Context(), "SHOW synchronous_commit").Scan(&got); err != nil || got != want {
			t.Errorf("%s instead of %s, %v", got, want, err)
		}
		turn.End()
	}
}

// TestStandby tells whether commits wait for a standby that is there.
func TestStandby(t *testing.T) {
	t.Parallel()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	s := open(t, server.Database(t))
	want := func(want store.Standby) {
		t.Helper()
		until(t, want.String(), func() bool {
			got, err := s.Standby(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return got == want
		})
	}
	want(store.NoStandby)
	standby := server.Standby(t)
	want(store.StandbyUnknown)
	server.SQL(t, "postgres", "GRANT pg_monitor TO "+softhsmtest.PostgresRole)
	want(store.StandbyThere)
	standby.Stop(t)
	want(store.StandbyMissing)
	for names, n := range map[string]int{"*": 1, "a, b": 1, "2 (a, b)": 2, "ANY 3 (a, b, c, d)": 3, " first 2(a,b)": 2} {
		if got := wanted(names); got != n {
			t.Errorf("%s wants %d standbys instead of %d", names, got, n)
		}
	}
}

// TestPurge looks for what was deleted and replaced in the files of the database. It fails while a transaction may read
// that.
func TestPurge(t *testing.T) {
	t.Parallel()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	url := server.Database(t)
	s := open(t, url)
	has := func(text string) (found bool) {
		t.Helper()
		server.SQL(t, "postgres", "CHECKPOINT")
		base := filepath.Join(server.Dir, "data", "base")
		err := filepath.WalkDir(base, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			found = found || bytes.Contains(data, []byte(text))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	document, other := []byte("the document of mallory"), []byte("what mallory has asked for")
	for _, b := range []*store.Batch{
		{Documents: [][]byte{document}, RequestDocuments: []store.RequestDocument{{Request: "r", Data: other}},
			Requests: []store.Request{{ID: "r", Body: []byte("asked by mallory")}}},
		{Erased: [][32]byte{sha256.Sum256(document), sha256.Sum256(other)}, Requests: []store.Request{{ID: "r",
			Body: []byte("asked by somebody")}}},
	} {
		if err := s.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if !has("mallory") {
		t.Error("nothing is left of what was deleted: the test sees nothing")
	}
	reader, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT FROM head"} {
		if _, err := reader.Exec(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	err = s.Commit(t.Context(), &store.Batch{Requests: []store.Request{{ID: "r", Body: []byte("asked by nobody")}}})
	if err != nil {
		t.Fatal(err)
	}
	hasty := defaults
	hasty.readers = 0
	failsWith(t, open(t, url, hasty).Purge(t.Context()), failure.Unavailable, "a transaction still reads what was deleted")
	if err := reader.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if has("mallory") || has("asked by somebody") || !has("asked by nobody") {
		t.Error("the files have what was deleted")
	}
	failsWith(t, s.Backup(t.Context(), "copy"), failure.Unsupported, "cannot back up")
}

// TestCanceledWait has commits wait for a standby that hangs. One whose wait an administrator cancels may not be on the
// standby; one that takes too long stays invisible until the standby has it.
func TestCanceledWait(t *testing.T) {
	t.Parallel()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	url := server.Database(t)
	standby := server.Standby(t)
	s := open(t, url)
	hasty := defaults
	hasty.call = time.Second
	other := open(t, url, hasty)
	standby.Pause(t)
	const waiting = " FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
	committed := make(chan error)
	go func() { committed <- s.Commit(t.Context(), full(0)) }()
	until(t, "the commit to wait", func() bool { return server.SQL(t, "postgres", "SELECT count(*)"+waiting) == "1" })
	server.SQL(t, "postgres", "SELECT pg_cancel_backend(pid)"+waiting)
	if err := <-committed; !errors.Is(err, store.ErrUnknown) || !failure.Is(err, failure.Unavailable) {
		t.Errorf("a commit that has not waited for the standby: %v", err)
	}
	if n, err := s.Size(t.Context()); err != nil || n != 2 {
		t.Errorf("%d entries, %v: the test sees nothing", n, err)
	}

	err := other.Commit(t.Context(), &store.Batch{First: 2, Entries: [][]byte{{1}}})
	if !errors.Is(err, store.ErrUnknown) {
		t.Errorf("a commit that the standby does not answer: %v", err)
	}
	_, err = s.begin(t.Context(), 0)
	failsWith(t, err, failure.Unavailable, "lock timeout")
	if n, err := s.Size(t.Context()); err != nil || n != 2 {
		t.Errorf("%d entries, %v, while the standby lacks the third", n, err)
	}
	standby.Continue(t)
	until(t, "the standby to have it", func() bool {
		n, err := s.Size(t.Context())
		return err == nil && n == 3
	})
	if err := s.Commit(t.Context(), &store.Batch{First: 3, Entries: [][]byte{{1}}}); err != nil {
		t.Error(err)
	}
}
