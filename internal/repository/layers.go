package repository

import (
	"context"
	"errors"

	"github.com/opencontainers/go-digest"
)

// Changes are how the layers of an image differ from those of a previous one.
type Changes struct {
	Gone   bool    // the repository has the previous image no more, so nothing is known of the changes
	Images []Image // those with new layers, and the new layers alone
	More   bool    // there are more than maxLayers new ones, so some are not in Images
	// New, Same and Removed are numbers of layers, each digest counted once. Bytes is the size of the new ones.
	New, Same, Removed int
	Bytes              int64
}

// clone returns a copy that shares nothing.
func (c *Changes) clone() *Changes {
	copied := *c
	copied.Images = cloneImages(c.Images)
	return &copied
}

// comparison is what Since is asked for.
type comparison struct {
	artifact
	previous digest.Digest
}

// Since compares the layers of an image, or of all images of an index, with those of a previous one in the same
// repository, by their digests. It takes at most some seconds, and fails as Check does. An answer is remembered for a
// minute.
func (r *Registries) Since(ctx context.Context, repository, sum, previous string) (*Changes, error) {
	a, from, err := r.find(repository, sum, "", 0)
	if err != nil {
		return nil, err
	}
	before, _, err := r.find(repository, previous, "", 0)
	if err != nil {
		return nil, err
	}
	return r.diffs.do(ctx, comparison{a, before.digest}, func(ctx context.Context) (*Changes, error) {
		return inSession(ctx, from, from.looks, a, func(s *session) (*Changes, error) { return s.since(ctx, a, before) })
	})
}

// since is Since without the cache.
func (s *session) since(ctx context.Context, a, previous artifact) (*Changes, error) {
	images, _, err := s.layers(ctx, a)
	if err != nil {
		return nil, err
	}
	old, _, err := s.layers(ctx, previous)
	if errors.Is(err, errAbsent) {
		return &Changes{Gone: true}, nil
	}
	if err != nil {
		return nil, err
	}
	return compare(images, old), nil
}

// compare returns the changes from old images to new ones.
func compare(images, old []Image) *Changes {
	before, now := map[string]bool{}, map[string]bool{}
	for _, image := range old {
		for _, layer := range image.Layers {
			before[layer.Digest] = true
		}
	}
	c := &Changes{}
	for _, image := range images {
		changed := Image{Manifest: image.Manifest}
		for _, layer := range image.Layers {
			first := !now[layer.Digest]
			now[layer.Digest] = true
			if before[layer.Digest] {
				continue
			}
			changed.Layers = append(changed.Layers, layer)
			changed.Bytes += layer.Size
			if first {
				c.New++
				c.Bytes += layer.Size
			}
		}
		if len(changed.Layers) > 0 {
			c.Images = append(c.Images, changed)
		}
	}
	c.Same = len(now) - c.New
	c.Removed = len(before) - c.Same
	c.More = cut(c.Images)
	return c
}

// layers returns the images of an index, or the image of a manifest, with their layers; and how many attestations the
// index has, which build tools put there.
func (s *session) layers(ctx context.Context, a artifact) (images []Image, attestations []Attached, err error) {
	data, mediaType, err := s.get(ctx, manifests, "", a.digest, 0)
	if err != nil {
		return nil, nil, err
	}
	if !isManifest(mediaType) && !isIndex(mediaType) {
		return nil, nil, nil
	}
	d, err := parse(data, mediaType)
	if err != nil {
		return nil, nil, err
	}
	total := int64(0)
	add := func(m Manifest, d *document) error {
		size, err := layersSize(d)
		if err != nil {
			return err
		}
		image := Image{Manifest: m, Bytes: size}
		if total += image.Bytes; total < 0 {
			return refuseContent("the sizes of its layers exceed all limits")
		}
		for _, layer := range d.Layers {
			if layer.Digest.Validate() != nil {
				return refuseContent("it has a layer with the digest %.100q", layer.Digest)
			}
			image.Layers = append(image.Layers, Layer{layer.Digest.String(), layer.Size})
		}
		images = append(images, image)
		return nil
	}
	if isManifest(mediaType) {
		err = add(Manifest{a.digest.String(), mediaType, int64(len(data)), ""}, d)
		return images, nil, err
	}
	n := 0
	for _, m := range d.Manifests {
		if m.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			n++
		}
	}
	if n > 0 {
		attestations = []Attached{{Attestation, "BuildKit", "in the index", n}}
	}
	err = s.images(ctx, a, d, add)
	return images, attestations, err
}
