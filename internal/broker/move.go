package broker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Move says how the store of a broker that does not run is moved to one that replicas share.
type Move struct {
	From   store.Source
	To     store.Target
	Name   string // of To, for people: From keeps it
	Key    []byte // of the replicas
	Origin string // name of the log, in its first epoch
	// Checkpoint is the newest one of the log, as it was kept outside the store.
	Checkpoint translog.Checkpoint
}

// Moved counts the rows that were moved, by their table.
type Moved struct{ Values, Snapshots, Tiles, Entries, Documents, Requests, Notices int64 }

// Run moves all rows, in one transaction of To. Before it ends, the log's tree that the entries in To make must be that
// of From and fit Checkpoint, and both stores have the same rows. Then no broker opens From any more: two brokers would
// sign by one approval. A move that was interrupted is run again.
func (m *Move) Run(ctx context.Context) (*Moved, error) {
	size, err := m.From.Size(ctx)
	if err != nil {
		return nil, err
	}
	if m.Checkpoint.Size > size {
		return nil, failure.New(failure.Conflict, "the checkpoint file has %d entries, and the database has %d: it is older",
			m.Checkpoint.Size, size).WithHint("move the newest database, or restore what it lacks first")
	}
	tree, err := translog.NewTree(ctx, size, m.From.Tile)
	if err != nil {
		return nil, err
	}
	secret, err := m.From.Secret(ctx)
	if err != nil {
		return nil, err
	}
	var seal []byte // none if the checkpoint lacks entries: the first start goes by it alone, as one with From would
	if m.Checkpoint.Size == size {
		sealer := &Broker{options: Options{Log: Log{Origin: m.Origin}}, secret: secret,
			replica: &replica{Replica: Replica{Key: m.Key}}}
		seal = sealer.seal(tree)
	}
	before := newInventory(m.Checkpoint.Size)
	var after *inventory
	wasMoved := m.From.Moved()
	err = m.To.Import(ctx, before.watch(m.From.Rows(ctx)), seal, func(ctx context.Context,
		stored store.Rows) error {
		after = newInventory(m.Checkpoint.Size)
		for _, err := range after.watch(stored) {
			if err != nil {
				return err
			}
		}
		if err := m.compare(before, after, tree); err != nil {
			return err
		}
		return m.From.SetMoved(ctx, m.Name)
	})
	if err != nil {
		if m.From.Moved() && !wasMoved && !errors.Is(err, store.ErrUnknown) {
			err = errors.Join(err, m.From.SetMoved(context.WithoutCancel(ctx), ""))
		}
		return nil, err
	}
	return &after.moved, nil
}

// compare fails unless what was stored is what was read.
func (m *Move) compare(before, after *inventory, tree *translog.Tree) error {
	wrong := func(what string) error {
		return failure.New(failure.Internal, "cannot move the database: %s", what).
			WithHint("nothing was moved: see the logs of both machines, and run it again")
	}
	for _, i := range []*inventory{before, after} {
		i.flush()
		switch {
		case i.tree.Size() != tree.Size() || i.tree.Root() != tree.Root():
			return wrong("its entries are not those of its tree")
		case i.at != m.Checkpoint.Root:
			return wrong("its entries are not those of the checkpoint file")
		}
	}
	if before.moved != after.moved || !bytes.Equal(before.hash.Sum(nil), after.hash.Sum(nil)) {
		return wrong("what was stored is not what was read")
	}
	return nil
}

// inventory is what a store has.
type inventory struct {
	moved Moved
	hash  hash.Hash // of all rows
	tree  *translog.Tree
	page  [][]byte // entries that the tree lacks
	size  int64    // of the tree whose root is at
	at    translog.Hash
}

func newInventory(size int64) *inventory {
	tree, _ := translog.NewTree(context.Background(), 0, nil) // an empty one reads no tiles
	i := &inventory{hash: sha256.New(), tree: tree, size: size}
	if size == 0 {
		i.at = tree.Root()
	}
	return i
}

// watch returns the same rows, and has them counted and hashed as they are read.
func (i *inventory) watch(rows store.Rows) store.Rows {
	return func(yield func(store.Row, error) bool) {
		for row, err := range rows {
			if err == nil {
				err = i.add(&row)
			}
			if !yield(row, err) {
				return
			}
		}
	}
}

// add adds a row. Text is hashed as every engine keeps it: valid UTF-8 without NUL.
func (i *inventory) add(r *store.Row) error {
	put := func(fields ...any) {
		for _, f := range fields {
			switch f := f.(type) {
			case int64:
				i.hash.Write(binary.BigEndian.AppendUint64(nil, uint64(f))) //nolint:gosec // any number
			case string:
				f = strings.ReplaceAll(strings.ToValidUTF8(f, "\ufffd"), "\x00", "\ufffd")
				i.hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(f))))
				i.hash.Write([]byte(f))
			case []byte:
				i.hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(f))))
				i.hash.Write(f)
			}
		}
	}
	switch {
	case r.Value != nil:
		i.moved.Values++
		put("value", r.Value.Name, r.Value.Value)
	case r.Snapshot != nil:
		i.moved.Snapshots++
		put("snapshot", r.Snapshot.Size, r.Snapshot.Data)
	case r.Tile != nil:
		i.moved.Tiles++
		put("tile", int64(r.Tile.Level), r.Tile.Index, r.Tile.Hashes)
	case r.Entry != nil:
		put("entry", r.Entry.Index, r.Entry.Data)
		return i.entry(r.Entry)
	case r.Document != nil:
		i.moved.Documents++
		put("document", r.Document.SHA256, r.Document.Request, r.Document.Data)
	case r.Request != nil:
		i.moved.Requests++
		q := r.Request
		put("request", q.ID, q.Created.UnixMilli(), q.Changed.UnixMilli(), q.Key, q.State, q.Requester, q.Rule, q.Digest,
			q.Repository, q.Body, q.Signature)
	case r.Notice != nil:
		i.moved.Notices++
		n := r.Notice
		put("notice", n.ID, n.Channel, n.Recipient, n.Created.UnixMilli(), n.Due.UnixMilli(), n.Done.UnixMilli(),
			int64(n.Attempts), n.Body)
	}
	return nil
}

// entry adds an entry to the tree, page by page.
func (i *inventory) entry(e *store.Entry) error {
	if e.Index != i.moved.Entries {
		return failure.New(failure.Internal, "the database lacks entry %d of the log", i.moved.Entries).
			WithHint("restore it from a backup")
	}
	i.moved.Entries++
	i.page = append(i.page, e.Data)
	if len(i.page) == entryPage || i.moved.Entries == i.size {
		i.flush()
	}
	return nil
}

// flush adds the page to the tree.
func (i *inventory) flush() {
	if len(i.page) == 0 {
		return
	}
	i.tree, _ = i.tree.Append(i.page)
	i.page = nil
	if i.tree.Size() == i.size {
		i.at = i.tree.Root()
	}
}
