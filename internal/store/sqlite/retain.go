package sqlite

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/store"
)

// maxDeleted is the largest number of rows that are deleted at once: others write in between.
const maxDeleted = 1000

// Retain deletes rows of requests that were made before a time by their IDs, and their documents.
func (s *Store) Retain(ctx context.Context, before time.Time) error {
	if before.IsZero() {
		return nil
	}
	for _, text := range []string{
		"DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE id < ? ORDER BY id LIMIT ?)",
		`DELETE FROM documents WHERE sha256 IN
			(SELECT sha256 FROM documents WHERE request < ? ORDER BY request LIMIT ?)`,
	} {
		for deleted := int64(maxDeleted); deleted == maxDeleted; {
			result, err := s.write.ExecContext(ctx, text, store.FirstID(before), maxDeleted)
			if err == nil {
				deleted, err = result.RowsAffected()
			}
			if err != nil {
				return s.explain("delete old requests from", err)
			}
		}
	}
	return nil
}
