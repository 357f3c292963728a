package image

import (
	"encoding/json"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	c_copy "go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

// TestNoPlainAnnotations encrypts layers that were made as zstd:chunked, with more annotations beside, a copy of their
// content in the descriptor and addresses to get them from: the encrypted ones are encrypted, keep what people read and
// nothing else, and open again. A layer that is not encrypted stays as it is.
func TestNoPlainAnnotations(t *testing.T) {
	module := newModule(t)
	source := newOCIFolder(t)
	contents := []string{tarOf(t, "one"), tarOf(t, "two")}
	ref := chunked(t, source, contents)
	var m ocispec.Manifest
	source.readManifest(ref, &m)
	for i := range m.Layers {
		l := &m.Layers[i]
		if l.Annotations["io.github.containers.zstd-chunked.manifest-checksum"] == "" ||
			!strings.HasSuffix(l.MediaType, "+zstd") {
			t.Fatalf("the layer is not zstd:chunked: %+v", l)
		}
		l.Data, l.URLs = []byte("plain"), []string{"https://registry.example.com/plain"}
		maps.Copy(l.Annotations, map[string]string{
			"io.containers.zstd-chunked.manifest-checksum": "x", "io.containers.estargz.uncompressed-size": "1",
			"containerd.io/uncompressed": "x", "com.example.anything": "x", "org.opencontainers.image.title": "a title",
			"org.opencontainers.image.enc.keys.jwe": "e30=", "org.opencontainers.image.enc.pubopts": "e30=",
		})
	}
	// No layer has both.
	delete(m.Layers[1].Annotations, "io.github.containers.zstd-chunked.manifest-checksum")
	m.Layers[1].Annotations["containerd.io/snapshot/stargz/toc.digest"] = string(digest.FromString("toc"))
	ref = source.finish(source.addJSON(ocispec.MediaTypeImageManifest, m), 0)
	before := slices.Clone(m.Layers)
	for name, indices := range map[string][]int{"all": nil, "last": {-1}, "first": {0}} {
		t.Run(name, func(t *testing.T) {
			folder := newOCIFolder(t)
			to, plain := Copy{From: ref, To: mustParse(t, "oci:"+folder.dir+"/encrypted")},
				mustParse(t, "oci:"+folder.dir+"/plain")
			if _, err := Encrypt(t.Context(), module.Keystore(), to, []string{imagesKey}, indices); err != nil {
				t.Fatal(err)
			}
			var after ocispec.Manifest
			encrypted := &ociFolder{t: t, dir: folder.dir + "/encrypted"}
			encrypted.readManifest(to.To, &after)
			for i, l := range after.Layers {
				names := slices.Sorted(maps.Keys(l.Annotations))
				switch wanted := layerSelector(indices)(i, 2); {
				case len(l.URLs) > 0 || l.Data != nil:
					t.Errorf("layer %d has %v and %q", i, l.URLs, l.Data)
				case wanted && !slices.Equal(names, []string{"org.opencontainers.image.enc.keys.provider.hsm", pubopts,
					"org.opencontainers.image.title"}):
					t.Errorf("layer %d has the annotations %q", i, names)
				case wanted != strings.HasSuffix(l.MediaType, "+zstd+encrypted"):
					t.Errorf("layer %d is %s", i, l.MediaType)
				case !wanted && (!maps.Equal(l.Annotations, before[i].Annotations) || l.Digest != before[i].Digest):
					t.Errorf("layer %d became %+v", i, l)
				case wanted && l.Digest == before[i].Digest:
					t.Errorf("layer %d is not encrypted", i)
				}
			}
			if name != "all" {
				return
			}
			if _, err := Decrypt(t.Context(), module.Keystore(), Copy{From: to.To, To: plain}, []string{imagesKey}); err != nil {
				t.Fatal(err)
			}
			opened := &ociFolder{t: t, dir: folder.dir + "/plain"}
			opened.readManifest(plain, &after)
			for i, l := range after.Layers {
				if got := opened.decompressed(l.Digest); got != contents[i] {
					t.Errorf("layer %d opened to %d bytes, not %d", i, len(got), len(contents[i]))
				}
			}
		})
	}
}

// TestDecryptWithURLs decrypts a layer that has URLs, which the copy library would leave encrypted.
func TestDecryptWithURLs(t *testing.T) {
	module := newModule(t)
	source, folder := newOCIFolder(t), newOCIFolder(t)
	encrypted := mustParse(t, "oci:"+folder.dir+"/encrypted")
	c := Copy{From: chunked(t, source, []string{tarOf(t, "one")}), To: encrypted}
	if _, err := Encrypt(t.Context(), module.Keystore(), c, []string{imagesKey}, nil); err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	changed := &ociFolder{t: t, dir: folder.dir + "/encrypted"}
	changed.readManifest(encrypted, &m)
	m.Layers[0].URLs = []string{"https://registry.example.com/layer"}
	ref, plain := changed.finish(changed.addJSON(ocispec.MediaTypeImageManifest, m), 0),
		mustParse(t, "oci:"+folder.dir+"/plain")
	if _, err := Decrypt(t.Context(), module.Keystore(), Copy{From: ref, To: plain}, []string{imagesKey}); err != nil {
		t.Fatal(err)
	}
	(&ociFolder{t: t, dir: folder.dir + "/plain"}).readManifest(plain, &m)
	if strings.HasSuffix(m.Layers[0].MediaType, "+encrypted") || len(m.Layers[0].URLs) > 0 {
		t.Errorf("it became %+v", m.Layers[0])
	}
}

// chunked writes an image with layers in zstd:chunked, made by the library that skopeo and podman make them with, into
// a folder.
func chunked(t *testing.T, to *ociFolder, contents []string) Reference {
	t.Helper()
	from := newOCIFolder(t)
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	var m ocispec.Manifest
	m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
	for _, content := range contents {
		m.Layers = append(m.Layers, from.add(ocispec.MediaTypeImageLayer, content))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromString(content))
	}
	config.RootFS.Type = "layers"
	m.Config = from.addJSON(ocispec.MediaTypeImageConfig, config)
	policy, err := signature.NewPolicyContext(
		&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = policy.Destroy() }()
	source, target := from.finish(from.addJSON(m.MediaType, m), 0), mustParse(t, "oci:"+to.dir)
	scratch := t.TempDir()
	if _, err := c_copy.Image(t.Context(), policy, target.ImageReference, source.ImageReference, &c_copy.Options{
		SourceCtx:              &types.SystemContext{BlobInfoCacheDir: scratch},
		DestinationCtx:         &types.SystemContext{BlobInfoCacheDir: scratch, CompressionFormat: &compression.ZstdChunked},
		ForceCompressionFormat: true,
	}); err != nil {
		t.Fatal(err)
	}
	return target
}

func mustParse(t testing.TB, text string) Reference {
	t.Helper()
	ref, err := ParseReference(text)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// readManifest reads the manifest of the folder's image.
func (f *ociFolder) readManifest(ref Reference, m *ocispec.Manifest) {
	f.t.Helper()
	top, err := layout.LoadManifestDescriptor(ref.ImageReference)
	if err != nil {
		f.t.Fatal(err)
	}
	*m = ocispec.Manifest{}
	if err := json.Unmarshal([]byte(f.read(top.Digest)), m); err != nil {
		f.t.Fatal(err)
	}
}

func (f *ociFolder) read(d digest.Digest) string {
	f.t.Helper()
	data, err := os.ReadFile(f.file(d))
	if err != nil {
		f.t.Fatal(err)
	}
	return string(data)
}

// decompressed reads a layer in zstd.
func (f *ociFolder) decompressed(d digest.Digest) string {
	f.t.Helper()
	r, err := zstd.NewReader(strings.NewReader(f.read(d)))
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(data)
}
