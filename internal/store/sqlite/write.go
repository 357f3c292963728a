package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"

	sqlite "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// statements are those of Commit.
type statements struct {
	size, entry, tile, request, document, requestDocument, erase, snapshot, forget, notice, meta *sql.Stmt
}

func prepare(ctx context.Context, db *sql.DB) (s statements, err error) {
	for text, into := range map[string]**sql.Stmt{
		"SELECT coalesce(max(idx) + 1, 0) FROM entries":                                         &s.size,
		"INSERT INTO entries VALUES (?, ?)":                                                     &s.entry,
		"INSERT INTO tiles VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET hashes = excluded.hashes": &s.tile,
		`INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET changed = excluded.changed,
			state = excluded.state, rule = excluded.rule, body = excluded.body, signature = excluded.signature`: &s.request,
		// One that is kept for itself is not kept for a request any more.
		`INSERT INTO documents (sha256, data) VALUES (?, ?)
			ON CONFLICT DO UPDATE SET request = NULL WHERE request IS NOT NULL`: &s.document,
		`INSERT INTO documents (request, sha256, data) VALUES (?, ?, ?)
			ON CONFLICT DO UPDATE SET request = max(request, excluded.request)`: &s.requestDocument,
		"DELETE FROM documents WHERE sha256 = ?":                                              &s.erase,
		`INSERT INTO notices VALUES (?, ?, ?, ?, ?, NULL, ?, ?) ON CONFLICT (id) DO NOTHING`:  &s.notice,
		"INSERT INTO snapshots VALUES (?, ?)":                                                 &s.snapshot,
		"DELETE FROM snapshots WHERE size < (SELECT max(size) FROM snapshots WHERE size < ?)": &s.forget,
		"INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value":     &s.meta,
	} {
		if *into, err = db.PrepareContext(ctx, text); err != nil {
			return s, err
		}
	}
	return s, nil
}

// Names in meta. Those of Batch.Meta have a prefix.
const (
	checkpointName = "checkpoint"
	secretName     = "secret"
	metaPrefix     = "meta:"
)

// Commit makes a batch durable, all of it or nothing.
func (s *Store) Commit(ctx context.Context, b *store.Batch) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return s.explain("write to", err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := s.fill(ctx, tx, b); err != nil {
		return s.explain("write to", err)
	}
	if err := tx.Commit(); err != nil {
		// What SQLite has written to its log may be read again after a crash, unless it says that there was no room or
		// no lock.
		var e *sqlite.Error
		if !errors.As(err, &e) || e.Code()&0xff != lib.SQLITE_FULL && e.Code()&0xff != lib.SQLITE_BUSY {
			err = errors.Join(store.ErrUnknown, err)
		}
		return s.explain("write to", err)
	}
	return nil
}

// fill writes a batch in a transaction.
func (s *Store) fill(ctx context.Context, tx *sql.Tx, b *store.Batch) (err error) {
	put := func(statement *sql.Stmt, args ...any) {
		if err == nil {
			_, err = tx.StmtContext(ctx, statement).ExecContext(ctx, args...)
		}
	}
	var size int64
	if err := tx.StmtContext(ctx, s.put.size).QueryRowContext(ctx).Scan(&size); err != nil {
		return err
	}
	if size != b.First {
		return failure.New(failure.Conflict, "the log has %d entries, not %d", size, b.First).
			WithHint("is another broker writing to the database?")
	}
	for i, entry := range b.Entries {
		put(s.put.entry, b.First+int64(i), entry)
	}
	for _, t := range b.Tiles {
		put(s.put.tile, t.Level, t.Index, t.Hashes)
	}
	for i := range b.Requests {
		r := &b.Requests[i]
		put(s.put.request, r.ID, r.Created.UnixMilli(), r.Changed.UnixMilli(), r.Key, r.State, r.Requester, r.Rule, r.Digest,
			r.Repository, r.Body, r.Signature)
	}
	for _, data := range b.Documents {
		hash := sha256.Sum256(data)
		put(s.put.document, hash[:], data)
	}
	for _, d := range b.RequestDocuments {
		hash := sha256.Sum256(d.Data)
		put(s.put.requestDocument, d.Request, hash[:], d.Data)
	}
	for _, hash := range b.Erased {
		put(s.put.erase, hash[:])
	}
	for i := range b.Notices {
		n := &b.Notices[i]
		if len(n.Body) > store.MaxNotice {
			return failure.New(failure.Invalid, "the notice %.200q has %d bytes, more than %d", n.ID, len(n.Body),
				store.MaxNotice)
		}
		put(s.put.notice, n.ID, n.Channel, n.Recipient, n.Created.UnixMilli(), n.Due.UnixMilli(), n.Attempts,
			append([]byte{}, n.Body...))
	}
	if b.Snapshot != nil {
		put(s.put.snapshot, b.Snapshot.Size, b.Snapshot.Data)
		put(s.put.forget, b.Snapshot.Size)
	}
	if b.Checkpoint != nil {
		put(s.put.meta, checkpointName, b.Checkpoint)
	}
	for name, value := range b.Meta {
		put(s.put.meta, metaPrefix+name, value)
	}
	return err
}

// Purge writes the database anew, and empties its write-ahead log. It fails with Unavailable while somebody reads for
// long.
func (s *Store) Purge(ctx context.Context) error {
	if _, err := s.write.ExecContext(ctx, "VACUUM"); err != nil {
		return s.explain("purge", err)
	}
	var busy, pages, moved int
	err := s.write.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &pages, &moved)
	switch {
	case err != nil:
		return s.explain("purge", err)
	case busy != 0:
		return failure.New(failure.Unavailable, "cannot empty the write-ahead log of the database: it is being read").
			WithHint("try again when nobody lists requests or makes a backup")
	}
	return nil
}
