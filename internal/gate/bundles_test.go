package gate

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestManyBundles verifies that the bundles that are read are few, and that those come first which claim to be for the
// signature.
func TestManyBundles(t *testing.T) {
	for _, c := range []struct {
		claimed, others int
		fetched         int
		passes          bool
	}{
		{maxBundles - 1, 0, maxBundles, true},
		{maxBundles, 0, maxBundles, false},
		{0, 200, 2, true}, // with the newest, which is fetched ahead
		{1000, 200, maxBundles, false},
	} {
		g := newGuarded(t)
		s := g.sign(t, jws.MediaTypeEnvelope, time.Now())
		for i := range c.claimed + c.others {
			claim := s.Payload
			if i >= c.claimed {
				claim = ""
			}
			g.attach(t, fmt.Appendf(nil, "%d", i), claim, true)
		}
		g.attach(t, g.council.bundle(g.both(), s), s.Payload, true)
		before, _ := g.Count("/manifests/")
		d := g.verify(t)
		after, _ := g.Count("/manifests/")
		after -= 2 // the image, and the signature
		if d.Passed() != c.passes || after-before != c.fetched {
			t.Errorf("%+v: %d bundles were fetched: %s", c, after-before, d.Reason)
		}
		if want := "bundles of approvals, and only 20 are read"; !c.passes && !strings.Contains(d.Reason, want) {
			t.Errorf("%+v: %s", c, d.Reason)
		}
	}
	// Bundles for other signatures leave room for those of the next signature.
	g := newGuarded(t)
	g.sign(t, cose.MediaTypeEnvelope, time.Now())
	s := g.sign(t, jws.MediaTypeEnvelope, time.Now().Add(-time.Hour))
	for i := range 2 * maxBundles {
		g.attach(t, fmt.Appendf(nil, "%d", i), "", true)
	}
	g.attach(t, g.council.bundle(g.both(), s), s.Payload, true)
	if d := g.verify(t); !d.Passed() {
		t.Errorf("%+v", d)
	}
}

// TestBundleHosts verifies that nothing of a bundle names a host.
func TestBundleHosts(t *testing.T) {
	g, other := newGuarded(t), oci.NewHostile(t)
	s := g.sign(t, jws.MediaTypeEnvelope, time.Now())
	layer := g.Add(proof.MediaType, g.council.bundle(g.both(), s))
	layer.URLs = []string{"http://" + other.Address + "/"}
	g.hang(t, layer, s.Payload)
	if d := g.verify(t); !d.Passed() {
		t.Errorf("%+v", d)
	}
	if n, _ := other.Count(""); n != 0 {
		t.Errorf("%d requests to another host", n)
	}
}

// TestApprovalsInLayout verifies that bundles are found in an OCI layout, also ones that are longer than a signature's
// manifest may be.
func TestApprovalsInLayout(t *testing.T) {
	c, alice := newCouncil(t), newForger(t)
	g := openGate(t, Options{TrustDir: trusting(t, "strict", alice)})
	g.demands = &demands{known: map[string][]*proof.Demand{"example.com/app": {c.demand()}}}
	for padding, passes := range map[int]bool{0: true, maxManifest: true, maxBundleManifest: false} {
		folder := writeLayout(t, func(add func(string, []byte) ocispec.Descriptor,
			image ocispec.Descriptor) []ocispec.Descriptor {
			image.Annotations = nil
			envelope, err := alice.Sign(jws.MediaTypeEnvelope, image, nil)
			if err != nil {
				t.Fatal(err)
			}
			manifest, err := oci.SignatureManifest(add(jws.MediaTypeEnvelope, envelope), image, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			s := c.signature(alice, image, jws.MediaTypeEnvelope, envelope)
			bundle := c.bundle([]*prooftest.Person{c.ann, c.ben}, s)
			layer := oci.Descriptor(proof.MediaType, bundle)
			layer.Data = bundle
			layer.Annotations = map[string]string{"padding": strings.Repeat("x", padding)}
			data, _, err := oci.BundleManifest(layer, image, s.Payload)
			if err != nil {
				t.Fatal(err)
			}
			return []ocispec.Descriptor{add(ocispec.MediaTypeImageManifest, manifest),
				add(ocispec.MediaTypeImageManifest, data)}
		})
		d := g.Verify(t.Context(), []string{"oci:" + folder + ":v1"}, "example.com/app", time.Minute)[0]
		if d.Passed() != passes || passes && d.Approvals == nil || !passes &&
			!strings.Contains(d.Reason, "the image has no bundle of approvals") {
			t.Errorf("with %d bytes more: %+v", padding, d)
		}
		if d := g.Verify(t.Context(), []string{"oci:" + folder + ":v1"}, "example.com/other", time.Minute)[0]; !d.Passed() {
			t.Errorf("where nothing is demanded: %+v", d)
		}
	}
}

// TestApprovalsByTag verifies that bundles are found by the tag of a registry that lists no referrers.
func TestApprovalsByTag(t *testing.T) {
	g := newGuarded(t)
	s := g.sign(t, jws.MediaTypeEnvelope, time.Now())
	g.attach(t, g.council.bundle(g.both(), s), s.Payload, true)
	index := g.Referrers(t, g.image)
	g.Tag(strings.Replace(g.image.Digest.String(), ":", "-", 1), g.Add(ocispec.MediaTypeImageIndex, index))
	g.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/referrers/") {
			http.NotFound(w, r)
			return true
		}
		return false
	}
	if d := g.verify(t); !d.Passed() || d.Approvals == nil {
		t.Errorf("%+v", d)
	}
}

// TestOtherReferrers verifies that neither other referrers nor many bundles hide signatures.
func TestOtherReferrers(t *testing.T) {
	g := newGuarded(t)
	for i := range maxListed + 500 {
		artifactType := proof.MediaType
		if i%4 == 0 {
			artifactType = "application/spdx+json"
		}
		g.Refer(g.image, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest,
			Digest: digest.FromString(fmt.Sprint(i)), Size: 7, ArtifactType: artifactType})
	}
	g.sign(t, jws.MediaTypeEnvelope, time.Now())
	if d := g.verify(t); d.Passed() || len(d.Refused) != 1 || d.Refused[0].Subject == "" {
		t.Errorf("%+v", d)
	}
}

// TestListedBundles verifies that no more bundles are listed than signatures, and that one kind does not hide the
// other.
func TestListedBundles(t *testing.T) {
	t.Parallel()
	var page []ocispec.Descriptor
	for i := range maxListed + 1 {
		page = append(page, ocispec.Descriptor{ArtifactType: proof.MediaType, Digest: digest.FromString(fmt.Sprint(i))})
	}
	page = append(page, ocispec.Descriptor{ArtifactType: notationregistry.ArtifactTypeNotation,
		Digest: digest.FromString("signature")})
	c := collector{created: map[digest.Digest]time.Time{}, all: true}
	if err := c.collect(page); err != nil || len(c.bundles) != maxListed || len(c.found) != 1 || c.truncated {
		t.Errorf("%d bundles and %d signatures, %v", len(c.bundles), len(c.found), err)
	}
	for i := range page {
		page[i].ArtifactType, page[i].Digest = notationregistry.ArtifactTypeNotation, page[i].Digest[:len(page[i].Digest)-1]
	}
	if err := c.collect(page); !errors.Is(err, errLimitReached) || len(c.found) != maxListed {
		t.Errorf("%d signatures, %v", len(c.found), err)
	}
}
