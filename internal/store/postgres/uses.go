package postgres

import (
	"context"
	"time"
)

const (
	// keepUse is how much longer uses are remembered than they have to be: the clocks of replicas differ from that of
	// the database.
	keepUse = 10 * time.Minute
	// maxOld is the number of uses that are forgotten at once.
	maxOld = 100
)

// Once reports whether something is used for the first time by any replica, and remembers it until a time. It forgets
// old uses.
func (s *Store) Once(ctx context.Context, id [32]byte, until time.Time) (bool, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	first, err := s.pool.Exec(ctx, `WITH old AS (DELETE FROM uses WHERE id IN (SELECT id FROM uses
			WHERE until < clock_timestamp() - make_interval(secs => $3::float8) ORDER BY until LIMIT $4::integer
			FOR UPDATE SKIP LOCKED))
		INSERT INTO uses (id, until) VALUES ($1::bytea, $2::timestamptz) ON CONFLICT DO NOTHING`,
		id[:], until, keepUse.Seconds(), maxOld)
	if err != nil {
		return false, s.explain("write to", err)
	}
	return first.RowsAffected() == 1, nil
}

// Used reports whether something was used.
func (s *Store) Used(ctx context.Context, id [32]byte) (used bool, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	err = s.pool.QueryRow(ctx, "SELECT EXISTS (SELECT FROM uses WHERE id = $1::bytea)", id[:]).Scan(&used)
	if err != nil {
		return false, s.explain("read", err)
	}
	return used, nil
}
