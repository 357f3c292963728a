package broker

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Reasons for which a broker signs nothing.
const (
	older     = "its database is older than the checkpoint outside of it"
	forked    = "its database is not the one of the checkpoint outside of it"
	noFile    = "the checkpoint outside of the database is missing"
	future    = "the times of its newest entries, which no checkpoint covers, have not come: set the clock right"
	newConfig = "the config file is not the one in force: propose it with 'hsm-broker config apply'"
	badPolicy = "the policy in force cannot be read"
	maxFile   = 64 << 10 // bytes of a checkpoint
	entryPage = 4096     // entries that are verified at once
)

// start reads the state from the store, and says why nothing may be signed if that is so.
func (b *Broker) start(ctx context.Context) error {
	size, err := b.options.Store.Size(ctx)
	if err != nil {
		return err
	}
	if size == 0 {
		if err := b.begin(); err != nil && !b.overtaken(err) {
			return err
		}
		if size, err = b.options.Store.Size(ctx); err != nil {
			return err
		}
	}
	if size == int64(1+len(b.options.First)) {
		if err := b.signFirst(ctx); err != nil && !b.overtaken(err) { // also after a start that ended before it did
			return err
		}
	}
	trusted, why, err := b.trusted(ctx)
	if err != nil {
		return err
	}
	b.published.Store(trusted)
	if why != "" {
		slog.Error("the broker signs nothing", "reason", why)
		b.readOnly.Store(&why)
		b.sealed.Store(true)
	}
	if err := b.reload(ctx, 0); err != nil {
		return err
	}
	if b.inForce.Load() == nil {
		return failure.New(failure.Internal, "cannot read the policy in force from the store").
			WithHint("restore the database from a backup")
	}
	if why != "" || b.sealedByReplica {
		return nil
	}
	// Limits count by the times of entries. One of a time to come would have them count nothing.
	if b.state.Last.Sub(b.clock.now(time.Time{})) > maxSkew && b.state.Last.After(b.signedTime) {
		why = future
		slog.Error("the broker signs nothing", "reason", why)
		b.readOnly.Store(&why)
		b.sealed.Store(true)
		return nil
	}
	if err := b.recover(); err != nil {
		if !b.overtaken(err) {
			return err
		}
		return b.reload(ctx, 0)
	}
	b.sealedByReplica = b.replica != nil
	return nil
}

// overtaken reports whether a failure is that another replica has done the same at the same time.
func (b *Broker) overtaken(err error) bool {
	is := b.replica != nil && failure.Is(err, failure.Conflict)
	if is {
		b.unsettled = nil
	}
	return is
}

// trusted returns the newest checkpoint that verifies, and why nothing may be signed if the database does not have what
// the file outside of it says. It fails for a database that does not have what its own checkpoint says.
func (b *Broker) trusted(ctx context.Context) (*published, string, error) {
	in, err := b.options.Store.Checkpoint(ctx)
	if err != nil {
		return nil, "", err
	}
	size, err := b.options.Store.Size(ctx) // after the checkpoint: other replicas may add to the log
	if err != nil {
		return nil, "", err
	}
	newest := &published{}
	if in != nil {
		newest.note = in
		if newest.Checkpoint, err = b.verify(in); err != nil {
			return nil, "", errors.Join(errEdited, err)
		}
		if root, err := b.rootAt(ctx, newest.Size, size); unreached(err) {
			return nil, "", err
		} else if err != nil || root != newest.Root {
			return nil, "", errors.Join(errEdited, err)
		}
	}
	data, err := bound.ReadFile(b.options.Log.File, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return newest, noFile, nil
	}
	if err != nil {
		return nil, "", err
	}
	out, err := b.verify(data)
	if err != nil {
		return nil, "", failure.New(failure.Denied, "cannot verify the checkpoint in %s: %w", b.options.Log.File, err).
			WithHint("check that log.key and log.origin are those of before")
	}
	if out.Size > size {
		return newest, older, nil
	}
	if root, err := b.rootAt(ctx, out.Size, size); unreached(err) {
		return nil, "", err
	} else if err != nil || root != out.Root {
		return newest, forked, nil //nolint:nilerr // tiles that cannot be read are not those of the checkpoint
	}
	if out.Size >= newest.Size {
		newest = &published{Checkpoint: out, note: data}
	}
	return newest, "", nil
}

