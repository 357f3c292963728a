package image

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

func TestReference(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string][]string{
		"docker://registry.example.com/app:1": nil,
		"oci:" + dir + "/x:a:1":               {dir + "/x", "a:1"},
		"oci:" + dir + "/x":                   {dir + "/x", ""},
		"oci-archive:" + dir + "/x.tar:a":     {dir + "/x.tar", "a"},
		"docker-archive:" + dir + "/x:a/b:1":  {dir + "/x", "a/b:1"},
		"dir:" + dir + "/a:b":                 {dir + "/a:b", ""},
	} {
		ref, err := ParseReference(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		path, name, local := ref.local()
		if local != (want != nil) || local && (path != want[0] || name != want[1]) {
			t.Errorf("%s is %q, %q", text, path, name)
		}
		if !local {
			continue
		}
		moved, err := ref.at(filepath.Join(dir, "moved"))
		if got, name2, _ := moved.local(); err != nil || got != filepath.Join(dir, "moved") || name2 != name {
			t.Errorf("%s moved is %s: %v", text, moved, err)
		}
	}
	if ref, err := ParseReference("oci:x:y"); err != nil {
		t.Error(err)
	} else if moved, err := ref.at(filepath.Join(dir, "a:b")); err == nil {
		t.Errorf("a path with a colon became %s", moved)
	}
	for _, text := range []string{"", "app:1", "oci:", "oci-archive:", "dir:", "docker://", "docker:app",
		"docker://registry.example.com/APP",
		"containers-storage:app", "docker-daemon:app:1", "sif:x", "oci::app"} {
		if ref, err := ParseReference(text); err == nil {
			t.Errorf("%q is %s", text, ref)
		}
	}
}

func TestPlatform(t *testing.T) {
	for _, text := range []string{"linux/amd64", "linux/arm/v7"} {
		if p, err := ParsePlatform(text); err != nil || p.String() != text {
			t.Errorf("%s is %s: %v", text, p, err)
		}
	}
	for _, text := range []string{"", "linux", "linux/", "/arm", "a/b/c/d"} {
		if p, err := ParsePlatform(text); err == nil {
			t.Errorf("%s is %s", text, p)
		}
	}
	v8 := Platform{"linux", "arm64", "v8"}
	if !v8.matches(Platform{"linux", "arm64", ""}) || v8.matches(Platform{"linux", "arm64", "v9"}) ||
		(Platform{}).matches(v8) {
		t.Error("variants are not matched")
	}
}

