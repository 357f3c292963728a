package translog

import (
	"context"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// tileKey names a tile.
type tileKey struct {
	level int
	index int64
}

// hashReader returns a reader of hashes of the first size entries of a log. It reads each tile once.
func hashReader(ctx context.Context, tiles Tiles, size int64) tlog.HashReader {
	read := map[tileKey][]byte{}
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		hashes := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			tile := tlog.TileForIndex(tileHeight, index)
			key := tileKey{tile.L, tile.N}
			tile.W = widthAt(size, tile.L, tile.N)
			data, exists := read[key]
			if !exists {
				var err error
				if data, err = readTile(ctx, tiles, tile.L, tile.N, tile.W); err != nil {
					return nil, err
				}
				read[key] = data
			}
			var err error
			if hashes[i], err = tlog.HashFromTile(tile, data, index); err != nil {
				return nil, err
			}
		}
		return hashes, nil
	})
}

// RootAt returns the root of the tree of the first size entries.
func RootAt(ctx context.Context, tiles Tiles, size int64) (Hash, error) {
	if size < 0 {
		return Hash{}, failure.New(failure.Invalid, "a log cannot have %d entries", size)
	}
	return tlog.TreeHash(size, hashReader(ctx, tiles, size))
}

// ProveEntry returns the proof that the entry at index is in the tree of the first size entries (RFC 6962 section
// 2.1.1), from the leaf to the root. It reads at most two tiles of each level.
func ProveEntry(ctx context.Context, tiles Tiles, size, index int64) ([]Hash, error) {
	if index < 0 || index >= size {
		return nil, failure.New(failure.NotFound, "a log of %d entries has no entry %d", size, index)
	}
	return tlog.ProveRecord(size, index, hashReader(ctx, tiles, size))
}

// CheckEntry fails with Invalid unless a proof shows that entry is at index in the tree of a checkpoint.
func CheckEntry(proof []Hash, c Checkpoint, index int64, entry []byte) error {
	if err := tlog.CheckRecord(proof, c.Size, c.Root, index, tlog.RecordHash(entry)); err != nil {
		return failure.New(failure.Invalid, "the proof of entry %d does not fit the checkpoint of %d entries: %w", index,
			c.Size, err)
	}
	return nil
}

// ProveTree returns the proof that the tree of the first older entries is a prefix of that of the first newer entries
// (RFC 6962 section 2.1.2). It is empty when older is 0 or newer.
func ProveTree(ctx context.Context, tiles Tiles, older, newer int64) ([]Hash, error) {
	switch {
	case older < 0 || older > newer:
		return nil, failure.New(failure.Invalid, "a log of %d entries cannot continue one of %d", newer, older)
	case older == 0 || older == newer:
		return nil, nil
	}
	return tlog.ProveTree(newer, older, hashReader(ctx, tiles, newer))
}

// CheckTree fails with Conflict unless a proof shows that the log of the checkpoint older is a prefix of that of newer.
func CheckTree(proof []Hash, older, newer Checkpoint) error {
	conflict := failure.New(failure.Conflict, "the checkpoint of %d entries does not continue that of %d", newer.Size,
		older.Size).WithHint("keep both checkpoints: they prove that the log was rewritten")
	switch {
	case older.Origin != newer.Origin:
		return failure.New(failure.Invalid, "the checkpoints are of two logs, %q and %q", older.Origin, newer.Origin)
	case older.Size > newer.Size:
		return conflict
	case older.Size == newer.Size, older.Size == 0:
		if len(proof) > 0 || (older.Size == newer.Size && older.Root != newer.Root) ||
			(older.Size == 0 && older.Root != emptyRoot) {
			return conflict
		}
		return nil
	}
	if err := tlog.CheckTree(proof, newer.Size, newer.Root, older.Size, older.Root); err != nil {
		conflict.Err = err
		return conflict
	}
	return nil
}
