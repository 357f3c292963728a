package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Condition is the state of a database, whether it has the tables of a broker or not.
type Condition struct {
	Now     time.Time // by its clock
	Usable  bool      // it has the tables, or the role can make them
	Standby store.Standby
}

// Inspect returns the state of a database. It makes no tables.
func Inspect(ctx context.Context, pool *pgxpool.Pool) (*Condition, error) {
	s := &Store{pool: pool, limits: defaults}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var c Condition
	err := pool.QueryRow(ctx, `SELECT clock_timestamp(), to_regclass('schema') IS NOT NULL
		OR coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)`).Scan(&c.Now, &c.Usable)
	if err != nil {
		return nil, s.explain("read", err)
	}
	c.Standby, err = s.Standby(ctx)
	return &c, err
}
