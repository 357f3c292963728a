package repository

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestManifests lists the images of an index in a real registry.
func TestManifests(t *testing.T) {
	address := oci.StartRegistry(t)
	all := open(t, Registry{Host: address})
	index, err := oci.PushIndex(t.Context(), address+"/team/app:index")
	if err != nil {
		t.Fatal(err)
	}
	repository, err := oci.Open(address + "/team/app:index")
	if err != nil {
		t.Fatal(err)
	}
	found, err := all.Manifests(t.Context(), address+"/team/app", index.String())
	if err != nil || len(found) != 2 || found[0].Platform != "linux/amd64" || found[1].Platform != "linux/arm64" {
		t.Fatalf("%+v, %v", found, err)
	}
	for _, m := range found {
		d, err := repository.Resolve(t.Context(), m.Digest)
		if err != nil || d.Size != m.Size || d.MediaType != m.MediaType {
			t.Errorf("%+v is %+v, %v", m, d, err)
		}
		inner, err := all.Manifests(t.Context(), address+"/team/app", m.Digest)
		if err != nil || len(inner) != 0 {
			t.Errorf("an image has %v, %v", inner, err)
		}
	}
	_, err = all.Manifests(t.Context(), address+"/team/other", index.String())
	expect(t, err, failure.Denied, "/team/other has no manifest")
	_, err = all.Manifests(t.Context(), "registry.example.com/app", index.String())
	expect(t, err, failure.Denied, "is not listed")
}

// TestHostileIndex verifies what counts as an image of an index, and what is refused.
func TestHostileIndex(t *testing.T) {
	h := oci.NewHostile(t)
	all := open(t, Registry{Host: h.Address})
	list := func(entries ...string) ([]Manifest, error) {
		d := h.Add(ocispec.MediaTypeImageIndex, []byte(`{"manifests":[`+strings.Join(entries, ",")+`]}`))
		return all.Manifests(t.Context(), h.Address+"/app", d.Digest.String())
	}
	entry := func(d ocispec.Descriptor, more string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d%s}`, d.MediaType, d.Digest, d.Size, more)
	}
	const linux = `,"platform":{"os":"linux","architecture":"amd64"}`
	plain, artifact := h.PushImage("plain"), h.PushImage("artifact")
	image := h.Add(ocispec.MediaTypeImageManifest, []byte(`{"config":{"mediaType":"`+dockerImage+`"}}`))
	absent := ocispec.Descriptor{MediaType: plain.MediaType, Digest: digest.FromString("absent"), Size: 6}
	found, err := list(entry(plain, linux), entry(plain, ""), entry(absent, linux), entry(image, `,"platform":{}`),
		entry(artifact, ""), entry(artifact, `,"platform":{"os":"unknown","architecture":"unknown"}`),
		entry(artifact, `,"artifactType":"application/spdx+json"`+linux),
		entry(ocispec.Descriptor{MediaType: "application/vnd.example", Digest: absent.Digest}, ""))
	want := fmt.Sprint([]Manifest{{plain.Digest.String(), plain.MediaType, plain.Size, "linux/amd64"},
		{image.Digest.String(), image.MediaType, image.Size, ""}})
	if err != nil || fmt.Sprint(found) != want {
		t.Errorf("%v, %v; not %s", found, err, want)
	}
	found, err = list(entry(plain, `,"platform":{"os":"\u001b[2J\u202e","architecture":"a"}`))
	if err != nil || len(found) != 1 || found[0].Platform != "\ufffd[2J\ufffd/a" {
		t.Errorf("%+v, %v", found, err)
	}
	for _, c := range []struct {
		kind    failure.Kind
		words   string
		entries []string
	}{
		{failure.Invalid, "has the index", []string{entry(ocispec.Descriptor{MediaType: dockerList}, "")}},
		{failure.Denied, "has 0 bytes", []string{entry(ocispec.Descriptor{MediaType: dockerManifest}, "")}},
		{failure.Denied, "it refers to", []string{entry(ocispec.Descriptor{MediaType: dockerManifest, Digest: "../x",
			Size: 1}, "")}},
		{failure.Denied, "bytes for " + plain.Digest.String(), []string{entry(ocispec.Descriptor{
			MediaType: plain.MediaType, Digest: plain.Digest, Size: plain.Size + 1}, "")}},
		{failure.Denied, "with media type", []string{entry(ocispec.Descriptor{MediaType: dockerManifest,
			Digest: plain.Digest, Size: plain.Size}, "")}},
	} {
		_, err := list(c.entries...)
		expect(t, err, c.kind, c.words)
	}
	var many, large []string
	for i := range maxImages + 1 {
		d := absent
		d.Digest = digest.FromString(fmt.Sprint(i))
		many = append(many, entry(d, linux))
		d.Size = maxManifest
		large = append(large, entry(d, linux))
	}
	before, _ := h.Count("/manifests/")
	_, err = list(many...)
	expect(t, err, failure.Invalid, "more than 64 images")
	_, err = list(large[:5]...)
	expect(t, err, failure.Invalid, "more than 16777216 bytes")
	if after, _ := h.Count("/manifests/"); after != before+2 {
		t.Errorf("%d requests, not 2: one for each index", after-before)
	}
	if found, err := list(many[:maxImages]...); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
}
