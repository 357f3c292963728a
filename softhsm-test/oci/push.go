package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"
)

// PushImage pushes a small image whose one layer holds text, tags it, and returns its digest. reference is like
// 127.0.0.1:5000/app:v1; the registry is spoken to over plain HTTP.
func PushImage(ctx context.Context, reference, text string) (digest.Digest, error) {
	repository, err := Open(reference)
	if err != nil {
		return "", err
	}
	manifest, err := image(ctx, repository, text)
	if err != nil {
		return "", err
	}
	return Push(ctx, repository, ocispec.MediaTypeImageManifest, manifest)
}

// PushIndex pushes an index of two images and returns its digest.
func PushIndex(ctx context.Context, reference string) (digest.Digest, error) {
	repository, err := Open(reference)
	if err != nil {
		return "", err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, architecture := range []string{"amd64", "arm64"} {
		manifest, err := image(ctx, repository, architecture)
		if err != nil {
			return "", err
		}
		entry := Descriptor(ocispec.MediaTypeImageManifest, manifest)
		entry.Platform = &ocispec.Platform{OS: "linux", Architecture: architecture}
		if err := repository.Push(ctx, entry, bytes.NewReader(manifest)); err != nil {
			return "", err
		}
		index.Manifests = append(index.Manifests, entry)
	}
	data, err := json.Marshal(index)
	if err != nil {
		return "", err
	}
	return Push(ctx, repository, ocispec.MediaTypeImageIndex, data)
}

// PushArtifact pushes an OCI artifact that is not an image (image-spec, "Guidelines for Artifact Usage") and returns
// its digest.
func PushArtifact(ctx context.Context, reference string) (digest.Digest, error) {
	repository, err := Open(reference)
	if err != nil {
		return "", err
	}
	blob := []byte(`{"components":[]}`)
	layer := Descriptor("application/vnd.example.sbom+json", blob)
	if err := PushAll(ctx, repository, map[string][]byte{layer.MediaType: blob,
		ocispec.MediaTypeEmptyJSON: ocispec.DescriptorEmptyJSON.Data}); err != nil {
		return "", err
	}
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: "application/vnd.example.sbom",
		Config:       ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{layer},
	})
	if err != nil {
		return "", err
	}
	return Push(ctx, repository, ocispec.MediaTypeImageManifest, data)
}

// Tamper pushes another image under the tag of to, and hangs the signatures of from on it, as someone would who can
// write to the registry but has no key.
func Tamper(ctx context.Context, from, to, text string) (digest.Digest, error) {
	forged, err := PushImage(ctx, to, text)
	if err != nil {
		return "", err
	}
	repository, err := Open(from)
	if err != nil {
		return "", err
	}
	signed, err := repository.Resolve(ctx, repository.Reference.Reference)
	if err != nil {
		return "", err
	}
	subject, err := repository.Resolve(ctx, forged.String())
	if err != nil {
		return "", err
	}
	moved := 0
	err = repository.Referrers(ctx, signed, "", func(referrers []ocispec.Descriptor) error {
		for _, referrer := range referrers {
			data, err := content.FetchAll(ctx, repository, referrer)
			if err != nil {
				return err
			}
			var signature ocispec.Manifest
			if err := json.Unmarshal(data, &signature); err != nil {
				return err
			}
			signature.Subject = &subject
			if data, err = json.Marshal(signature); err != nil {
				return err
			}
			if err := repository.Push(ctx, Descriptor(ocispec.MediaTypeImageManifest, data),
				bytes.NewReader(data)); err != nil {
				return err
			}
			moved++
		}
		return nil
	})
	if err == nil && moved == 0 {
		err = fmt.Errorf("%s has no signature to move", from)
	}
	return forged, err
}

// Open returns the repository of a reference, in a registry that speaks plain HTTP.
func Open(reference string) (*remote.Repository, error) {
	repository, err := remote.NewRepository(reference)
	if err != nil {
		return nil, err
	}
	repository.PlainHTTP = true
	return repository, nil
}

// image pushes the parts of an image and returns its manifest.
func image(ctx context.Context, repository *remote.Repository, text string) ([]byte, error) {
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	if err := archive.WriteHeader(&tar.Header{Name: "hello.txt", Mode: 0o644, Size: int64(len(text))}); err != nil {
		return nil, err
	}
	if _, err := archive.Write([]byte(text)); err != nil {
		return nil, err
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer.Bytes())}},
	})
	if err != nil {
		return nil, err
	}
	parts := map[string][]byte{ocispec.MediaTypeImageLayer: layer.Bytes(), ocispec.MediaTypeImageConfig: config}
	if err := PushAll(ctx, repository, parts); err != nil {
		return nil, err
	}
	return json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: Descriptor(ocispec.MediaTypeImageConfig, config),
		Layers: []ocispec.Descriptor{Descriptor(ocispec.MediaTypeImageLayer, layer.Bytes())},
	})
}

// Descriptor returns the descriptor of data.
func Descriptor(mediaType string, data []byte) ocispec.Descriptor {
	return content.NewDescriptorFromBytes(mediaType, data)
}

// PushAll pushes blobs, by their media types.
func PushAll(ctx context.Context, repository *remote.Repository, blobs map[string][]byte) error {
	for mediaType, data := range blobs {
		if err := repository.Push(ctx, Descriptor(mediaType, data), bytes.NewReader(data)); err != nil {
			return err
		}
	}
	return nil
}

// Push pushes a manifest under the repository reference's tag.
func Push(ctx context.Context, repository *remote.Repository, mediaType string, data []byte) (digest.Digest, error) {
	d := Descriptor(mediaType, data)
	return d.Digest, repository.PushReference(ctx, d, bytes.NewReader(data), repository.Reference.Reference)
}
