package image

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	c_image "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/types"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

// What is read from others is bounded: manifests as registries bound them, and what one index or image may list.
const (
	manifestLimit  = 4 << 20  // bytes
	manifestsLimit = 32 << 20 // bytes, of an index and all manifests that it lists
	imagesLimit    = 500      // in an index
	layersLimit    = 1000     // in an image; no runtime takes more than 127
	allLayersLimit = 16384    // in all images of an index
)

// A Layer is one layer of an image, as its manifest tells.
type Layer struct {
	Index       int               // counted from 0
	Digest      digest.Digest     //
	Size        int64             // bytes, as stored; -1 if the manifest does not say
	MediaType   string            //
	Encrypted   bool              //
	Recipients     []layerkey.RecipientInfo // who can open it, as far as its annotations tell; empty when they can't be read
	annotations map[string]string
}

// An Image is what a manifest holds.
type Image struct {
	Digest   digest.Digest // of the manifest
	Platform Platform      // empty if nobody says
	Layers   []Layer
	manifest []byte // kept only if it may be changed
	mimeType string
	listed   bool // whether an index lists it
}

// attestation reports whether an entry of an index is what BuildKit says about another image there, and no image.
func (i Image) attestation() bool {
	return i.listed && i.Platform.OS == "unknown" && i.Platform.Architecture == "unknown"
}

// encrypted reports whether a layer is.
func (i Image) encrypted() bool {
	return slices.ContainsFunc(i.Layers, func(l Layer) bool { return l.Encrypted })
}

// A tree is all that a reference stands for: one image, or an index and those that it lists.
type tree struct {
	reference Reference
	digest    digest.Digest // of the manifest at the top
	manifest  []byte
	mimeType  string
	index     bool
	images    []Image
}

// read reads the manifests of all images behind a source. It reads no layer.
func read(ctx context.Context, ref Reference, sys *types.SystemContext, source types.ImageSource,
	transfer *transfer) (*tree, error) {
	top, err := readManifest(ctx, ref, source, nil)
	if err != nil {
		return nil, err
	}
	t := &tree{reference: ref, digest: top.Digest, manifest: top.manifest, mimeType: top.mimeType}
	if !manifest.MIMETypeIsMultiImage(t.mimeType) {
		if err := top.readLayers(ref); err != nil {
			return nil, err
		}
		// The configuration of a single image says what it is for; an artifact has none.
		if parsed, err := c_image.FromUnparsedImage(ctx, sys, c_image.UnparsedInstance(source, nil)); err == nil {
			top.Platform = platformOf(ctx, parsed)
		}
		t.images = []Image{*top}
		return t, nil
	}
	t.index = true
	list, err := manifest.ListFromBlob(t.manifest, t.mimeType)
	if err != nil {
		return nil, malformed(ref, err)
	}
	instances := list.Instances()
	if len(instances) > imagesLimit {
		return nil, failure.New(failure.Invalid, "the index %s lists %d images, more than %d", ref, len(instances),
			imagesLimit)
	}
	total, layers := len(t.manifest), 0
	for i, instance := range instances {
		if slices.Contains(instances[:i], instance) {
			continue
		}
		if err := instance.Validate(); err != nil {
			return nil, malformed(ref, err)
		}
		image, err := readManifest(ctx, ref, source, &instance)
		if err != nil {
			return nil, err
		}
		if total += len(image.manifest); total > manifestsLimit {
			return nil, failure.New(failure.Invalid, "the manifests of %s are larger than %d MiB together", ref,
				manifestsLimit>>20)
		}
		if manifest.MIMETypeIsMultiImage(image.mimeType) {
			return nil, failure.New(failure.Unsupported, "%s lists another index, %s", ref,
				instance).
				WithHint("name the inner index by its digest")
		}
		entry, err := list.Instance(instance)
		if err != nil {
			return nil, malformed(ref, err)
		}
		if p := entry.ReadOnly.Platform; p != nil {
			image.Platform = Platform{p.OS, p.Architecture, p.Variant}
		}
		image.listed = true
		if err := image.readLayers(ref); err != nil {
			return nil, err
		}
		if layers += len(image.Layers); layers > allLayersLimit {
			return nil, failure.New(failure.Invalid, "the images of %s have more than %d layers together", ref, allLayersLimit).
				WithHint("name one of its images by its digest")
		}
		if !image.encrypted() {
			image.manifest = nil // its recipients can't be changed
		}
		t.images = append(t.images, *image)
		transfer.moved()
	}
	return t, nil
}

