package image

import (
	"context"
	"maps"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
)

// An encrypted layer keeps those annotations of the plain one that OCI defines for people to read, such as a title:
// those with keptPrefix. All others are removed. Many describe the layer's content, such as the checksum and the place
// of its table of contents (zstd:chunked, eStargz) or the digest and size of the uncompressed content, or give another
// way to get it; tools invent new ones, and none helps to read the encrypted layer. Names with encryptionPrefix
// describe how a layer is encrypted.
const (
	keptPrefix       = "org.opencontainers.image."
	encryptionPrefix = keptPrefix + "enc."
)

// keptAnnotations returns the annotations of a plain layer that the encrypted layer keeps.
func keptAnnotations(annotations map[string]string) map[string]string {
	annotations = maps.Clone(annotations)
	maps.DeleteFunc(annotations, func(name, _ string) bool {
		return !strings.HasPrefix(name, keptPrefix) || strings.HasPrefix(name, encryptionPrefix)
	})
	return annotations
}

// layerSelector returns a function that reports whether a layer, of so many, has one of these indices, as in Encrypt.
func layerSelector(indices []int) func(index, layers int) bool {
	return func(index, layers int) bool {
		for _, i := range indices {
			if i == index || i+layers == index {
				return true
			}
		}
		return len(indices) == 0
	}
}

// LayerInfosForCopy returns the descriptors of an image's layers for the copy, or nil if they stay the same. It removes
// URLs, since the copy library neither encrypts nor decrypts a layer with URLs, and all but the kept annotations of
// layers that are going to be encrypted.
func (s *copySource) LayerInfosForCopy(ctx context.Context, instance *digest.Digest) ([]types.BlobInfo, error) {
	infos, err := s.ImageSource.LayerInfosForCopy(ctx, instance)
	if err != nil {
		return nil, err
	}
	changed := infos != nil
	if infos == nil {
		data, mimeType, err := s.GetManifest(ctx, instance)
		if err != nil {
			return nil, err
		}
		parsed, err := manifest.FromBlob(data, manifest.NormalizedMIMEType(mimeType))
		if err != nil {
			return nil, err
		}
		for _, layer := range parsed.LayerInfos() {
			infos = append(infos, layer.BlobInfo)
		}
	}
	for i := range infos {
		info := &infos[i]
		changed = changed || len(info.URLs) > 0
		info.URLs = nil
		if s.encrypts != nil && s.encrypts(i, len(infos)) {
			after := keptAnnotations(info.Annotations)
			changed = changed || len(after) != len(info.Annotations)
			info.Annotations = after
		}
	}
	if !changed {
		return nil, nil
	}
	return infos, nil
}
