package tags

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// Change signs a change of tags by the role that the signers are of: the targets keys or those of a delegation.
func (r *Repository) Change(ctx context.Context, c tuf.Change, signers []*tuf.Signer, wait time.Duration) (*Result, error) {
	now, err := r.read(ctx)
	if err != nil {
		return nil, err
	}
	role := ""
	for _, tag := range tagsIn(c) {
		found, err := now.view.RoleOf(now.pending, tag, signers)
		if err != nil {
			return nil, err
		}
		if role != "" && role != found {
			return nil, failure.New(failure.Invalid, "the tags are signed by different roles: %s and %s", role, found).
				WithHint("sign the tags of one role at a time")
		}
		role = found
	}
	return r.apply(ctx, change{role: role, signers: signers,
		amend: func(now *current) (*tuf.Amended, error) { return now.view.Amend(ctx, now.pending, role, c, signers) },
		done:  func(now *current) (bool, bool, error) { return now.view.Has(ctx, now.pending, role, c) },
	}, wait)
}

func tagsIn(c tuf.Change) (names []string) {
	for _, t := range c.Set {
		names = append(names, t.Tag)
	}
	return append(names, c.Remove...)
}

// Find returns the target of a tag as the registry has it now, or of a digest in the repository.
func (r *Repository) Find(ctx context.Context, tag, reference string) (tuf.Target, error) {
	d, err := r.Registries.Repository(r.Name).Resolve(ctx, reference)
	if err != nil {
		return tuf.Target{}, failure.New(failure.NotFound, "cannot find %s of %s in the registry: %w", reference, r.Name, err).
			WithHint("push the image before its tag is signed")
	}
	return tuf.Target{Tag: tag, Digest: d.Digest, Size: d.Size}, nil
}
