package postgres

import (
	"context"
	"errors"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

var _ store.Target = (*Store)(nil)

// Import fills the database with the rows of another store, in one transaction.
func (s *Store) Import(ctx context.Context, rows store.Rows, seal []byte,
	ready func(ctx context.Context, stored store.Rows) error) error {
	tx, err := s.pool.BeginTx(ctx, readCommitted)
	if err != nil {
		return s.explain("write to", err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		_ = tx.Rollback(ctx)
	}()
	err = s.reserve(ctx, tx)
	if err == nil {
		err = fill(ctx, tx, rows, seal)
	}
	if err == nil {
		err = ready(ctx, s.rows(ctx, tx))
	}
	if err != nil {
		return s.explain("write to", err)
	}
	if err := tx.Commit(ctx); err != nil {
		if !errors.Is(err, pgx.ErrTxCommitRollback) && !undone(err) {
			err = errors.Join(store.ErrUnknown, err)
		}
		return s.explain("write to", err)
	}
	return nil
}

// reserve has no replica begin to use the database until the transaction ends. It fails with Conflict if one does, or
// if the database is not empty.
func (s *Store) reserve(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', '0', true),
		set_config('idle_in_transaction_session_timeout', '0', true), set_config('lock_timeout', $1, true),
		set_config('synchronous_commit', CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'
			ELSE current_setting('synchronous_commit') END, true)`, milliseconds(s.limits.lock))
	if err == nil {
		_, err = tx.Exec(ctx, "LOCK TABLE head, replicas IN ACCESS EXCLUSIVE MODE")
	}
	if err != nil {
		return err
	}
	var used, full bool
	err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM replicas
			WHERE seen > clock_timestamp() - make_interval(secs => $1::float8)),
		EXISTS (SELECT FROM entries) OR EXISTS (SELECT FROM tiles) OR EXISTS (SELECT FROM requests)
			OR EXISTS (SELECT FROM documents) OR EXISTS (SELECT FROM request_documents) OR EXISTS (SELECT FROM snapshots)
			OR EXISTS (SELECT FROM notices) OR EXISTS (SELECT FROM meta WHERE name <> $2)`, s.limits.dead.Seconds(),
		secretName).Scan(&used, &full)
	switch {
	case err != nil:
		return err
	case used:
		return failure.New(failure.Conflict, "cannot move to the database: a replica of a broker uses it").
			WithHint("stop all replicas")
	case full:
		return failure.New(failure.Conflict, "cannot move to the database: it is not empty").
			WithHint("name an empty database; if this one was moved there before, start the replicas")
	}
	return nil
}

// fill writes rows, and the end of the log.
func fill(ctx context.Context, tx pgx.Tx, rows store.Rows, seal []byte) error {
	if _, err := tx.Exec(ctx, "DELETE FROM meta"); err != nil { // the secret of the other store takes its place
		return err
	}
	next, stop := iter.Pull2(rows)
	defer stop()
	c := &copying{next: next}
	for c.advance(); c.more; {
		c.table = tableOf(&c.row)
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{c.table}, columnsOf[c.table], c); err != nil {
			return err
		}
	}
	if c.err != nil {
		return c.err
	}
	_, err := tx.Exec(ctx,
		"UPDATE head SET size = (SELECT count(*) FROM entries), seal = $1::bytea, version = version + 1",
		seal)
	return err
}

// copying has the rows of one table after the other copied. It implements pgx.CopyFromSource.
type copying struct {
	next   func() (store.Row, error, bool)
	row    store.Row // that comes next
	more   bool      // there is one
	copied bool      // it is one of table
	table  string
	err    error
}

// advance reads the row that comes next.
func (c *copying) advance() {
	if c.row, c.err, c.more = c.next(); c.err != nil {
		c.more = false
	}
}

// Next goes on to the next row of the table.
func (c *copying) Next() bool {
	if c.copied {
		c.advance()
	}
	c.copied = c.more && tableOf(&c.row) == c.table
	return c.copied
}

// Values returns the values of the row.
func (c *copying) Values() ([]any, error) { return valuesOf(&c.row), nil }

// Err returns why there are no more rows.
func (c *copying) Err() error { return c.err }

// columnsOf has the columns that are copied, by table.
var columnsOf = map[string][]string{
	"meta":              {"name", "value"},
	"snapshots":         {"size", "data"},
	"tiles":             {"level", "idx", "hashes"},
	"entries":           {"idx", "entry"},
	"documents":         {"sha256", "data"},
	"request_documents": {"request", "sha256", "data"},
	"requests": {"id", "created", "changed", "key", "state", "requester", "rule", "digest", "repository", "body",
		"signature"},
	"notices": {"id", "channel", "recipient", "created", "due", "done", "attempts", "body"},
}

