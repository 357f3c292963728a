package sqlite

import (
	"context"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// indexes are the names of indexes of requests by the column that they begin with. Each has the ID next.
var indexes = map[string]string{"digest": "requests_by_digest", "requester": "requests_by_requester",
	"repository": "requests_by_repository", "state": "requests_unsigned", "key": "requests_by_key"}

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
	by, rest := q.Fields()
	text, args := looked(&q, by)
	page, number := &store.Page{}, 0
	err := s.requests(ctx, text, args, func(r *store.Request) (more bool) {
		number++
		if !slices.ContainsFunc(rest, func(f store.Field) bool { return !f.Fits(r) }) {
			page.Requests = append(page.Requests, *r)
		}
		if len(page.Requests) == q.Limit || number == store.MaxLooked {
			page.Before = r.ID
		}
		return page.Before == ""
	})
	return page, err
}

// looked returns the SELECT, and its arguments, of the requests that a page is chosen from.
func looked(q *store.Query, by store.Field) (text string, args []any) {
	text = "SELECT " + columns + " FROM requests"
	conditions := []string{"true"}
	if by.Column != "" {
		text += " INDEXED BY " + indexes[by.Column]
		conditions, args = append(conditions, by.Column+" = ?"), append(args, by.Value)
	}
	if by.Column == "state" {
		conditions = append(conditions, "state <> 'signed'") // as the index has it
	}
	if q.IDs != nil {
		conditions = append(conditions, "id IN ("+strings.TrimPrefix(strings.Repeat(", ?", len(q.IDs)), ", ")+")")
		for _, id := range q.IDs {
			args = append(args, id)
		}
	}
	if q.Before != "" {
		conditions, args = append(conditions, "id < ?"), append(args, q.Before)
	}
	return text + " WHERE " + strings.Join(conditions, " AND ") + " ORDER BY id DESC", args
}

// requests calls each with the requests that a SELECT finds, until it returns false.
func (s *Store) requests(ctx context.Context, text string, args []any, each func(*store.Request) (more bool)) error {
	rows, err := s.read.QueryContext(ctx, text, args...)
	if err != nil {
		return s.explain("read", err)
	}
	defer rows.Close()
	for rows.Next() {
		var r store.Request
		if err := scanRequest(rows, &r); err != nil {
			return s.explain("read", err)
		}
		if !each(&r) {
			return nil
		}
	}
	if err := rows.Err(); err != nil {
		return s.explain("read", err)
	}
	return nil
}
