package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/storetest"
)

// The variable has the test's program commit to the database that it names, until it is killed.
const commitTo = "COMMIT_TO_DATABASE"

func TestMain(m *testing.M) {
	if path := os.Getenv(commitTo); path != "" {
		fmt.Println(commitForEver(path))
		return
	}
	os.Exit(m.Run())
}

// commitForEver commits batches of 5 entries, and says so after each.
func commitForEver(path string) error {
	s, err := Open(context.Background(), path)
	if err != nil {
		return err
	}
	for {
		size, err := s.Size(context.Background())
		if err != nil {
			return err
		}
		b := &store.Batch{First: size, Tiles: []store.Tile{{Hashes: fmt.Append(nil, size+5)}}}
		for i := range int64(5) {
			b.Entries = append(b.Entries, fmt.Append(nil, size+i))
		}
		if err := s.Commit(context.Background(), b); err != nil {
			return err
		}
		fmt.Println(size + 5)
	}
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func failsWith(t *testing.T, err error, kind failure.Kind, text string) {
	t.Helper()
	if !failure.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Fatalf("want %s with %q, got %v", kind, text, err)
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "broker.db")
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, path) })
}

// TestKilled kills a process that writes, many times. What it said to be durable is, and no batch is there in part.
//
// It runs alone: a process that has just been started holds, for a moment, the locks of the one that starts it.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broker.db")
	for n := range 20 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), commitTo+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said int64
		for range n + 1 {
			if _, err := fmt.Fscanln(out, &said); err != nil {
				t.Fatal(err)
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s := open(t, path)
		size, err := s.Size(t.Context())
		if err != nil || size%5 != 0 || size < said {
			t.Fatalf("%d entries, %v; the process said %d", size, err, said)
		}
		if tile, err := s.Tile(t.Context(), 0, 0); err != nil || string(tile) != fmt.Sprint(size) {
			t.Errorf("tile %q with %d entries, %v", tile, size, err)
		}
		s.Close()
	}
}

// TestSecondProcess refuses a database that another process has open.
func TestSecondProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "broker.db")
	open(t, path)
	_, err := Open(t.Context(), path)
	failsWith(t, err, failure.Conflict, "another process has the database")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// TestMigrate brings a database forward, after a backup, and refuses one of a newer program.
func TestMigrate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "broker.db")
	s := open(t, path)
	if err := s.Commit(t.Context(), &store.Batch{Entries: [][]byte{{1}}}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	newest := len(embedded())
	second := append(embedded(), "CREATE TABLE later (x);")
	broken := append(embedded(), "CREATE TABLE other (x); SELECT * FROM none;")
	_, err := openWith(t.Context(), path, broken, false)
	failsWith(t, err, failure.Unavailable, fmt.Sprintf("migrate to version %d", newest+1))
	next, err := openWith(t.Context(), path, second, false)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := next.Size(t.Context()); err != nil || n != 1 {
		t.Errorf("%d entries, %v", n, err)
	}
	next.Close()
	backups, err := filepath.Glob(fmt.Sprintf("%s.version-%d.*", path, newest))
	if err != nil || len(backups) == 0 {
		t.Fatalf("backups %q, %v", backups, err)
	}
	open(t, backups[0]).Close()
	_, err = Open(t.Context(), path)
	failsWith(t, err, failure.Unsupported, fmt.Sprintf("is of version %d, and this program knows %d", newest+1, newest))
}

