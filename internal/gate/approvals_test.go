package gate

import (
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	logentry "github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// council is a broker's log, and two people who both have to approve signatures.
type council struct {
	t        testing.TB
	log      *prooftest.Log
	ann, ben *prooftest.Person
}

func newCouncil(t testing.TB) *council {
	t.Helper()
	return &council{t: t, log: prooftest.NewLog(t),
		ann: prooftest.KeyPerson(t, "ann", prooftest.Key(elliptic.P256(), 1)),
		ben: prooftest.SSHPerson(t, "ben", prooftest.Ed25519(2))}
}

// demand returns what a trust directory demands.
func (c *council) demand() *proof.Demand { return prooftest.Demand(c.log, 2, c.ann, c.ben) }

// signature returns what names the signature of an envelope.
func (c *council) signature(by *oci.Forger, image ocispec.Descriptor, mediaType string, envelope []byte,
) proof.Signature {
	c.t.Helper()
	payload, value, err := proof.OfEnvelope(mediaType, envelope)
	if err != nil {
		c.t.Fatal(err)
	}
	return proof.Signature{Digest: image.Digest.String(), Leaf: fmt.Sprintf("sha256:%x",
		sha256.Sum256(by.Certificate.Raw)),
		Payload: payload, Signature: value, MediaType: image.MediaType, Size: image.Size}
}

// bundle returns the bundle of a request that people approved, and that the signatures are of.
func (c *council) bundle(people []*prooftest.Person, signatures ...proof.Signature) []byte {
	c.t.Helper()
	r := c.log.NewRequest("release", signatures[0].Leaf, []string{signatures[0].Digest},
		func(st *approval.Statement, _ *logentry.Event) {
			target := &st.Predicate.Targets[0]
			target.MediaType, target.Size, target.Annotations = signatures[0].MediaType, signatures[0].Size,
				signatures[0].Annotations
		})
	for _, p := range people {
		r.Decide(p, approval.Approve, 0)
	}
	for _, s := range signatures {
		r.Sign(s, nil)
	}
	return prooftest.Encode(c.t, r.Bundle())
}

// guarded is an attack on an image whose signatures need approvals.
type guarded struct {
	*attack
	council *council
}

func newGuarded(t testing.TB) *guarded {
	t.Helper()
	g := &guarded{attack: newAttack(t), council: newCouncil(t)}
	g.demand(g.council.demand())
	return g
}

// demand sets who must approve signatures of the image.
func (g *guarded) demand(list ...*proof.Demand) {
	g.gate.demands = &demands{known: map[string][]*proof.Demand{g.Address + "/app": list}}
}

// sign hangs a signature by alice on the image.
func (g *guarded) sign(t testing.TB, mediaType string, created time.Time) proof.Signature {
	t.Helper()
	envelope, err := g.alice.Sign(mediaType, g.image, nil)
	if err != nil {
		t.Fatal(err)
	}
	g.Hang(t, g.Add(mediaType, envelope), g.image, created)
	return g.council.signature(g.alice, g.image, mediaType, envelope)
}

// attach hangs a bundle on the image. Its manifest has the bundle in it if embed is set.
func (g *guarded) attach(t testing.TB, bundle []byte, payload string, embed bool) ocispec.Descriptor {
	t.Helper()
	layer := oci.Descriptor(proof.MediaType, bundle)
	if embed {
		layer.Data = bundle
	} else {
		g.Add(proof.MediaType, bundle)
	}
	return g.hang(t, layer, payload)
}

// hang hangs the manifest of a bundle on the image.
func (g *guarded) hang(t testing.TB, layer ocispec.Descriptor, payload string) ocispec.Descriptor {
	t.Helper()
	data, annotations, err := oci.BundleManifest(layer, g.image, payload)
	if err != nil {
		t.Fatal(err)
	}
	d := g.Add(ocispec.MediaTypeImageManifest, data)
	listed := d
	listed.ArtifactType, listed.Annotations = proof.MediaType, annotations
	g.Refer(g.image, listed)
	return d
}

func (g *guarded) both() []*prooftest.Person {
	return []*prooftest.Person{g.council.ann, g.council.ben}
}

// TestApprovals verifies that a signature counts with its bundle, and what the decision says of it.
func TestApprovals(t *testing.T) {
	for _, mediaType := range []string{jws.MediaTypeEnvelope, cose.MediaTypeEnvelope} {
		for _, embed := range []bool{true, false} {
			g := newGuarded(t)
			s := g.sign(t, mediaType, time.Now())
			d := g.attach(t, g.council.bundle(g.both(), s), s.Payload, embed)
			got := g.verify(t)
			a := got.Approvals
			if !got.Passed() || a == nil {
				t.Fatalf("%s, %v: %+v", mediaType, embed, got)
			}
			if a.Bundle != d.Digest.String() || a.Request != "request-1" || a.Key != "release" || a.Log != prooftest.Origin ||
				a.Index != 5 || a.Rule != "release" || a.Reason != "release 1.0" || a.Signed.IsZero() || len(a.Approvers) != 2 ||
				a.Approvers[0].String() != "ann" || a.Approvers[0].Kind != "key" || a.Approvers[1].Kind != "ssh" ||
				!a.Approvers[1].Counts {
				t.Errorf("%+v", a)
			}
		}
	}
}

// TestOneMoreRequest verifies that approvals cost one request, to the host of the image, and none where they are not
// demanded.
func TestOneMoreRequest(t *testing.T) {
	g := newGuarded(t)
	s := g.sign(t, jws.MediaTypeEnvelope, time.Now())
	bundle := g.attach(t, g.council.bundle(g.both(), s), s.Payload, true)
	g.attach(t, []byte("{}"), prooftest.Signature("another").Payload, true) // comes later
	requests := func() int {
		before, _ := g.Count("")
		if d := g.verify(t); !d.Passed() {
			t.Fatalf("%+v", d)
		}
		after, _ := g.Count("")
		return after - before
	}
	g.demand()
	without := requests()
	if n, _ := g.Count(bundle.Digest.String()); n != 0 {
		t.Error("a bundle was fetched that nobody demands")
	}
	g.demand(g.council.demand())
	if with := requests(); with != without+1 {
		t.Errorf("%d requests, and %d without approvals", with, without)
	}
	if n, _ := g.Count(bundle.Digest.String()); n != 1 {
		t.Errorf("the bundle was fetched %d times", n)
	}
}

// TestUnapproved verifies that valid signatures do not count without approvals of their own, and says why.
func TestUnapproved(t *testing.T) {
	for name, c := range map[string]struct {
		attach func(t *testing.T, g *guarded, s proof.Signature)
		reason string
	}{
		"none": {func(*testing.T, *guarded, proof.Signature) {}, ", and the image has no bundle of approvals"},
		"one person": {func(t *testing.T, g *guarded, s proof.Signature) {
			g.attach(t, g.council.bundle(g.both()[:1], s), s.Payload, true)
		}, "1 of 2 people"},
		"another signature": {func(t *testing.T, g *guarded, s proof.Signature) {
			other := s
			other.Payload = prooftest.Signature("other").Payload
			g.attach(t, g.council.bundle(g.both(), other), s.Payload, true)
		}, "the log does not have this signature"},
		"another image": {func(t *testing.T, g *guarded, s proof.Signature) {
			other := s
			other.Digest = prooftest.Signature("other").Digest
			g.attach(t, g.council.bundle(g.both(), other), s.Payload, true)
		}, "people agreed to other artifacts"},
		"other annotations": {func(t *testing.T, g *guarded, s proof.Signature) {
			other := s
			other.Annotations = map[string]string{"channel": "stable"}
			g.attach(t, g.council.bundle(g.both(), other), s.Payload, true)
		}, "people agreed to other annotations"},
		"another size": {func(t *testing.T, g *guarded, s proof.Signature) {
			other := s
			other.Size++
			g.attach(t, g.council.bundle(g.both(), other), s.Payload, true)
		}, "people agreed to another media type or size"},
		"an approver who was removed": {func(t *testing.T, g *guarded, s proof.Signature) {
			cem := prooftest.KeyPerson(t, "cem", prooftest.Key(elliptic.P256(), 3))
			g.attach(t, g.council.bundle([]*prooftest.Person{g.council.ann, cem}, s), s.Payload, true)
		}, "1 of 2 people"},
		"another log": {func(t *testing.T, g *guarded, s proof.Signature) {
			g.council.log.Key = prooftest.Key(elliptic.P256(), 99)
			g.attach(t, g.council.bundle(g.both(), s), s.Payload, true)
		}, "checkpoint"},
		"no JSON": {func(t *testing.T, g *guarded, s proof.Signature) {
			g.attach(t, []byte("?"), s.Payload, true)
		}, "cannot read the bundle of approvals"},
		"other data than its digest": {func(t *testing.T, g *guarded, s proof.Signature) {
			layer := oci.Descriptor(proof.MediaType, []byte("{}"))
			layer.Data = []byte("[]")
			g.hang(t, layer, s.Payload)
		}, "cannot read the bundle: "},
		"a bundle that is too long": {func(t *testing.T, g *guarded, s proof.Signature) {
			layer := oci.Descriptor(proof.MediaType, nil)
			layer.Size = proof.MaxBundle + 1
			g.hang(t, layer, s.Payload)
		}, "it has 1048577 bytes, more than 1048576"},
		"another layer": {func(t *testing.T, g *guarded, s proof.Signature) {
			g.hang(t, oci.Descriptor(jws.MediaTypeEnvelope, []byte("{}")), s.Payload)
		}, "does not have one layer of the type " + proof.MediaType},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t)
			s := g.sign(t, jws.MediaTypeEnvelope, time.Now())
			c.attach(t, g, s)
			d := g.verify(t)
			want := "the trust manifest demands approvals for " + g.Address + "/app"
			if d.Passed() || d.Approvals != nil || len(d.Refused) != 1 || d.Refused[0].Subject == "" ||
				!strings.HasPrefix(d.Refused[0].Reason, want) || !strings.Contains(d.Refused[0].Reason, c.reason) ||
				!strings.Contains(d.Reason, want) {
				t.Errorf("%+v", d)
			}
		})
	}
}

