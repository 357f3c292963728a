package tags

import (
	"context"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// Change signs a change of tags by the role that the signers are of: the targets keys or those of a delegation. It
// fails with NotFound if the change only removes tags that the role does not sign.
func (r *Repository) Change(ctx context.Context, c tuf.Change, signers []*tuf.Signer, wait time.Duration) (*Result,
	error) {
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
	if len(c.Remove) > 0 {
		absent, _, err := now.view.Has(ctx, now.pending, role, c)
		if err != nil {
			return nil, err
		}
		if absent {
			return nil, failure.New(failure.NotFound, "the role %s of %s does not sign %s", role, r.Name,
				strings.Join(tagsIn(c), ", ")).WithHint("list the tags, and who signs them: hsm-image tag list " + r.Name)
		}
	}
	return r.ChangeRole(ctx, role, c, signers, wait)
}

// ChangeRole signs a change of the tags of a role.
func (r *Repository) ChangeRole(ctx context.Context, role string, c tuf.Change, signers []*tuf.Signer,
	wait time.Duration) (*Result, error) {
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

// Find returns the target of a tag as the registry has it now, or of a digest in the repository. It fails with NotFound
// if the registry does not have it.
func (r *Repository) Find(ctx context.Context, tag, reference string) (tuf.Target, error) {
	d, err := r.Registries.Repository(r.Name).Resolve(ctx, reference)
	if err != nil {
		kind := registry.Kind(err)
		failed := failure.New(kind, "cannot find %s of %s in the registry: %w", reference, r.Name, err)
		switch kind {
		case failure.NotFound:
			return tuf.Target{}, failed.WithHint("push the image before its tag is signed")
		case failure.Denied:
			return tuf.Target{}, failed.WithHint("log in with 'notation login', as a user who may read the repository")
		}
		return tuf.Target{}, failed.WithHint("check the registry and the network, and try again")
	}
	return tuf.Target{Tag: tag, Digest: d.Digest, Size: d.Size}, nil
}
