package sqlite

import (
	"path/filepath"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// TestMoved opens a database that was moved only to move it: no broker of any version does, and none migrates it.
func TestMoved(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "broker.db")
	_, err := OpenToMove(t.Context(), path)
	failsWith(t, err, failure.NotFound, "cannot move the database")
	s := open(t, path)
	if err := s.Commit(t.Context(), &store.Batch{Entries: [][]byte{{1}}}); err != nil {
		t.Fatal(err)
	}
	_, err = OpenToMove(t.Context(), path)
	failsWith(t, err, failure.Conflict, "another process has the database")
	for _, to := range []string{"", "postgres://db.example.com/broker", "postgres://other.example.com/broker"} {
		if err := s.SetMoved(t.Context(), to); err != nil || s.Moved() != (to != "") {
			t.Errorf("%q: %t, %v", to, s.Moved(), err)
		}
	}
	s.Close()
	newer := append(embedded(), "CREATE TABLE later (x);")
	for range 2 { // the first one migrates nothing
		for _, known := range [][]migration{embedded(), newer} {
			_, err := openWith(t.Context(), path, known, false)
			failsWith(t, err, failure.Conflict, "was moved to postgres://other.example.com/broker")
		}
		_, err := openWith(t.Context(), path, newer, true)
		failsWith(t, err, failure.Conflict, "was moved to")
	}
	if s, err = OpenToMove(t.Context(), path); err != nil || !s.Moved() {
		t.Fatal(err)
	}
	for row, err := range s.Rows(t.Context()) {
		if err != nil || row.Value != nil && row.Value.Name == movedName {
			t.Errorf("%+v, %v", row, err)
		}
	}
	if err := s.SetMoved(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	s.Close()
	again := open(t, path)
	if n, err := again.Size(t.Context()); err != nil || n != 1 {
		t.Errorf("%d entries, %v", n, err)
	}
}
