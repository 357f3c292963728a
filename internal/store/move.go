package store

import (
	"context"
	"iter"
	"time"
)

// Row is a row of a store that is moved to another one. One of its fields is set.
type Row struct {
	Value    *Value
	Snapshot *Snapshot
	Tile     *Tile
	Entry    *Entry
	Document *Document
	Request  *Request
	Notice   *MovedNotice
}

// Value is what a store keeps under a name: the checkpoint, the secret and Batch.Meta.
type Value struct {
	Name  string
	Value []byte
}

// Entry is an entry of the log.
type Entry struct {
	Index int64
	Data  []byte
}

// Document is a document, of no use without a request unless that is "".
type Document struct {
	SHA256  []byte
	Request string
	Data    []byte
}

// MovedNotice is a notice that waits, or of which the ID is kept since it ended.
type MovedNotice struct {
	Notice
	Done time.Time // zero for one that waits
}

// Rows are the rows of a whole store: in the order of the fields of Row, and of the keys of each table. Documents
// without a request come before those with one. A failure ends them.
type Rows = iter.Seq2[Row, error]

// Source is a store that is moved. Nobody else has it open.
type Source interface {
	Store
	// Rows reads all rows.
	Rows(ctx context.Context) Rows
	// Moved reports whether the store was moved.
	Moved() bool
	// SetMoved has Open refuse the store, since it was moved to another one, of which it keeps the name; "" undoes that.
	SetMoved(ctx context.Context, to string) error
}

// Target is a shared store that another one is moved to.
type Target interface {
	// Import fills the store with rows, in one transaction, and gives its log a seal. It fails with Conflict for a store
	// that is not empty, or that a replica uses. Before the rows are durable it calls ready with what the store has got;
	// when that fails, it has no effect. It fails with ErrUnknown when nobody knows whether the rows are durable.
	Import(ctx context.Context, rows Rows, seal []byte, ready func(ctx context.Context, stored Rows) error) error
}
