// Package postgres keeps a broker's data in a PostgreSQL database that several replicas use at once.
//
// It keeps nothing in a session of the server: each transaction may be on another connection, as behind a pooler.
package postgres

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Store is an open database. It implements store.Shared.
type Store struct {
	pool   *pgxpool.Pool
	knows  int // the newest version of the schema that this program knows
	limits limits
}

// limits are how long things may take.
type limits struct {
	dead    time.Duration // a replica that has not called Beat
	turn    time.Duration // a turn between two calls
	lock    time.Duration // to wait for a turn, or for a table
	call    time.Duration // any call of the database: the network may be cut
	readers time.Duration // to wait until nobody reads what was deleted
	quiet   time.Duration // between two looks at the head, while notifications arrive
	poll    time.Duration // between two looks at the head, while none do
}

var defaults = limits{dead: store.DeadAfter, turn: store.MaxTurn, lock: 5 * time.Second, call: 10 * time.Second,
	readers: 30 * time.Second, quiet: 2 * time.Second, poll: 250 * time.Millisecond}

// Open opens a database, and makes its tables if there are none. It takes the pool, which Close closes. Tables of an
// older version are migrated. It fails with Unsupported for a database that a newer program has made unusable for this
// one.
func Open(ctx context.Context, pool *pgxpool.Pool) (*Store, error) {
	return openWith(ctx, pool, embedded(), defaults)
}

func openWith(ctx context.Context, pool *pgxpool.Pool, known []migration, l limits) (*Store, error) {
	s := &Store{pool: pool, knows: len(known), limits: l}
	if err := s.migrate(ctx, known); err != nil {
		return nil, err
	}
	return s, nil
}

// Close ends all calls.
func (s *Store) Close() error {
	s.pool.Close()
	return nil
}

// bounded returns a context for one call of the database.
func (s *Store) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.limits.call)
}

// text returns a text as PostgreSQL takes it: valid UTF-8 without NUL, each other byte replaced.
func text(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}
