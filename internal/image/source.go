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

// manifestBounds are those of manifests, indexes and image configurations.
var manifestBounds = bound.Limits{Bytes: manifestLimit, Depth: bound.Depth, Elements: 1 << 16}

// A checkedSource checks the structure of manifests before anything parses them, and reads nothing from their URLs.
type checkedSource struct {
	types.ImageSource
	ref Reference
}

// openSource opens an image for reading.
func openSource(ctx context.Context, ref Reference, sys *types.SystemContext) (types.ImageSource, error) {
	path, _, _ := ref.local()
	if ref.transport() == layout.Transport.Name() {
		if err := checkFile(filepath.Join(path, ocispec.ImageIndexFile)); err != nil {
			return nil, unreadable(ref, err)
		}
	}
	if err := checkArchive(ctx, ref); err != nil {
		return nil, err
	}
	source, err := ref.NewImageSource(ctx, sys)
	if err != nil {
		return nil, unreadable(ref, err)
	}
	return &checkedSource{source, ref}, nil
}

// GetManifest returns a manifest of bounded structure. The library bounds downloads, but reads files whole, so a file
// is checked first.
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

// GetBlob returns a blob from where the image is, not from the URLs in its manifest, which could be any addresses.
func (s *checkedSource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser,
	int64, error) {
	info.URLs = nil
	return s.ImageSource.GetBlob(ctx, info, cache)
}

// checkFile checks the file of a manifest in a folder: that it is regular, and not too large.
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

// checkFile fails for a file that is not regular or too large for a manifest. For one that does not exist, reading it
// fails.
func checkFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	case info.Size() > manifestLimit:
		return fmt.Errorf("%s is larger than %d MiB", path, manifestLimit>>20)
	}
	return nil
}
