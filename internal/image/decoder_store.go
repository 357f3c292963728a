package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

// A contentStore is the folder of containerd's content store: a file for each blob that it downloaded, by digest. The
// blobs of an image are complete and verified before its layers are unpacked.
type contentStore string

// file returns the path of a blob.
func (s contentStore) file(d digest.Digest) string {
	return filepath.Join(string(s), "blobs", d.Algorithm().String(), d.Encoded())
}

// candidatesLimit is how many descriptors of a layer are tried. For each, a key in the module is used, and the whole
// layer may be decrypted.
const candidatesLimit = 64

// layersStartingWith returns the descriptors of all encrypted layers of a media type that start with head, or are head
// if it is shorter than headSize. There are several when manifests differ in the layer's recipients, or when a manifest
// means to mislead. It fails with Invalid when there is none, or too many.
func (s contentStore) layersStartingWith(head []byte, mediaType string) ([]ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	err := filepath.WalkDir(filepath.Join(string(s), "blobs"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		// Of one manifest, the first descriptor of a layer counts: to have many tried takes many manifests in the store.
		seen := map[digest.Digest]bool{}
		for _, layer := range layersOf(path) {
			if layer.MediaType != mediaType || !layerkey.Encrypted(layer.Annotations) || layer.Digest.Validate() != nil ||
				seen[layer.Digest] {
				continue
			}
			seen[layer.Digest] = true
			same := func(other ocispec.Descriptor) bool {
				return other.Digest == layer.Digest && maps.Equal(other.Annotations, layer.Annotations)
			}
			if slices.ContainsFunc(found, same) || !startsWith(s.file(layer.Digest), head) {
				continue
			}
			if found = append(found, layer); len(found) > candidatesLimit {
				return fmt.Errorf("its manifests describe layers that begin like this one in more than %d ways",
					candidatesLimit)
			}
		}
		return nil
	})
	if err == nil && len(found) == 0 {
		err = errors.New("no manifest there has this layer")
	}
	if err != nil {
		return nil, failure.New(failure.Invalid,
			"containerd does not say which layer this is, and it is not found in %s: %w", s, err).
			WithHint("name containerd's root folder with --root, and pull the image again")
	}
	return found, nil
}

// open opens the files of candidates. It leaves out those that cannot be opened.
func (s contentStore) open(candidates []candidate) map[digest.Digest]*os.File {
	files := map[digest.Digest]*os.File{}
	for _, c := range candidates {
		if files[c.Digest] != nil {
			continue
		}
		if f, err := os.Open(s.file(c.Digest)); err == nil {
			files[c.Digest] = f
		}
	}
	return files
}

// closeAll closes files.
func closeAll(files map[digest.Digest]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// authenticated reads a layer to its end, and returns the candidate whose digest and HMAC it has, with its file from
// the content store, to be read from the start. Whoever published an image that was pulled can have put other
// candidates into the store, for this layer or for one that starts with the same bytes.
func authenticated(encrypted io.Reader, candidates []candidate,
	files map[digest.Digest]*os.File) (*os.File, candidate, error) {
	verifiers := map[digest.Digest]digest.Verifier{}
	var all []io.Writer
	for _, c := range candidates {
		if verifiers[c.Digest] == nil {
			verifiers[c.Digest] = c.Digest.Verifier()
			all = append(all, verifiers[c.Digest])
		}
	}
	if _, err := io.Copy(io.MultiWriter(all...), encrypted); err != nil {
		return nil, candidate{}, noLayer(err)
	}
	name := candidates[0].Digest
	for _, c := range candidates {
		if !verifiers[c.Digest].Verified() {
			continue
		}
		name = c.Digest
		f := files[c.Digest]
		if f == nil {
			return nil, c, failure.New(failure.NotFound, "layer %s is no longer in containerd's content store", c.Digest).
				WithHint("pull the image again")
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil, c, failure.New(failure.Unavailable, "cannot read layer %s in containerd's content store: %w",
				c.Digest, err).
				WithHint("pull the image again")
		}
		plain, err := c.decrypt(f)
		if err == nil {
			_, err = io.Copy(io.Discard, plain)
		}
		if err == nil {
			_, err = f.Seek(0, io.SeekStart)
		}
		if err == nil {
			return f, c, nil
		}
	}
	return nil, candidate{}, damagedLayer(name, errors.New("no manifest has its HMAC"))
}

// layersOf returns the layers of a manifest, or none for a file that is no manifest.
func layersOf(path string) []ocispec.Descriptor {
	f, err := os.Open(path)
	if err != nil {
		return nil // containerd has removed it
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() > manifestLimit {
		return nil
	}
	first := make([]byte, 1)
	if _, err := f.Read(first); err != nil || first[0] != '{' {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(f, manifestLimit))
	if err != nil {
		return nil
	}
	var manifest struct {
		ocispec.Manifest
		RootFS json.RawMessage `json:"rootfs"` // of an image's configuration, which may have any other names too
	}
	data = append(first, data...)
	if bound.JSON(data, manifestBounds) != nil || json.Unmarshal(data, &manifest) != nil ||
		len(manifest.Layers) > layersLimit || manifest.RootFS != nil || manifest.Config.Digest == "" ||
		// other types have no place for wrapped keys
		manifest.MediaType != "" && manifest.MediaType != ocispec.MediaTypeImageManifest {
		return nil
	}
	return manifest.Layers
}

// startsWith reports whether the first headSize bytes of a file are head.
func startsWith(path string, head []byte) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	begin := make([]byte, headSize)
	n, err := io.ReadFull(f, begin)
	return (err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)) && bytes.Equal(begin[:n], head)
}
