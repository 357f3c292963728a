package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/proof"
)

// BundleManifest returns the manifest that hangs a bundle of approvals on an image, for a signature with this payload.
// A layer with data has the bundle in it.
func BundleManifest(layer, image ocispec.Descriptor, payload string) (manifest []byte, annotations map[string]string,
	err error) {
	annotations = map[string]string{proof.AnnotationPayload: payload,
		ocispec.AnnotationCreated: time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)}
	manifest, err = json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: proof.MediaType, Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{layer}, Subject: &image, Annotations: annotations})
	return manifest, annotations, err
}

// PushBundle hangs a bundle of approvals on the image that a reference names in a registry.
func PushBundle(ctx context.Context, reference string, bundle []byte, payload string) error {
	repository, err := Open(reference)
	if err != nil {
		return err
	}
	image, err := repository.Resolve(ctx, repository.Reference.Reference)
	if err != nil {
		return err
	}
	if err := PushAll(ctx, repository, map[string][]byte{proof.MediaType: bundle,
		ocispec.MediaTypeEmptyJSON: ocispec.DescriptorEmptyJSON.Data}); err != nil {
		return err
	}
	layer := Descriptor(proof.MediaType, bundle)
	layer.Data = bundle
	data, _, err := BundleManifest(layer, image, payload)
	if err != nil {
		return err
	}
	return repository.Push(ctx, Descriptor(ocispec.MediaTypeImageManifest, data), bytes.NewReader(data))
}
