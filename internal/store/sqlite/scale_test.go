package sqlite

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/storetest"
)

// TestScale has lists read as little of many requests as of few. No other test runs at the same time.
func TestScale(t *testing.T) { //nolint:paralleltest // it counts what the process reads
	count := 100_000
	if testing.Short() {
		count = 20_000
	}
	few, many := pagesOfLists(t, 10_000), pagesOfLists(t, count)
	t.Logf("%d lists read %d pages of 10000 requests, and %d of %d", len(storetest.Lists()), few, many, count)
	if many > 3*few {
		t.Errorf("lists read %d pages of %d requests, and %d of 10000", many, count, few)
	}
}

// pagesOfLists returns how many pages of the database all lists read, each for itself.
func pagesOfLists(t *testing.T, count int) int64 {
	t.Helper()
	s := open(t, filepath.Join(t.TempDir(), "broker.db"))
	const part = 10_000
	for first := 0; first < count; first += part {
		b := &store.Batch{}
		for n := first; n < min(first+part, count); n++ {
			b.Requests = append(b.Requests, storetest.Row(n, count))
		}
		if err := s.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	s.read.SetMaxIdleConns(0) // each list has a connection of its own, which has read nothing yet
	return storetest.Scale(t, func(q store.Query) int64 {
		before := bytesRead(t)
		if _, err := s.Requests(t.Context(), q); err != nil {
			t.Fatal(err)
		}
		return (bytesRead(t) - before) / pageSize
	}, store.MaxLooked+100)
}

const pageSize = 4096

// bytesRead returns how much the process has read.
func bytesRead(t *testing.T) (n int64) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Fatal(err)
	}
	_, err = fmt.Fscanf(bytes.NewReader(data), "rchar: %d", &n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
