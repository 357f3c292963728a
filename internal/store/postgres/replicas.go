package postgres

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// milliseconds returns a duration as PostgreSQL's settings take it.
func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// Join adds a replica to those that are alive, and returns its number.
func (s *Store) Join(ctx context.Context, r store.Replica) (number int64, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	err = s.pool.QueryRow(ctx, `INSERT INTO replicas (name, version, knows, seen)
		SELECT $1, $2, $3::integer, clock_timestamp() FROM schema WHERE least <= $3::integer RETURNING number`,
		text(r.Name), text(r.Version), s.knows).Scan(&number)
	switch {
	case errors.Is(err, pgx.ErrNoRows): // migrated since it was opened
		return 0, failure.New(failure.Unsupported,
			"cannot use the database: its schema needs a program that knows more than version %d", s.knows).
			WithHint("upgrade this program")
	case err != nil:
		return 0, s.explain("write to", err)
	}
	return number, nil
}

// Beat says that a replica is alive, and whether it is able to lead. It returns whether it leads.
func (s *Store) Beat(ctx context.Context, number int64, able bool) (leads bool, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	err = s.pool.QueryRow(ctx, `WITH mine AS (
			UPDATE replicas SET seen = clock_timestamp(), able = $2::boolean
			WHERE number = $1::bigint AND seen > clock_timestamp() - make_interval(secs => $3::float8) RETURNING number)
		SELECT $2::boolean AND NOT EXISTS (SELECT FROM replicas WHERE able AND number < $1::bigint
			AND seen > clock_timestamp() - make_interval(secs => $3::float8)) FROM mine`, number, able,
		s.limits.dead.Seconds()).Scan(&leads)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, dead(number)
	case err != nil:
		return false, s.explain("write to", err)
	}
	return leads, nil
}

// Leave ends a replica.
func (s *Store) Leave(ctx context.Context, number int64) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if _, err := s.pool.Exec(ctx, "DELETE FROM replicas WHERE number = $1::bigint", number); err != nil {
		return s.explain("write to", err)
	}
	return nil
}

// Head returns where the log ends.
func (s *Store) Head(ctx context.Context) (*store.Head, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var h store.Head
	err := s.pool.QueryRow(ctx, `SELECT size, seal, version, clock_timestamp(), array(SELECT number FROM replicas
			WHERE seen > clock_timestamp() - make_interval(secs => $1::float8) ORDER BY number) FROM head`,
		s.limits.dead.Seconds()).Scan(&h.Size, &h.Seal, &h.Version, &h.Now, &h.Replicas)
	if err != nil {
		return nil, s.explain("read", err)
	}
	return &h, nil
}
