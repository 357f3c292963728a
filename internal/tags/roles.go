package tags

import (
	"context"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// Delegate adds or replaces a delegation, or removes it if it has no paths and no keys. signers are those of the
// targets keys, and of the delegation if they are there.
func (r *Repository) Delegate(ctx context.Context, d tuf.Delegation, signers []*tuf.Signer, wait time.Duration) (
	*Result, error) {
	return r.apply(ctx, change{role: tuf.Targets, signers: signers,
		amend: func(now *current) (*tuf.Amended, error) {
			return now.view.AmendDelegations(ctx, now.pending, d, signers)
		},
		done: func(now *current) (bool, bool, error) { return now.view.HasDelegation(now.pending, d) },
	}, wait)
}

// Delegation returns the published delegation of a name.
func (r *Repository) Delegation(ctx context.Context, name string) (tuf.Delegation, error) {
	v, _, err := r.View(ctx, true)
	if err != nil {
		return tuf.Delegation{}, err
	}
	all, err := v.Delegations()
	if err != nil {
		return tuf.Delegation{}, err
	}
	for _, d := range all {
		if d.Name == name {
			return d, nil
		}
	}
	return tuf.Delegation{}, failure.New(failure.NotFound, "%s has no delegation %q", r.Name, name).
		WithHint("list them: hsm-image tag status")
}

// NextRoot returns the root that follows the published one, with the keys of some roles replaced, signed by those of
// the signers that are root keys. Without replaced roles, it only expires later.
func (r *Repository) NextRoot(ctx context.Context, replaced map[string]tuf.RoleKeys, signers []*tuf.Signer) (
	*tuf.RootFile, error) {
	v, _, err := r.View(ctx, true)
	if err != nil {
		return nil, err
	}
	root, err := v.Root().Next(replaced)
	if err != nil {
		return nil, err
	}
	return root, root.SignAny(ctx, signers)
}

// ParseRoot reads a root.json that custodians have passed around, which follows the published root.
func (r *Repository) ParseRoot(ctx context.Context, data []byte) (*tuf.RootFile, error) {
	v, _, err := r.View(ctx, true)
	if err != nil {
		return nil, err
	}
	previous, err := v.Root().Encode()
	if err != nil {
		return nil, err
	}
	return tuf.ParseRoot(data, previous)
}

// ProposeRoot proposes a root with enough signatures. If it has other targets keys, signers have to have them: what the
// old ones have signed is signed again.
func (r *Repository) ProposeRoot(ctx context.Context, root *tuf.RootFile, signers []*tuf.Signer, wait time.Duration) (
	*Result, error) {
	if n := root.Lacking(); n > 0 {
		return nil, failure.New(failure.Denied, "the root lacks %d signatures", n).
			WithHint("have its custodians sign it: hsm-image tag root sign FILE --key KEY")
	}
	data, err := root.Encode()
	if err != nil {
		return nil, err
	}
	return r.apply(ctx, change{role: tuf.Root, signers: signers,
		amend: func(now *current) (*tuf.Amended, error) {
			made := &tuf.Amended{Files: map[string][]byte{}}
			if root.Replaces(now.view.Root(), tuf.Targets) {
				if made, err = now.view.AmendTargetsKeys(ctx, root, signers); err != nil {
					return nil, err
				}
				if made.Lacking > 0 {
					return nil, failure.New(failure.Denied, "%d more of the new targets keys are needed", made.Lacking).
						WithHint("name them with --key")
				}
			}
			made.Files[root.Name()] = data
			return made, nil
		},
		done: func(now *current) (bool, bool, error) { return now.view.HasRoot(now.pending, root) },
	}, wait)
}

// Renew signs the files of the signers' roles again, so that they expire later, and proposes them. Unless all is set,
// it leaves out those that have more than half of their lifetime.
func (r *Repository) Renew(ctx context.Context, signers []*tuf.Signer, all bool) ([]Result, error) {
	now, err := r.read(ctx)
	if err != nil {
		return nil, err
	}
	amended, err := now.view.Renew(ctx, now.pending, signers, all)
	if err != nil {
		return nil, err
	}
	var results []Result
	for _, a := range amended {
		if _, err := now.store.Propose(ctx, a.Files); err != nil {
			return nil, err
		}
		results = append(results, Result{Role: a.Role, Lacking: a.Lacking, Files: len(a.Files)})
	}
	return results, nil
}
