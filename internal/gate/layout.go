package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// layout is a folder with images (the OCI's image layout). Unlike the library's, it holds no more of it in memory than
// its index.
type layout struct {
	folder string
	index  []ocispec.Descriptor
}

func openLayout(folder string) (*layout, error) {
	l := &layout{folder: folder}
	file, err := openFile(filepath.Join(folder, ocispec.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxIndex+1))
	if err == nil {
		l.index, err = parseIndex(data)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the index of the OCI layout %s: %w", folder, err)
	}
	return l, nil
}

func parseIndex(data []byte) ([]ocispec.Descriptor, error) {
	if err := bound.JSON(data, indexLimits); err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, err
	}
	return index.Manifests, nil
}

// openFile opens a regular file, and does not wait for what is none.
func openFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Resolve finds an image by its tag or its digest in the index. It fails where several images have the tag: of those,
// tools that copy from the layout take one or another.
func (l *layout) Resolve(_ context.Context, reference string) (found ocispec.Descriptor, err error) {
	for _, d := range l.index {
		if d.Annotations[ocispec.AnnotationRefName] != reference && d.Digest.String() != reference {
			continue
		}
		if found.Digest != "" && !content.Equal(found, d) {
			return ocispec.Descriptor{}, fmt.Errorf("%q names several images there; name one by its digest, oci:DIR@DIGEST",
				reference)
		}
		found = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	}
	if found.Digest == "" {
		return found, fmt.Errorf("%q: %w", reference, errdef.ErrNotFound)
	}
	return found, nil
}

// Fetch opens a blob.
func (l *layout) Fetch(_ context.Context, what ocispec.Descriptor) (io.ReadCloser, error) {
	if err := what.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%.100q: %w", what.Digest, err)
	}
	return openFile(filepath.Join(l.folder, ocispec.ImageBlobsDir, what.Digest.Algorithm().String(),
		what.Digest.Encoded()))
}

// manifestsOf returns the entries of an index that may be a signature's manifest, or an index with one in it. It keeps
// nothing else of them: there are many, and the rest may be long.
func manifestsOf(index []ocispec.Descriptor) (found []ocispec.Descriptor) {
	types := []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, mediaTypeArtifact}
	for _, d := range index {
		if slices.Contains(types, d.MediaType) && d.Digest.Validate() == nil && d.Size >= 0 && d.Size <= longest(d) {
			found = append(found, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
		}
	}
	return found
}

// longest is how many bytes an entry of an index may have.
func longest(d ocispec.Descriptor) int64 {
	if d.MediaType == ocispec.MediaTypeImageIndex {
		return maxIndex
	}
	return maxManifest
}

// Referrers finds the manifests of a type that refer to an image, among those of the index and of the indexes in it.
// What is missing, or too long for a signature, is none.
func (l *layout) Referrers(ctx context.Context, image ocispec.Descriptor, artifactType string,
	fn func([]ocispec.Descriptor) error) error {
	queue := manifestsOf(l.index)
	seen := map[digest.Digest]bool{}
	left := int64(maxBytes)
	for len(queue) > 0 {
		node := queue[0]
		queue = queue[1:]
		if seen[node.Digest] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if left -= node.Size; left < 0 || len(seen) == maxNodes {
			return errEnough
		}
		seen[node.Digest] = true
		data, err := fetch(ctx, l, node, longest(node))
		switch {
		case errors.Is(err, fs.ErrPermission):
			return err
		case err != nil:
			continue
		}
		if node.MediaType == ocispec.MediaTypeImageIndex {
			index, err := parseIndex(data)
			if err != nil {
				continue
			}
			children := manifestsOf(index)
			if len(queue)+len(children) > maxNodes {
				return errEnough
			}
			queue = append(queue, children...)
			continue
		}
		var m struct {
			ArtifactType string
			Config       struct{ MediaType string }
			Subject      *ocispec.Descriptor
			Annotations  map[string]string
		}
		if bound.JSON(data, manifestLimits) != nil || json.Unmarshal(data, &m) != nil || m.Subject == nil ||
			!content.Equal(*m.Subject, image) {
			continue
		}
		if m.ArtifactType != artifactType && m.Config.MediaType != artifactType {
			continue
		}
		node.Annotations = m.Annotations
		if err := fn([]ocispec.Descriptor{node}); err != nil {
			return err
		}
	}
	return nil
}
