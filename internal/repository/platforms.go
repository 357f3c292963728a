package repository

import (
	"context"
	"errors"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Manifest is the manifest of an image for one platform, which the repository has.
type Manifest struct {
	Digest    string
	MediaType string
	Size      int64  // bytes of the manifest
	Platform  string // as the index claims it: OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT; "" if it claims none
}

const (
	maxImages     = 64       // images of an index
	maxImagesSize = 16 << 20 // bytes of their manifests together
)

// Manifests fetches an index in a repository and the images that it lists, and returns the images in the order of the
// index. It leaves out attestations and other artifacts, and images that the repository does not have. A manifest that
// is no index has none. It fails with Invalid if the index has more than maxImages images, or has another index in it:
// a list of some of the images could be taken for all. Otherwise it fails as Check does. A success is remembered for
// some minutes.
func (r *Registries) Manifests(ctx context.Context, repository, sum string) ([]Manifest, error) {
	a, from, err := r.find(repository, sum, "", 0)
	if err != nil {
		return nil, err
	}
	return r.lists.do(ctx, a, func(ctx context.Context) ([]Manifest, error) {
		return inSession(ctx, from, from.checks, a, func(s *session) ([]Manifest, error) { return s.platforms(ctx, a) })
	})
}

// platforms is Manifests without the cache.
func (s *session) platforms(ctx context.Context, a artifact) ([]Manifest, error) {
	data, mediaType, err := s.get(ctx, manifests, "", a.digest, 0)
	if err != nil || !isIndex(mediaType) {
		return nil, err
	}
	index, err := parse(data, mediaType)
	if err != nil {
		return nil, err
	}
	var found []Manifest
	err = s.images(ctx, a, index, func(m Manifest, _ *document) error {
		found = append(found, m)
		return nil
	})
	return found, err
}

// images calls each with the images of an index that the repository has.
func (s *session) images(ctx context.Context, a artifact, index *document, each func(Manifest, *document) error) error {
	listed, err := s.listed(a, index)
	if err != nil {
		return err
	}
	for _, d := range listed {
		data, err := s.fetchChild(ctx, manifests, d, maxManifest)
		if errors.Is(err, errAbsent) {
			continue // copied without this platform
		}
		if err != nil {
			return err
		}
		m, err := parse(data, d.MediaType)
		if err != nil {
			return err
		}
		if !known(d.Platform) && (m.Config == nil || !isImageConfig(m.Config.MediaType)) {
			continue
		}
		found := Manifest{d.Digest.String(), d.MediaType, int64(len(data)), platformText(d.Platform)}
		if err := each(found, m); err != nil {
			return err
		}
	}
	return nil
}

// listed returns the manifests of an index that may be images, each once.
func (s *session) listed(a artifact, index *document) ([]ocispec.Descriptor, error) {
	refuse := func(hint, format string, args ...any) error {
		return failure.New(failure.Invalid, "cannot list the images of index %s in repository %s: "+format,
			append([]any{a.digest, s.repository}, args...)...).WithHint(hint)
	}
	var found []ocispec.Descriptor
	seen, total := map[string]bool{}, int64(0)
	for _, d := range index.Manifests {
		switch {
		case isIndex(d.MediaType):
			return nil, refuse("name the inner index instead", "it has the index %.100q in it", d.Digest)
		case !isManifest(d.MediaType), !mayBeImage(d), seen[d.Digest.String()]:
			continue
		}
		seen[d.Digest.String()] = true
		found = append(found, d)
		if len(found) > maxImages {
			return nil, refuse("name the images one by one", "it has more than %d images", maxImages)
		}
		if d.Size <= 0 {
			return nil, refuseContent("the index says that %.100q has %d bytes", d.Digest, d.Size)
		}
		if d.Size > maxImagesSize-total {
			return nil, refuse("name the images one by one", "their manifests have more than %d bytes", maxImagesSize)
		}
		total += d.Size
	}
	return found, nil
}

// mayBeImage reports whether an entry of an index is none of an attestation or another artifact, as far as the index
// says.
func mayBeImage(d ocispec.Descriptor) bool {
	return (d.ArtifactType == "" || isImageConfig(d.ArtifactType)) && (d.Platform == nil || d.Platform.OS != "unknown")
}
