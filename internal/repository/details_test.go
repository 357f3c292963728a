package repository

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// attach pushes an artifact whose one layer has a media type, about an image, and under a tag if there is one.
func attach(t *testing.T, to *remote.Repository, image *ocispec.Descriptor, artifactType, layer, tag string) {
	t.Helper()
	blob := []byte("{}")
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType, Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{oci.Descriptor(layer, blob)}, Subject: image,
	})
	if err == nil {
		err = oci.PushAll(t.Context(), to, map[string][]byte{layer: blob})
	}
	d := oci.Descriptor(ocispec.MediaTypeImageManifest, data)
	if err == nil {
		err = to.Push(t.Context(), d, bytes.NewReader(data))
	}
	if err == nil && tag != "" {
		err = to.Tag(t.Context(), d, tag)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDetails asks a real registry for what it knows of an image and an index. It has no referrers API, so the fallback
// tag is read.
func TestDetails(t *testing.T) {
	address := oci.StartRegistry(t)
	all := open(t, Registry{Host: address})
	name := address + "/team/app"
	first, err := oci.PushImage(t.Context(), name+":v1.0", "first")
	if err != nil {
		t.Fatal(err)
	}
	sum, err := oci.PushImage(t.Context(), name+":v1.1", "second")
	if err != nil {
		t.Fatal(err)
	}
	repository, err := oci.Open(name + ":v1.1")
	if err != nil {
		t.Fatal(err)
	}
	image, err := repository.Resolve(t.Context(), "v1.1")
	if err != nil {
		t.Fatal(err)
	}
	if err := repository.Tag(t.Context(), image, "latest"); err != nil {
		t.Fatal(err)
	}
	forger, err := oci.NewForger("someone", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.PushSignature(t.Context(), name+":v1.1", "application/jose+json",
		func(d ocispec.Descriptor) ([]byte, error) { return forger.Sign("application/jose+json", d, nil) }); err != nil {
		t.Fatal(err)
	}
	attach(t, repository, &image, "application/spdx+json", "application/spdx+json", "")
	attach(t, repository, &image, "application/vnd.example", "text/plain", "")
	attach(t, repository, nil, "", "application/vnd.dev.cosign.simplesigning.v1+json",
		strings.Replace(sum.String(), ":", "-", 1)+".sig")
	d, err := all.Details(t.Context(), name, sum.String())
	if err != nil || len(d.Missing) > 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	if len(d.Images) != 1 || len(d.Images[0].Layers) != 1 || d.Images[0].Bytes != d.Images[0].Layers[0].Size ||
		d.Images[0].Digest != sum.String() || d.Images[0].Size != image.Size {
		t.Errorf("%+v", d.Images)
	}
	if fmt.Sprint(d.Tags) != "[v1.1 latest]" || d.MoreTags {
		t.Errorf("tags %v, more %v", d.Tags, d.MoreTags)
	}
	slices.SortFunc(d.Attached, func(a, b Attached) int { return strings.Compare(a.Type, b.Type) })
	want := []Attached{{SBOM, "SPDX", "application/spdx+json", 1},
		{Signature, "Notation", "application/vnd.cncf.notary.signature", 1},
		{Signature, "cosign", "application/vnd.dev.cosign.simplesigning.v1+json", 1},
		{Other, "", "application/vnd.example", 1}}
	if !slices.Equal(d.Attached, want) {
		t.Errorf("%+v", d.Attached)
	}
	c, err := all.Since(t.Context(), name, sum.String(), first.String())
	if err != nil || c.New != 1 || c.Same != 0 || c.Removed != 1 || len(c.Images) != 1 || c.Bytes != d.Images[0].Bytes {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = all.Since(t.Context(), name, sum.String(), sum.String())
	if err != nil || c.New != 0 || c.Same != 1 || c.Removed != 0 || len(c.Images) != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = all.Since(t.Context(), name, sum.String(), digest.FromString("none").String())
	if err != nil || !c.Gone {
		t.Errorf("%+v, %v", c, err)
	}
	_, err = all.Since(t.Context(), name, digest.FromString("none").String(), sum.String())
	expect(t, err, failure.Denied, "has no manifest")
	index, err := oci.PushIndex(t.Context(), name+":index")
	if err != nil {
		t.Fatal(err)
	}
	d, err = all.Details(t.Context(), name, index.String())
	if err != nil || len(d.Missing) > 0 || len(d.Images) != 2 || d.Images[1].Platform != "linux/arm64" ||
		fmt.Sprint(d.Tags) != "[index]" || len(d.Attached) != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	_, err = all.Details(t.Context(), "registry.example.com/app", index.String())
	expect(t, err, failure.Denied, "is not listed")
}

// TestCandidates verifies the order in which tags are looked up.
func TestCandidates(t *testing.T) {
	got := candidates([]string{"v1.9.0", "main", "1.10.0", "v1.10.0-rc.1", "1.10.0", "2024.01.02", "latest", "2024.02.01",
		"f00ba47"})
	if fmt.Sprint(got) != "[1.10.0 main v1.10.0-rc.1 latest v1.9.0 f00ba47 2024.02.01 2024.01.02]" {
		t.Errorf("%v", got)
	}
}

// TestClassify verifies what artifacts are taken for.
func TestClassify(t *testing.T) {
	for _, c := range []struct{ artifactType, predicate, want string }{
		{"application/vnd.in-toto+json", "https://slsa.dev/provenance/v1",
			"{attestation in-toto application/vnd.in-toto+json (https://slsa.dev/provenance/v1) 0}"},
		{"application/vnd.dev.sigstore.bundle.v0.3+json", cosignPredicate,
			"{signature cosign application/vnd.dev.sigstore.bundle.v0.3+json (" + cosignPredicate + ") 0}"},
		{"application/vnd.CycloneDX+json", "x", "{sbom CycloneDX application/vnd.CycloneDX+json 0}"},
		{"\x1b[2J\u202e", "x", "{other  \ufffd[2J\ufffd 0}"},
		{"", "", "{other   0}"},
	} {
		got := fmt.Sprint(classify(c.artifactType, map[string]string{"in-toto.io/predicate-type": c.predicate}))
		if got != c.want {
			t.Errorf("%q: %s", c.artifactType, got)
		}
	}
}

// TestHostileDetails verifies that what a hostile registry sends is bounded, and that one part does not hide others.
func TestHostileDetails(t *testing.T) {
	h := oci.NewHostile(t)
	layer := func(n int) string {
		return fmt.Sprintf(`{"digest":%q,"size":1}`, digest.FromString(fmt.Sprint(n)))
	}
	layers := make([]string, maxLayers+1)
	for i := range layers {
		layers[i] = layer(i)
	}
	image := h.Add(ocispec.MediaTypeImageManifest, []byte(`{"layers":[`+strings.Join(layers, ",")+`]}`))
	for i := range maxAttachedTypes + 8 {
		d := ocispec.Descriptor{MediaType: image.MediaType, Digest: digest.FromString(fmt.Sprint(i)), Size: 1}
		h.List(image, d, time.Now())
	}
	ask := func() (*Details, error) {
		return open(t, Registry{Host: h.Address}).Details(t.Context(), h.Address+"/app", image.Digest.String())
	}
	// a list of tags that never ends, all of which lead to the image
	h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/tags/list"):
			w.Header().Set("Link", `</v2/app/tags/list?last=x>; rel="next"`)
			fmt.Fprintf(w, `{"tags":["v%d","%d","../x","sha256-%064d"]}`, time.Now().UnixNano(), time.Now().UnixNano(), 1)
			return true
		case r.Method == http.MethodHead && !strings.Contains(r.URL.Path, "sha256"):
			w.Header().Set("Content-Type", image.MediaType)
			w.Header().Set("Content-Length", fmt.Sprint(image.Size))
			w.Header().Set("Docker-Content-Digest", image.Digest.String())
			return true
		}
		return false
	}
	d, err := ask()
	if err != nil || len(d.Missing) > 0 || !d.MoreTags || len(d.Tags) == 0 || len(d.Tags) > maxHeads || !d.MoreLayers ||
		len(d.Images[0].Layers) != maxLayers || d.Images[0].Bytes != maxLayers+1 {
		t.Errorf("%+v, %v", d, err)
	}
	if n, _ := h.Count("/tags/list"); n > maxTagPages {
		t.Errorf("%d pages of tags", n)
	}
	if i := slices.IndexFunc(d.Tags, func(tag string) bool { return !validTag.MatchString(tag) }); i >= 0 {
		t.Errorf("it shows the tag %q", d.Tags[i])
	}
	// referrers of many types, without end
	h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		w.Header().Set("Link", `<`+r.URL.Path+`?x=1>; rel="next"`)
		page := ocispec.Index{}
		for i := range 100 {
			page.Manifests = append(page.Manifests, ocispec.Descriptor{ArtifactType: fmt.Sprintf("application/x%d", i)})
		}
		_ = json.NewEncoder(w).Encode(page)
		return true
	}
	d, err = ask()
	n := 0
	if err == nil {
		for _, a := range d.Attached {
			n += a.Count
		}
	}
	if err != nil || !d.MoreAttached || len(d.Attached) != maxAttachedTypes+1 || n != maxAttached {
		t.Errorf("%d artifacts of %d types, %v, %v", n, len(d.Attached), d, err)
	}
	// lists that are one page without end, and a registry that fails
	h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.Contains(r.URL.Path, "/referrers/"):
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			oci.Flood(w, `{"manifests":[`, "{},")
		case strings.HasSuffix(r.URL.Path, "/tags/list"):
			http.Error(w, `{"errors":[{"code":"UNKNOWN","message":"\u001b[2J own words"}]}`, http.StatusServiceUnavailable)
		default:
			return false
		}
		return true
	}
	d, err = ask()
	if err != nil || len(d.Images) != 1 || len(d.Missing) != 2 ||
		d.Missing[0] != "tags: the registry answered with status 503" || !strings.Contains(d.Missing[1], "referrers: ") {
		t.Errorf("%+v, %v", d, err)
	}
}

