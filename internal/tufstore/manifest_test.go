package tufstore

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestDecode verifies that a manifest is refused unless each of its layers is a file with a name of its own.
func TestDecode(t *testing.T) {
	layer := func(change func(*ocispec.Descriptor)) func(*ocispec.Manifest) {
		return func(m *ocispec.Manifest) { change(&m.Layers[0]) }
	}
	title := func(name string) func(*ocispec.Manifest) {
		return layer(func(d *ocispec.Descriptor) { d.Annotations[ocispec.AnnotationTitle] = name })
	}
	sha512 := digest.SHA512.FromString("x")
	long := map[string]string{"a": strings.Repeat("a", maxManifest)}
	cases := map[string]struct {
		change func(*ocispec.Manifest)
		words  string
	}{
		"good":          {func(*ocispec.Manifest) {}, ""},
		"proposal":      {func(m *ocispec.Manifest) { m.ArtifactType = proposedType }, "artifact type"},
		"image":         {func(m *ocispec.Manifest) { m.ArtifactType = "" }, "artifact type"},
		"index":         {func(m *ocispec.Manifest) { m.MediaType = ocispec.MediaTypeImageIndex }, "artifact type"},
		"twice":         {title("timestamp.json"), "has the file timestamp.json twice"},
		"no name":       {layer(func(d *ocispec.Descriptor) { d.Annotations = nil }), `"" is not the name`},
		"type":          {layer(func(d *ocispec.Descriptor) { d.MediaType = ocispec.MediaTypeImageLayer }), "the media type"},
		"negative":      {layer(func(d *ocispec.Descriptor) { d.Size = -1 }), "has -1 bytes"},
		"large":         {layer(func(d *ocispec.Descriptor) { d.Size = maxFile + 1 }), "more than 1048576"},
		"no digest":     {layer(func(d *ocispec.Descriptor) { d.Digest = "" }), "not one of SHA-256"},
		"a path":        {layer(func(d *ocispec.Descriptor) { d.Digest = "sha256:../../etc/passwd" }), "not one of SHA-256"},
		"SHA-512":       {layer(func(d *ocispec.Descriptor) { d.Digest = sha512 }), "not one of SHA-256"},
		"other data":    {layer(func(d *ocispec.Descriptor) { d.Data = []byte(`{"a":2}`) }), "embedded with other content"},
		"shorter data":  {layer(func(d *ocispec.Descriptor) { d.Data = []byte(`{}`) }), "embedded with other content"},
		"empty data":    {layer(func(d *ocispec.Descriptor) { d.Data = []byte{} }), ""}, // as if there were none
		"right data":    {layer(func(d *ocispec.Descriptor) { d.Data = []byte(`{"a":1}`) }), ""},
		"many":          {func(m *ocispec.Manifest) { m.Layers = make([]ocispec.Descriptor, maxFiles+1) }, "2001 files"},
		"deep":          {func(m *ocispec.Manifest) { m.Annotations = map[string]string{"a": "\x00"} }, "deeper than 16"},
		"long":          {func(m *ocispec.Manifest) { m.Annotations = long }, "more than 262144"},
		"no more files": {func(m *ocispec.Manifest) { m.Layers = nil }, ""},
	}
	for _, name := range []string{"root", "../root.json", "/root.json", "a/root.json", `a\root.json`, "..json", ".json",
		"0.root.json", "01.root.json", "1.2.root.json", "1234567890.root.json", "Root.json", "root.json\n", "rööt.json",
		"root.json.json", "-root.json", "_root.json", "1.root.json.json", "root.jsonx", " root.json", "root%2f.json",
		"con:.json", strings.Repeat("a", maxName) + ".json"} {
		cases["the name "+name] = struct {
			change func(*ocispec.Manifest)
			words  string
		}{title(name), "is not the name of a file of metadata"}
	}
	for _, name := range []string{"1.root.json", "999999999.root.json", "4.alice-bin-1f.json", "1.json", "a_b.json"} {
		cases["the name "+name] = struct {
			change func(*ocispec.Manifest)
			words  string
		}{title(name), ""}
	}
	for name, c := range cases {
		m := manifest(t)
		c.change(&m)
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		data = []byte(strings.Replace(string(data), `"\u0000"`, strings.Repeat("[", 20)+strings.Repeat("]", 20), 1))
		if name == "empty data" {
			data = []byte(strings.Replace(string(data), `"size"`, `"data":"","size"`, 1))
		}
		_, err = decode(data, publishedType)
		if (err == nil) != (c.words == "") || err != nil && !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: it fails with %v, which does not say %q", name, err, c.words)
		}
	}
}

// manifest returns a manifest with two files.
func manifest(t testing.TB) (m ocispec.Manifest) {
	t.Helper()
	data, err := files{"1.root.json": describe("1.root.json", []byte(`{"a":1}`)),
		timestamp: describe(timestamp, []byte(`{"b":1}`))}.encode(publishedType)
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEncode verifies that a manifest that could not be read is not written.
func TestEncode(t *testing.T) {
	for count, words := range map[int]string{10: "", 1000: "", 1500: "its manifest would have", 2001: "2001 files"} {
		f := files{}
		for i := range count {
			name := fmt.Sprintf("%d.role.json", i+1)
			f[name] = describe(name, []byte("{}"))
		}
		data, err := f.encode(publishedType)
		if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("%d files: it fails with %v, which does not say %q", count, err, words)
		}
		if err == nil {
			if got, err := decode(data, publishedType); err != nil || !reflect.DeepEqual(got, f) {
				t.Errorf("%d files: %d are read again: %v", count, len(got), err)
			}
		}
	}
}

// FuzzDecode verifies that a manifest that is read and encoded gives the same files again.
func FuzzDecode(f *testing.F) {
	seed, err := json.Marshal(manifest(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := decode(data, publishedType)
		if err != nil {
			return
		}
		again, err := found.encode(publishedType)
		if err != nil {
			t.Skip(err) // it was shorter without the names that are encoded
		}
		if other, err := decode(again, publishedType); err != nil || !reflect.DeepEqual(other, found) {
			t.Errorf("%v, not %v: %v", other, found, err)
		}
	})
}
