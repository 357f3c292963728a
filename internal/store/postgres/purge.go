package postgres

import (
	"context"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Backup fails with Unsupported: PostgreSQL has its own programs for that.
func (*Store) Backup(context.Context, string) error {
	return failure.New(failure.Unsupported, "cannot back up a PostgreSQL database").
		WithHint("use pg_basebackup with an archive of the write-ahead log, or pg_dump --format=custom")
}

// erasable are the tables of which rows are deleted or replaced.
var erasable = []string{"documents", "request_documents", "requests", "notices", "snapshots", "meta"}

// Purge writes the tables with what was deleted or replaced anew, one after the other. Each is locked meanwhile, so
// that turns fail with Unavailable. It fails with Unavailable while a transaction that began before may still read what
// was deleted.
//
// The write-ahead log keeps what was deleted until its files are recycled. Its archive, backups and snapshots of disks
// keep it until they are deleted.
func (s *Store) Purge(ctx context.Context) error {
	var kept atomic.Bool
	conn, err := s.connect(ctx, func(notice *pgconn.Notice) {
		if n := unremoved.FindString(notice.Detail); n != "" {
			kept.Store(n != "0")
		}
	})
	if err != nil {
		return s.explain("purge", err)
	}
	defer closeSoon(conn)
	// The old row of a small table is kept as long as older rows of others are.
	if _, err := conn.Exec(ctx, "UPDATE schema SET version = version"); err != nil {
		return s.explain("purge", err)
	}
	for began := time.Now(); ; time.Sleep(s.limits.poll) {
		kept.Store(true)
		if _, err := conn.Exec(ctx, "VACUUM (FULL, VERBOSE) schema"); err != nil {
			return s.explain("purge", err)
		}
		if !kept.Load() {
			break
		}
		if time.Since(began) > s.limits.readers {
			return failure.New(failure.Unavailable, "cannot purge the database: a transaction still reads what was deleted").
				WithHint("end transactions that began long ago, also on standbys, and try again: see pg_stat_activity")
		}
	}
	for _, table := range erasable {
		if _, err := conn.Exec(ctx, "VACUUM (FULL) "+table); err != nil {
			return s.explain("purge", err)
		}
	}
	return nil
}

// unremoved finds the number of rows that VACUUM had to keep, in whatever language the server says so.
var unremoved = regexp.MustCompile(`^\d+`)

// connect returns a connection outside the pool, and calls noticed with what the server says on it.
func (s *Store) connect(ctx context.Context, noticed func(*pgconn.Notice)) (*pgx.Conn, error) {
	pool := s.pool.Config()
	config := pool.ConnConfig
	if pool.BeforeConnect != nil {
		if err := pool.BeforeConnect(ctx, config); err != nil {
			return nil, err
		}
	}
	config.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) { noticed(notice) }
	return pgx.ConnectConfig(ctx, config)
}
