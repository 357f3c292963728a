package tags

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// Init publishes the first metadata of a repository. The root must be signed by enough of its keys. It fails with
// Conflict if the repository has metadata already.
func (r *Repository) Init(ctx context.Context, root *tuf.RootFile, signers []*tuf.Signer) error {
	if err := r.CheckVacant(ctx); err != nil {
		return err
	}
	made, err := tuf.Begin(ctx, root, signers)
	if err != nil {
		return err
	}
	if err := r.store().Publish(ctx, nil, made.Files, nil); err != nil {
		return err
	}
	_, _, err = r.View(ctx, false)
	return err
}

// CheckVacant fails with Conflict if the repository has metadata already.
func (r *Repository) CheckVacant(ctx context.Context) error {
	_, err := r.store().Published(ctx)
	switch {
	case err == nil:
		return failure.New(failure.Conflict, "the repository %s has signed tags already", r.Name).
			WithHint("pin the root that its owner has: notation-hsm trust tags add " + r.Name + " --root FILE; to begin " +
				"anew, delete the tag tuf-metadata in the registry first")
	case failure.From(err).Kind == failure.NotFound:
		return nil
	}
	return err
}
