package translog

import (
	"bytes"
	"context"
	"crypto/elliptic"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// largeSize is the number of entries of the log in benchmarks.
const largeSize = 10_000_000

// largeLog returns the tiles of a log of largeSize entries, whose entries are not kept.
var largeLog = sync.OnceValues(func() (*Tree, memory) {
	tree, tiles := &Tree{}, memory{}
	entries := make([][]byte, 10_000)
	for tree.Size() < largeSize {
		for i := range entries {
			entries[i] = fmt.Append(entries[i][:0], tree.Size()+int64(i))
		}
		var changed []Tile
		tree, changed = tree.Append(entries)
		tiles.put(changed)
	}
	return tree, tiles
})

// BenchmarkAppend appends entries of 500 bytes to a log of 10 million, in batches. One operation is one entry.
func BenchmarkAppend(b *testing.B) {
	tree, _ := largeLog()
	for _, size := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			batch := make([][]byte, size)
			for i := range batch {
				batch[i] = bytes.Repeat([]byte{byte(i)}, 500)
			}
			grown := tree
			for i := 0; i < b.N; i += size {
				grown, _ = grown.Append(batch)
			}
		})
	}
}

// BenchmarkStart starts with a log of 10 million entries, and computes its root.
func BenchmarkStart(b *testing.B) {
	tree, tiles := largeLog()
	for b.Loop() {
		started, err := NewTree(b.Context(), largeSize, tiles.tile)
		if err != nil || started.Root() != tree.Root() {
			b.Fatal(err)
		}
	}
}

// BenchmarkProof proves random entries, and old sizes, of a log of 10 million entries.
func BenchmarkProof(b *testing.B) {
	tree, tiles := largeLog()
	c := Checkpoint{origin, largeSize, tree.Root()}
	reads := 0
	counted := func(ctx context.Context, level int, index int64) ([]byte, error) {
		reads++
		return tiles.tile(ctx, level, index)
	}
	random := rand.New(rand.NewPCG(1, 2))
	b.Run("entry", func(b *testing.B) {
		reads = 0
		for b.Loop() {
			index := random.Int64N(largeSize)
			proof, err := ProveEntry(b.Context(), counted, largeSize, index)
			if err == nil {
				err = CheckEntry(proof, c, index, fmt.Append(nil, index))
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(reads)/float64(b.N), "tiles/op")
	})
	b.Run("tree", func(b *testing.B) {
		reads = 0
		for b.Loop() {
			if _, err := ProveTree(b.Context(), counted, 1+random.Int64N(largeSize-1), largeSize); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(reads)/float64(b.N), "tiles/op")
	})
}

// BenchmarkRoot computes the root of a log whose last tiles are almost whole.
func BenchmarkRoot(b *testing.B) {
	tree, _ := (&Tree{}).Append(numbered(0, 1<<16-1))
	for b.Loop() {
		tree.Root()
	}
}

// BenchmarkEntry encodes an entry and checks it.
func BenchmarkEntry(b *testing.B) {
	event := map[string]any{"type": "signed", "time": "2026-01-02T03:04:05.678Z", "key": "release", "request": "01JGK3",
		"artifact": map[string]any{"format": "notation", "digest": "sha256:" + fmt.Sprintf("%064d", 1), "size": 1234,
			"media_type": "application/vnd.oci.image.manifest.v1+json"},
		"requester": map[string]any{"issuer": "https://token.actions.githubusercontent.com", "subject": "repo:a/b:ref:c"}}
	b.Run("encode", func(b *testing.B) {
		for b.Loop() {
			if _, err := Canonical(event); err != nil {
				b.Fatal(err)
			}
		}
	})
	entry, err := Canonical(event)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("check", func(b *testing.B) {
		for b.Loop() {
			if _, err := Check(entry); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkVerify verifies a log of 10,000 entries. One operation is the whole log.
func BenchmarkVerify(b *testing.B) {
	l := newLog(b, 10_000)
	for b.Loop() {
		if _, err := Verify(b.Context(), l.source().File, []*Verifier{l.verifier}, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSign signs a checkpoint with a P-256 key in memory.
func BenchmarkSign(b *testing.B) {
	key, _ := newKey(b, elliptic.P256())
	for b.Loop() {
		if _, err := (Checkpoint{origin, largeSize, emptyRoot}).Sign(key); err != nil {
			b.Fatal(err)
		}
	}
}
