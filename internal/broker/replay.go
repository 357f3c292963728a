package broker

import (
	"bytes"
	"context"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Replay appends to the store of a broker that does not run the entries that a copy of its log has and the store lacks,
// such as after an older backup was restored. The copy must fit its signed checkpoint, and begin with the entries of
// the store. Rows of requests that the entries belong to are not restored. documents are policies and configs that the
// entries may have put into force. It returns the number of entries that it has appended.
func Replay(ctx context.Context, s store.Store, files translog.Files, verifiers []*translog.Verifier,
	documents ...[]byte) (int64, error) {
	size, err := s.Size(ctx)
	if err != nil {
		return 0, err
	}
	compare := &comparison{store: s, size: size}
	report, err := translog.Verify(ctx, files, verifiers, translog.Options{
		Each: func(index int64, _ translog.Event, entry []byte) error { return compare.entry(ctx, index, entry) },
	})
	if err != nil {
		return 0, err
	}
	if report.Size <= size {
		return 0, failure.New(failure.Conflict, "the copy of the log has %d entries, and the database has %d", report.Size,
			size).WithHint("nothing has to be replayed: start the broker")
	}
	tree, err := translog.NewTree(ctx, size, s.Tile)
	if err != nil {
		return 0, err
	}
	add := &addition{store: s, tree: tree, documents: documents}
	_, err = translog.Verify(ctx, files, verifiers, translog.Options{
		Each: func(index int64, _ translog.Event, entry []byte) error {
			if index < size {
				return nil
			}
			return add.entry(ctx, entry)
		},
	})
	if err == nil {
		err = add.commit(ctx)
	}
	return add.tree.Size() - size, err
}

// comparison compares the entries of a log with those of a store, as far as that has any.
type comparison struct {
	store store.Store
	size  int64
	page  [][]byte // entries of the store, from index first on
	first int64
}

func (c *comparison) entry(ctx context.Context, index int64, entry []byte) error {
	if index >= c.size {
		return nil
	}
	if index >= c.first+int64(len(c.page)) {
		c.first, c.page = index, nil
		err := c.store.Entries(ctx, index, min(index+entryPage, c.size), func(_ int64, own []byte) error {
			c.page = append(c.page, own)
			return nil
		})
		if err != nil {
			return err
		}
	}
	if i := index - c.first; i >= int64(len(c.page)) || !bytes.Equal(c.page[i], entry) {
		return failure.New(failure.Conflict, "entry %d of the copy is not that of the database", index).
			WithHint("use a copy of this broker's log")
	}
	return nil
}

// addition appends entries to a store, page by page.
type addition struct {
	store     store.Store
	tree      *translog.Tree
	entries   [][]byte
	documents [][]byte
}

func (a *addition) entry(ctx context.Context, entry []byte) error {
	a.entries = append(a.entries, bytes.Clone(entry))
	if len(a.entries) < entryPage {
		return nil
	}
	return a.commit(ctx)
}

func (a *addition) commit(ctx context.Context) error {
	batch := &store.Batch{First: a.tree.Size(), Entries: a.entries, Documents: a.documents}
	grown, changed := a.tree.Append(a.entries)
	for _, t := range changed {
		batch.Tiles = append(batch.Tiles, store.Tile(t))
	}
	if err := a.store.Commit(ctx, batch); err != nil {
		return err
	}
	a.tree, a.entries, a.documents = grown, nil, nil
	return nil
}
