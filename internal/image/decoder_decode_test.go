package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/imgcrypt/v2"
	"github.com/containerd/typeurl/v2"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// An encryptedLayer is a layer of an image in containerd's content store.
type encryptedLayer struct {
	ocispec.Descriptor
	root string // containerd's
	data string
}

// newLayer encrypts an image with one layer, and puts it into a content store.
func newLayer(t *testing.T, m *keystoretest.Module, name string) encryptedLayer {
	t.Helper()
	folder, ref := encryptedFolder(t, m, name)
	var manifest ocispec.Manifest
	folder.readManifest(ref, &manifest)
	root := t.TempDir()
	store := filepath.Join(root, "io.containerd.content.v1.content")
	if err := os.CopyFS(filepath.Join(store, "blobs"), os.DirFS(filepath.Join(folder.dir, "blobs"))); err != nil {
		t.Fatal(err)
	}
	return encryptedLayer{manifest.Layers[0], root, folder.read(manifest.Layers[0].Digest)}
}

// payload is containerd's payload for the layer.
func (l encryptedLayer) payload(t *testing.T) io.Reader {
	t.Helper()
	message, err := typeurl.MarshalAnyToProto(&imgcrypt.Payload{Descriptor: l.Descriptor})
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(message)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(data)
}

func (l encryptedLayer) decoder(m *keystoretest.Module, payload io.Reader) Decoder {
	return Decoder{Keystore: m.Keystore(), Root: l.root, MediaType: l.MediaType, Payload: payload}
}

// TestDecode decrypts a layer that containerd's payload describes, and one that is found in the content store.
func TestDecode(t *testing.T) {
	m := newModule(t)
	l := newLayer(t, m, "one")
	for name, payload := range map[string]io.Reader{"payload": l.payload(t), "content store": strings.NewReader("")} {
		var out bytes.Buffer
		if err := l.decoder(m, payload).Decode(t.Context(), strings.NewReader(l.data), &out); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if out.String() != tarOf(t, "one") {
			t.Errorf("%s: it decrypted to %d bytes", name, out.Len())
		}
	}
	if m.OpenStores() != 0 || m.Calls("Login") != 2 {
		t.Errorf("%d stores are open, after %d logins", m.OpenStores(), m.Calls("Login"))
	}
}

// refused returns containerd's error about a layer in whose place a failure was written: it is no valid archive, and
// another one each time.
func refused(t *testing.T, out string) string {
	t.Helper()
	r := tar.NewReader(strings.NewReader(out))
	header, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	if header.Typeflag == tar.TypeLink {
		return header.Linkname
	}
	return ""
}

// TestDecodeRefused writes a failure in the place of a layer whose key does not open.
func TestDecodeRefused(t *testing.T) {
	m := newModule(t)
	l := newLayer(t, m, "one")
	d := l.decoder(m, l.payload(t))
	d.References = []string{otherKey}
	var out bytes.Buffer
	err := d.Decode(t.Context(), strings.NewReader(l.data), &out)
	if err == nil || !strings.Contains(refused(t, out.String()), "hsm-image: no key here opens the layer") {
		t.Errorf("%v and %q", err, out.String())
	}
	out.Reset()
	err = l.decoder(m, strings.NewReader("")).Decode(t.Context(), strings.NewReader("another layer"), &out)
	mustFailWith(t, err, failure.Invalid, "it is not found in")
	if !strings.Contains(refused(t, out.String()), "pull the image again") {
		t.Errorf("%q", out.String())
	}
	out.Reset()
	why := failure.New(failure.Invalid, "no user").WithHint("make it")
	if err := d.Refuse(&out, why); !errors.Is(err, why) ||
		refused(t, out.String()) != "hsm-image: no user; hint: make it" {
		t.Errorf("%v and %q", err, out.String())
	}
}

// TestDecodeTampered has containerd drop a layer that was changed, although most of it was written before that is
// known.
func TestDecodeTampered(t *testing.T) {
	m := newModule(t)
	l := newLayer(t, m, strings.Repeat("large", 1000))
	changed := []byte(l.data)
	changed[len(changed)-1] ^= 1
	for name, data := range map[string]string{"changed": string(changed), "cut short": l.data[:len(l.data)-1]} {
		var first, second bytes.Buffer
		for _, out := range []*bytes.Buffer{&first, &second} {
			err := l.decoder(m, l.payload(t)).Decode(t.Context(), strings.NewReader(data), out)
			mustFailWith(t, err, failure.Invalid, "is damaged")
		}
		if bytes.Equal(first.Bytes(), second.Bytes()) {
			t.Errorf("%s: what containerd gets can be foreseen", name)
		}
	}
}

