package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	oras "oras.land/oras-go/v2/registry"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// Limits of what is read.
const (
	maxManifest  = 2 << 20  // bytes of a manifest with a bundle, whose base64 has a third more than the bundle
	maxSignature = 64 << 10 // bytes of the manifest of a signature
	maxEnvelope  = 1 << 20  // bytes of a signature's envelope
	maxListed    = 1000     // referrers of one image
	maxText      = 200      // bytes of a text in a list
)

var (
	manifestLimits  = bound.Limits{Bytes: maxManifest, Depth: bound.Depth, Elements: 2000}
	signatureLimits = bound.Limits{Bytes: maxSignature, Depth: bound.Depth, Elements: 2000}
)

// mediaTypeArtifact is the artifact manifest of a draft of the OCI specification, which older versions of Notation
// wrote.
const mediaTypeArtifact = "application/vnd.oci.artifact.manifest.v1+json"

// errEnough ends a list that is long enough.
var errEnough = errors.New("enough")

// ErrLimit is the failure of a signature that is beyond the limits of what is read here. Other verifiers may accept it.
var ErrLimit = errors.New("it is beyond the limits of what is read")

// listed is what a list says of a referrer.
type listed struct {
	mediaType, artifactType, digest string
	size                            int64
}

// List returns the referrers of an image that have an artifact type, or all if it is "", each once and at most limit,
// in the order of the registry, and whether there may be more. Of the annotations, it returns those of the payload and
// the time. A referrer is there once more where the list says something else of it: whoever can push can write the list
// of a registry without the referrers API, and verifiers take the entry that they understand.
func List(ctx context.Context, from oras.ReferrerLister, image ocispec.Descriptor, artifactType string, limit int) (
	found []ocispec.Descriptor, more bool, err error) {
	seen := map[listed]bool{}
	err = registry.Referrers(ctx, from, image, artifactType, func(page []ocispec.Descriptor) error {
		for _, d := range page {
			if d.Digest.Validate() != nil {
				continue
			}
			kept := ocispec.Descriptor{MediaType: truncate(d.MediaType), Digest: digest.Digest(truncate(string(d.Digest))),
				Size: d.Size, ArtifactType: truncate(d.ArtifactType), Annotations: map[string]string{}}
			one := listed{kept.MediaType, kept.ArtifactType, string(kept.Digest), kept.Size}
			if seen[one] {
				continue
			}
			if len(found) == limit {
				return errEnough
			}
			for _, name := range []string{proof.AnnotationPayload, ocispec.AnnotationCreated} {
				if text, exists := d.Annotations[name]; exists {
					kept.Annotations[name] = truncate(text)
				}
			}
			seen[one] = true
			found = append(found, kept)
		}
		return nil
	})
	if errors.Is(err, errEnough) || errors.Is(err, errdef.ErrTooManyPages) {
		return found, true, nil
	}
	return found, false, err
}

// truncate returns the first bytes of a text from a registry, so that long lists take little memory. Valid digests and
// media types are shorter.
func truncate(text string) string { return strings.Clone(text[:min(len(text), maxText)]) }

// Fetch returns the bundle of a manifest that List has listed, from the manifest if it is embedded there. It verifies
// the sizes and digests, and nothing of the bundle.
func Fetch(ctx context.Context, from content.Fetcher, manifest ocispec.Descriptor) ([]byte, error) {
	if manifest.MediaType != ocispec.MediaTypeImageManifest {
		return nil, fmt.Errorf("the manifest of the bundle has the media type %.100q", manifest.MediaType)
	}
	var m ocispec.Manifest
	if err := fetchManifest(ctx, from, manifest, manifestLimits, &m); err != nil {
		return nil, fmt.Errorf("cannot read the manifest of the bundle: %w", err)
	}
	if m.ArtifactType != proof.MediaType || len(m.Layers) != 1 || m.Layers[0].MediaType != proof.MediaType {
		return nil, errors.New("the manifest is not that of one bundle of approvals")
	}
	layer := m.Layers[0]
	if layer.Data != nil && layer.Size <= proof.MaxBundle {
		if int64(len(layer.Data)) != layer.Size || digest.FromBytes(layer.Data) != layer.Digest {
			return nil, errors.New("the bundle is embedded with other content than its digest")
		}
		return bytes.Clone(layer.Data), nil
	}
	data, err := registry.Fetch(ctx, from, layer, proof.MaxBundle)
	if err != nil {
		return nil, fmt.Errorf("cannot read the bundle: %w", err)
	}
	return data, nil
}

// Signatures returns the Notation signatures of an image, at most limit, and whether there may be more.
func Signatures(ctx context.Context, from oras.ReferrerLister, image ocispec.Descriptor, limit int) (
	found []ocispec.Descriptor, more bool, err error) {
	return List(ctx, from, image, notationregistry.ArtifactTypeNotation, limit)
}

// FetchEnvelope returns the envelope of a Notation signature and its media type, by the descriptor of its manifest. It
// verifies the sizes and digests, and nothing of the envelope. It fails with ErrLimit for a signature that is too
// large, or whose manifest other verifiers read although it is beyond the limits.
func FetchEnvelope(ctx context.Context, from content.Fetcher, manifest ocispec.Descriptor) (mediaType string,
	envelope []byte, err error) {
	if manifest.MediaType != ocispec.MediaTypeImageManifest && manifest.MediaType != mediaTypeArtifact {
		return "", nil, fmt.Errorf("the manifest of the signature has the media type %.100q", manifest.MediaType)
	}
	var m struct{ Layers, Blobs []ocispec.Descriptor }
	if err := fetchManifest(ctx, from, manifest, signatureLimits, &m); err != nil {
		return "", nil, fmt.Errorf("cannot read the manifest of the signature: %w", err)
	}
	blobs := m.Layers
	if manifest.MediaType == mediaTypeArtifact {
		blobs = m.Blobs
	}
	if len(blobs) != 1 {
		return "", nil, fmt.Errorf("the manifest of the signature has %d envelopes, not 1", len(blobs))
	}
	if blobs[0].Size > maxEnvelope {
		return "", nil, fmt.Errorf("%w: its envelope has %d bytes, more than %d", ErrLimit, blobs[0].Size, maxEnvelope)
	}
	if envelope, err = registry.Fetch(ctx, from, blobs[0], maxEnvelope); err != nil {
		return "", nil, fmt.Errorf("cannot read the envelope of the signature: %w", err)
	}
	return blobs[0].MediaType, envelope, nil
}

// fetchManifest reads a manifest within limits.
func fetchManifest(ctx context.Context, from content.Fetcher, d ocispec.Descriptor, limits bound.Limits,
	into any) error {
	if d.Size > int64(limits.Bytes) {
		return fmt.Errorf("%w: it has %d bytes, more than %d", ErrLimit, d.Size, limits.Bytes)
	}
	data, err := registry.Fetch(ctx, from, d, int64(limits.Bytes))
	if err == nil {
		if err = bound.JSON(data, limits); err != nil && json.Valid(data) {
			err = fmt.Errorf("%w: %w", ErrLimit, err)
		}
	}
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	return err
}
