package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	oras "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// source is a place with signatures of an image: a registry, a mirror or an OCI layout.
type source struct {
	name       string
	repository repository
	manifests  content.Fetcher
	blobs      content.Fetcher
	remote     *remote.Repository // nil for an OCI layout
	pending    <-chan listing     // the result of list, if listAhead asked for it
	close      func()             // nil if there is nothing to close
}

// repository resolves tags and lists the referrers of images.
type repository interface {
	content.Resolver
	oras.ReferrerLister
}

// listing is the manifests of an image's signatures and, if they are asked for, of its bundles of approvals.
type listing struct {
	found     []ocispec.Descriptor // signatures, newest first
	bundles   []bundleManifest     // newest first
	truncated bool                 // the source has more
	err       error
}

// newest returns the signatures that are verified.
func (l listing) newest() []ocispec.Descriptor {
	return l.found[:min(len(l.found), maxSignatures)]
}

// hasMore reports whether there are signatures that are not verified.
func (l listing) hasMore() bool { return l.truncated || len(l.found) > maxSignatures }

// errLimitReached ends a listing that is long enough.
var errLimitReached = errors.New("limit reached")

// list returns the signatures of an image, newest first, up to maxListed. With bundles, the same requests list the
// bundles of approvals too, up to maxListed.
//
// The time of a signature is the annotation org.opencontainers.image.created, as the registry repeats it. Nobody has
// authenticated it: it decides only the order of verification, and which signatures are left out if there are too many.
// Signatures without it, or with a time in the future, come last, in the order of the registry.
func (s source) list(ctx context.Context, image ocispec.Descriptor, bundles bool) (listing, error) {
	if s.pending != nil {
		select {
		case l := <-s.pending:
			return l, l.err
		case <-ctx.Done():
			return listing{}, ctx.Err()
		}
	}
	c := collector{created: map[digest.Digest]time.Time{}, now: time.Now(), all: bundles}
	artifactType := notationregistry.ArtifactTypeNotation
	if bundles {
		artifactType = "" // one list of all referrers, in place of one for each type
	}
	err := registry.Referrers(ctx, s.repository, image, artifactType, c.collect)
	if errors.Is(err, errLimitReached) || errors.Is(err, errdef.ErrTooManyPages) {
		c.truncated, err = true, nil
	}
	slices.SortStableFunc(c.found, func(a, b ocispec.Descriptor) int {
		return c.created[b.Digest].Compare(c.created[a.Digest])
	})
	slices.SortStableFunc(c.bundles, func(a, b bundleManifest) int {
		return c.created[b.Digest].Compare(c.created[a.Digest])
	})
	return c.listing, err
}

// collector makes a listing of the pages of a list.
type collector struct {
	listing
	created map[digest.Digest]time.Time
	now     time.Time
	all     bool // the list has all referrers; otherwise it has signatures alone
}

// collect adds the manifests of a page. It fails with errLimitReached when no more are listed.
func (c *collector) collect(page []ocispec.Descriptor) error {
	for _, manifest := range page {
		bundle := c.all && manifest.ArtifactType == proof.MediaType
		if c.all && !bundle && manifest.ArtifactType != notationregistry.ArtifactTypeNotation {
			continue
		}
		d := ocispec.Descriptor{MediaType: truncate(manifest.MediaType),
			Digest: digest.Digest(truncate(string(manifest.Digest))), Size: manifest.Size}
		if _, ok := c.created[d.Digest]; ok {
			continue
		}
		switch full := len(c.found) == maxListed; {
		case full && (!c.all || len(c.bundles) == maxListed):
			return errLimitReached
		case full && !bundle:
			c.truncated = true
			continue
		case bundle && len(c.bundles) == maxListed:
			continue
		}
		at, err := time.Parse(time.RFC3339, manifest.Annotations[ocispec.AnnotationCreated])
		if err != nil || at.After(c.now) {
			at = time.Time{}
		}
		c.created[d.Digest] = at
		if bundle {
			c.bundles = append(c.bundles,
				bundleManifest{d, truncate(manifest.Annotations[proof.AnnotationPayload])})
		} else {
			c.found = append(c.found, d)
		}
	}
	return nil
}

// truncate returns the first 200 bytes of a text from a registry, so that long lists take little memory. Valid digests
// and media types are shorter.
func truncate(text string) string { return strings.Clone(text[:min(len(text), 200)]) }

// listAhead returns the source with a listing of the signatures of a digest under way, and of its bundles of approvals
// if they are asked for. The image is resolved at the same time, which saves one of five round trips.
func listAhead(ctx context.Context, s source, sum digest.Digest, bundles bool) source {
	answer, plain := make(chan listing, 1), s
	go func() {
		var l listing
		if err := catchPanic(func() { l, l.err = plain.list(ctx, ocispec.Descriptor{Digest: sum}, bundles) }); err != nil {
			l = listing{err: err}
		}
		answer <- l
	}()
	s.pending = answer
	return s
}

// mediaTypeArtifact is the artifact manifest of a draft of the OCI specification, which older versions of Notation
// wrote.
const mediaTypeArtifact = "application/vnd.oci.artifact.manifest.v1+json"

// fetchSignature fetches the envelope of a signature and returns it with its media type. Sizes in descriptors are
// checked before anything is fetched, and no more than these is read.
func (s source) fetchSignature(ctx context.Context, manifest ocispec.Descriptor) (mediaType string, envelope []byte,
	err error) {
	if manifest.MediaType != ocispec.MediaTypeImageManifest && manifest.MediaType != mediaTypeArtifact {
		return "", nil, fmt.Errorf("the signature's manifest has the media type %.100q", manifest.MediaType)
	}
	data, err := registry.Fetch(ctx, s.manifests, manifest, maxManifest)
	if err == nil {
		err = bound.JSON(data, manifestLimits)
	}
	var m struct{ Layers, Blobs []ocispec.Descriptor }
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return "", nil, fmt.Errorf("cannot read the signature's manifest: %w", err)
	}
	blobs := m.Layers
	if manifest.MediaType == mediaTypeArtifact {
		blobs = m.Blobs
	}
	if len(blobs) != 1 {
		return "", nil, fmt.Errorf("the signature's manifest has %d envelopes, not 1", len(blobs))
	}
	if envelope, err = registry.Fetch(ctx, s.blobs, blobs[0], maxEnvelope); err != nil {
		return "", nil, fmt.Errorf("cannot read the signature's envelope: %w", err)
	}
	return blobs[0].MediaType, envelope, nil
}
