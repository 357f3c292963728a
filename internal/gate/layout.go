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

	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// layout is a folder with images (an OCI image layout). Unlike the one of the ORAS library, it keeps only the index in
// memory.
type layout struct {
	folder string
	index  []ocispec.Descriptor
}

// openLayout reads the index of a layout. It fails if the index exceeds the limits.
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

// parseIndex returns the manifests in an index. It fails if the index exceeds the limits.
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

// openFile opens a regular file. It fails for all others, and does not block on a named pipe.
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

// Resolve finds an image in the index by its tag or digest. It fails if several images have the tag, since tools differ
// in which one they copy.
func (l *layout) Resolve(_ context.Context, reference string) (found ocispec.Descriptor, err error) {
	for _, d := range l.index {
		if d.Annotations[ocispec.AnnotationRefName] != reference && d.Digest.String() != reference {
			continue
		}
		if found.Digest != "" && !content.Equal(found, d) {
			return ocispec.Descriptor{}, fmt.Errorf("%q is the tag of several images; name one by its digest, oci:DIR@DIGEST",
				reference)
		}
		found = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	}
	if found.Digest == "" {
		return found, fmt.Errorf("%q: %w", reference, errdef.ErrNotFound)
	}
	return found, nil
}

// Fetch opens a blob. The caller verifies its size and digest.
func (l *layout) Fetch(_ context.Context, blob ocispec.Descriptor) (io.ReadCloser, error) {
	if err := blob.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%.100q: %w", blob.Digest, err)
	}
	return openFile(filepath.Join(l.folder, ocispec.ImageBlobsDir, blob.Digest.Algorithm().String(),
		blob.Digest.Encoded()))
}

// referrerCandidates returns the entries of an index that may be the manifest of a referrer of at most largest bytes,
// or another index. It drops annotations and other fields, which may be long in an index with many entries.
func referrerCandidates(index []ocispec.Descriptor, largest int64) (found []ocispec.Descriptor) {
	types := []string{ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, mediaTypeArtifact}
	for _, d := range index {
		if slices.Contains(types, d.MediaType) && d.Digest.Validate() == nil && d.Size >= 0 &&
			d.Size <= maxSize(d, largest) {
			found = append(found, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
		}
	}
	return found
}

// maxSize returns the largest size of an entry of an index in bytes, which is largest for a manifest.
func maxSize(d ocispec.Descriptor, largest int64) int64 {
	if d.MediaType == ocispec.MediaTypeImageIndex {
		return maxIndex
	}
	return largest
}

// Referrers calls fn for each manifest of the artifact type whose subject is the image, in the index and in the indexes
// that it contains; without an artifact type, for each signature and each bundle of approvals. It ignores manifests
// that are missing, damaged or too large, and fails if the layout exceeds the limits.
func (l *layout) Referrers(ctx context.Context, image ocispec.Descriptor, artifactType string,
	fn func([]ocispec.Descriptor) error) error {
	largest := int64(maxManifest)
	if artifactType == "" {
		largest = maxBundleManifest
	}
	queue := referrerCandidates(l.index, largest)
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
			return errLimitReached
		}
		seen[node.Digest] = true
		data, err := registry.Fetch(ctx, l, node, maxSize(node, largest))
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
			children := referrerCandidates(index, largest)
			if len(queue)+len(children) > maxNodes {
				return errLimitReached
			}
			queue = append(queue, children...)
			continue
		}
		referrer, ok := parseReferrer(data, image)
		if !ok || artifactType != "" && referrer.ArtifactType != artifactType {
			continue
		}
		node.ArtifactType, node.Annotations = referrer.ArtifactType, referrer.Annotations
		if err := fn([]ocispec.Descriptor{node}); err != nil {
			return err
		}
	}
	return nil
}

// parseReferrer returns the artifact type and the annotations of a manifest, and whether it is of a signature or a
// bundle of approvals that refers to the image, and within the limits of its type.
func parseReferrer(data []byte, image ocispec.Descriptor) (referrer ocispec.Descriptor, ok bool) {
	var m struct {
		ArtifactType string
		Config       struct{ MediaType string }
		Subject      *ocispec.Descriptor
		Annotations  map[string]string
	}
	if bound.JSON(data, bundleLimits) != nil || json.Unmarshal(data, &m) != nil || m.Subject == nil ||
		!content.Equal(*m.Subject, image) {
		return ocispec.Descriptor{}, false
	}
	referrer.Annotations = m.Annotations
	switch signature := notationregistry.ArtifactTypeNotation; {
	case m.ArtifactType == signature || m.Config.MediaType == signature:
		referrer.ArtifactType = signature
		return referrer, len(data) <= maxManifest
	case m.ArtifactType == proof.MediaType:
		referrer.ArtifactType = proof.MediaType
		return referrer, true
	}
	return ocispec.Descriptor{}, false
}
