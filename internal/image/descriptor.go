package image

import (
	"context"
	"maps"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/types"
)

// Which annotations an encrypted layer keeps of the plain one: those that OCI defines for people to read, such as a
// title. All others go. Many describe what is in the layer, such as the checksum and the place of its table of contents
// (zstd:chunked, eStargz), the digest and size of its uncompressed content, or another way to get it; and who invents
// the next of them will not ask here. None helps to read the encrypted layer. What begins with encryptionPrefix says
// how a layer is encrypted, which a plain one is not.
const (
	keptPrefix       = "org.opencontainers.image."
	encryptionPrefix = keptPrefix + "enc."
)

// kept returns the annotations of a plain layer that its encrypted form has as well.
func kept(annotations map[string]string) map[string]string {
	annotations = maps.Clone(annotations)
	maps.DeleteFunc(annotations, func(name, _ string) bool {
		return !strings.HasPrefix(name, keptPrefix) || strings.HasPrefix(name, encryptionPrefix)
	})
	return annotations
}

// selected returns a function that reports whether a layer, of so many, is one of those with these indices, as Encrypt
// takes them.
func selected(indices []int) func(index, layers int) bool {
	return func(index, layers int) bool {
		for _, i := range indices {
			if i == index || i+layers == index {
				return true
			}
		}
		return len(indices) == 0
	}
}

// LayerInfosForCopy returns the descriptors of an image's layers as they are to be copied, nil where they may stay:
// without URLs, since the copy library would leave a layer that has some as it is, and those that are going to be
// encrypted with kept annotations alone.
func (w *watchedSource) LayerInfosForCopy(ctx context.Context, instance *digest.Digest) ([]types.BlobInfo, error) {
	infos, err := w.ImageSource.LayerInfosForCopy(ctx, instance)
	if err != nil {
		return nil, err
	}
	changed := infos != nil
	if infos == nil {
		data, mimeType, err := w.GetManifest(ctx, instance)
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
		if w.encrypts != nil && w.encrypts(i, len(infos)) {
			after := kept(info.Annotations)
			changed = changed || len(after) != len(info.Annotations)
			info.Annotations = after
		}
	}
	if !changed {
		return nil, nil
	}
	return infos, nil
}
