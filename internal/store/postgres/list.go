package postgres

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Requests lists requests, newest first. It looks at MaxLooked at most. It fails with Invalid for more than MaxLimit
// IDs.
func (s *Store) Requests(ctx context.Context, q store.Query) (*store.Page, error) {
	if len(q.IDs) > store.MaxLimit {
		return nil, failure.New(failure.Invalid, "cannot list %d requests, more than %d", len(q.IDs), store.MaxLimit)
	}
	if q.IDs != nil && q.Limit == 0 {
		q.Limit = len(q.IDs) + 1 // there is no next page
	}
	q.Limit = min(max(q.Limit, 1), store.MaxLimit)
	query, args := selectPage(&q)
	return s.list(ctx, q.Limit, query, args...)
}

// selectPage returns the SELECT of a page and its arguments. It numbers the requests that it looks at. The last of
// these is found even if it does not fit: the next page begins there.
func selectPage(q *store.Query) (query string, args []any) {
	arg := func(value any) string {
		args = append(args, value)
		return fmt.Sprintf("$%d", len(args))
	}
	by, rest := q.Fields()
	conditions, order := []string{"true"}, "id DESC"
	if q.Before != "" {
		conditions = append(conditions, "id < "+arg(text(q.Before)))
	}
	if q.IDs != nil {
		ids := make([]string, len(q.IDs))
		for i, id := range q.IDs {
			ids[i] = text(id)
		}
		conditions = append(conditions, "id = ANY ("+arg(ids)+"::text[])")
	}
	if by.Column != "" {
		// Only the index of the column has this order: see inOrder. With = the server may take the index of IDs instead, and
		// read all newer requests, when it thinks that many have the value.
		value := arg(text(by.Value))
		order = by.Column + " DESC, id DESC"
		conditions = append(conditions, by.Column+" >= "+value, by.Column+" <= "+value)
		if q.Before != "" { // where the index is entered
			conditions = append(conditions, "("+by.Column+", id) < ("+value+", $1)")
		}
	}
	if by.Column == "state" {
		conditions = append(conditions, "state <> 'signed'") // as the index has it
	}
	fits := []string{"true"}
	for _, f := range rest {
		fits = append(fits, f.Column+" = "+arg(text(f.Value)))
	}
	return fmt.Sprintf(`SELECT %[1]s, fits, number FROM (SELECT *, %[2]s AS fits, row_number() OVER (ORDER BY %[3]s) AS number
		FROM (SELECT * FROM requests WHERE %[4]s ORDER BY %[3]s LIMIT %[5]d) AS looked) AS numbered
		WHERE fits OR number = %[5]d ORDER BY %[3]s LIMIT %[6]d`, columns, strings.Join(fits, " AND "), order,
		strings.Join(conditions, " AND "), store.MaxLooked, q.Limit), args
}

// inOrder has the server read requests in the order of an index: it would sort all of them when it thinks that they are
// few.
const inOrder = "SELECT set_config('enable_sort', 'off', true), set_config('enable_incremental_sort', 'off', true)"

// list returns the page that a SELECT finds.
func (s *Store) list(ctx context.Context, limit int, query string, args ...any) (*store.Page, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var b pgx.Batch // one transaction
	b.Queue(inOrder)
	b.Queue(query, args...)
	results := s.pool.SendBatch(ctx, &b)
	defer results.Close()
	if _, err := results.Exec(); err != nil {
		return nil, s.explain("read", err)
	}
	rows, err := results.Query()
	if err != nil {
		return nil, s.explain("read", err)
	}
	defer rows.Close()
	page := &store.Page{}
	for rows.Next() {
		var r store.Request
		var created, changed, number int64
		var fits bool
		err := rows.Scan(&r.ID, &created, &changed, &r.Key, &r.State, &r.Requester, &r.Rule, &r.Digest, &r.Repository,
			&r.Body, &r.Signature, &fits, &number)
		if err != nil {
			return nil, s.explain("read", err)
		}
		r.Created, r.Changed = time.UnixMilli(created).UTC(), time.UnixMilli(changed).UTC()
		if fits {
			page.Requests = append(page.Requests, r)
		}
		if len(page.Requests) == limit || number == store.MaxLooked {
			page.Before = r.ID
		}
	}
	if err := rows.Err(); err != nil {
		return nil, s.explain("read", err)
	}
	return page, nil
}