// tableOf returns the table of a row.
func tableOf(r *store.Row) string {
	switch {
	case r.Value != nil:
		return "meta"
	case r.Snapshot != nil:
		return "snapshots"
	case r.Tile != nil:
		return "tiles"
	case r.Entry != nil:
		return "entries"
	case r.Document != nil && r.Document.Request == "":
		return "documents"
	case r.Document != nil:
		return "request_documents"
	case r.Request != nil:
		return "requests"
	}
	return "notices"
}

// valuesOf returns the values of a row, as columnsOf lists them.
func valuesOf(row *store.Row) []any {
	switch {
	case row.Value != nil:
		return []any{text(row.Value.Name), notNull(row.Value.Value)}
	case row.Snapshot != nil:
		return []any{row.Snapshot.Size, notNull(row.Snapshot.Data)}
	case row.Tile != nil:
		return []any{row.Tile.Level, row.Tile.Index, notNull(row.Tile.Hashes)}
	case row.Entry != nil:
		return []any{row.Entry.Index, notNull(row.Entry.Data)}
	case row.Document != nil && row.Document.Request == "":
		return []any{row.Document.SHA256, notNull(row.Document.Data)}
	case row.Document != nil:
		return []any{text(row.Document.Request), row.Document.SHA256, notNull(row.Document.Data)}
	case row.Request != nil:
		r := row.Request
		return []any{text(r.ID), r.Created.UnixMilli(), r.Changed.UnixMilli(), text(r.Key), text(r.State),
			text(r.Requester), text(r.Rule), text(r.Digest), text(r.Repository), notNull(r.Body), r.Signature}
	}
	n := row.Notice
	var due, done any
	if n.Done.IsZero() {
		due = n.Due.UnixMilli()
	} else {
		done = n.Done.UnixMilli()
	}
	return []any{text(n.ID), text(n.Channel), text(n.Recipient), n.Created.UnixMilli(), due, done, n.Attempts,
		notNull(n.Body)}
}

// reading is how rows of a table are read.
type reading struct {
	query string
	read  func(pgx.Rows) (store.Row, error)
}

var readings = []reading{
	{"SELECT name, value FROM meta ORDER BY name", func(r pgx.Rows) (store.Row, error) {
		var v store.Value
		return store.Row{Value: &v}, r.Scan(&v.Name, &v.Value)
	}},
	{"SELECT size, data FROM snapshots ORDER BY size", func(r pgx.Rows) (store.Row, error) {
		var s store.Snapshot
		return store.Row{Snapshot: &s}, r.Scan(&s.Size, &s.Data)
	}},
	{"SELECT level, idx, hashes FROM tiles ORDER BY level, idx", func(r pgx.Rows) (store.Row, error) {
		var t store.Tile
		return store.Row{Tile: &t}, r.Scan(&t.Level, &t.Index, &t.Hashes)
	}},
	{"SELECT idx, entry FROM entries ORDER BY idx", func(r pgx.Rows) (store.Row, error) {
		var e store.Entry
		return store.Row{Entry: &e}, r.Scan(&e.Index, &e.Data)
	}},
	{"SELECT sha256, '', data FROM documents ORDER BY sha256", readDocument},
	{"SELECT sha256, request, data FROM request_documents ORDER BY sha256, request", readDocument},
	{"SELECT " + columns + " FROM requests ORDER BY id", func(rows pgx.Rows) (store.Row, error) {
		r, err := scanRequest(rows)
		return store.Row{Request: &r}, err
	}},
	{"SELECT id, channel, recipient, created, due, done, attempts, body FROM notices ORDER BY id",
		func(r pgx.Rows) (store.Row, error) {
			var n store.MovedNotice
			var created int64
			var due, done *int64
			err := r.Scan(&n.ID, &n.Channel, &n.Recipient, &created, &due, &done, &n.Attempts, &n.Body)
			n.Created = time.UnixMilli(created).UTC()
			if due != nil {
				n.Due = time.UnixMilli(*due).UTC()
			}
			if done != nil {
				n.Done = time.UnixMilli(*done).UTC()
			}
			return store.Row{Notice: &n}, err
		}},
}

func readDocument(r pgx.Rows) (store.Row, error) {
	var d store.Document
	return store.Row{Document: &d}, r.Scan(&d.SHA256, &d.Request, &d.Data)
}

// rows reads all rows, as the transaction sees them.
func (s *Store) rows(ctx context.Context, tx pgx.Tx) store.Rows {
	return func(yield func(store.Row, error) bool) {
		for _, of := range readings {
			found, err := tx.Query(ctx, of.query)
			for err == nil && found.Next() {
				var row store.Row
				if row, err = of.read(found); err == nil && !yield(row, nil) {
					found.Close()
					return
				}
			}
			if err == nil {
				err = found.Err()
			}
			if found != nil {
				found.Close()
			}
			if err != nil {
				yield(store.Row{}, s.explain("read", err))
				return
			}
		}
	}
}
