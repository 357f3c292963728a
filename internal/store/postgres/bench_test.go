package postgres

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/store"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// BenchmarkTurn commits batches in turns: entries of 600 bytes with a row of a request and a document each.
func BenchmarkTurn(b *testing.B) {
	for _, entries := range []int{1, 64} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			s := open(b, softhsmtest.Postgres(b).Database(b))
			number, err := s.Join(b.Context(), store.Replica{})
			if err != nil {
				b.Fatal(err)
			}
			batch := &store.Batch{Seal: make([]byte, 32)}
			for range entries {
				batch.Entries = append(batch.Entries, bytes.Repeat([]byte("e"), 600))
			}
			for i := 0; b.Loop(); i++ {
				if i%100 == 0 {
					if _, err := s.Beat(b.Context(), number, true); err != nil {
						b.Fatal(err)
					}
				}
				turn, err := s.Turn(b.Context(), number, 0)
				if err != nil {
					b.Fatal(err)
				}
				batch.First = turn.Head().Size
				batch.Requests, batch.RequestDocuments = nil, nil
				batch.Tiles = []store.Tile{{Index: batch.First / 256, Hashes: make([]byte, 32*(1+batch.First%256))}}
				for j := range entries {
					id := fmt.Sprintf("%s%020x", store.FirstID(time.Now()), i*entries+j)
					batch.Requests = append(batch.Requests, store.Request{ID: id, Key: "release", State: "signed",
						Requester: id[12:], Rule: "release", Digest: "sha256:" + id, Repository: "registry.example.com/app",
						Body: bytes.Repeat([]byte("b"), 700), Signature: make([]byte, 256)})
					batch.RequestDocuments = append(batch.RequestDocuments, store.RequestDocument{Request: id,
						Data: fmt.Appendf(nil, "%02000s", id)})
				}
				if err := turn.Commit(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*entries)/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
	}
}
