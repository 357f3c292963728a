package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/types"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// manifestBounds are those of manifests and indexes, and of image configurations.
var manifestBounds = bound.Limits{Bytes: manifestLimit, Depth: bound.Depth, Elements: 1 << 16}

// A checkedSource checks the structure of manifests before anything parses them, and follows no URLs in them.
type checkedSource struct {
	types.ImageSource
	ref Reference
}

// openSource prepares to read an image.
func openSource(ctx context.Context, ref Reference, sys *types.SystemContext) (types.ImageSource, error) {
	path, _, _ := ref.local()
	if ref.transport() == layout.Transport.Name() {
		if err := checkFile(filepath.Join(path, ocispec.ImageIndexFile)); err != nil {
			return nil, unreadable(ref, err)
		}
	}
	source, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return nil, unreadable(ref, err)
	}
	return &checkedSource{source, ref}, nil
}

// GetManifest returns a manifest of bounded structure; the library bounds what it downloads, and reads files whole.
func (s *checkedSource) GetManifest(ctx context.Context, instance *digest.Digest) ([]byte, string, error) {
	if err := s.checkFile(instance); err != nil {
		return nil, "", unreadable(s.ref, err)
	}
	data, mimeType, err := s.ImageSource.GetManifest(ctx, instance)
	if err != nil {
		return nil, "", err
	}
	if err := bound.JSON(data, manifestBounds); err != nil {
		return nil, "", malformed(s.ref, err)
	}
	return data, mimeType, nil
}

// GetBlob reads a blob from where the image is. The URLs that a manifest may give instead could lead anywhere.
func (s *checkedSource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser,
	int64, error) {
	info.URLs = nil
	return s.ImageSource.GetBlob(ctx, info, cache)
}

// checkFile checks the file of a manifest in a folder.
func (s *checkedSource) checkFile(instance *digest.Digest) error {
	path, _, _ := s.ref.local()
	if instance != nil {
		if err := instance.Validate(); err != nil {
			return err
		}
	}
	switch s.ref.transport() {
	case directory.Transport.Name():
		if instance != nil {
			return checkFile(filepath.Join(path, instance.Encoded()+".manifest.json"))
		}
		return checkFile(filepath.Join(path, "manifest.json"))
	case layout.Transport.Name():
		if instance == nil {
			top, err := layout.LoadManifestDescriptor(s.ref.ImageReference)
			if err != nil {
				return err
			}
			if err := top.Digest.Validate(); err != nil {
				return err
			}
			instance = &top.Digest
		}
		return checkFile(filepath.Join(path, ocispec.ImageBlobsDir, instance.Algorithm().String(), instance.Encoded()))
	}
	return nil
}

// checkFile fails if a file is there that is not one, or is too large for a manifest. Its absence is noticed when it is
// read.
func checkFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file", path)
	case info.Size() > manifestLimit:
		return fmt.Errorf("%s is larger than %d MiB", path, manifestLimit>>20)
	}
	return nil
}