// platformOf returns the platform that the configuration of an image names, if it can be read. The library bounds its
// size.
func platformOf(ctx context.Context, parsed types.Image) Platform {
	blob, err := parsed.ConfigBlob(ctx)
	if err != nil || bound.JSON(blob, manifestBounds) != nil {
		return Platform{}
	}
	config, err := parsed.OCIConfig(ctx)
	if err != nil {
		return Platform{}
	}
	return Platform{config.OS, config.Architecture, config.Variant}
}

// readManifest reads one manifest and checks it against the digest that names it; nil is the one that the reference
// names.
func readManifest(ctx context.Context, ref Reference, source types.ImageSource, instance *digest.Digest) (*Image,
	error) {
	data, mimeType, err := c_image.UnparsedInstance(source, instance).Manifest(ctx)
	if err != nil {
		return nil, unreadable(ref, err)
	}
	if len(data) > manifestLimit {
		return nil, failure.New(failure.Invalid, "a manifest of %s is larger than %d MiB", ref, manifestLimit>>20)
	}
	d, err := manifest.Digest(data)
	if err != nil {
		return nil, malformed(ref, err)
	}
	if instance != nil {
		d = *instance // it may be of another algorithm
	}
	return &Image{Digest: d, manifest: data, mimeType: manifest.NormalizedMIMEType(mimeType)}, nil
}

// readLayers fills in the layers from the manifest.
func (i *Image) readLayers(ref Reference) error {
	parsed, err := manifest.FromBlob(i.manifest, i.mimeType)
	if err != nil {
		return malformed(ref, err)
	}
	layers := parsed.LayerInfos()
	if len(layers) > layersLimit {
		return failure.New(failure.Invalid, "%s has %d layers, more than %d", ref, len(layers), layersLimit)
	}
	for index, info := range layers {
		if err := info.Digest.Validate(); err != nil {
			return malformed(ref, err)
		}
		l := Layer{Index: index, Digest: info.Digest, Size: info.Size, MediaType: info.MediaType,
			annotations: info.Annotations}
		// Runtimes go by the media type: annotations alone encrypt nothing.
		if l.Encrypted = strings.HasSuffix(info.MediaType, "+encrypted"); l.Encrypted {
			l.Recipients, _ = layerkey.ReadRecipients(info.Annotations) // whoever has to open it hears what is wrong
		}
		i.Layers = append(i.Layers, l)
	}
	return nil
}

// choose keeps the images for the given platforms, all if none is given.
func (t *tree) choose(platforms []Platform) ([]Image, error) {
	if len(platforms) == 0 {
		return t.images, nil
	}
	var chosen []Image
	for _, wanted := range platforms {
		found := false
		for _, image := range t.images {
			if !image.Platform.matches(wanted) {
				continue
			}
			found = true
			if !slices.ContainsFunc(chosen, func(c Image) bool { return c.Digest == image.Digest }) {
				chosen = append(chosen, image)
			}
		}
		if !found {
			var there []string
			for _, image := range t.images {
				if p := image.Platform.String(); p != "" && !image.attestation() {
					there = append(there, p)
				}
			}
			return nil, failure.New(failure.Invalid, "%s has no image for %s",
				t.reference, wanted).
				WithHint("there are: " + strings.Join(there, ", "))
		}
	}
	return chosen, nil
}

// Layers returns the images behind a reference, one unless it is an index, with their layers.
func Layers(ctx context.Context, ref Reference, registry Registry) (images []Image, err error) {
	err = within(ctx, "reading "+ref.String(), func(ctx context.Context, transfer *transfer) error {
		sys := registry.context()
		switch ref.transport() {
		case ociarchive.Transport.Name(), dockerarchive.Transport.Name(): // are unpacked
			scratch, err := newScratch("")
			if err != nil {
				return err
			}
			defer scratch.remove(ctx)()
			scratch.use(sys)
		}
		source, err := openSource(ctx, ref, sys)
		if err != nil {
			return err
		}
		defer source.Close()
		t, err := read(ctx, ref, sys, source, transfer)
		if err != nil {
			return err
		}
		images = t.images
		return nil
	})
	return images, err
}

func unreadable(ref Reference, err error) error {
	var known *failure.Error
	if errors.As(err, &known) {
		return known
	}
	return failure.New(failure.Invalid, "can't read %s: %w", ref, err).
		WithHint("check the name; for a registry, log in ('notation login', 'skopeo login'), and see its flags")
}

func malformed(ref Reference, err error) error {
	return failure.New(failure.Invalid, "a manifest of %s is malformed: %w", ref, err).
		WithHint("get the image again from where it was published")
}
