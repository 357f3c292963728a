package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

var _ store.Source = (*Store)(nil)

// movedBit is set in the version of a database that was moved: every program refuses such a version, older ones too.
const movedBit = 1 << 30

// movedName is the name in meta of where a database was moved to.
const movedName = "moved"

// OpenToMove opens a database to move it, also one that was moved already. It fails with NotFound if there is none.
func OpenToMove(ctx context.Context, path string) (*Store, error) {
	if _, err := os.Stat(path); err != nil { // or it would be made
		return nil, failure.New(failure.FileKind(err), "cannot move the database: %w", err).
			WithHint("name the file that store has in the broker's config")
	}
	return openWith(ctx, path, embedded(), true)
}

// refuseMoved fails with Conflict.
func (s *Store) refuseMoved(ctx context.Context) error {
	var to string
	if err := s.write.QueryRowContext(ctx, "SELECT value FROM meta WHERE name = ?", movedName).Scan(&to); err != nil {
		return s.explain("open", err)
	}
	return failure.New(failure.Conflict, "the database %s was moved to %s", s.path, to).
		WithHint("set store to that one in the config file; 'hsm-broker migrate' finishes a move that was interrupted")
}

// Moved reports whether the database was moved.
func (s *Store) Moved() bool { return s.moved }

// SetMoved has Open refuse the database, since it was moved to another one; "" undoes that.
func (s *Store) SetMoved(ctx context.Context, to string) error {
	version, text, args := len(embedded()), "DELETE FROM meta WHERE name = ?", []any{movedName}
	if to != "" {
		version |= movedBit
		text, args = "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
			[]any{movedName, []byte(to)}
	}
	tx, err := s.write.BeginTx(ctx, nil)
	if err == nil {
		defer func() { _ = tx.Rollback() }()
		_, err = tx.ExecContext(ctx, text, args...)
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version))
	}
	if err == nil {
		err = tx.Commit()
	}
	if err != nil {
		return s.explain("write to", err)
	}
	s.moved = to != ""
	return nil
}

// Rows reads all rows.
func (s *Store) Rows(ctx context.Context) store.Rows {
	return func(yield func(store.Row, error) bool) {
		for _, table := range tables {
			if !s.table(ctx, table, yield) {
				return
			}
		}
	}
}

// table is how rows of a table are read.
type table struct {
	query string
	read  func(*sql.Rows) (store.Row, error)
}

var tables = []table{
	{"SELECT name, value FROM meta WHERE name <> '" + movedName + "' ORDER BY name",
		func(r *sql.Rows) (store.Row, error) {
			var v store.Value
			return store.Row{Value: &v}, r.Scan(&v.Name, &v.Value)
		}},
	{"SELECT size, data FROM snapshots ORDER BY size",
		func(r *sql.Rows) (store.Row, error) {
			var s store.Snapshot
			return store.Row{Snapshot: &s}, r.Scan(&s.Size, &s.Data)
		}},
	{"SELECT level, idx, hashes FROM tiles ORDER BY level, idx",
		func(r *sql.Rows) (store.Row, error) {
			var t store.Tile
			return store.Row{Tile: &t}, r.Scan(&t.Level, &t.Index, &t.Hashes)
		}},
	{"SELECT idx, entry FROM entries ORDER BY idx",
		func(r *sql.Rows) (store.Row, error) {
			var e store.Entry
			return store.Row{Entry: &e}, r.Scan(&e.Index, &e.Data)
		}},
	{"SELECT sha256, '', data FROM documents WHERE request IS NULL ORDER BY sha256", readDocument},
	{"SELECT sha256, request, data FROM documents WHERE request IS NOT NULL ORDER BY sha256", readDocument},
	{"SELECT " + columns + " FROM requests ORDER BY id",
		func(rows *sql.Rows) (store.Row, error) {
			var r store.Request
			err := scanRequest(rows, &r)
			return store.Row{Request: &r}, err
		}},
	{"SELECT id, channel, recipient, created, due, done, attempts, body FROM notices ORDER BY id",
		func(r *sql.Rows) (store.Row, error) {
			var n store.MovedNotice
			var created int64
			var due, done sql.NullInt64
			err := r.Scan(&n.ID, &n.Channel, &n.Recipient, &created, &due, &done, &n.Attempts, &n.Body)
			n.Created = time.UnixMilli(created).UTC()
			if due.Valid {
				n.Due = time.UnixMilli(due.Int64).UTC()
			}
			if done.Valid {
				n.Done = time.UnixMilli(done.Int64).UTC()
			}
			return store.Row{Notice: &n}, err
		}},
}

func readDocument(r *sql.Rows) (store.Row, error) {
	var d store.Document
	return store.Row{Document: &d}, r.Scan(&d.SHA256, &d.Request, &d.Data)
}

// table reads the rows of a table. It returns false when it has to end.
func (s *Store) table(ctx context.Context, t table, yield func(store.Row, error) bool) bool {
	rows, err := s.read.QueryContext(ctx, t.query)
	if err != nil {
		yield(store.Row{}, s.explain("read", err))
		return false
	}
	defer rows.Close()
	for rows.Next() {
		row, err := t.read(rows)
		if err != nil {
			yield(store.Row{}, s.explain("read", err))
			return false
		}
		if !yield(row, nil) {
			return false
		}
	}
	if err := rows.Err(); err != nil {
		yield(store.Row{}, s.explain("read", err))
		return false
	}
	return true
}
