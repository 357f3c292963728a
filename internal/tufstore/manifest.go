package tufstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// manifestLimits are the limits of the structure of a manifest. A file has eleven elements.
var manifestLimits = bound.Limits{Bytes: maxManifest, Depth: bound.Depth, Elements: 12 * maxFiles}

// files are the descriptors of the files in a manifest, by their names.
type files map[string]ocispec.Descriptor

// describe returns the descriptor of a file.
func describe(name string, data []byte) ocispec.Descriptor {
	d := content.NewDescriptorFromBytes(fileType, data)
	d.Annotations = map[string]string{ocispec.AnnotationTitle: name}
	return d
}

// newManifest returns a manifest with an empty config and no layers.
func newManifest(artifactType string) ocispec.Manifest {
	config := ocispec.DescriptorEmptyJSON
	config.Data = nil
	return ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType, Config: config, Layers: []ocispec.Descriptor{}}
}

// encode returns the manifest with these files. The same files give the same bytes.
func (f files) encode(artifactType string) ([]byte, error) {
	if len(f) > maxFiles {
		return nil, fmt.Errorf("it would have %d files, more than %d", len(f), maxFiles)
	}
	manifest := newManifest(artifactType)
	for _, name := range slices.Sorted(maps.Keys(f)) {
		manifest.Layers = append(manifest.Layers, f[name])
	}
	data, err := json.Marshal(manifest)
	if err == nil && len(data) > maxManifest {
		err = fmt.Errorf("its manifest would have %d bytes, more than %d", len(data), maxManifest)
	}
	return data, err
}

// decode returns the files of a manifest. It fails unless the manifest has the artifact type, is within the limits, and
// describes each file under a name of its own.
func decode(data []byte, artifactType string) (files, error) {
	if err := bound.JSON(data, manifestLimits); err != nil {
		return nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	if m.MediaType != ocispec.MediaTypeImageManifest || m.ArtifactType != artifactType {
		return nil, fmt.Errorf("it has the artifact type %.100q, not %q", m.ArtifactType, artifactType)
	}
	if len(m.Layers) > maxFiles {
		return nil, fmt.Errorf("it has %d files, more than %d", len(m.Layers), maxFiles)
	}
	f := make(files, len(m.Layers))
	for _, layer := range m.Layers {
		name := layer.Annotations[ocispec.AnnotationTitle]
		if err := checkLayer(name, layer); err != nil {
			return nil, err
		}
		if _, exists := f[name]; exists {
			return nil, fmt.Errorf("it has the file %s twice", name)
		}
		f[name] = ocispec.Descriptor{MediaType: layer.MediaType, Digest: layer.Digest, Size: layer.Size,
			Annotations: map[string]string{ocispec.AnnotationTitle: name}, Data: layer.Data}
	}
	return f, nil
}

// checkLayer fails unless a layer is the descriptor of a file, and data that is embedded in it is that file.
func checkLayer(name string, layer ocispec.Descriptor) error {
	if err := checkName(name); err != nil {
		return err
	}
	switch {
	case layer.MediaType != fileType:
		return fmt.Errorf("the file %s has the media type %.100q", name, layer.MediaType)
	case layer.Digest.Validate() != nil || layer.Digest.Algorithm() != digest.SHA256:
		return fmt.Errorf("the file %s has the digest %.100q, which is not one of SHA-256", name, layer.Digest)
	case layer.Size < 0 || layer.Size > maxFile:
		return fmt.Errorf("the file %s has %d bytes, more than %d", name, layer.Size, maxFile)
	case layer.Data != nil && (int64(len(layer.Data)) != layer.Size || sum(layer.Data) != layer.Digest):
		return fmt.Errorf("the file %s is embedded with other content than its digest", name)
	}
	return nil
}

// manifest fetches the manifest of a tag with one request.
func (s *Store) manifest(ctx context.Context, tag string) ([]byte, digest.Digest, error) {
	d, reply, err := s.repository.Manifests().FetchReference(ctx, tag)
	if err != nil {
		return nil, "", err
	}
	defer reply.Close()
	if d.MediaType != ocispec.MediaTypeImageManifest {
		return nil, "", fmt.Errorf("its manifest has the media type %.100q", d.MediaType)
	}
	if d.Size > maxManifest {
		return nil, "", fmt.Errorf("its manifest has %d bytes, more than %d", d.Size, maxManifest)
	}
	data, err := content.ReadAll(reply, d)
	return data, d.Digest, err
}

// read returns a file, from its descriptor if it is embedded there. It verifies the size and the digest, and fetches
// nothing if the file has more than limit bytes.
func (s *Store) read(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Data != nil && d.Size <= limit {
		return bytes.Clone(d.Data), nil
	}
	return registry.Fetch(ctx, s.repository.Blobs(), d, limit)
}

// push uploads blobs that the repository does not have, then the empty config, then the manifest under a tag.
func (s *Store) push(ctx context.Context, blobs map[digest.Digest][]byte, manifest []byte, tag string) error {
	for _, d := range slices.Sorted(maps.Keys(blobs)) { // in an order of its own, so that failures repeat
		if err := s.pushBlob(ctx, fileType, blobs[d]); err != nil {
			return err
		}
	}
	if err := s.pushBlob(ctx, ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Data); err != nil {
		return err
	}
	d := content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, manifest)
	return s.repository.Manifests().PushReference(ctx, d, bytes.NewReader(manifest), tag)
}

// pushBlob uploads a blob, unless the repository has it.
func (s *Store) pushBlob(ctx context.Context, mediaType string, data []byte) error {
	d := content.NewDescriptorFromBytes(mediaType, data)
	exists, err := s.repository.Blobs().Exists(ctx, d)
	if err != nil || exists {
		return err
	}
	return s.repository.Blobs().Push(ctx, d, bytes.NewReader(data))
}

// check fails unless the files can be written.
func check(all map[string][]byte) error {
	if len(all) == 0 {
		return errors.New("there is no file")
	}
	for name, data := range all {
		if err := checkName(name); err != nil {
			return err
		}
		if len(data) > maxFile {
			return fmt.Errorf("the file %s has %d bytes, more than %d", name, len(data), maxFile)
		}
	}
	return nil
}