// TestMigrateFirst brings a database of the first version forward, which keeps its requests.
func TestMigrateFirst(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "broker.db")
	db, err := database(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(embedded()[0]), "PRAGMA user_version = 1", `INSERT INTO requests VALUES ('one', 1,
		2, 'key', 'signed', 'who', 'rule', 'sha256:aa', 'registry.example.com/app', x'7b7d', NULL)`} {
		if _, err := db.ExecContext(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	for _, q := range []store.Query{{Digest: "sha256:aa"}, {Repository: "registry.example.com/app"}} {
		if got, err := s.Requests(t.Context(), q); err != nil || len(got.Requests) != 1 ||
			got.Requests[0].ID != "one" {
			t.Errorf("%+v: %+v, %v", q, got, err)
		}
	}
	if err := s.Commit(t.Context(), &store.Batch{Notices: []store.Notice{{ID: "one"}}}); err != nil {
		t.Error(err)
	}
}

// TestIndexes has SQLite search with an index for each list that is long.
func TestIndexes(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "broker.db"))
	for query, want := range map[string]string{
		"SELECT id FROM requests WHERE id IN ('a', 'b') ORDER BY id DESC LIMIT 9":          "sqlite_autoindex_requests_1",
		"SELECT id FROM notices WHERE channel = 'a' AND due <= 9 ORDER BY due, id LIMIT 9": "notices_by_channel",
		"SELECT id FROM notices WHERE due <= 9 ORDER BY due, id LIMIT 9":                   "notices_due",
		"SELECT sha256 FROM documents WHERE request < 'a' ORDER BY request LIMIT 9":        "documents_by_request",
		"SELECT id FROM notices WHERE done < 9 ORDER BY done LIMIT 9":                      "notices_done",
	} {
		rows, err := s.read.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query)
		if err != nil {
			t.Fatal(err)
		}
		plan := ""
		for rows.Next() {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				t.Fatal(err)
			}
			plan += step + "\n"
		}
		if err := rows.Err(); err != nil || !strings.Contains(plan, "SEARCH") || !strings.Contains(plan, "INDEX "+want) {
			t.Errorf("%s: %v\n%s", query, err, plan)
		}
	}
}

// TestPurge looks for what was deleted and replaced in the files of the database.
func TestPurge(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "broker.db")
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	has := func(text string) bool {
		t.Helper()
		for _, suffix := range []string{"", "-wal"} {
			data, err := os.ReadFile(path + suffix)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if bytes.Contains(data, []byte(text)) {
				return true
			}
		}
		return false
	}
	document := []byte("the document of mallory")
	for _, b := range []*store.Batch{
		{Documents: [][]byte{document}, Requests: []store.Request{{ID: "r", Body: []byte("asked by mallory")}}},
		{Erased: [][32]byte{sha256.Sum256(document)}, Requests: []store.Request{{ID: "r",
			Body: []byte("asked by somebody")}}},
	} {
		if err := s.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if !has("mallory") {
		t.Error("nothing is left of what was deleted: the test sees nothing")
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if has("mallory") || !has("asked by somebody") {
		t.Error("the files have what was deleted")
	}
}

// TestBackup copies a database while it is written, and makes another of the copy.
func TestBackup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "broker.db"))
	done := make(chan error)
	go func() {
		var err error
		for i := int64(0); i < 100 && err == nil; i++ {
			err = s.Commit(t.Context(), &store.Batch{First: i, Entries: [][]byte{make([]byte, 1000)}})
		}
		done <- err
	}()
	for size := int64(0); size == 0; {
		var err error
		if size, err = s.Size(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	backup := filepath.Join(dir, "backup")
	if err := s.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	failsWith(t, s.Backup(t.Context(), backup), failure.Conflict, "file exists")
	restored := filepath.Join(dir, "restored.db")
	if err := Restore(t.Context(), backup, restored); err != nil {
		t.Fatal(err)
	}
	failsWith(t, Restore(t.Context(), backup, restored), failure.Conflict, "exists")
	missing := filepath.Join(dir, "missing")
	failsWith(t, Restore(t.Context(), missing, filepath.Join(dir, "other.db")), failure.NotFound, "cannot read the backup")
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a backup that did not exist: %v", err)
	}
	if size, err := open(t, restored).Size(t.Context()); err != nil || size == 0 || size > 100 {
		t.Errorf("%d entries, %v", size, err)
	}
	data, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged")
	if err := os.WriteFile(damaged, data[:len(data)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Restore(t.Context(), damaged, filepath.Join(dir, "other.db")); !failure.Is(err, failure.Internal) {
		t.Error(err)
	}
}

// TestFull fails while there is no room, and goes on afterwards.
func TestFull(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "broker.db"))
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA max_page_count = 40"); err != nil {
		t.Fatal(err)
	}
	var size int64
	var err error
	for ; err == nil; size++ {
		err = s.Commit(t.Context(), &store.Batch{First: size, Entries: [][]byte{make([]byte, 4000)}})
	}
	failsWith(t, err, failure.Unavailable, "full")
	if errors.Is(err, store.ErrUnknown) {
		t.Error("nothing is unknown")
	}
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA max_page_count = 100000"); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(t.Context(), &store.Batch{First: size - 1, Entries: [][]byte{{1}}}); err != nil {
		t.Error(err)
	}
}

// TestDamaged fails with Internal for what is no database.
func TestDamaged(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "broker.db")
	if err := os.WriteFile(path, []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), path)
	failsWith(t, err, failure.Internal, "not a database")
}
