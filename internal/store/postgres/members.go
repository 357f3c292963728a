package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Members returns the replicas that are alive: the one with the smallest number first.
func (s *Store) Members(ctx context.Context) ([]store.Member, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	rows, err := s.pool.Query(ctx, `SELECT number, name, version, able FROM replicas
		WHERE seen > clock_timestamp() - make_interval(secs => $1::float8) ORDER BY number`, s.limits.dead.Seconds())
	if err != nil {
		return nil, s.explain("read", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m store.Member, err error) {
		err = row.Scan(&m.Number, &m.Name, &m.Version, &m.Able)
		return m, err
	})
	if err != nil {
		return nil, s.explain("read", err)
	}
	return all, nil
}
