package tags

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
)

// RestoredTag says what Report.Restored means.
const RestoredTag = "someone else had overwritten or deleted the tag " + tufstore.Tag + ", and it was restored"

// publishedFile returns the file with the digest of the newest manifest that a publisher here has published or read.
func (r *Repository) publishedFile() string { return filepath.Join(r.Dir, "publisher", "published") }

// rememberPublished notes what is published.
func (r *Repository) rememberPublished(published *tufstore.Published) error {
	file, text := r.publishedFile(), published.Digest.String()
	if data, err := bound.ReadFile(file, maxDigest); err == nil && string(data) == text {
		return nil
	}
	return state.Write(file, []byte(text), 0o600)
}

const maxDigest = 200 // bytes

// readOrRestore is read for a publisher. Anyone who can write to the repository can overwrite or delete the reserved tag;
// then the tag gets the manifest that this publisher knew last, and is read again. It reports whether it did. What is
// read is verified in either case.
func (r *Repository) readOrRestore(ctx context.Context) (c *current, restored bool, err error) {
	c, err = r.read(ctx)
	if err == nil {
		return c, false, nil
	}
	switch failure.From(err).Kind {
	case failure.Denied, failure.Invalid, failure.NotFound:
	default:
		return nil, false, err
	}
	data, readErr := bound.ReadFile(r.publishedFile(), maxDigest)
	known := digest.Digest(strings.TrimSpace(string(data)))
	if readErr != nil || known.Validate() != nil {
		return nil, false, err
	}
	if restoreErr := r.store().Restore(ctx, known); restoreErr != nil {
		return nil, false, failure.New(failure.From(err).Kind, "%w; %v", err, restoreErr).
			WithHint(failure.From(err).Hint)
	}
	c, err = r.read(ctx)
	return c, err == nil, err
}
