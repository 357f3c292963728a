package translog

import (
	"context"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Reader reads a log below one signed checkpoint. What it returns was verified against that checkpoint, so that a
// server that does not have the log's key can show nothing of its own. It reads any part without reading what is
// before. It is used by one goroutine at a time.
type Reader struct {
	files Files
	in    Checkpoint
	tiles map[tileKey][]byte
	err   error // of the tile that could not be read
}

// maxTiles bounds the tiles that a Reader keeps: each call reads those of the right edge again.
const maxTiles = 64

// NewReader returns a reader of the log of a checkpoint, whose signature Open has verified.
func NewReader(files Files, in Checkpoint) *Reader {
	return &Reader{files: files, in: in, tiles: map[tileKey][]byte{}}
}

// tile returns what the checkpoint's log has of a tile.
func (r *Reader) tile(ctx context.Context, level int, index int64) ([]byte, error) {
	key := tileKey{level, index}
	if data, kept := r.tiles[key]; kept {
		return data, nil
	}
	data, err := (&verification{files: r.files}).read(ctx, level, index, widthAt(r.in.Size, level, index))
	if failure.Is(err, failure.Conflict) { // of a file that is damaged
		err = failure.New(failure.Invalid, "%w", err)
	}
	if err != nil {
		r.err = err
		return nil, err
	}
	if len(r.tiles) >= maxTiles {
		clear(r.tiles)
	}
	r.tiles[key] = data
	return data, nil
}

// Entries returns the entries from index first on: those of one bundle, so 256 at most. It fails with Invalid when the
// files do not fit the checkpoint, and with NotFound for an index beyond it.
func (r *Reader) Entries(ctx context.Context, first int64) ([][]byte, error) {
	if first < 0 || first >= r.in.Size {
		return nil, failure.New(failure.NotFound, "a log of %d entries has no entry %d", r.in.Size, first)
	}
	index := first / tileWidth
	width := widthAt(r.in.Size, 0, index)
	data, err := (&verification{files: r.files}).read(ctx, entriesLevel, index, width)
	if err != nil {
		return nil, err
	}
	entries, err := splitBundle(data, width)
	if err != nil {
		return nil, failure.New(failure.Invalid, "%s is damaged: %w", bundlePath(index, width), err)
	}
	if err := CheckEntries(ctx, r.tile, r.in, index*tileWidth, entries); err != nil {
		return nil, r.because(err)
	}
	return entries[first-index*tileWidth:], nil
}

// Continues fails with Conflict unless the log continues that of an older checkpoint, whose name is not compared. It
// fails with Invalid when the files do not fit the newer one: they prove nothing then.
func (r *Reader) Continues(ctx context.Context, older Checkpoint) error {
	older.Origin = r.in.Origin
	var proof []Hash
	if 0 < older.Size && older.Size < r.in.Size {
		verified := tlog.TileHashReader(tlog.Tree{N: r.in.Size, Hash: r.in.Root}, verifiedTiles{ctx, r.tile})
		var err error
		if proof, err = tlog.ProveTree(r.in.Size, older.Size, verified); err != nil {
			return r.because(failure.New(failure.Invalid, "the tiles of the log do not fit the checkpoint of %d entries: %w",
				r.in.Size, err))
		}
	}
	return CheckTree(proof, older, r.in)
}

// because returns why a tile could not be read, if that is what made a verification fail, and otherwise the failure.
func (r *Reader) because(err error) error {
	if read := r.err; read != nil {
		r.err = nil
		return read
	}
	return err
}