// TestStall gives up a transfer in which nothing moves, and leaves what is done on this machine its time.
func TestStall(t *testing.T) {
	before := stall
	stall = 20 * time.Millisecond
	defer func() { stall = before }()
	blocked := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	long := func() { time.Sleep(5 * stall) }
	for name, c := range map[string]struct {
		do   func(context.Context, *stallTimer) error
		late bool
	}{
		"nothing moves": {func(ctx context.Context, _ *stallTimer) error { return blocked(ctx) }, true},
		"progress, and then none": {func(ctx context.Context, timer *stallTimer) error {
			timer.progress()
			return blocked(ctx)
		}, true},
		"suspended": {func(ctx context.Context, timer *stallTimer) error {
			timer.suspend()
			long()
			return ctx.Err()
		}, false},
		"a watched step while suspended": {func(ctx context.Context, timer *stallTimer) error {
			timer.suspend()
			defer timer.watch()()
			return blocked(ctx)
		}, true},
		"a watched step that ended": {func(ctx context.Context, timer *stallTimer) error {
			timer.suspend()
			timer.watch()()
			long()
			return ctx.Err()
		}, false},
	} {
		synctest.Test(t, func(t *testing.T) { // its clock goes on only when nothing else does, on a slow machine too
			err := withStallTimer(t.Context(), name, c.do)
			if (err != nil) != c.late || c.late && !failure.Is(err, failure.Timeout) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

// TestSetEntry keeps what other tools have written into index.json.
func TestSetEntry(t *testing.T) {
	const one, two = "sha256:01", "sha256:02"
	const other = `{"mediaType":"m","digest":"sha256:00","size":1,"x":1,` +
		`"annotations":{"org.opencontainers.image.ref.name":"other"}}`
	named := func(d, name string) string {
		annotations := ""
		if name != "" {
			annotations = `,"annotations":{"org.opencontainers.image.ref.name":"` + name + `"}`
		}
		return `{"mediaType":"m","digest":"` + d + `","size":1` + annotations + `}`
	}
	for _, c := range []struct{ before, name, old, after string }{
		{"", "app", "", named(two, "app")},
		{other, "app", "", other + "," + named(two, "app")},
		{other + "," + named(one, "app"), "app", "", other + "," + named(two, "app")},
		{named(one, "app") + "," + named(one, "same"), "app", one, named(one, "same") + "," + named(two, "app")},
		{named(two, ""), "", "", named(two, "")},
		{named(one, ""), "", one, named(two, "")},
		{other, "", "", other + "," + named(two, "")},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, ocispec.ImageIndexFile)
		if err := os.WriteFile(file, []byte(`{"y":[1],"manifests":[`+c.before+`]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		var entry ocispec.Descriptor
		if err := json.Unmarshal([]byte(named(two, c.name)), &entry); err != nil {
			t.Fatal(err)
		}
		if err := setEntry(dir, c.name, digest.Digest(c.old), entry); err != nil {
			t.Errorf("%v: %v", c, err)
			continue
		}
		var got, want any
		data, err := os.ReadFile(file)
		after := []byte(`{"y":[1],"manifests":[` + c.after + `]}`)
		if err := errors.Join(err, json.Unmarshal(data, &got), json.Unmarshal(after, &want)); err != nil {
			t.Fatal(err, string(data))
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%v: index.json is %s", c, data)
		}
	}
}

// TestManifestsLimit bounds what all manifests of an index have together.
func TestManifestsLimit(t *testing.T) {
	dir := t.TempDir()
	blob := func(mediaType string, value any) ocispec.Descriptor {
		data, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		file := filepath.Join(dir, ocispec.ImageBlobsDir, "sha256", d.Digest.Encoded())
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, data, 0o600)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	var list ocispec.Index
	list.SchemaVersion, list.MediaType = 2, ocispec.MediaTypeImageIndex
	for i := range 10 {
		var m ocispec.Manifest
		m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
		m.Config = blob(ocispec.MediaTypeImageConfig, i)
		m.Annotations = map[string]string{"large": strings.Repeat("x", manifestLimit-1000)}
		list.Manifests = append(list.Manifests, blob(m.MediaType, m))
	}
	for n, want := range map[int]bool{8: true, 10: false} {
		shorter := list
		shorter.Manifests = list.Manifests[:n]
		top := ocispec.Index{Manifests: []ocispec.Descriptor{blob(list.MediaType, shorter)}}
		top.SchemaVersion = 2
		data, err := json.Marshal(top)
		if err := errors.Join(err, os.WriteFile(filepath.Join(dir, ocispec.ImageIndexFile), data, 0o600)); err != nil {
			t.Fatal(err)
		}
		ref, err := ParseReference("oci:" + dir)
		if err != nil {
			t.Fatal(err)
		}
		images, err := Layers(t.Context(), ref, Registry{})
		if (err == nil) != want || want && len(images) != n ||
			!want && !strings.Contains(err.Error(), "larger than 32 MiB together") {
			t.Errorf("with %d manifests: %d images, %v", n, len(images), err)
		}
	}
}

// The kids of packet.
var kidA, kidB = strings.Repeat("A", 43), strings.Repeat("B", 42) + "A"

// packet is one for the two recipients kidA and kidB; nobody opens it.
var packet = base64Of(`{"protected":"eyJlbmMiOiJBMjU2R0NNIn0","recipients":[` +
	`{"header":{"alg":"RSA-OAEP","kid":"` + kidA + `"},"encrypted_key":"AAAA"},` +
	`{"header":{"alg":"RSA-OAEP-256","kid":"` + kidB + `"},"encrypted_key":"AAAA"}],` +
	`"iv":"AAAA","ciphertext":"AAAA","tag":"AAAA"}`)

// FuzzReference has a name of an image always be the same one, and never panic.
func FuzzReference(f *testing.F) {
	for _, text := range []string{"docker://registry.example.com/app:1", "oci:x:y", "oci-archive:x:y",
		"docker-archive:x:y:z", "dir:x:y", "oci:x:@1", ":", "dir:"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := ParseReference(text)
		if err != nil {
			return
		}
		path, name, local := ref.local()
		readCost.Check(t, len(text), func() { _, _ = ParseReference(text) })
		if !local {
			return
		}
		again, err := ref.at(path)
		if err != nil {
			t.Fatalf("%q at %q: %v", text, path, err)
		}
		if path2, name2, _ := again.local(); path2 != path || name2 != name {
			t.Fatalf("%q is %q, %q, and then %q, %q", text, path, name, path2, name2)
		}
	})
}

// FuzzManifest reads manifests and changes their recipients: what comes out is a manifest with the same layers, and it
// costs no more than its size allows.
func FuzzManifest(f *testing.F) {
	const layer = `{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip+encrypted","digest":"` + emptyDigest +
		`","size":1,"annotations":{"org.opencontainers.image.enc.keys.jwe":"e30=",` +
		`"org.opencontainers.image.enc.pubopts":"e30="}}`
	f.Add(strings.Replace(manifestStart, `"layers":[]`, `"layers":[`+layer+`],"x":{"y":1}}`, 1),
		ocispec.MediaTypeImageManifest)
	f.Add(`{"schemaVersion":2,"manifests":[`+layer+`]}`, ocispec.MediaTypeImageIndex)
	f.Add(`{"schemaVersion":2,"config":{},"layers":[{}]}`, manifest.DockerV2Schema2MediaType)
	f.Add(`{"schemaVersion":1,"fsLayers":[{"blobSum":"x"}],"history":[{"v1Compatibility":"{}"}]}`,
		manifest.DockerV2Schema1MediaType)
	ref, err := ParseReference("dir:x")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text, mimeType string) {
		if bound.JSON([]byte(text), manifestBounds) != nil {
			return
		}
		readCost.Check(t, len(text), func() { editManifest(t, ref, text, mimeType) })
	})
}

func editManifest(t *testing.T, ref Reference, text, mimeType string) {
	mimeType = manifest.NormalizedMIMEType(mimeType)
	if manifest.MIMETypeIsMultiImage(mimeType) {
		if list, err := manifest.ListFromBlob([]byte(text), mimeType); err == nil && len(list.Instances()) > 0 {
			_, _ = rewriteIndex([]byte(text), map[digest.Digest][]byte{list.Instances()[0]: []byte("x")})
		}
		return
	}
	i := Image{manifest: []byte(text), mimeType: mimeType}
	if i.readLayers(ref) != nil {
		return
	}
	for _, l := range i.Layers {
		_ = checkOptions(l.annotations, []byte(`{"symkey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",`+
			`"cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}`))
	}
	data, changed, err := i.edit(ref, func(Layer) (string, error) { return packet, nil })
	if err != nil || changed == 0 {
		return
	}
	after := Image{manifest: data, mimeType: mimeType}
	if err := after.readLayers(ref); err != nil || len(after.Layers) != len(i.Layers) {
		t.Fatalf("%s became %s: %v", text, data, err)
	}
	for at, l := range after.Layers {
		if before := i.Layers[at]; l.Digest != before.Digest || l.Encrypted != before.Encrypted ||
			l.Encrypted && l.annotations[layerkey.Annotation] != packet {
			t.Fatalf("%s became %s", text, data)
		}
	}
}

// FuzzWithout takes recipients out of an annotation: nobody who was removed is left, and nobody else is lost.
func FuzzWithout(f *testing.F) {
	f.Add(packet, kidA)
	f.Add(packet+","+packet, kidB)
	f.Add(packet+","+packet, "x")
	f.Add("e30=", "x")
	f.Add("eyJwcm90ZWN0ZWQiOiJlMzAiLCJyZWNpcGllbnRzIjpbe31dfQ==,AAAA", "")
	f.Fuzz(func(t *testing.T, annotation, kid string) {
		before, err := layerkey.ReadRecipients(map[string]string{layerkey.Annotation: annotation})
		if err != nil {
			if annotation == packet {
				t.Error(err)
			}
			return
		}
		if annotation == packet && len(before) != 2 {
			t.Fatalf("the recipients are %v", before)
		}
		var after string
		readCost.Check(t, len(annotation), func() { after, err = removeRecipients(annotation, []string{kid}) })
		if err != nil {
			t.Fatal(err)
		}
		var want, got []string
		for _, h := range before {
			if h.KeyID != kid {
				want = append(want, h.KeyID)
			}
		}
		if after != "" {
			left, err := layerkey.ReadRecipients(map[string]string{layerkey.Annotation: after})
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range left {
				got = append(got, h.KeyID)
			}
		}
		if strings.Join(got, ",") != strings.Join(want, ",") {
			t.Fatalf("%q are left of %q", got, want)
		}
	})
}
