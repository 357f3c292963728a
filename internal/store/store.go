// Package store is the port to what keeps a broker's data: the entries of its log, and rows for lists that decide
// nothing. Its engines are below it, and storetest tests each of them in the same way.
package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrUnknown is in the chain of the failure of a Commit of which nobody knows whether it is durable. The caller reads
// the store again.
var ErrUnknown = errors.New("nobody knows whether the transaction is durable")

// Batch is what a transaction writes.
type Batch struct {
	First      int64      // index of the first entry: the number of entries before
	Entries    [][]byte   // of the log
	Tiles      []Tile     // that the entries change
	Checkpoint []byte     // the newest one, a signed note; nil leaves the old one
	Snapshot   *Snapshot  // all older ones but one are deleted
	Requests   []Request  // replace those with the same ID
	Documents  [][]byte   // kept by their SHA-256
	Erased     [][32]byte // SHA-256 of documents that are deleted, those of the batch as well
	Notices    []Notice   // are queued; one whose ID was queued before is left as it is
	Meta       map[string][]byte
	Seal       []byte // of the log with the entries, by which other replicas know that one of them has added them

	// RequestDocuments are kept by their SHA-256 as well, until Retain deletes their request.
	RequestDocuments []RequestDocument
}

// Tile is a tile of the log's tree (C2SP tlog-tiles): hashes of 32 bytes, of a whole tile or of what there is of it.
type Tile struct {
	Level  int
	Index  int64
	Hashes []byte
}

// Snapshot is what the first entries of the log add up to.
type Snapshot struct {
	Size int64 // number of entries
	Data []byte
}

// Request is the row of a request. It decides nothing.
type Request struct {
	ID         string // begins with FirstID of its time: later ones are greater
	Created    time.Time
	Changed    time.Time
	Key        string
	State      string
	Requester  string // pseudonym
	Rule       string
	Digest     string
	Repository string
	Body       []byte // JSON
	Signature  []byte
}

// FirstID returns the smallest ID of requests that were made at a time: milliseconds since 1970 in 12 hex digits.
func FirstID(at time.Time) string { return fmt.Sprintf("%012x", max(at.UnixMilli(), 0)) }

// RequestDocument is a document that is of no use without a request.
type RequestDocument struct {
	Request string // ID
	Data    []byte
}

// MaxLimit is the largest number of requests or notices on a page.
const MaxLimit = 1000

// Notice is a message to one recipient that waits to be delivered.
type Notice struct {
	ID        string // of the event and its recipient
	Channel   string // that delivers it
	Recipient string // for channels with several recipients
	Created   time.Time
	Due       time.Time // it is delivered then, or later
	Attempts  int       // to deliver it, the one that is being made included
	Body      []byte    // MaxNotice bytes at most
}

// MaxNotice is the size of the largest body of a notice, in bytes.
const MaxNotice = 64 << 10

// KeepNotices is how long the ID of a notice is kept after its end.
const KeepNotices = 90 * 24 * time.Hour

// Store keeps the data of one broker. It is safe for concurrent use. A failure is Unavailable when the engine may work
// again later.
type Store interface {
	// Size returns the number of entries.
	Size(ctx context.Context) (int64, error)
	// Commit makes a batch durable, all of it or nothing. It fails with Conflict unless First is the number of entries,
	// and with ErrUnknown when nobody knows what is durable.
	Commit(ctx context.Context, b *Batch) error
	// Entries calls each with the entries from first to end, without end, in their order. It ends with the error of each.
	Entries(ctx context.Context, first, end int64, each func(index int64, entry []byte) error) error
	// Tile returns what there is of a tile. It fails with NotFound.
	Tile(ctx context.Context, level int, index int64) ([]byte, error)
	// Checkpoint returns the newest checkpoint, or nil.
	Checkpoint(ctx context.Context) ([]byte, error)
	// Snapshot returns the newest snapshot, or nil.
	Snapshot(ctx context.Context) (*Snapshot, error)
	// Request returns a request. It fails with NotFound.
	Request(ctx context.Context, id string) (*Request, error)
	// Requests lists requests, newest first. It looks at MaxLooked at most, however many there are.
	Requests(ctx context.Context, q Query) (*Page, error)
	// Document returns the document with a SHA-256. It fails with NotFound.
	Document(ctx context.Context, sha256 [32]byte) ([]byte, error)
	// Notices lists notices of a channel ("" for all) that wait and are due at a time: first those due first.
	Notices(ctx context.Context, channel string, due time.Time, limit int) ([]Notice, error)
	// Postpone claims a notice for its attempt number attempts, and makes it due at a time: then it is delivered again
	// unless Noticed was called. It fails with Conflict if this attempt was made before or the notice does not wait.
	Postpone(ctx context.Context, id string, due time.Time, attempts int) error
	// Noticed ends a notice at a time: it was delivered, or is given up. Its ID is kept for KeepNotices, so that it is not
	// queued again, and its body is not.
	Noticed(ctx context.Context, id string, at time.Time) error
	// Secret returns 32 random bytes that were made with the store.
	Secret(ctx context.Context) ([]byte, error)
	// Meta returns a value of Batch.Meta, or nil.
	Meta(ctx context.Context, name string) ([]byte, error)
	// Retain deletes rows of requests that were made before a time by their IDs, and their documents; the zero time
	// deletes none. An engine may keep some of them up to a month longer. It also makes room for the requests of the
	// months ahead: it is called each day.
	Retain(ctx context.Context, before time.Time) error
	// Purge has the files of the store be without what was deleted or replaced. It takes as long as writing all that is
	// kept, and as much room; nothing is committed meanwhile.
	Purge(ctx context.Context) error
	// Backup writes a consistent copy to a new file, while the store is used.
	Backup(ctx context.Context, path string) error
	// Close ends all calls.
	Close() error
}
