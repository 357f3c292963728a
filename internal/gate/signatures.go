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
	"oras.land/oras-go/v2/registry"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// A source is a place that an image's signatures may be in: a registry, a mirror of it, or an OCI layout.
type source struct {
	name       string
	repository repository
	manifests  content.Fetcher
	blobs      content.Fetcher
	ahead      <-chan listed // what list answers, if it was asked ahead
	close      func()        // nil if there is nothing to close
}

// repository finds images by their tags, and what refers to them.
type repository interface {
	content.Resolver
	registry.ReferrerLister
}

// listed is an image's signatures, by their manifests.
type listed struct {
	found     []ocispec.Descriptor // newest first
	truncated bool                 // there are more in the source
	err       error
}

func (l listed) newest() []ocispec.Descriptor { return l.found[:min(len(l.found), maxSignatures)] }

func (l listed) more() bool { return l.truncated || len(l.found) > maxSignatures }

var errEnough = errors.New("enough")

// list returns the signatures of an image, newest first.
//
// When one was made is what it says of itself (org.opencontainers.image.created), as the registry repeats it. This
// decides only what is looked at first, and what not at all where there are too many; so does the registry's order, for
// those that do not say or name a time to come.
func (s source) list(ctx context.Context, image ocispec.Descriptor) (listed, error) {
	if s.ahead != nil {
		select {
		case l := <-s.ahead:
			return l, l.err
		case <-ctx.Done():
			return listed{}, ctx.Err()
		}
	}
	var l listed
	created := map[digest.Digest]time.Time{}
	now := time.Now()
	err := s.repository.Referrers(context.WithValue(ctx, listing{}, true), image, notationregistry.ArtifactTypeNotation,
		func(page []ocispec.Descriptor) error {
			for _, manifest := range page {
				manifest.MediaType, manifest.Digest = begin(manifest.MediaType), digest.Digest(begin(string(manifest.Digest)))
				if _, ok := created[manifest.Digest]; ok {
					continue
				}
				if len(l.found) == maxListed {
					return errEnough
				}
				at, err := time.Parse(time.RFC3339, manifest.Annotations[ocispec.AnnotationCreated])
				if err != nil || at.After(now) {
					at = time.Time{}
				}
				created[manifest.Digest] = at
				l.found = append(l.found, ocispec.Descriptor{MediaType: manifest.MediaType, Digest: manifest.Digest,
					Size: manifest.Size})
			}
			return nil
		})
	if errors.Is(err, errEnough) || errors.Is(err, errdef.ErrTooManyPages) {
		l.truncated, err = true, nil
	}
	slices.SortStableFunc(l.found, func(a, b ocispec.Descriptor) int {
		return created[b.Digest].Compare(
			created[a.Digest])
	})
	return l, err
}

// begin returns the begin of a text that a registry gives, so that what is kept of many is short. No digest and no
// media type that is taken is longer.
func begin(text string) string { return strings.Clone(text[:min(len(text), 200)]) }

// listAhead asks for the signatures of a digest beside the question whether there is such an image: that is one wait
// less of five.
func listAhead(ctx context.Context, s source, sum digest.Digest) source {
	answer, plain := make(chan listed, 1), s
	go func() {
		var l listed
		if err := caught(func() { l, l.err = plain.list(ctx, ocispec.Descriptor{Digest: sum}) }); err != nil {
			l = listed{err: err}
		}
		answer <- l
	}()
	s.ahead = answer
	return s
}

// mediaTypeArtifact is the manifest of an artifact in a draft of the OCI's, which older versions of Notation wrote.
const mediaTypeArtifact = "application/vnd.oci.artifact.manifest.v1+json"

// fetchSignature fetches a signature's envelope. What descriptors say of a size is held against the bounds before
// anything is fetched, and nothing longer than that is read.
func (s source) fetchSignature(ctx context.Context, manifest ocispec.Descriptor) (mediaType string, envelope []byte,
	err error) {
	if manifest.MediaType != ocispec.MediaTypeImageManifest && manifest.MediaType != mediaTypeArtifact {
		return "", nil, fmt.Errorf("the signature's manifest has the media type %.100q", manifest.MediaType)
	}
	data, err := fetch(ctx, s.manifests, manifest, maxManifest)
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
	if envelope, err = fetch(ctx, s.blobs, blobs[0], maxEnvelope); err != nil {
		return "", nil, fmt.Errorf("cannot read the signature's envelope: %w", err)
	}
	return blobs[0].MediaType, envelope, nil
}

func fetch(ctx context.Context, from content.Fetcher, what ocispec.Descriptor, most int64) ([]byte, error) {
	if err := what.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%.100q: %w", what.Digest, err)
	}
	if what.Size > most {
		return nil, fmt.Errorf("it has %d bytes, more than %d", what.Size, most)
	}
	return content.FetchAll(ctx, from, what)
}
