package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Size returns the number of entries.
func (s *Store) Size(ctx context.Context) (size int64, err error) {
	err = s.read.QueryRowContext(ctx, "SELECT coalesce(max(idx) + 1, 0) FROM entries").Scan(&size)
	if err != nil {
		return 0, s.explain("read", err)
	}
	return size, nil
}

// Entries calls each with the entries from first to end, without end.
func (s *Store) Entries(ctx context.Context, first, end int64, each func(index int64, entry []byte) error) error {
	rows, err := s.read.QueryContext(ctx, "SELECT idx, entry FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx",
		first, end)
	if err != nil {
		return s.explain("read", err)
	}
	defer rows.Close()
	for rows.Next() {
		var index int64
		var entry []byte
		if err := rows.Scan(&index, &entry); err != nil {
			return s.explain("read", err)
		}
		if err := each(index, entry); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return s.explain("read", err)
	}
	return nil
}

// blob returns the only value that a query finds. It fails with NotFound.
func (s *Store) blob(ctx context.Context, what, query string, args ...any) (data []byte, err error) {
	err = s.read.QueryRowContext(ctx, query, args...).Scan(&data)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, notFound("%s", what)
	case err != nil:
		return nil, s.explain("read", err)
	}
	return data, nil
}

// Tile returns what there is of a tile.
func (s *Store) Tile(ctx context.Context, level int, index int64) ([]byte, error) {
	return s.blob(ctx, "such tile", "SELECT hashes FROM tiles WHERE level = ? AND idx = ?", level, index)
}

// Document returns the document with a SHA-256.
func (s *Store) Document(ctx context.Context, sha256 [32]byte) ([]byte, error) {
	return s.blob(ctx, "such document", "SELECT data FROM documents WHERE sha256 = ?", sha256[:])
}

// Meta returns a value of Batch.Meta, or nil.
func (s *Store) Meta(ctx context.Context, name string) ([]byte, error) {
	return s.meta(ctx, metaPrefix+name)
}

// meta returns a value by its name in the table, or nil.
func (s *Store) meta(ctx context.Context, name string) ([]byte, error) {
	data, err := s.blob(ctx, name, "SELECT value FROM meta WHERE name = ?", name)
	if failure.Is(err, failure.NotFound) {
		return nil, nil
	}
	return data, err
}

// Checkpoint returns the newest checkpoint, or nil.
func (s *Store) Checkpoint(ctx context.Context) ([]byte, error) { return s.meta(ctx, checkpointName) }

// Secret returns 32 random bytes that were made with the database.
func (s *Store) Secret(ctx context.Context) ([]byte, error) {
	return s.blob(ctx, "secret", "SELECT value FROM meta WHERE name = ?", secretName)
}

// Snapshot returns the newest snapshot, or nil.
func (s *Store) Snapshot(ctx context.Context) (*store.Snapshot, error) {
	var newest store.Snapshot
	err := s.read.QueryRowContext(ctx, "SELECT size, data FROM snapshots ORDER BY size DESC LIMIT 1").
		Scan(&newest.Size, &newest.Data)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, s.explain("read", err)
	}
	return &newest, nil
}

const columns = "id, created, changed, key, state, requester, rule, digest, repository, body, signature"

// Request returns a request.
func (s *Store) Request(ctx context.Context, id string) (found *store.Request, err error) {
	err = s.requests(ctx, "SELECT "+columns+" FROM requests WHERE id = ?", []any{id}, func(r *store.Request) bool {
		found = r
		return false
	})
	if err == nil && found == nil {
		err = notFound("request %.60q", id)
	}
	return found, err
}

// scanRequest reads a row of columns.
func scanRequest(rows *sql.Rows, r *store.Request) error {
	var created, changed int64
	err := rows.Scan(&r.ID, &created, &changed, &r.Key, &r.State, &r.Requester, &r.Rule, &r.Digest, &r.Repository,
		&r.Body, &r.Signature)
	r.Created, r.Changed = time.UnixMilli(created).UTC(), time.UnixMilli(changed).UTC()
	return err
}