// TestNextApproved verifies that the next signature is tried when the newest lacks approvals, and that bundles count
// whatever their annotations say.
func TestNextApproved(t *testing.T) {
	g := newGuarded(t)
	older := g.sign(t, jws.MediaTypeEnvelope, time.Now().Add(-time.Hour))
	newest := g.sign(t, cose.MediaTypeEnvelope, time.Now())
	g.attach(t, g.council.bundle(g.both()[1:], newest), newest.Payload, true)
	g.attach(t, g.council.bundle(g.both(), older), "sha256:", true)
	d := g.verify(t)
	if !d.Passed() || len(d.Refused) != 1 || d.Approvals == nil || d.Approvals.Request != "request-5" ||
		!strings.Contains(d.Refused[0].Reason, "1 of 2 people") {
		t.Errorf("%+v", d)
	}
	// One request may be for several signatures.
	g = newGuarded(t)
	first := g.sign(t, jws.MediaTypeEnvelope, time.Now())
	second := g.sign(t, cose.MediaTypeEnvelope, time.Now().Add(-time.Hour))
	g.attach(t, g.council.bundle(g.both(), second, first), second.Payload, true)
	if d := g.verify(t); !d.Passed() || len(d.Refused) != 0 {
		t.Errorf("%+v", d)
	}
}

