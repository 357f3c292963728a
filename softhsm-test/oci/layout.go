package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// marker is in each layer of a test image, so that it can be looked for.
const marker = "this is the plain text of a layer"

// WriteImage adds an image, or for several platforms an index, to an OCI layout. Each image has two layers of a size in
// bytes that are "compressed" without being made smaller, so that the marker can be found in them.
func WriteImage(t testing.TB, dir, tag string, size int, platforms ...string) {
	t.Helper()
	var index ocispec.Index
	if data, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile)); err == nil {
		if err := json.Unmarshal(data, &index); err != nil {
			t.Fatal(err)
		}
	}
	index.Versioned = specs.Versioned{SchemaVersion: 2}
	var images []ocispec.Descriptor
	for _, platform := range platforms {
		images = append(images, writeOne(t, dir, tag, size, platform))
	}
	top := images[0]
	top.Platform = nil
	if len(images) > 1 {
		top = writeBlobJSON(t, dir, ocispec.MediaTypeImageIndex, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: images,
		})
	}
	top.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	index.Manifests = append(index.Manifests, top)
	softhsmtest.WriteJSON(t, filepath.Join(dir, ocispec.ImageIndexFile), index)
	softhsmtest.WriteJSON(t, filepath.Join(dir, ocispec.ImageLayoutFile),
		ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
}

func writeOne(t testing.TB, dir, tag string, size int, platform string) ocispec.Descriptor {
	t.Helper()
	system, architecture, _ := strings.Cut(platform, "/")
	p := ocispec.Platform{OS: system, Architecture: architecture}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	var plain []digest.Digest
	for _, name := range []string{"lower", "upper"} {
		text := []byte(strings.Join([]string{marker, name, tag, platform}, " ") + "\n")
		text = bytes.Repeat(text, size/len(text)+1)
		var archive, layer bytes.Buffer
		w := tar.NewWriter(&archive)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(text)
		_ = w.Close()
		z, _ := gzip.NewWriterLevel(&layer, gzip.NoCompression)
		_, _ = z.Write(archive.Bytes())
		_ = z.Close()
		plain = append(plain, digest.FromBytes(archive.Bytes()))
		m.Layers = append(m.Layers, WriteBlob(t, dir, ocispec.MediaTypeImageLayerGzip, layer.Bytes()))
	}
	m.Config = writeBlobJSON(t, dir, ocispec.MediaTypeImageConfig,
		ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: plain}})
	d := writeBlobJSON(t, dir, ocispec.MediaTypeImageManifest, m)
	d.Platform = &p
	return d
}

func writeBlobJSON(t testing.TB, dir, mediaType string, value any) ocispec.Descriptor {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return WriteBlob(t, dir, mediaType, data)
}

// WriteBlob adds a blob to an OCI layout.
func WriteBlob(t testing.TB, dir, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	softhsmtest.WriteFile(t, BlobPath(dir, d.Digest), data)
	return d
}

// BlobPath returns the path of a blob in an OCI layout.
func BlobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// ReadManifest returns the manifest of the image with a tag in an OCI layout.
func ReadManifest(t testing.TB, dir, tag string) (m ocispec.Manifest) {
	t.Helper()
	var index ocispec.Index
	softhsmtest.ReadJSON(t, filepath.Join(dir, ocispec.ImageIndexFile), &index)
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			softhsmtest.ReadJSON(t, BlobPath(dir, d.Digest), &m)
			return m
		}
	}
	t.Fatalf("%s has no image %s", dir, tag)
	return m
}

// ReplaceManifest gives a tag of an OCI layout another manifest.
func ReplaceManifest(t testing.TB, dir, tag string, m ocispec.Manifest) {
	t.Helper()
	var index ocispec.Index
	file := filepath.Join(dir, ocispec.ImageIndexFile)
	softhsmtest.ReadJSON(t, file, &index)
	for i, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			index.Manifests[i] = writeBlobJSON(t, dir, d.MediaType, m)
			index.Manifests[i].Annotations = d.Annotations
		}
	}
	softhsmtest.WriteJSON(t, file, index)
}

// LayerDigests returns those of an image in an OCI layout, whose files have to be there.
func LayerDigests(t testing.TB, dir, tag string) (digests []digest.Digest) {
	t.Helper()
	for _, l := range ReadManifest(t, dir, tag).Layers {
		data, err := os.ReadFile(BlobPath(dir, l.Digest))
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest.FromBytes(data))
	}
	return digests
}

// PlainText returns the files below a folder that hold the marker.
func PlainText(t testing.TB, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() { // else it has gone meanwhile
			if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(marker)) {
				found = append(found, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Tree lists all that is below a folder.
func Tree(t testing.TB, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}
