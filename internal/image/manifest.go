package image

import (
	"context"
	"errors"
	"io/fs"
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

// The limits of manifests, which whoever publishes an image writes. That of one manifest is the usual one of
// registries.
const (
	manifestLimit  = 4 << 20  // bytes
	manifestsLimit = 32 << 20 // bytes, of an index and all manifests that it lists
	imagesLimit    = 500      // in an index
	layersLimit    = 1000     // in an image; no runtime takes more than 127
	allLayersLimit = 16384    // in all images of an index
)

// A Layer is a layer of an image, as the manifest describes it.
type Layer struct {
	Index       int // counted from 0
	Digest      digest.Digest
	Size        int64 // in bytes, as stored; -1 if the manifest does not say
	MediaType   string
	Encrypted   bool
	Recipients  []layerkey.RecipientInfo // empty if the annotations cannot be parsed
	annotations map[string]string
}

// An Image is one image, as its manifest describes it.
type Image struct {
	Digest   digest.Digest // of the manifest
	Platform Platform      // empty if neither an index nor the configuration says
	Layers   []Layer
	manifest []byte // nil if its recipients cannot be changed
	mimeType string
	listed   bool // whether an index lists it
}

// attestation reports whether an entry of an index is BuildKit's attestation of another entry.
func (i Image) attestation() bool {
	return i.listed && i.Platform.OS == "unknown" && i.Platform.Architecture == "unknown"
}

// encrypted reports whether the image has an encrypted layer.
func (i Image) encrypted() bool {
	return slices.ContainsFunc(i.Layers, func(l Layer) bool { return l.Encrypted })
}

// A tree is what a reference names: one image, or an index and the images that it lists.
type tree struct {
	reference Reference
	digest    digest.Digest // of the manifest at the top
	manifest  []byte
	mimeType  string
	index     bool
	images    []Image
}

// read reads the manifests of all images of a source. It reads no layer.
func read(ctx context.Context, ref Reference, sys *types.SystemContext, source types.ImageSource,
	timer *stallTimer) (*tree, error) {
	top, err := readManifest(ctx, ref, source, nil)
	if err != nil {
		return nil, err
	}
	t := &tree{reference: ref, digest: top.Digest, manifest: top.manifest, mimeType: top.mimeType}
	if !manifest.MIMETypeIsMultiImage(t.mimeType) {
		if err := top.readLayers(ref); err != nil {
			return nil, err
		}
		// The configuration of a single image has the platform; an artifact has no configuration.
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
			imagesLimit).WithHint("name one of its images by its digest")
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
				manifestsLimit>>20).WithHint("name one of its images by its digest")
		}
		if manifest.MIMETypeIsMultiImage(image.mimeType) {
			return nil, failure.New(failure.Unsupported, "%s lists another index, %s", ref, instance).
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
			image.manifest = nil // it has no recipients to change
		}
		t.images = append(t.images, *image)
		timer.progress()
	}
	return t, nil
}

// platformOf returns the platform in the configuration of an image, or an empty one if it cannot be parsed. The library
// bounds the configuration's size.
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

// readManifest reads a manifest and checks it against its digest. With instance nil, it is the manifest that the
// reference names.
func readManifest(ctx context.Context, ref Reference, source types.ImageSource, instance *digest.Digest) (*Image,
	error) {
	data, mimeType, err := c_image.UnparsedInstance(source, instance).Manifest(ctx)
	if err != nil {
		return nil, unreadable(ref, err)
	}
	if len(data) > manifestLimit {
		return nil, failure.New(failure.Invalid, "a manifest of %s is larger than %d MiB", ref, manifestLimit>>20).
			WithHint(hintImage)
	}
	d, err := manifest.Digest(data)
	if err != nil {
		return nil, malformed(ref, err)
	}
	if instance != nil {
		d = *instance // it may have another algorithm
	}
	return &Image{Digest: d, manifest: data, mimeType: manifest.NormalizedMIMEType(mimeType)}, nil
}

// readLayers sets the layers from the manifest.
func (i *Image) readLayers(ref Reference) error {
	parsed, err := manifest.FromBlob(i.manifest, i.mimeType)
	if err != nil {
		return malformed(ref, err)
	}
	layers := parsed.LayerInfos()
	if len(layers) > layersLimit {
		return failure.New(failure.Invalid, "%s has %d layers, more than %d", ref, len(layers), layersLimit).
			WithHint(hintImage)
	}
	for index, info := range layers {
		if err := info.Digest.Validate(); err != nil {
			return malformed(ref, err)
		}
		l := Layer{Index: index, Digest: info.Digest, Size: info.Size, MediaType: info.MediaType,
			annotations: info.Annotations}
		// Runtimes decide by the media type, not by annotations.
		if l.Encrypted = strings.HasSuffix(info.MediaType, "+encrypted"); l.Encrypted {
			l.Recipients, _ = layerkey.ReadRecipients(info.Annotations) // opening the layer reports the failure
		}
		i.Layers = append(i.Layers, l)
	}
	return nil
}

// forPlatforms returns the images for some platforms, or all images if there is no platform. It fails with NotFound for
// a platform without an image.
func (t *tree) forPlatforms(platforms []Platform) ([]Image, error) {
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
			return nil, failure.New(failure.NotFound, "%s has no image for %s", t.reference, wanted).
				WithHint("use one of its platforms: " + strings.Join(t.platforms(), ", "))
		}
	}
	return chosen, nil
}

// platforms returns the platforms of the images.
func (t *tree) platforms() (names []string) {
	for _, image := range t.images {
		if p := image.Platform.String(); p != "" && !image.attestation() {
			names = append(names, p)
		}
	}
	return names
}

// Layers returns the images that a reference names, more than one for an index, with their layers.
func Layers(ctx context.Context, ref Reference, registry Registry) (images []Image, err error) {
	err = withStallTimer(ctx, "reading "+ref.String(), func(ctx context.Context, timer *stallTimer) error {
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
		t, err := read(ctx, ref, sys, source, timer)
		if err != nil {
			return err
		}
		images = t.images
		return nil
	})
	return images, err
}

// hintImage is what to do about a manifest that no builder makes.
const hintImage = "get the image again from where it was published"

// unreadable returns the failure of an image that cannot be read.
func unreadable(ref Reference, err error) error {
	var known *failure.Error
	if errors.As(err, &known) {
		return known
	}
	kind := failure.Invalid
	if errors.Is(err, fs.ErrNotExist) {
		kind = failure.NotFound
	}
	return failure.New(kind, "cannot read %s: %w", ref, err).
		WithHint("check the name; for a registry, log in ('notation login', 'skopeo login'), and see its flags")
}

// malformed returns the failure of an image with a manifest that cannot be parsed, or is out of bounds.
func malformed(ref Reference, err error) error {
	return failure.New(failure.Invalid, "a manifest of %s is malformed: %w", ref, err).WithHint(hintImage)
}