// TestApprovalsWithoutSigners verifies that nothing passes where the trust policy accepts signatures by anyone, or
// none, and approvals are demanded.
func TestApprovalsWithoutSigners(t *testing.T) {
	for _, level := range []string{"skip", "audit"} {
		g := newGuarded(t)
		folder, statement := trusting(t, "audit", g.alice), "all"
		if level == "skip" {
			folder, statement = trustingFor(t, g.alice, "example.com/app"), "others"
		}
		s := g.sign(t, jws.MediaTypeEnvelope, time.Now())
		g.attach(t, g.council.bundle(g.both(), s), s.Payload, true)
		g.gate = openGate(t, Options{TrustDir: folder})
		if d := g.verify(t); !d.Passed() {
			t.Errorf("%s: %+v", level, d)
		}
		g.demand(g.council.demand())
		if d := g.verify(t); d.Passed() || !strings.Contains(d.Reason, "demands approvals for "+g.Address+
			fmt.Sprintf("/app, and statement %q of the trust policy accepts", statement)) {
			t.Errorf("%s: %+v", level, d)
		}
	}
}

// TestTwoDemands verifies that one bundle has to meet all demands, as while an export is under way.
func TestTwoDemands(t *testing.T) {
	g := newGuarded(t)
	s := g.sign(t, jws.MediaTypeEnvelope, time.Now())
	g.attach(t, g.council.bundle(g.both(), s), s.Payload, true)
	cem := prooftest.KeyPerson(t, "cem", prooftest.Key(elliptic.P256(), 3))
	other := prooftest.Demand(g.council.log, 1, cem)
	for name, c := range map[string]struct {
		list   []*proof.Demand
		reason string
	}{
		"the same twice": {[]*proof.Demand{g.council.demand(), g.council.demand()}, ""},
		"first another":  {[]*proof.Demand{other, g.council.demand()}, "0 of 1 people"},
		"last another":   {[]*proof.Demand{g.council.demand(), other}, "0 of 1 people"},
	} {
		g.demand(c.list...)
		if d := g.verify(t); d.Passed() != (c.reason == "") || !strings.Contains(d.Reason, c.reason) {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// TestApprovalTexts verifies that texts of a bundle are single lines, and that the log names those who count.
func TestApprovalTexts(t *testing.T) {
	t.Parallel()
	evil := "a\x1b[2J\nb"
	a := describeApprovals(bundleManifest{}, &proof.Shown{Request: evil, Key: evil, Log: evil, Repository: evil,
		Rule:   evil,
		Reason: evil, Witnesses: []string{evil}, BreakGlass: true, Approvers: []proof.Approver{
			{ID: "1f", Name: "ann", Counts: true}, {ID: evil, Kind: approval.Kind(evil), Reason: evil}, {ID: "3f",
				Counts: true}}})
	for _, text := range []string{a.Request, a.Key, a.Log, a.Repository, a.Rule, a.Reason, a.Witnesses[0],
		a.Approvers[1].ID, a.Approvers[1].Kind, a.Approvers[1].Reason} {
		if text != "a?[2J b" {
			t.Errorf("%q", text)
		}
	}
	path := filepath.Join(t.TempDir(), "decisions.jsonl")
	if err := NewLog(path).Append(t.Context(), Decision{Reference: "a", Verdict: Pass, Approvals: a}); err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(path)
	if want := `"request":"a?[2J b","approvers":["ann","3f"],"breakGlass":true`; err != nil ||
		!strings.Contains(string(line), want) {
		t.Errorf("%s %v", line, err)
	}
}

// TestProvable verifies that people must have agreed to all that a signature says of an image.
func TestProvable(t *testing.T) {
	t.Parallel()
	alice := newForger(t)
	envelope, err := alice.Sign(jws.MediaTypeEnvelope, signedImage, nil)
	if err != nil {
		t.Fatal(err)
	}
	valid := &signature.EnvelopeContent{}
	valid.Payload.Content = []byte(`{"targetArtifact":{"mediaType":"m","digest":"sha256:1","size":7,"annotations":{"a":"b"}}}`)
	valid.SignerInfo.CertificateChain = []*x509.Certificate{alice.Certificate}
	times := &valid.SignerInfo.SignedAttributes
	times.SigningTime = time.Unix(1000, 0)
	times.Expiry = time.Unix(4600, 0)
	s, err := provable(jws.MediaTypeEnvelope, envelope, valid)
	if err != nil || s.Digest != "sha256:1" || s.MediaType != "m" || s.Size != 7 || s.Annotations["a"] != "b" ||
		s.Expiry != 3600 || s.Leaf != fmt.Sprintf("sha256:%x", sha256.Sum256(alice.Certificate.Raw)) {
		t.Errorf("%+v, %v", s, err)
	}
	times.Expiry = time.Time{}
	if s, err := provable(jws.MediaTypeEnvelope, envelope, valid); err != nil || s.Expiry != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}
