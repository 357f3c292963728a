package migrate

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// Signer is a role that signs tags here.
type Signer struct {
	Keys     tuf.RoleKeys  // all keys of the role
	Signers  []*tuf.Signer // those that sign here
	Notation *Notation     // with the first of them
}

// Apply are the means to apply a plan.
type Apply struct {
	Repository *tags.Repository // with the pinned root
	Manifest   string           // the trust manifest
	Root       *tuf.RootFile    // the pinned root, if it may have to be published
	Signers    map[string]Signer
	Others     []*tuf.Signer // keys of root, targets, snapshot and timestamp that sign here
	Wait       time.Duration // for the publisher
	Tell       func(format string, args ...any)
}

// maxChange is how many tags are published at once.
const maxChange = 500

// Check fails unless the keys are enough for what a plan makes.
func (a *Apply) Check(p *Plan) error {
	for _, made := range p.Signers {
		s, given := a.Signers[made.Name]
		if !given {
			if made.Tags > 0 && p.unsigned(made.Name) {
				return failure.New(failure.Invalid, "no key of the role %s is given, and it has to sign tags", made.Name).
					WithHint("name it with " + flagOf(made.Name))
			}
			continue
		}
		if made.Exists {
			continue // its keys are checked when they sign
		}
		if len(s.Signers) < made.Threshold {
			return failure.New(failure.Invalid, "%s needs %d of its keys in Notary, and %d of those given sign here",
				made.From, made.Threshold, len(s.Signers)).WithHint("name as many keys with " + flagOf(made.Name) +
				"; for a lower threshold, make the role first with 'hsm-image tag init' or 'tag delegate add'")
		}
	}
	return nil
}

// unsigned reports whether a role has tags that are not signed yet.
func (p *Plan) unsigned(role string) bool {
	return slices.ContainsFunc(p.Tags, func(t Tag) bool { return t.Role == role && !t.Signed })
}

func flagOf(role string) string {
	if role == tuf.Tags {
		return "--targets KEY"
	}
	return "--signer " + role + "=KEY"
}

// Run applies a plan: it publishes the root if nothing is published, makes the delegations, trusts their signers, signs
// the images, and then the tags. What is done already it leaves, so that it goes on after an interruption, and does
// nothing when all is done.
func (a *Apply) Run(ctx context.Context, p *Plan) error {
	if err := a.Check(p); err != nil {
		return err
	}
	if err := a.begin(ctx); err != nil {
		return err
	}
	for _, made := range p.Signers {
		if err := a.delegate(ctx, made); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Signers)) {
		if err := a.trust(ctx, p, name); err != nil {
			return err
		}
	}
	if err := a.signImages(ctx, p); err != nil {
		return err
	}
	return a.signTags(ctx, p)
}

// begin publishes the first metadata, unless there are some. It does not if metadata of the repository were seen
// before: then the registry has lost them, or hides them.
func (a *Apply) begin(ctx context.Context) error {
	_, _, err := a.Repository.View(ctx, true)
	if err == nil || failure.From(err).Kind != failure.NotFound || a.Root == nil {
		return err
	}
	if _, statErr := os.Stat(filepath.Join(a.Repository.Dir, tuf.Timestamp+".json")); statErr == nil {
		return err
	}
	if err := a.Repository.Init(ctx, a.Root, a.all()); err != nil {
		return err
	}
	a.Tell("published the first metadata of %s", a.Repository.Name)
	return nil
}

// all returns all keys that sign here.
func (a *Apply) all() []*tuf.Signer {
	all := slices.Clone(a.Others)
	for _, name := range slices.Sorted(maps.Keys(a.Signers)) {
		all = append(all, a.Signers[name].Signers...)
	}
	return all
}

// delegate makes a delegation, unless it exists.
func (a *Apply) delegate(ctx context.Context, made Made) error {
	s, given := a.Signers[made.Name]
	if made.Exists || !given || made.Name == tuf.Tags {
		return nil
	}
	keys := s.Keys
	keys.Threshold = made.Threshold
	signers := slices.Concat(a.Others, s.Signers)
	result, err := a.Repository.Delegate(ctx, tuf.Delegation{Name: made.Name, Paths: made.Paths, RoleKeys: keys}, signers,
		a.Wait)
	if err != nil {
		return err
	}
	return a.published(result, "delegation "+made.Name)
}

// published tells about a change, or fails if it is not published.
func (a *Apply) published(result *tags.Result, what string) error {
	switch {
	case result.Published:
		a.Tell("published: %s", what)
		return nil
	case result.Lacking > 0:
		return failure.New(failure.Denied, "%s is proposed, and lacks %d signatures", what, result.Lacking).
			WithHint("give as many keys as the threshold of the role " + result.Role + " says, and run this again")
	}
	return failure.New(failure.Timeout, "%s is proposed, and not published yet", what).
		WithHint("give --snapshot and --timestamp, or start the publisher; then run this again, which goes on")
}

// trust allows a signer in the trust manifest to sign in the repository, with the paths of its delegation.
func (a *Apply) trust(ctx context.Context, p *Plan, name string) error {
	n := a.Signers[name].Notation
	if n == nil {
		return nil
	}
	cert, err := trust.FromChain(n.chain)
	if err != nil {
		return err
	}
	grant := trust.Grant{Name: name, Scopes: []string{p.Repository}, Cert: cert}
	if made := p.signer(name); name == tuf.Tags {
		grant.Name = tuf.Targets
	} else if made != nil {
		grant.Paths = made.Paths
	}
	signer, added, err := trust.Enroll(ctx, a.Manifest, grant)
	if err == nil && added {
		a.Tell("trusted: signer %s in %s, fingerprint %s", signer.Name, a.Manifest, signer.Fingerprint)
	}
	return err
}

// signImages signs the image of each tag under the signer of its role, unless it is signed.
func (a *Apply) signImages(ctx context.Context, p *Plan) error {
	for _, name := range slices.Sorted(maps.Keys(a.Signers)) {
		n := a.Signers[name].Notation
		if n == nil {
			continue
		}
		var images []digest.Digest
		for _, t := range p.Tags {
			if t.Role == name {
				images = append(images, t.Digest)
			}
		}
		slices.Sort(images)
		images = slices.Compact(images)
		done := 0
		for some := range slices.Chunk(images, batch) {
			repository := a.Repository.Registries.Repository(a.Repository.Name)
			for _, image := range some {
				signed, err := n.sign(ctx, repository, image)
				if err != nil {
					return err
				}
				if signed {
					done++
				}
			}
		}
		if done > 0 {
			a.Tell("signed %d images with the key of %s", done, name)
		}
	}
	return nil
}

// signTags signs the tags of each role.
func (a *Apply) signTags(ctx context.Context, p *Plan) error {
	for _, made := range p.Signers {
		var targets []tuf.Target
		for _, t := range p.Tags {
			if t.Role == made.Name && !t.Signed {
				targets = append(targets, tuf.Target{Tag: t.Tag, Digest: t.Digest, Size: t.Size})
			}
		}
		signers := slices.Concat(a.Others, a.Signers[made.Name].Signers)
		for some := range slices.Chunk(targets, maxChange) {
			result, err := a.Repository.ChangeRole(ctx, made.Name, tuf.Change{Set: some}, signers, a.Wait)
			if err != nil {
				return err
			}
			if err := a.published(result, fmt.Sprintf("%d tags of the role %s", len(some), made.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}
