package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/storetest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

var _ store.Shared = (*Store)(nil)

// pool connects to a database.
func pool(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	config.MaxConns = 8
	p, err := pgxpool.NewWithConfig(t.Context(), config)
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

func TestStore(t *testing.T) {
	t.Parallel()
	url := softhsmtest.Postgres(t).Database(t)
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, url) })
}
