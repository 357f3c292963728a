package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/imgcrypt/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// readCost is what reading an image's manifests may allocate, by their size together.
var readCost = boundtest.Budget{Bytes: 1 << 20, BytesPerByte: 200}

// An ociFolder is an OCI layout that a test writes.
type ociFolder struct {
	t    testing.TB
	dir  string
	size int // bytes of all that was written
}

func newOCIFolder(t testing.TB) *ociFolder { return &ociFolder{t: t, dir: t.TempDir()} }

func (f *ociFolder) file(d digest.Digest) string {
	return filepath.Join(f.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// add writes a blob.
func (f *ociFolder) add(mediaType, data string) ocispec.Descriptor {
	f.t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(data), Size: int64(len(data))}
	file := f.file(d.Digest)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(data), 0o600)); err != nil {
		f.t.Fatal(err)
	}
	f.size += len(data)
	return d
}

// addJSON writes a value as a blob.
func (f *ociFolder) addJSON(mediaType string, value any) ocispec.Descriptor {
	f.t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.add(mediaType, string(data))
}

// finish writes the folder's index, and returns the folder as an image.
func (f *ociFolder) finish(top ocispec.Descriptor, padding int) Reference {
	f.t.Helper()
	entry, err := json.Marshal(top)
	data := fmt.Sprintf(`{"schemaVersion":2,"manifests":[%s]%s}`, entry, strings.Repeat(" ", padding))
	if err := errors.Join(err, os.WriteFile(filepath.Join(f.dir, ocispec.ImageIndexFile), []byte(data),
		0o600)); err != nil {
		f.t.Fatal(err)
	}
	f.size += len(data)
	ref, err := ParseReference("oci:" + f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	return ref
}

// emptyDigest is the digest of no bytes.
const emptyDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

const manifestStart = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",` +
	`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + emptyDigest + `","size":0},"layers":[]`

// TestCostlyManifests shows that manifests that are made to cost much are refused, for no more than their size allows.
func TestCostlyManifests(t *testing.T) {
	nested := strings.Repeat("[", 9000) + strings.Repeat("]", 9000)
	manifest := func(rest string) func(*ociFolder) Reference {
		return func(f *ociFolder) Reference {
			return f.finish(f.add(ocispec.MediaTypeImageManifest, manifestStart+rest+"}"), 0)
		}
	}
	for _, test := range []struct {
		name, words string
		image       func(*ociFolder) Reference
	}{
		{"nested", "is nested deeper than 16", manifest(`,"x":` + nested)},
		{"many elements", "has more than 65536 elements", manifest(`,"x":[` + strings.Repeat("{},", 70000) + `{}]`)},
		{"layers twice", `has the name "layers" twice`, manifest(`,"layers":[]`)},
		{"large", "is larger than 4 MiB", manifest(strings.Repeat(" ", manifestLimit))},
		{"many layers", "has 1001 layers, more than 1000", func(f *ociFolder) Reference {
			return f.finish(f.withLayers(layersLimit+1), 0)
		}},
		{"large index.json", "is larger than 4 MiB", func(f *ociFolder) Reference {
			return f.finish(f.withLayers(1), manifestLimit)
		}},
		{"no file", "is not a regular file", func(f *ociFolder) Reference {
			d := f.add(ocispec.MediaTypeImageManifest, manifestStart+"}")
			if err := errors.Join(os.Remove(f.file(d.Digest)), os.Symlink("/dev/zero", f.file(d.Digest))); err != nil {
				t.Fatal(err)
			}
			return f.finish(d, 0)
		}},
		{"nested index", "is nested deeper than 16", func(f *ociFolder) Reference {
			return f.finish(f.add(ocispec.MediaTypeImageIndex, `{"schemaVersion":2,"manifests":[],"x":`+nested+`}`), 0)
		}},
		{"index in an index", "lists another index", func(f *ociFolder) Reference {
			return f.finish(f.index(f.index(f.withLayers(1))), 0)
		}},
		{"many images", "lists 501 images, more than 500", func(f *ociFolder) Reference {
			one := f.withLayers(1)
			var all []ocispec.Descriptor
			for range imagesLimit + 1 {
				all = append(all, one)
			}
			return f.finish(f.index(all...), 0)
		}},
		{"many layers in many images", "have more than 16384 layers together", func(f *ociFolder) Reference {
			var all []ocispec.Descriptor
			for i := range 20 {
				all = append(all, f.withLayers(layersLimit-i))
			}
			return f.finish(f.index(all...), 0)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			folder := newOCIFolder(t)
			ref := test.image(folder)
			var err error
			readCost.Check(t, folder.size, func() { _, err = Layers(t.Context(), ref, Registry{}) })
			if err == nil || !failure.Is(err, failure.Invalid) && !failure.Is(err, failure.Unsupported) ||
				!strings.Contains(err.Error(), test.words) {
				t.Errorf("it fails with %v, which does not say %q", err, test.words)
			}
		})
	}
}

func (f *ociFolder) withLayers(n int) ocispec.Descriptor {
	var m ocispec.Manifest
	m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
	m.Config = f.add(ocispec.MediaTypeImageConfig, `{"os":"linux","architecture":"amd64"}`)
	for range n {
		m.Layers = append(m.Layers,
			ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("layer"), Size: 1})
	}
	return f.addJSON(m.MediaType, m)
}

