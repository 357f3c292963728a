package translog

import (
	"context"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// CheckEntries fails with Invalid unless entries are those of a checkpoint's log from index first on. It verifies the
// tiles that it reads: at most one of 256 entries, and those above.
func CheckEntries(ctx context.Context, tiles Tiles, in Checkpoint, first int64, entries [][]byte) error {
	if first < 0 || first+int64(len(entries)) > in.Size {
		return failure.New(failure.Invalid, "a log of %d entries has none from %d to %d", in.Size, first,
			first+int64(len(entries))-1)
	}
	indexes := make([]int64, len(entries))
	for i := range entries {
		indexes[i] = tlog.StoredHashIndex(0, first+int64(i))
	}
	verified := tlog.TileHashReader(tlog.Tree{N: in.Size, Hash: in.Root}, verifiedTiles{ctx, tiles})
	hashes, err := verified.ReadHashes(indexes)
	if err != nil {
		return failure.New(failure.Invalid, "the tiles of the log do not fit the checkpoint of %d entries: %w", in.Size, err)
	}
	for i, entry := range entries {
		if tlog.RecordHash(entry) != hashes[i] {
			return failure.New(failure.Invalid, "entry %d of the log is not the one that was logged", first+int64(i))
		}
	}
	return nil
}

// verifiedTiles reads tiles for a reader that verifies them.
type verifiedTiles struct {
	ctx   context.Context //nolint:containedctx // the interface of tlog has none
	tiles Tiles
}

// Height returns that of all tiles.
func (v verifiedTiles) Height() int { return tileHeight }

// ReadTiles reads tiles.
func (v verifiedTiles) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	all := make([][]byte, len(tiles))
	for i, t := range tiles {
		data, err := readTile(v.ctx, v.tiles, t.L, t.N, t.W)
		if err != nil {
			return nil, err
		}
		all[i] = data
	}
	return all, nil
}

// SaveTiles keeps nothing.
func (v verifiedTiles) SaveTiles([]tlog.Tile, [][]byte) {}
