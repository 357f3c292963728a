package migrate

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// AddState adds what is signed here already: delegations that exist stay as they are, and so do tags that have another
// digest here than in Notary.
func (p *Plan) AddState(ctx context.Context, v *tuf.View) error {
	delegations, err := v.Delegations()
	if err != nil {
		return err
	}
	for i := range p.Top {
		p.Top[i].Exists = true
	}
	if own := p.signer(tuf.Tags); own != nil {
		own.Exists = true
	}
	for _, d := range delegations {
		made := p.signer(d.Name)
		if made == nil {
			continue
		}
		made.Exists = true
		if d.Threshold != made.Threshold || !slices.Equal(d.Paths, made.Paths) {
			p.note("the delegation %s exists with other paths or another threshold, and stays as it is", d.Name)
		}
	}
	listed, err := v.List(ctx)
	if err != nil {
		return err
	}
	here := map[string]tuf.Target{}
	for _, t := range listed {
		if _, ok := here[t.Tag]; !ok {
			here[t.Tag] = t // the first role counts
		}
	}
	p.keep(func(t *Tag) bool {
		signed, ok := here[t.Tag]
		if ok && signed.Digest != t.Digest {
			p.leave(false, "it is signed here already with another digest, which stays: "+signed.Digest.String(),
				"tag %s, %s", t.Tag, t.Digest)
			return false
		}
		if ok {
			t.Signed, t.Role = true, signed.Role
		}
		return true
	})
	return nil
}

// keep removes the tags that ok does not hold for.
func (p *Plan) keep(ok func(*Tag) bool) {
	var kept []Tag
	for _, t := range p.Tags {
		if ok(&t) {
			kept = append(kept, t)
		}
	}
	p.Tags = append([]Tag{}, kept...)
	p.count()
}

const (
	lookups = 8   // images that are looked up at the same time
	batch   = 500 // images that share the limits of one repository
)

// CheckImages looks up every image in the registry. A tag whose image is not there is left out, and lost. It fails if
// the registry does not say whether an image is there.
func (p *Plan) CheckImages(ctx context.Context, registries *registry.Registries) error {
	var digests []digest.Digest
	for _, t := range p.Tags {
		digests = append(digests, t.Digest)
	}
	slices.Sort(digests)
	digests = slices.Compact(digests)
	found := map[digest.Digest]ocispec.Descriptor{}
	for some := range slices.Chunk(digests, batch) {
		if err := lookUp(ctx, registries, p.Repository, some, found); err != nil {
			return failure.New(registry.Kind(err), "cannot look up the images of %s: %w", p.Repository, err).
				WithHint("log in to the registry with 'notation login', and run this again")
		}
	}
	p.keep(func(t *Tag) bool {
		image, ok := found[t.Digest]
		if !ok {
			p.leave(true, "the registry does not have the image", "tag %s, %s", t.Tag, t.Digest)
		}
		t.Size = image.Size
		return ok
	})
	return nil
}

// lookUp adds the descriptors of the images that the registry has.
func lookUp(ctx context.Context, registries *registry.Registries, name string, digests []digest.Digest,
	found map[digest.Digest]ocispec.Descriptor) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	repository := registries.Repository(name)
	work := make(chan digest.Digest)
	var mutex sync.Mutex
	var group sync.WaitGroup
	for range lookups {
		group.Go(func() {
			for sum := range work {
				d, err := repository.Resolve(ctx, sum.String())
				if errors.Is(err, errdef.ErrNotFound) {
					continue
				}
				if err != nil {
					cancel(err)
					continue
				}
				mutex.Lock()
				found[sum] = d
				mutex.Unlock()
			}
		})
	}
	for _, sum := range digests {
		work <- sum
	}
	close(work)
	group.Wait()
	return context.Cause(ctx)
}
