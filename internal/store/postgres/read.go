package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Size returns the number of entries.
func (s *Store) Size(ctx context.Context) (size int64, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if err := s.pool.QueryRow(ctx, "SELECT size FROM head").Scan(&size); err != nil {
		return 0, s.explain("read", err)
	}
	return size, nil
}

// pageSize is the largest number of entries that are read at once.
const pageSize = 1024

// Entries calls each with the entries from first to end, without end.
func (s *Store) Entries(ctx context.Context, first, end int64, each func(index int64, entry []byte) error) error {
	for first < end {
		page, err := s.entries(ctx, first, min(first+pageSize, end))
		if err != nil {
			return err
		}
		for i, entry := range page {
			if err := each(first+int64(i), entry); err != nil {
				return err
			}
		}
		if len(page) < pageSize {
			return nil
		}
		first += pageSize
	}
	return nil
}

// entries returns the entries from first to end, as far as the log goes.
func (s *Store) entries(ctx context.Context, first, end int64) (all [][]byte, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	rows, err := s.pool.Query(ctx,
		"SELECT idx, entry FROM entries WHERE idx >= $1::bigint AND idx < $2::bigint ORDER BY idx", first, end)
	if err != nil {
		return nil, s.explain("read", err)
	}
	defer rows.Close()
	for rows.Next() {
		var index int64
		var entry []byte
		if err := rows.Scan(&index, &entry); err != nil {
			return nil, s.explain("read", err)
		}
		if want := first + int64(len(all)); index != want {
			return nil, failure.New(failure.Internal, "the database lacks entry %d of the log", want).
				WithHint("restore the database from a backup")
		}
		all = append(all, entry)
	}
	if err := rows.Err(); err != nil {
		return nil, s.explain("read", err)
	}
	return all, nil
}

// blob returns the only value that a query finds. It fails with NotFound.
func (s *Store) blob(ctx context.Context, what, query string, args ...any) (data []byte, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	err = s.pool.QueryRow(ctx, query, args...).Scan(&data)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, notFound("%s", what)
	case err != nil:
		return nil, s.explain("read", err)
	}
	return data, nil
}

// Tile returns what there is of a tile.
func (s *Store) Tile(ctx context.Context, level int, index int64) ([]byte, error) {
	return s.blob(ctx, "such tile", "SELECT hashes FROM tiles WHERE level = $1::integer AND idx = $2::bigint",
		level, index)
}

// Document returns the document with a SHA-256.
func (s *Store) Document(ctx context.Context, sha256 [32]byte) ([]byte, error) {
	return s.blob(ctx, "such document", `SELECT data FROM documents WHERE sha256 = $1::bytea
		UNION ALL SELECT data FROM request_documents WHERE sha256 = $1::bytea LIMIT 1`, sha256[:])
}

// Meta returns a value of Batch.Meta, or nil.
func (s *Store) Meta(ctx context.Context, name string) ([]byte, error) {
	return s.meta(ctx, metaPrefix+name)
}

// meta returns a value by its name in the table, or nil.
func (s *Store) meta(ctx context.Context, name string) ([]byte, error) {
	data, err := s.blob(ctx, name, "SELECT value FROM meta WHERE name = $1", text(name))
	if failure.Is(err, failure.NotFound) {
		return nil, nil
	}
	return data, err
}

// Checkpoint returns the newest checkpoint, or nil.
func (s *Store) Checkpoint(ctx context.Context) ([]byte, error) { return s.meta(ctx, checkpointName) }

// Secret returns 32 random bytes that were made with the database.
func (s *Store) Secret(ctx context.Context) ([]byte, error) {
	return s.blob(ctx, "secret", "SELECT value FROM meta WHERE name = $1", secretName)
}

// Snapshot returns the newest snapshot, or nil.
func (s *Store) Snapshot(ctx context.Context) (*store.Snapshot, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var newest store.Snapshot
	err := s.pool.QueryRow(ctx, "SELECT size, data FROM snapshots ORDER BY size DESC LIMIT 1").
		Scan(&newest.Size, &newest.Data)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, s.explain("read", err)
	}
	return &newest, nil
}

const columns = "id, created, changed, key, state, requester, rule, digest, repository, body, signature"

// Request returns a request.
func (s *Store) Request(ctx context.Context, id string) (*store.Request, error) {
	page, err := s.list(ctx, 1, "SELECT "+columns+", true, 0 FROM requests WHERE id = $1", text(id))
	if err != nil {
		return nil, err
	}
	if len(page.Requests) == 0 {
		return nil, notFound("request %.60q", id)
	}
	return &page.Requests[0], nil
}

// scanRequest reads a row of columns.
func scanRequest(row pgx.CollectableRow) (r store.Request, err error) {
	var created, changed int64
	err = row.Scan(&r.ID, &created, &changed, &r.Key, &r.State, &r.Requester, &r.Rule, &r.Digest, &r.Repository,
		&r.Body, &r.Signature)
	r.Created, r.Changed = time.UnixMilli(created).UTC(), time.UnixMilli(changed).UTC()
	return r, err
}