// TestDecodeAmbiguous takes the descriptor whose HMAC the layer has, when manifests in the store differ.
func TestDecodeAmbiguous(t *testing.T) {
	m := newModule(t)
	l, other := newLayer(t, m, "one"), newLayer(t, m, "two")
	folder := &ociFolder{t: t, dir: filepath.Join(l.root, "io.containerd.content.v1.content")}
	right := filesIn(t, filepath.Join(folder.dir, "blobs", "sha256"))[0]
	misleading := l.Descriptor // with the key and the HMAC of another layer
	misleading.Annotations = other.Annotations
	var manifest []byte
	for i := 0; manifest == nil || digest.FromBytes(manifest).Encoded() >= right; i++ { // so that it is tried first
		var err error
		manifest, err = json.Marshal(ocispec.Manifest{
			Config: ocispec.Descriptor{Digest: digest.FromString(fmt.Sprint(i))}, Layers: []ocispec.Descriptor{misleading},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	added := folder.add(ocispec.MediaTypeImageManifest, string(manifest))
	var out bytes.Buffer
	err := l.decoder(m, strings.NewReader("")).Decode(t.Context(), strings.NewReader(l.data), &out)
	if err != nil || out.String() != tarOf(t, "one") {
		t.Errorf("%v, and %d bytes", err, out.Len())
	}
	// Without the right manifest, no descriptor has the layer's HMAC.
	for _, path := range filesIn(t, filepath.Join(folder.dir, "blobs", "sha256")) {
		if path != added.Digest.Encoded() && path != l.Digest.Encoded() {
			if err := os.Remove(filepath.Join(folder.dir, "blobs", "sha256", path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	second := misleading
	second.Annotations = map[string]string{"x": "y"}
	for name, value := range other.Annotations {
		second.Annotations[name] = value
	}
	folder.addJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Config: ocispec.Descriptor{Digest: l.Digest}, Layers: []ocispec.Descriptor{second},
	})
	err = l.decoder(m, strings.NewReader("")).Decode(t.Context(), strings.NewReader(l.data), io.Discard)
	mustFailWith(t, err, failure.Invalid, "is damaged")
}

// TestDecompress decompresses a layer by its media type, and refuses one in zstd that needs much memory.
func TestDecompress(t *testing.T) {
	t.Parallel()
	var zipped, small, large bytes.Buffer
	w := gzip.NewWriter(&zipped)
	small1, err1 := zstd.NewWriter(&small)
	large1, err2 := zstd.NewWriter(&large, zstd.WithWindowSize(zstd.MaxWindowSize))
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("layer"), 100)
	for _, w := range []io.WriteCloser{w, small1, large1} {
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.(interface{ Flush() error }).Flush(), w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		mediaType string
		data      []byte
		want      bool
	}{
		{"tar+encrypted", content, true}, {"tar+gzip+encrypted", zipped.Bytes(), true},
		{"tar+zstd+encrypted", small.Bytes(), true}, {"tar+zstd+encrypted", large.Bytes(), false},
		{"tar+gzip+encrypted", content, false}, {"tar+zstd+encrypted", content, false},
	} {
		var got []byte
		r, err := decompress(c.mediaType, bytes.NewReader(c.data))
		if err == nil {
			got, err = io.ReadAll(r)
		}
		if (err == nil) != c.want || c.want && !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", c.mediaType, len(got), err)
		}
	}
}

// TestDecoderUser refuses a user that does not exist.
func TestDecoderUser(t *testing.T) {
	t.Parallel()
	_, err := Decoder{}.Confined("no-such-user")
	mustFailWith(t, err, failure.NotFound, "cannot find the decoder's user")
	if d, err := (Decoder{}).Confined(""); err != nil || !d.confined || d.user != nil {
		t.Errorf("%+v, %v", d, err)
	}
}
