package postgres

import (
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/store"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestPartitions has years pass in which partitions are made in time, too late, and not at all.
func TestPartitions(t *testing.T) {
	t.Parallel()
	s := open(t, softhsmtest.Postgres(t).Database(t))
	begin := time.Now().UTC()
	begin = time.Date(begin.Year(), begin.Month(), 15, 0, 0, 0, 0, time.UTC)
	at := func(month int) time.Time { return begin.AddDate(0, month, 0) }
	var ids []string
	add := func(month int) {
		t.Helper()
		id := store.FirstID(at(month)) + "00"
		b := &store.Batch{Requests: []store.Request{{ID: id, Body: []byte{}}},
			RequestDocuments: []store.RequestDocument{{Request: id, Data: []byte("of all")}}}
		if err := s.Commit(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	in := func(f func(pgx.Tx) error) {
		t.Helper()
		if err := pgx.BeginTxFunc(t.Context(), s.pool, readCommitted, f); err != nil {
			t.Fatal(err)
		}
	}
	want := func(first int, of ...int) {
		t.Helper()
		var wanted []string
		for _, month := range of {
			wanted = append(wanted, monthOf(at(month)))
		}
		for _, p := range partitioned {
			var got []string
			in(func(tx pgx.Tx) (err error) { got, err = months(t.Context(), tx, p.name); return err })
			if !slices.Equal(got[first:], wanted) {
				t.Errorf("%s has %v instead of %v from %d", p.name, got, wanted, first)
			}
		}
		all, err := s.Requests(t.Context(), store.Query{Limit: store.MaxLimit})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range all.Requests {
			got = append(got, r.ID)
		}
		slices.Reverse(got)
		if !slices.Equal(got, ids) {
			t.Errorf("requests %v instead of %v", got, ids)
		}
	}
	extend := func(month int) {
		t.Helper()
		in(func(tx pgx.Tx) error { return extend(t.Context(), tx, at(month)) })
	}
	want(1, 0, 1, 2, 3)
	add(0)
	add(1)
	extend(1)
	want(1, 0, 1, 2, 3, 4)
	extend(1)
	want(1, 0, 1, 2, 3, 4)
	add(6) // nothing has made partitions for half a year
	extend(6)
	want(1, 0, 1, 2, 3, 4, 7, 8, 9)
	in(func(tx pgx.Tx) error { return drop(t.Context(), tx, at(1)) })
	ids = ids[1:]
	want(0, 1, 2, 3, 4, 7, 8, 9)
	in(func(tx pgx.Tx) error { return drop(t.Context(), tx, at(6)) })
	ids = ids[1:]
	want(0, 4, 7, 8, 9)
	in(func(tx pgx.Tx) error { return drop(t.Context(), tx, at(60)) })
	ids = nil
	want(0, 9)
	add(50)
	want(0, 9)
}