// TestSlowDetails verifies that people do not wait for a registry that gives no answer, and checks not for people.
func TestSlowDetails(t *testing.T) {
	h := oci.NewHostile(t)
	slow := make(chan struct{})
	h.Answer = func(_ http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			<-slow
		}
		return false
	}
	all := open(t, Registry{Host: h.Address})
	ask := func(image ocispec.Descriptor) (*Details, error) {
		return all.Details(t.Context(), h.Address+"/app", image.Digest.String())
	}
	var group sync.WaitGroup
	for i := range maxLooks {
		image := h.PushImage(fmt.Sprint(i))
		group.Go(func() {
			if d, err := ask(image); err != nil || len(d.Images) != 1 {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
	for n := 0; n < maxLooks; n, _ = h.Count("/tags/list") {
		time.Sleep(time.Millisecond)
	}
	image := h.PushImage("x")
	if _, err := all.Check(t.Context(), h.Address+"/app", image.Digest.String(), "", 0); err != nil {
		t.Error(err)
	}
	all.looks.timeout = time.Millisecond
	_, err := ask(image)
	expect(t, err, failure.Throttled, "4 checks are under way")
	close(slow)
	group.Wait()

	ctx, cancel := context.WithCancel(t.Context())
	h.Answer = func(_ http.ResponseWriter, r *http.Request) bool {
		cancel()
		<-r.Context().Done()
		return true
	}
	r, a := all.byName[h.Address], artifact{repository: h.Address + "/app", digest: image.Digest}
	s := &session{registry: r, client: r.client(), repository: a.repository, path: "app", timeout: lookTimeout}
	d := s.details(ctx, a, &lists{all.Repository(a.repository, lookLimits), a.digest})
	if fmt.Sprint(d.Missing) != "[layers: no answer within 5s tags: no answer within 5s referrers: no answer within 5s]" {
		t.Errorf("%+v", d)
	}
}

// TestComparison verifies that layers are compared by digest, each once.
func TestComparison(t *testing.T) {
	image := func(layers ...string) Image {
		i := Image{}
		for _, l := range layers {
			i.Layers = append(i.Layers, Layer{l, 2})
		}
		return i
	}
	c := compare([]Image{image("a", "b", "c"), image("b", "d")}, []Image{image("a", "x"), image("d", "y")})
	if c.New != 2 || c.Same != 2 || c.Removed != 2 || c.Bytes != 4 || fmt.Sprint(c.Images[0].Layers) != "[{b 2} {c 2}]" ||
		fmt.Sprint(c.Images[1].Layers) != "[{b 2}]" || c.Images[0].Bytes != 4 {
		t.Errorf("%+v", c)
	}
}
