package tags

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// Init publishes the first metadata of a repository. The root must be signed by enough of its keys. It fails with
// Conflict if the repository has metadata already.
func (r *Repository) Init(ctx context.Context, root *tuf.RootFile, signers []*tuf.Signer) error {
	store := r.store()
	if _, err := store.Published(ctx); err == nil || failure.From(err).Kind != failure.NotFound {
		if err != nil {
			return err
		}
		return failure.New(failure.Conflict, "the repository %s has signed tags already", r.Name).
			WithHint("pin its root with 'notation-hsm trust tags add'; to begin anew, delete the tag tuf-metadata first")
	}
	made, err := tuf.Begin(ctx, root, signers)
	if err != nil {
		return err
	}
	if err := store.Publish(ctx, nil, made.Files, nil); err != nil {
		return err
	}
	_, _, err = r.View(ctx, false)
	return err
}
