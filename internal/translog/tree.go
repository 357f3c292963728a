// Package translog is an append-only log whose entries anyone can check: a Merkle tree (RFC 6962), stored and served as
// tiles (C2SP tlog-tiles), with checkpoints (C2SP tlog-checkpoint) that are signed notes (C2SP signed-note).
//
// It stores nothing: whoever keeps the log stores the entries, and the tiles that Append returns. It verifies a log
// that others serve, exports one as files, and serves one.
package translog

import (
	"context"
	"fmt"
	"math/bits"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Hash is a hash of the tree: SHA-256.
type Hash = tlog.Hash

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight // hashes in a whole tile
	maxLevels  = 8               // of tiles, which 2^63 entries need
)

// Tile is a tile as it is after an append: a whole one, or what there is of the last one of its level.
type Tile struct {
	Level  int    // 0: hashes of entries; above: hashes of whole tiles of the level below
	Index  int64  // in its level
	Hashes []byte // 1 to 256 hashes of 32 bytes
}

// Tiles returns what there is of a tile: up to 256 hashes of 32 bytes. It fails when there is none of it.
type Tiles func(ctx context.Context, level int, index int64) ([]byte, error)

// Tree is the right edge of a log's tree: what appending to it needs. A Tree does not change.
type Tree struct {
	size  int64
	edges [][]byte // by level, the hashes of the last tile, unless it is whole
}

// NewTree returns the tree of the first size entries of a log. It reads the last tile of each level. It verifies
// nothing: compare Root with that of a checkpoint.
func NewTree(ctx context.Context, size int64, tiles Tiles) (*Tree, error) {
	if size < 0 {
		return nil, failure.New(failure.Invalid, "a log cannot have %d entries", size)
	}
	t := &Tree{size: size}
	for level := 0; size>>(tileHeight*level) > 0; level++ {
		hashes := size >> (tileHeight * level)
		width := int(hashes % tileWidth)
		var edge []byte
		if width > 0 {
			data, err := readTile(ctx, tiles, level, hashes/tileWidth, width)
			if err != nil {
				return nil, err
			}
			edge = slices.Clone(data)
		}
		t.edges = append(t.edges, edge)
	}
	return t, nil
}

// readTile returns the first width hashes of a tile.
func readTile(ctx context.Context, tiles Tiles, level int, index int64, width int) ([]byte, error) {
	data, err := tiles(ctx, level, index)
	if err != nil {
		return nil, fmt.Errorf("cannot read tile %s of the log: %w", tilePath(level, index, width), err)
	}
	if len(data) < width*tlog.HashSize || len(data)%tlog.HashSize != 0 || len(data) > tileWidth*tlog.HashSize {
		return nil, failure.New(failure.Internal, "tile %s of the log has %d bytes instead of %d",
			tilePath(level, index, width), len(data), width*tlog.HashSize).
			WithHint("verify the log: the database is damaged, or older than the log's checkpoint")
	}
	return data[:width*tlog.HashSize], nil
}

// Size returns the number of entries.
func (t *Tree) Size() int64 { return t.size }

// Append returns the tree with entries appended, and the tiles that they change: by level, and in a level by index. The
// tree itself stays as it is, so that a caller who cannot store the tiles keeps it.
func (t *Tree) Append(entries [][]byte) (*Tree, []Tile) {
	hashes := make([]byte, 0, len(entries)*tlog.HashSize)
	for _, entry := range entries {
		hash := tlog.RecordHash(entry)
		hashes = append(hashes, hash[:]...)
	}
	next := &Tree{size: t.size + int64(len(entries)), edges: slices.Clone(t.edges)}
	var changed []Tile
	for level := 0; len(hashes) > 0; level++ {
		if level == len(next.edges) {
			next.edges = append(next.edges, nil)
		}
		index := t.size >> (tileHeight * (level + 1))
		all := slices.Concat(next.edges[level], hashes) // a copy: tiles that were returned before keep their hashes
		hashes = nil
		for ; len(all) >= tileWidth*tlog.HashSize; index++ {
			whole := all[: tileWidth*tlog.HashSize : tileWidth*tlog.HashSize]
			changed = append(changed, Tile{Level: level, Index: index, Hashes: whole})
			hash := subtree(whole)
			hashes = append(hashes, hash[:]...)
			all = all[len(whole):]
		}
		next.edges[level] = nil
		if len(all) > 0 {
			next.edges[level] = slices.Clip(all)
			changed = append(changed, Tile{Level: level, Index: index, Hashes: next.edges[level]})
		}
	}
	return next, changed
}

// subtree returns the root of a perfect tree: of 2^n hashes.
func subtree(hashes []byte) Hash {
	if len(hashes) == tlog.HashSize {
		return Hash(hashes)
	}
	half := len(hashes) / 2
	return tlog.NodeHash(subtree(hashes[:half]), subtree(hashes[half:]))
}

// Root returns the root of the tree, which is the hash of nothing for a tree without entries.
func (t *Tree) Root() Hash {
	var root *Hash
	for _, edge := range t.edges { // from the smallest perfect tree, the last one, to the largest
		for left := len(edge) / tlog.HashSize; left > 0; left &= left - 1 {
			width := 1 << bits.TrailingZeros(uint(left))
			hash := subtree(edge[(left-width)*tlog.HashSize : left*tlog.HashSize])
			if root != nil {
				hash = tlog.NodeHash(hash, *root)
			}
			root = &hash
		}
	}
	if root == nil {
		return emptyRoot
	}
	return *root
}

// emptyRoot is the root of a tree without entries (RFC 6962 section 2.1).
var emptyRoot, _ = tlog.TreeHash(0, nil)
