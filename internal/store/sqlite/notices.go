package sqlite

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Notices lists notices of a channel ("" for all) that wait and are due at a time: first those due first.
func (s *Store) Notices(ctx context.Context, channel string, due time.Time, limit int) (all []store.Notice, err error) {
	const columns = "SELECT id, channel, recipient, created, due, attempts, body FROM notices"
	query, args := columns+" WHERE due <= ? ORDER BY due, id LIMIT ?", []any{due.UnixMilli()}
	if channel != "" {
		query, args = columns+" WHERE channel = ? AND due <= ? ORDER BY due, id LIMIT ?", []any{channel, due.UnixMilli()}
	}
	rows, err := s.read.QueryContext(ctx, query, append(args, min(max(limit, 1), store.MaxLimit))...)
	if err != nil {
		return nil, s.explain("read", err)
	}
	defer rows.Close()
	for rows.Next() {
		var n store.Notice
		var created, due int64
		err := rows.Scan(&n.ID, &n.Channel, &n.Recipient, &created, &due, &n.Attempts, &n.Body)
		if err != nil {
			return nil, s.explain("read", err)
		}
		n.Created, n.Due = time.UnixMilli(created).UTC(), time.UnixMilli(due).UTC()
		all = append(all, n)
	}
	if err := rows.Err(); err != nil {
		return nil, s.explain("read", err)
	}
	return all, nil
}

// Postpone claims a notice for its attempt number attempts, and makes it due at a time.
func (s *Store) Postpone(ctx context.Context, id string, due time.Time, attempts int) error {
	result, err := s.write.ExecContext(ctx,
		"UPDATE notices SET due = ?, attempts = ? WHERE id = ? AND attempts = ? AND due IS NOT NULL",
		due.UnixMilli(), attempts, id, attempts-1)
	if err != nil {
		return s.explain("write to", err)
	}
	changed, err := result.RowsAffected()
	if err != nil {
		return s.explain("write to", err)
	}
	if changed == 0 {
		return failure.New(failure.Conflict, "attempt %d of notice %.200q was made before, or the notice does not wait",
			attempts, id)
	}
	return nil
}

// maxForgotten is the largest number of IDs that are forgotten at once.
const maxForgotten = 100

// Noticed ends a notice at a time. It deletes notices that have ended before KeepNotices.
func (s *Store) Noticed(ctx context.Context, id string, at time.Time) error {
	_, err := s.write.ExecContext(ctx,
		"UPDATE notices SET due = NULL, done = ?, body = x'' WHERE id = ? AND due IS NOT NULL", at.UnixMilli(), id)
	if err == nil {
		_, err = s.write.ExecContext(ctx,
			"DELETE FROM notices WHERE id IN (SELECT id FROM notices WHERE done < ? ORDER BY done LIMIT ?)",
			at.Add(-store.KeepNotices).UnixMilli(), maxForgotten)
	}
	if err != nil {
		return s.explain("write to", err)
	}
	return nil
}
