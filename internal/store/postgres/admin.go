package postgres

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Backup fails with Unsupported: PostgreSQL has its own programs for that.
func (*Store) Backup(context.Context, string) error {
	return failure.New(failure.Unsupported, "cannot back up a PostgreSQL database").
		WithHint("use pg_basebackup with an archive of the write-ahead log, or pg_dump --format=custom")
}

// Purge writes the tables with what was deleted or replaced anew.
func (s *Store) Purge(ctx context.Context) error {
	for _, table := range []string{"documents", "request_documents", "requests", "notices", "snapshots"} {
		if _, err := s.pool.Exec(ctx, "VACUUM FULL "+table); err != nil {
			return s.explain("purge", err)
		}
	}
	return nil
}