// rootAt returns the root of the tree of the first entries of the log.
func (b *Broker) rootAt(ctx context.Context, entries, size int64) (translog.Hash, error) {
	if entries > size {
		return translog.Hash{}, fmt.Errorf("the log has %d entries, and its checkpoint says %d", size, entries)
	}
	return translog.RootAt(ctx, b.tiles, entries)
}

// tiles reads a tile of the log.
func (b *Broker) tiles(ctx context.Context, level int, index int64) ([]byte, error) {
	return b.options.Store.Tile(ctx, level, index)
}

// errEdited is the failure of a database whose entries do not fit its tree.
var errEdited = failure.New(failure.Conflict, "the database was edited: it does not fit the log's checkpoint").
	WithHint("restore a backup; the broker does not start with an edited database")

// reload makes the state of what is durable: the newest snapshot that a checkpoint covers, and the entries after it.
// The first entries, as many as own, are this process's: they count before a checkpoint covers them. It fails with
// Conflict if the log has none of some trees.
func (b *Broker) reload(ctx context.Context, own int64, trees ...*translog.Tree) error {
	size, err := b.options.Store.Size(ctx)
	if err != nil {
		return err
	}
	var seal []byte
	if b.replica != nil {
		head, err := b.replica.Store.Head(ctx)
		if err != nil {
			return err
		}
		size, seal = head.Size, head.Seal
	}
	tree, err := translog.NewTree(ctx, size, b.tiles)
	if err != nil {
		return err
	}
	if b.sealedByReplica = len(seal) > 0; b.sealedByReplica {
		if !hmac.Equal(seal, b.seal(tree)) {
			return failure.New(failure.Conflict, "the newest entries of the log in the database are of no replica that has this key").
				WithHint("give all replicas the same key (replicas.key); if they have it, the database was edited: restore a backup")
		}
		own = size
	}
	known := func(t *translog.Tree) bool { return t.Size() == size && t.Root() == tree.Root() }
	if len(trees) > 0 && !slices.ContainsFunc(trees, known) {
		return errEdited
	}
	checkpoint := b.published.Load()
	anchor := checkpoint.Checkpoint
	if b.sealedByReplica { // the newest snapshot can be of another replica, and newer than the checkpoint
		anchor = translog.Checkpoint{Size: size, Root: tree.Root()}
	}
	s, err := b.restore(ctx, anchor)
	if err != nil {
		return err
	}
	void, err := b.voided(ctx, s.Size, max(checkpoint.Size, min(own, size)))
	if err != nil {
		return err
	}
	for _, part := range []struct {
		end  int64
		root translog.Hash
	}{{checkpoint.Size, checkpoint.Root}, {size, tree.Root()}} {
		for s.Size < part.end {
			err := b.replay(ctx, s, translog.Checkpoint{Size: part.end, Root: part.root}, max(checkpoint.Size, own), void)
			if err != nil {
				return err
			}
		}
		if part.end == checkpoint.Size {
			b.signedTime = s.Last
		}
	}
	b.state, b.tree = s, tree
	b.durable.Store(size)
	b.adopt()
	return nil
}

// replay applies a page of entries to a state. Each must be in the tree of a checkpoint. What permits something counts
// only before the end of the signed log, and unless it is void.
func (b *Broker) replay(ctx context.Context, s *state, in translog.Checkpoint, covered int64,
	void voids) error {
	first, end := s.Size, min(s.Size+entryPage, in.Size)
	entries := make([][]byte, 0, end-first)
	err := b.options.Store.Entries(ctx, first, end, func(index int64, entry []byte) error {
		if index != first+int64(len(entries)) {
			return errEdited
		}
		entries = append(entries, entry)
		return nil
	})
	if err != nil {
		return err
	}
	if int64(len(entries)) != end-first {
		return errEdited
	}
	if err := translog.CheckEntries(ctx, b.tiles, in, first, entries); err != nil {
		return errors.Join(errEdited, err)
	}
	for i, entry := range entries {
		index := first + int64(i)
		e, err := decodeEvent(entry)
		if err != nil {
			b.outdate(index, err)
			return failure.New(failure.Unsupported, "cannot read entry %d of the log, which a newer version has written: %w",
				index,
				err).WithHint("upgrade this program")
		}
		if e.Permits() && (index >= covered || void.has(index)) {
			s.Size++
			continue
		}
		if e.Type == opened && index > 0 {
			return errEdited
		}
		s.apply(e, index < covered && !void.has(index))
	}
	return nil
}
