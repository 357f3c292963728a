package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/imgcrypt/v2"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"
)

// TestContainerdConfig shows that whatever is in a path or a key's name comes through TOML as it is.
func TestContainerdConfig(t *testing.T) {
	key := "pkcs11:object=a\"b\\c\t<ü>&\x7f"
	text, err := ContainerdConfig("/opt/it's \"here\"/hsm-image", "/etc/a b.yaml", "/var/lib/containerd", "hsm-image",
		[]string{key})
	if err != nil {
		t.Fatal(err)
	}
	var config containerdConfig
	if err := toml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	if config.Version != 2 || len(config.Processors) != 2 {
		t.Errorf("%+v", config)
	}
	for _, id := range imgcrypt.PayloadToolIDs {
		p := config.Processors[id]
		if p.Path != "/opt/it's \"here\"/hsm-image" || len(p.Args) != 7 || p.Args[4] != "hsm-image" || p.Args[6] != key ||
			p.Env[0] != "NOTATION_HSM_CONFIG=/etc/a b.yaml" {
			t.Errorf("%s: %+v", id, p)
		}
	}
}

// FuzzContainerdPayload verifies that nothing in place of containerd's payload crashes, or lets a layer through.
func FuzzContainerdPayload(f *testing.F) {
	ks := newModule(f).Keystore()
	f.Add([]byte{})
	for _, annotations := range []map[string]string{
		nil, {pubopts: "e30="}, {pubopts: "e30=", "org.opencontainers.image.enc.keys.jwe": "e30="},
		{pubopts: "e30=", "org.opencontainers.image.enc.keys.provider.hsm": "e30=,e30="},
	} {
		message, err := typeurl.MarshalAnyToProto(
			&imgcrypt.Payload{Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip + "+encrypted",
				Annotations: annotations}})
		if err != nil {
			f.Fatal(err)
		}
		data, err := proto.Marshal(message)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		var first, second bytes.Buffer
		for _, out := range []*bytes.Buffer{&first, &second} {
			readCost.Check(t, len(payload), func() {
				out.Reset()
				d := Decoder{Keystore: ks, Root: "/nonexistent", MediaType: ocispec.MediaTypeImageLayer + "+encrypted",
					Payload: bytes.NewReader(payload)}
				if err := d.Decode(t.Context(), strings.NewReader("layer"), out); err == nil {
					t.Error("a layer was opened without a wrapped key")
				}
			})
		}
		if first.Len() == 0 || bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Error("what containerd gets in place of the layer can be foreseen")
		}
	})
}

// FuzzContentStore verifies that nothing in containerd's content store crashes, and that a layer is found for what is
// its beginning alone.
func FuzzContentStore(f *testing.F) {
	store, mediaType, head := contentStore(f.TempDir()), ocispec.MediaTypeImageLayer+"+encrypted",
		[]byte("encrypted layer")
	blobs := filepath.Join(string(store), "blobs", "sha256")
	layer := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(head),
		Annotations: map[string]string{"org.opencontainers.image.enc.keys.jwe": "e30="}}
	if err := errors.Join(os.MkdirAll(blobs, 0o700), os.WriteFile(store.file(layer.Digest), head, 0o600)); err != nil {
		f.Fatal(err)
	}
	write := func(data []byte) {
		if err := os.WriteFile(filepath.Join(blobs, "manifest"), data, 0o600); err != nil {
			f.Fatal(err)
		}
	}
	image := ocispec.Manifest{Config: ocispec.Descriptor{Digest: digest.FromString("config")},
		Layers: []ocispec.Descriptor{layer, layer}}
	manifest, err := json.Marshal(image)
	if err != nil {
		f.Fatal(err)
	}
	for _, other := range []any{
		struct {
			ocispec.Manifest
			RootFS ocispec.RootFS `json:"rootfs"`
		}{Manifest: image},
		ocispec.Manifest{Layers: image.Layers},
		ocispec.Manifest{MediaType: ocispec.MediaTypeImageConfig, Config: image.Config, Layers: image.Layers},
	} {
		data, err := json.Marshal(other)
		if err != nil {
			f.Fatal(err)
		}
		write(data)
		if found, err := store.layersStartingWith(head, mediaType); err == nil {
			f.Errorf("%s is no manifest, and has %v", data, found)
		}
	}
	write(manifest)
	for head, want := range map[string]int{string(head): 1, "encrypted": 0, "": 0, "encrypted layer!": 0} {
		found, err := store.layersStartingWith([]byte(head), mediaType)
		if len(found) != want || (err == nil) != (want == 1) {
			f.Errorf("%q: found %v, %v", head, found, err)
		}
	}
	for _, seed := range []string{string(manifest), "", "{", `{"layers":[{"digest":"../../etc/passwd"}]}`,
		`{"layers":[null]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		write(data)
		var found []ocispec.Descriptor
		var err error
		readCost.Check(t, len(data), func() { found, err = store.layersStartingWith(head, mediaType) })
		if (err == nil) != (len(found) > 0) {
			t.Errorf("found %v, %v", found, err)
		}
		for _, l := range found {
			if l.Digest != layer.Digest {
				t.Errorf("found %s", l.Digest)
			}
		}
	})
}
