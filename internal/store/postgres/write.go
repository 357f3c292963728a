package postgres

import (
	"crypto/sha256"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Names in meta. Those of Batch.Meta have a prefix.
const (
	checkpointName = "checkpoint"
	secretName     = "secret"
	metaPrefix     = "meta:"
)

// channel is where the server is told that the log has got longer.
const channel = "hsm_broker_log"

// writer has statements that are sent together, with their arguments in the binary format: the server takes several
// times as long to read long values as text.
type writer struct {
	types *pgtype.Map
	batch pgconn.Batch
	count int // of statements
	err   error
}

// queue adds a statement.
func (w *writer) queue(query string, args ...any) {
	values, oids, formats := make([][]byte, len(args)), make([]uint32, len(args)), make([]int16, len(args))
	for i, arg := range args {
		var err error
		oids[i], formats[i] = oidOf(arg), pgtype.BinaryFormatCode
		if values[i], err = w.types.Encode(oids[i], pgtype.BinaryFormatCode, arg, nil); err != nil && w.err == nil {
			w.err = err
		}
	}
	w.batch.ExecParams(query, values, oids, formats, nil)
	w.count++
}

// oidOf returns the type of PostgreSQL of an argument.
func oidOf(arg any) uint32 {
	switch arg.(type) {
	case int64:
		return pgtype.Int8OID
	case []int64:
		return pgtype.Int8ArrayOID
	case []byte:
		return pgtype.ByteaOID
	case [][]byte:
		return pgtype.ByteaArrayOID
	case []string:
		return pgtype.TextArrayOID
	}
	return pgtype.TextOID
}

// fill adds the statements that write a batch: one for each table, of all its rows.
func (w *writer) fill(b *store.Batch) error {
	if len(b.Entries) > 0 {
		w.queue(`INSERT INTO entries SELECT $1 + place - 1, entry
			FROM unnest($2) WITH ORDINALITY AS of(entry, place)`, b.First, b.Entries)
	}
	w.queueTiles(b.Tiles)
	w.queueRequests(b.Requests)
	w.queueDocuments(b)
	if err := w.queueNotices(b.Notices); err != nil {
		return err
	}
	if b.Snapshot != nil {
		w.queue("INSERT INTO snapshots VALUES ($1, $2)", b.Snapshot.Size, notNull(b.Snapshot.Data))
		w.queue("DELETE FROM snapshots WHERE size < (SELECT max(size) FROM snapshots WHERE size < $1)",
			b.Snapshot.Size)
	}
	const set = "INSERT INTO meta VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
	if b.Checkpoint != nil {
		w.queue(set, checkpointName, b.Checkpoint)
	}
	for name, value := range b.Meta {
		w.queue(set, text(metaPrefix+name), notNull(value))
	}
	version := int64(0)
	if b.Checkpoint != nil || len(b.Meta) > 0 {
		version = 1
	}
	if len(b.Entries) > 0 || b.Seal != nil || version > 0 {
		w.queue("UPDATE head SET size = $1, seal = coalesce($2, seal), version = version + $3",
			b.First+int64(len(b.Entries)), b.Seal, version)
		w.queue("SELECT pg_notify($1, '')", channel)
	}
	return nil
}

// notNull returns data that is not nil, which would be NULL.
func notNull(data []byte) []byte { return append([]byte{}, data...) }

// queueTiles writes tiles. One statement cannot replace a row twice, so the last one of each is taken.
func (w *writer) queueTiles(tiles []store.Tile) {
	if len(tiles) == 0 {
		return
	}
	type place struct {
		level int
		index int64
	}
	var levels, indexes []int64
	var hashes [][]byte
	at := map[place]int{}
	for _, t := range tiles {
		if i, exists := at[place{t.Level, t.Index}]; exists {
			hashes[i] = t.Hashes
			continue
		}
		at[place{t.Level, t.Index}] = len(levels)
		levels, indexes, hashes = append(levels, int64(t.Level)), append(indexes, t.Index), append(hashes, t.Hashes)
	}
	w.queue(`INSERT INTO tiles SELECT * FROM unnest($1, $2, $3)
		ON CONFLICT (level, idx) DO UPDATE SET hashes = excluded.hashes`, levels, indexes, hashes)
}

// requestColumns are the columns of rows of requests.
type requestColumns struct {
	created, changed                                       []int64
	ids, keys, states, requesters, rules, digests, sources []string
	bodies, signatures                                     [][]byte
}

// queueRequests writes rows of requests, the last one of each ID.
func (w *writer) queueRequests(requests []store.Request) {
	if len(requests) == 0 {
		return
	}
	last := map[string]int{}
	for i := range requests {
		last[requests[i].ID] = i
	}
	var c requestColumns
	for i := range requests {
		r := &requests[i]
		if last[r.ID] != i {
			continue
		}
		c.ids, c.created, c.changed = append(c.ids, text(r.ID)), append(c.created, r.Created.UnixMilli()),
			append(c.changed, r.Changed.UnixMilli())
		c.keys, c.states = append(c.keys, text(r.Key)), append(c.states, text(r.State))
		c.requesters, c.rules = append(c.requesters, text(r.Requester)), append(c.rules, text(r.Rule))
		c.digests, c.sources = append(c.digests, text(r.Digest)), append(c.sources, text(r.Repository))
		c.bodies, c.signatures = append(c.bodies, notNull(r.Body)), append(c.signatures, r.Signature)
	}
	w.queue(`INSERT INTO requests SELECT * FROM unnest($1, $2, $3, $4, $5,
			$6, $7, $8, $9, $10, $11)
		ON CONFLICT (id) DO UPDATE SET changed = excluded.changed, state = excluded.state, rule = excluded.rule,
			body = excluded.body, signature = excluded.signature`, c.ids, c.created, c.changed, c.keys, c.states,
		c.requesters, c.rules, c.digests, c.sources, c.bodies, c.signatures)
}

// queueDocuments writes and then deletes documents.
func (w *writer) queueDocuments(b *store.Batch) {
	if len(b.Documents) > 0 {
		hashes := make([][]byte, len(b.Documents))
		for i, data := range b.Documents {
			hash := sha256.Sum256(data)
			hashes[i] = hash[:]
		}
		w.queue("INSERT INTO documents SELECT * FROM unnest($1, $2) ON CONFLICT DO NOTHING", hashes,
			b.Documents)
	}
	if len(b.RequestDocuments) > 0 {
		var requests []string
		var hashes, data [][]byte
		for _, d := range b.RequestDocuments {
			hash := sha256.Sum256(d.Data)
			requests, hashes, data = append(requests, text(d.Request)), append(hashes, hash[:]), append(data, notNull(d.Data))
		}
		w.queue(`INSERT INTO request_documents SELECT * FROM unnest($1, $2, $3)
			ON CONFLICT DO NOTHING`, requests, hashes, data)
	}
	if len(b.Erased) > 0 {
		hashes := make([][]byte, len(b.Erased))
		for i := range b.Erased {
			hashes[i] = b.Erased[i][:]
		}
		w.queue("DELETE FROM documents WHERE sha256 = ANY ($1)", hashes)
		w.queue("DELETE FROM request_documents WHERE sha256 = ANY ($1)", hashes)
	}
}

// queueNotices queues notices. It fails with Invalid for one that is too large.
func (w *writer) queueNotices(notices []store.Notice) error {
	if len(notices) == 0 {
		return nil
	}
	var ids, channels, recipients []string
	var created, due, attempts []int64
	var bodies [][]byte
	for i := range notices {
		n := &notices[i]
		if len(n.Body) > store.MaxNotice {
			return failure.New(failure.Invalid, "the notice %.200q has %d bytes, more than %d", n.ID, len(n.Body),
				store.MaxNotice)
		}
		ids, channels, recipients = append(ids, text(n.ID)), append(channels, text(n.Channel)),
			append(recipients, text(n.Recipient))
		created, due = append(created, n.Created.UnixMilli()), append(due, n.Due.UnixMilli())
		attempts, bodies = append(attempts, int64(n.Attempts)), append(bodies, notNull(n.Body))
	}
	w.queue(`INSERT INTO notices (id, channel, recipient, created, due, attempts, body)
		SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (id) DO NOTHING`, ids, channels, recipients, created, due, attempts, bodies)
	return nil
}