func (f *ociFolder) index(entries ...ocispec.Descriptor) ocispec.Descriptor {
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries}
	index.SchemaVersion = 2
	return f.addJSON(index.MediaType, index)
}

// TestNestedConfig shows the layers of an image without the platform, when its configuration is nested too deep to be
// looked at.
func TestNestedConfig(t *testing.T) {
	for depth, want := range map[int]string{10: "linux/amd64", 20: ""} {
		folder := newOCIFolder(t)
		nested := strings.Repeat("[", depth) + strings.Repeat("]", depth)
		config := folder.add(ocispec.MediaTypeImageConfig, `{"os":"linux","architecture":"amd64","x":`+nested+`}`)
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config}
		m.SchemaVersion = 2
		images, err := Layers(t.Context(), folder.finish(folder.addJSON(m.MediaType, m), 0), Registry{})
		if err != nil || len(images) != 1 || images[0].Platform.String() != want {
			t.Errorf("nested %d deep: %v, %v", depth, images, err)
		}
	}
}

// TestForeignURLs reads a layer from where the image is, and asks none of the addresses that its manifest gives.
func TestForeignURLs(t *testing.T) {
	asked := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	defer server.Close()
	folder := newOCIFolder(t)
	layer := folder.add(ocispec.MediaTypeImageLayer, "layer")
	source, err := openSource(t.Context(), folder.finish(folder.withLayers(1), 0), Registry{}.context())
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	info := types.BlobInfo{Digest: layer.Digest, Size: layer.Size, URLs: []string{server.URL + "/elsewhere"}}
	blob, _, err := source.GetBlob(t.Context(), info, none.NoCache)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	if data, err := io.ReadAll(blob); err != nil || string(data) != "layer" {
		t.Errorf("the layer is %q, %v", data, err)
	}
	select {
	case path := <-asked:
		t.Errorf("%s was asked for", path)
	default:
	}
}

// TestCandidates bounds how many descriptions of a layer in containerd's content store are looked at, and takes equal
// ones for one.
func TestCandidates(t *testing.T) {
	folder := newOCIFolder(t)
	const head = "encrypted layer"
	mediaType := ocispec.MediaTypeImageLayer + "+encrypted"
	layer := folder.add(mediaType, head)
	add := func(name, wrapped string) {
		layer.Annotations = map[string]string{"org.opencontainers.image.enc.keys.jwe": wrapped}
		folder.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
			Config: ocispec.Descriptor{Digest: digest.FromString(name)}, Layers: []ocispec.Descriptor{layer},
		})
	}
	store := contentStore(folder.dir)
	for i := range candidatesLimit + 1 {
		add(fmt.Sprint("same", i), "one")
	}
	nested := strings.Repeat("[", 9000) + strings.Repeat("]", 9000)
	folder.add(ocispec.MediaTypeImageManifest, manifestStart+`,"x":`+nested+`}`)
	if found, err := store.layersStartingWith([]byte(head), mediaType); err != nil || len(found) != 1 {
		t.Errorf("with equal descriptions: %d, %v", len(found), err)
	}
	for i := range candidatesLimit {
		add("other", fmt.Sprint(i))
	}
	var err error
	readCost.Check(t, folder.size, func() { _, err = store.layersStartingWith([]byte(head), mediaType) })
	if err == nil || !strings.Contains(err.Error(), "in more than 64 ways") {
		t.Errorf("with many descriptions: %v", err)
	}
}

// TestCostlyPayloads refuses payloads that are nested, and does so for no more than their size allows.
func TestCostlyPayloads(t *testing.T) {
	nested := strings.Repeat("[", 9000) + strings.Repeat("]", 9000)
	for _, text := range []string{nested, strings.Repeat("{}", 70000), `{"Descriptor":{},"Descriptor":{}}`} {
		payload, err := proto.Marshal(&anypb.Any{TypeUrl: imgcrypt.PayloadURI, Value: []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		readCost.Check(t, len(payload), func() {
			d := Decoder{Root: "/nonexistent", MediaType: ocispec.MediaTypeImageLayer + "+encrypted",
				Payload: bytes.NewReader(payload)}
			err = d.Decode(context.Background(), strings.NewReader("layer"), io.Discard)
		})
		if err == nil || !strings.Contains(err.Error(), "not an imgcrypt payload") {
			t.Errorf("%.30s: %v", text, err)
		}
	}
}
