package translog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// memory keeps the tiles of a log.
type memory map[tileKey][]byte

func (m memory) put(tiles []Tile) {
	for _, tile := range tiles {
		m[tileKey{tile.Level, tile.Index}] = tile.Hashes
	}
}

func (m memory) tile(_ context.Context, level int, index int64) ([]byte, error) {
	data, exists := m[tileKey{level, index}]
	if !exists {
		return nil, errors.New("there is no such tile")
	}
	return data, nil
}

// stored keeps the hashes of a log as golang.org/x/mod/sumdb/tlog stores them.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for _, index := range indexes {
		hashes = append(hashes, s[index])
	}
	return hashes, nil
}

// numbered returns entries whose text has their index.
func numbered(first, end int64) (entries [][]byte) {
	for i := first; i < end; i++ {
		entries = append(entries, fmt.Appendf(nil, "entry %d", i))
	}
	return entries
}

// TestAppend compares trees, tiles and proofs with those of golang.org/x/mod/sumdb/tlog, for batches of many sizes.
func TestAppend(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	const size = 66_500 // so that there are three levels
	var reference stored
	roots := []Hash{emptyRoot}
	for i, entry := range numbered(0, size) {
		hashes, err := tlog.StoredHashes(int64(i), entry, reference)
		if err != nil {
			t.Fatal(err)
		}
		reference = append(reference, hashes...)
		if i < 2000 || i%97 == 0 || i > size-1000 {
			root, err := tlog.TreeHash(int64(i+1), reference)
			if err != nil {
				t.Fatal(err)
			}
			roots = append(roots, root)
			continue
		}
		roots = append(roots, Hash{}) // not compared
	}
	tree, tiles := &Tree{}, memory{}
	for tree.Size() < size {
		before := tree.Size()
		end := min(before+[]int64{1, 1, 2, 3, 255, 256, 257, 1000}[random.IntN(8)], size)
		discarded, _ := tree.Append(numbered(0, 1+random.Int64N(300))) // as when storing failed
		next, changed := tree.Append(numbered(before, end))
		_, _ = discarded.Append(numbered(0, 10))
		tiles.put(changed)
		names := map[tlog.Tile]bool{}
		for _, tile := range changed {
			names[tlog.Tile{H: 8, L: tile.Level, N: tile.Index, W: len(tile.Hashes) / tlog.HashSize}] = true
		}
		for _, want := range tlog.NewTiles(8, before, end) {
			data, err := tlog.ReadTileData(want, reference)
			if err != nil {
				t.Fatal(err)
			}
			if !names[want] || !bytes.Equal(data, tiles[tileKey{want.L, want.N}]) {
				t.Fatalf("from %d to %d entries: tile %v is missing or differs", before, end, want)
			}
			delete(names, want)
		}
		if len(names) > 0 {
			t.Fatalf("from %d to %d entries: also changed %v", before, end, names)
		}
		if tree = next; tree.Size() != end || (roots[end] != Hash{} && tree.Root() != roots[end]) {
			t.Fatalf("a tree of %d entries has the size %d and the root %v, want %v", end, tree.Size(), tree.Root(), roots[end])
		}
		if random.IntN(4) == 0 {
			again, err := NewTree(t.Context(), end, tiles.tile)
			if err != nil || again.Root() != tree.Root() || again.Size() != end {
				t.Fatalf("a tree that starts with %d entries: %v", end, err)
			}
			tree = again
		}
	}
	checkProofs(t, tiles, roots, size, random)
}

// checkProofs verifies proofs of random entries and trees.
func checkProofs(t *testing.T, tiles memory, roots []Hash, size int64, random *rand.Rand) {
	t.Helper()
	for range 500 {
		n := size - random.Int64N(900)
		if random.IntN(2) == 0 {
			n = 1 + random.Int64N(1999)
		}
		c := Checkpoint{Origin: "example.com/log", Size: n, Root: roots[n]}
		if root, err := RootAt(t.Context(), tiles.tile, n); err != nil || root != c.Root {
			t.Fatalf("the root at %d is %v, want %v: %v", n, root, c.Root, err)
		}
		i := random.Int64N(n)
		proof, err := ProveEntry(t.Context(), tiles.tile, n, i)
		if err == nil {
			err = CheckEntry(proof, c, i, numbered(i, i+1)[0])
		}
		if err != nil {
			t.Fatalf("entry %d of %d: %v", i, n, err)
		}
		if CheckEntry(proof, c, i, []byte("another")) == nil {
			t.Fatalf("entry %d of %d: the proof also proves another entry", i, n)
		}
		older := random.Int64N(min(n, 2000))
		old := Checkpoint{Origin: "example.com/log", Size: older, Root: roots[older]}
		proof, err = ProveTree(t.Context(), tiles.tile, older, n)
		if err == nil {
			err = CheckTree(proof, old, c)
		}
		if err != nil {
			t.Fatalf("the tree of %d in that of %d: %v", older, n, err)
		}
		if old.Root[3] ^= 1; CheckTree(proof, old, c) == nil {
			t.Fatalf("the tree of %d in that of %d: the proof also proves another tree", older, n)
		}
	}
}

// TestTreeErrors verifies that damaged and missing tiles, and impossible sizes, are errors.
func TestTreeErrors(t *testing.T) {
	t.Parallel()
	tree, changed := (&Tree{}).Append(numbered(0, 300))
	tiles := memory{}
	tiles.put(changed)
	for name, damage := range map[string]func(memory){
		"missing": func(m memory) { delete(m, tileKey{1, 0}) },
		"short":   func(m memory) { m[tileKey{0, 1}] = m[tileKey{0, 1}][:32*43] },
		"odd":     func(m memory) { m[tileKey{0, 1}] = append(bytes.Clone(m[tileKey{0, 1}]), 1) },
	} {
		damaged := memory{}
		damaged.put(changed)
		damage(damaged)
		if _, err := NewTree(t.Context(), 300, damaged.tile); err == nil {
			t.Errorf("%s: a tree of damaged tiles", name)
		}
		if _, err := RootAt(t.Context(), damaged.tile, 300); err == nil && name != "missing" {
			t.Errorf("%s: a root of damaged tiles", name)
		}
	}
	if root, err := RootAt(t.Context(), tiles.tile, 300); err != nil || root != tree.Root() {
		t.Errorf("root %v: %v", root, err)
	}
	for _, index := range []int64{-1, 300, 1 << 60} {
		if _, err := ProveEntry(t.Context(), tiles.tile, 300, index); err == nil {
			t.Errorf("a proof of entry %d of 300", index)
		}
	}
	for _, sizes := range [][2]int64{{-1, 300}, {301, 300}} {
		if _, err := ProveTree(t.Context(), tiles.tile, sizes[0], sizes[1]); err == nil {
			t.Errorf("a proof that %d entries are a prefix of %d", sizes[0], sizes[1])
		}
	}
	if _, err := NewTree(t.Context(), -1, tiles.tile); err == nil {
		t.Error("a tree of -1 entries")
	}
	if empty, err := NewTree(t.Context(), 0, tiles.tile); err != nil || empty.Root() != emptyRoot {
		t.Errorf("an empty tree: %v", err)
	}
}
