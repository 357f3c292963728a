package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Notices lists notices of a channel ("" for all) that wait and are due at a time: first those due first.
func (s *Store) Notices(ctx context.Context, channel string, due time.Time, limit int) ([]store.Notice, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	const columns = "SELECT id, channel, recipient, created, due, attempts, body FROM notices WHERE due <= $1::bigint"
	const limited = "due, id LIMIT $2::integer"
	query, args := columns+" ORDER BY "+limited, []any{due.UnixMilli(), min(max(limit, 1), store.MaxLimit)}
	if channel != "" { // with =, the server may read those of all channels
		query, args = columns+" AND channel >= $3 AND channel <= $3 ORDER BY channel, "+limited, append(args, text(channel))
	}
	rows, err := s.pool.Query(ctx, query, args...)
	if err != nil {
		return nil, s.explain("read", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (n store.Notice, err error) {
		var created, due int64
		err = row.Scan(&n.ID, &n.Channel, &n.Recipient, &created, &due, &n.Attempts, &n.Body)
		n.Created, n.Due = time.UnixMilli(created).UTC(), time.UnixMilli(due).UTC()
		return n, err
	})
	if err != nil {
		return nil, s.explain("read", err)
	}
	return all, nil
}

// Postpone claims a notice for its attempt number attempts, and makes it due at a time.
func (s *Store) Postpone(ctx context.Context, id string, due time.Time, attempts int) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	tag, err := s.pool.Exec(ctx, `UPDATE notices SET due = $1::bigint, attempts = $2::integer
		WHERE id = $3 AND attempts = $2::integer - 1 AND due IS NOT NULL`, due.UnixMilli(), attempts, text(id))
	if err != nil {
		return s.explain("write to", err)
	}
	if tag.RowsAffected() == 0 {
		return failure.New(failure.Conflict, "attempt %d of notice %.200q was made before, or the notice does not wait",
			attempts, id)
	}
	return nil
}

// maxForgotten is the largest number of IDs that are forgotten at once.
const maxForgotten = 100

// Noticed ends a notice at a time. It deletes notices that have ended before KeepNotices.
func (s *Store) Noticed(ctx context.Context, id string, at time.Time) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var batch pgx.Batch
	batch.Queue("UPDATE notices SET due = NULL, done = $1::bigint, body = '' WHERE id = $2 AND due IS NOT NULL",
		at.UnixMilli(), text(id))
	batch.Queue(`DELETE FROM notices WHERE id IN (SELECT id FROM notices WHERE done < $1::bigint ORDER BY done
		LIMIT $2::integer FOR UPDATE SKIP LOCKED)`, at.Add(-store.KeepNotices).UnixMilli(), maxForgotten)
	if err := s.pool.SendBatch(ctx, &batch).Close(); err != nil {
		return s.explain("write to", err)
	}
	return nil
}
