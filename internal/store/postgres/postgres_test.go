package postgres

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/storetest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

var _ store.Shared = (*Store)(nil)

// pool connects to a database.
func pool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	p, err := Connect(t.Context(), url, "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// open opens a database, with other limits if there are any.
func open(t testing.TB, url string, l ...limits) *Store {
	t.Helper()
	s, err := openWith(t.Context(), pool(t, url), embedded(), append(l, defaults)[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestContract passes the contract of stores, with and without a pooler.
func TestContract(t *testing.T) {
	t.Parallel()
	server := softhsmtest.Postgres(t)
	for name, url := range map[string]string{
		"direct": server.Database(t),
		"pooler": softhsmtest.Through(t, server.Database(t), softhsmtest.Pooler(t, server)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Run(t, func(t *testing.T) store.Store { return open(t, url) })
		})
	}
}

// TestShared passes the contract of stores that replicas share, with and without a pooler.
func TestShared(t *testing.T) {
	t.Parallel()
	server := softhsmtest.Postgres(t)
	for name, url := range map[string]string{
		"direct": server.Database(t),
		"pooler": softhsmtest.Through(t, server.Database(t), softhsmtest.Pooler(t, server)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, url)
			storetest.RunShared(t, storetest.Shared{
				Open: func(t *testing.T, turn time.Duration) store.Shared {
					l := defaults
					l.turn = turn
					return open(t, url, l)
				},
				Age: func(t *testing.T, number int64) {
					t.Helper()
					age(t, s, number)
				},
			})
		})
	}
}

// age has it that a replica has last called Beat before DeadAfter.
func age(t testing.TB, s *Store, number int64) {
	t.Helper()
	_, err := s.pool.Exec(t.Context(),
		"UPDATE replicas SET seen = seen - make_interval(secs => $1::float8) WHERE number = $2::bigint",
		store.DeadAfter.Seconds(), number)
	if err != nil {
		t.Fatal(err)
	}
}
