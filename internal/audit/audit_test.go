package audit

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/attach"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
	"github.com/notation-hsm/notation-hsm/softhsm-test/signedlog"
)

// world is a repository with signatures, and a log.
type world struct {
	testing.TB
	memory   *oci.Memory
	log      *signedlog.Log
	us       *oci.Forger
	requests int
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, memory: oci.StartMemory()}
	t.Cleanup(w.memory.Close)
	var err error
	if w.log, err = signedlog.New(); err != nil {
		t.Fatal(err)
	}
	w.us = w.forger("us")
	w.append(entry.Event{Type: entry.Opened, Origin: signedlog.Origin})
	return w
}

func (w *world) forger(name string) *oci.Forger {
	w.Helper()
	f, err := oci.NewForger(name, "")
	if err != nil {
		w.Fatal(err)
	}
	return f
}

func (w *world) append(events ...entry.Event) {
	w.Helper()
	if err := w.log.Append(events...); err != nil {
		w.Fatal(err)
	}
}

// image pushes an image under a tag.
func (w *world) image(tag string) ocispec.Descriptor {
	return w.memory.Put(ocispec.MediaTypeImageManifest, fmt.Appendf(nil, `{"schemaVersion":2,"layers":[],"annotations":{%q:"1"}}`,
		tag), tag)
}

// sign hangs a signature on an image.
func (w *world) sign(by *oci.Forger, mediaType string, image ocispec.Descriptor) *attach.Claims {
	w.Helper()
	envelope, err := by.Sign(mediaType, image, nil)
	if err != nil {
		w.Fatal(err)
	}
	w.hang(mediaType, envelope, image)
	c, err := attach.Verify(mediaType, envelope)
	if err != nil {
		w.Fatal(err)
	}
	return c
}

func (w *world) hang(mediaType string, envelope []byte, image ocispec.Descriptor) ocispec.Descriptor {
	w.Helper()
	manifest, err := oci.SignatureManifest(w.memory.Put(mediaType, envelope, ""), image, time.Now())
	if err != nil {
		w.Fatal(err)
	}
	return w.memory.Put(ocispec.MediaTypeImageManifest, manifest, "")
}

// logged logs what a broker does for a signature: with a request before it, or in one call.
func (w *world) logged(c *attach.Claims, outcome string, grant bool) {
	w.Helper()
	w.requests++
	id := fmt.Sprintf("R%d", w.requests)
	named := w.memory.Address + "/app"
	if grant {
		w.append(entry.Event{Type: entry.Requested, Request: id, Key: "release", Repository: named})
		named = ""
	}
	end := entry.Event{Type: outcome, Request: id, Key: "release", Payload: c.Payload}
	if outcome == entry.Signed {
		end.Signature = c.Signature.Signature
	}
	w.append(entry.Event{Type: entry.Intended, Request: id, Key: "release", Payload: c.Payload, Digest: c.Digest,
		Repository: named}, end)
}

// audit audits the repository.
func (w *world) audit(certificates ...*x509.Certificate) (*Report, error) {
	return w.auditWith([]verifyLog{verifies(w.log)}, certificates...)
}

func (w *world) auditWith(logs []verifyLog, certificates ...*x509.Certificate) (*Report, error) {
	registries := registry.New(registry.Options{PlainHTTP: true, Limits: Limits})
	defer registries.Close()
	return Run(w.Context(), Options{Registries: registries, Repository: w.memory.Address + "/app",
		Check:        gate.CheckEnvelope,
		Certificates: certificates, Logs: logs})
}

type verifyLog = func(context.Context, translog.Options) (*translog.Report, error)

func verifies(log *signedlog.Log) verifyLog {
	return func(ctx context.Context, opts translog.Options) (*translog.Report, error) {
		v, err := log.Verifier()
		if err != nil {
			return nil, err
		}
		return translog.Verify(ctx, log.File, []*translog.Verifier{v}, opts)
	}
}

// TestAudit verifies that each signature by a key that is not in the log is an incident, wherever it is in the
// repository, and nothing else is one.
func TestAudit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.logged(w.sign(w.us, jws.MediaTypeEnvelope, w.image("v1")), entry.Signed, true)
	w.logged(w.sign(w.us, cose.MediaTypeEnvelope, w.image("v2")), entry.Signed, false)
	w.sign(w.forger("them"), jws.MediaTypeEnvelope, w.image("v2"))
	w.hang(jws.MediaTypeEnvelope, []byte(`{}`), w.image("v1"))

	secret := w.image("secret")
	w.sign(w.us, jws.MediaTypeEnvelope, secret)
	w.logged(w.sign(w.us, jws.MediaTypeEnvelope, w.image("lost")), entry.Lost, true)
	again := w.sign(w.us, jws.MediaTypeEnvelope, w.image("again"))
	other := *again
	other.Signature.Signature = "sha256:" + strings.Repeat("1", 64)
	w.logged(&other, entry.Signed, true)

	platform := w.image("") // has no tag of its own
	w.sign(w.us, jws.MediaTypeEnvelope, platform)
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{platform}})
	if err != nil {
		t.Fatal(err)
	}
	w.sign(w.us, jws.MediaTypeEnvelope, w.memory.Put(ocispec.MediaTypeImageIndex, index, "index"))
	subject := w.image("v1")
	sbom, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "text/sbom",
		Subject: &subject, Layers: []ocispec.Descriptor{}})
	if err != nil {
		t.Fatal(err)
	}
	w.sign(w.us, jws.MediaTypeEnvelope, w.memory.Put(ocispec.MediaTypeImageManifest, sbom, ""))
	w.untagged()

	report, err := w.audit(w.us.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, i := range report.Incidents {
		got[i.Tag+": "+i.Reason]++
		if !strings.Contains(i.Subject, "CN=us") || i.Image == "" || i.Signature == "" || i.Signed.IsZero() {
			t.Errorf("incident %+v", i)
		}
	}
	want := map[string]int{"secret: " + reasons[unknown]: 1, "lost: " + reasons[intended]: 1,
		"again: " + reasons[another]: 1, "index: " + reasons[unknown]: 2, "v1: " + reasons[unknown]: 1,
		": " + reasons[unknown]: 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v\nwant\n%v", got, want)
	}
	if report.Signatures != 9 || report.Others != 1 || report.Invalid != 1 || report.AbsentCount != 1 {
		t.Errorf("%+v", report)
	}
	all, err := w.audit()
	if err != nil || all.Signatures != 10 || len(all.Incidents) != 8 {
		t.Errorf("all signatures: %d incidents, %v", len(all.Incidents), err)
	}
}

// untagged signs an image that has no tag, whose signatures are in a list with a tag.
func (w *world) untagged() {
	w.Helper()
	image := oci.Descriptor(ocispec.MediaTypeImageManifest, []byte("untagged"))
	envelope, err := w.us.Sign(jws.MediaTypeEnvelope, image, nil)
	if err != nil {
		w.Fatal(err)
	}
	d := w.hang(jws.MediaTypeEnvelope, envelope, image)
	d.ArtifactType = "application/vnd.cncf.notary.signature"
	list, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}})
	if err != nil {
		w.Fatal(err)
	}
	w.memory.Put(ocispec.MediaTypeImageIndex, list, "sha256-"+image.Digest.Encoded())
}

// TestOtherReadings verifies that a signature that Notation accepts is an incident, also if its envelope has more than
// a broker's.
func TestOtherReadings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	image := w.image("v1")
	envelope, err := w.us.Sign(jws.MediaTypeEnvelope, image, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{strings.Replace(string(envelope), "{", `{"x":1,`, 1),
		strings.Replace(string(envelope), `"signature"`, `"Signature"`, 1)} {
		w.hang(jws.MediaTypeEnvelope, []byte(text), image)
	}
	report, err := w.audit(w.us.Certificate)
	if err != nil || report.Invalid != 0 || len(report.Incidents) != 2 || report.Incidents[0].Reason != reasons[ambiguous] {
		t.Errorf("%+v, %v", report, err)
	}
}

// TestListedOtherwise verifies that a signature is found that an index, or the list of referrers of a registry without
// the referrers API, has as something else before.
func TestListedOtherwise(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	image := w.image("")
	envelope, err := w.us.Sign(jws.MediaTypeEnvelope, image, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed := w.hang(jws.MediaTypeEnvelope, envelope, image)
	index := func(list ...ocispec.Descriptor) []byte {
		data, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageIndex, Manifests: list})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	w.memory.Put(ocispec.MediaTypeImageIndex, index(signed, image), "index")

	untagged := oci.Descriptor(ocispec.MediaTypeImageManifest, []byte("untagged"))
	if envelope, err = w.us.Sign(jws.MediaTypeEnvelope, untagged, nil); err != nil {
		t.Fatal(err)
	}
	right := w.hang(jws.MediaTypeEnvelope, envelope, untagged)
	other, wrong := right, right
	other.ArtifactType, right.ArtifactType, wrong.ArtifactType = "text/sbom", notationType, notationType
	wrong.Size++
	w.memory.Put(ocispec.MediaTypeImageIndex, index(other, wrong, right), "sha256-"+untagged.Digest.Encoded())
	report, err := w.audit(w.us.Certificate)
	if err != nil || len(report.Incidents) != 2 {
		t.Errorf("%+v, %v", report, err)
	}
}

// notationType is the artifact type of signatures.
const notationType = "application/vnd.cncf.notary.signature"

// TestBeyondLimits verifies that an audit fails when a signature is beyond its limits, and not beyond Notation's.
func TestBeyondLimits(t *testing.T) {
	t.Parallel()
	for name, hang := range map[string]func(w *world, envelope string, image ocispec.Descriptor){
		"large manifest": func(w *world, envelope string, image ocispec.Descriptor) {
			blob := w.memory.Put(jws.MediaTypeEnvelope, []byte(envelope), "")
			data, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Subject: &image,
				ArtifactType: notationType, Layers: []ocispec.Descriptor{blob},
				Annotations: map[string]string{"padding": strings.Repeat("x", 64<<10)}})
			if err != nil {
				t.Error(err)
			}
			w.memory.Put(ocispec.MediaTypeImageManifest, data, "")
		},
		"large envelope": func(w *world, envelope string, image ocispec.Descriptor) {
			w.hang(jws.MediaTypeEnvelope, []byte(strings.Replace(envelope, `"header":{`,
				`"header":{"io.cncf.notary.signingAgent":"`+strings.Repeat("x", 1<<20)+`",`, 1)), image)
		},
		"large structure": func(w *world, envelope string, image ocispec.Descriptor) {
			w.hang(jws.MediaTypeEnvelope, []byte(strings.Replace(envelope, `"header":{`,
				`"header":{"x":[`+strings.Repeat("1,", 3000)+`1],`, 1)), image)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			image := w.image("v1")
			envelope, err := w.us.Sign(jws.MediaTypeEnvelope, image, nil)
			if err != nil {
				t.Fatal(err)
			}
			hang(w, string(envelope), image)
			report, err := w.audit()
			if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "beyond the limits") {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
}

// TestAbsent verifies that signatures of the log that the repository does not have are told, of this repository alone.
func TestAbsent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.logged(w.sign(w.us, jws.MediaTypeEnvelope, w.image("v1")), entry.Signed, true)
	hash := func(n int) string { return fmt.Sprintf("sha256:%064d", n) }
	for i := range maxAbsent + 5 {
		c := &attach.Claims{}
		c.Payload, c.Signature.Signature, c.Digest = hash(i), hash(i), hash(i)
		w.logged(c, entry.Signed, i%2 == 0)
	}
	w.append(entry.Event{Type: entry.Intended, Request: "X", Payload: hash(7), Repository: "registry.example.com/other"},
		entry.Event{Type: entry.Signed, Request: "X", Payload: hash(7), Signature: hash(7)})
	report, err := w.audit()
	if err != nil || len(report.Incidents) != 0 || report.AbsentCount != maxAbsent+5 || len(report.Absent) != maxAbsent ||
		report.Absent[0].Image != hash(0) || report.Absent[0].Key != "release" {
		t.Errorf("%d incidents, %d absent: %v", len(report.Incidents), report.AbsentCount, err)
	}
}

// TestEpochs verifies that a signature counts that an older copy of the log has.
func TestEpochs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.logged(w.sign(w.us, jws.MediaTypeEnvelope, w.image("v1")), entry.Signed, true)
	older := w.log
	var err error
	if w.log, err = signedlog.New(); err != nil {
		t.Fatal(err)
	}
	w.append(entry.Event{Type: entry.Opened, Origin: signedlog.Origin})
	w.logged(w.sign(w.us, jws.MediaTypeEnvelope, w.image("v2")), entry.Signed, true)
	if report, err := w.audit(); err != nil || len(report.Incidents) != 1 || report.Incidents[0].Tag != "v1" {
		t.Errorf("the newer log alone: %+v, %v", report, err)
	}
	report, err := w.auditWith([]verifyLog{verifies(w.log), verifies(older)})
	if err != nil || len(report.Incidents) != 0 || len(report.Logs) != 2 {
		t.Errorf("both: %+v, %v", report, err)
	}
}

// TestHidden verifies that the same key under another certificate is ours, and so are certificates of our CA.
func TestHidden(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	under, err := oci.NewForger("under a CA", "http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	w.sign(under, jws.MediaTypeEnvelope, w.image("v1"))
	for name, c := range map[string]struct {
		certificate *x509.Certificate
		want        int
	}{"leaf": {under.Certificate, 1}, "other": {w.us.Certificate, 0}} {
		report, err := w.audit(c.certificate)
		if err != nil || len(report.Incidents) != c.want {
			t.Errorf("%s: %+v, %v", name, report, err)
		}
	}
}

// TestEncodedOtherwise verifies that a key is ours whose encoding in a certificate begins at another bit, as Go reads
// it.
func TestEncodedOtherwise(t *testing.T) {
	t.Parallel()
	us := newWorld(t).us.Certificate
	var info struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(us.RawSubjectPublicKeyInfo, &info); err != nil {
		t.Fatal(err)
	}
	shifted := new(big.Int).Lsh(new(big.Int).SetBytes(info.Key.Bytes), 1)
	info.Key = asn1.BitString{Bytes: shifted.Bytes(), BitLength: len(info.Key.Bytes)*8 - 1}
	encoded, err := asn1.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.ParsePKIXPublicKey(encoded)
	if err != nil {
		t.Fatal(err) // nobody can make such a certificate then
	}
	other := &x509.Certificate{PublicKey: public, RawSubjectPublicKeyInfo: encoded}
	if !keysOf([]*x509.Certificate{us}).have([]*x509.Certificate{other}) {
		t.Error("the key is another's")
	}
}

// TestIncomplete verifies that an audit fails when the registry does not show all.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		path   string
		answer http.HandlerFunc
		kind   failure.Kind
	}{
		"tags":            {"/tags/list", status(http.StatusUnauthorized), failure.Denied},
		"referrers":       {"/referrers/", status(http.StatusForbidden), failure.Denied},
		"endless":         {"/referrers/", endless, failure.Invalid},
		"too many":        {"/referrers/", crowded, failure.Invalid},
		"index in itself": {"/manifests/v1", nested, failure.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := oci.NewHostile(t)
			h.Tag("v1", h.PushImage("a"))
			h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, c.path) {
					c.answer(w, r)
					return true
				}
				if strings.HasSuffix(r.URL.Path, "/tags/list") {
					fmt.Fprint(w, `{"tags":["v1"]}`)
					return true
				}
				return false
			}
			registries := registry.New(registry.Options{PlainHTTP: true, Limits: Limits})
			defer registries.Close()
			_, err := Run(t.Context(), Options{Registries: registries, Repository: h.Address + "/app",
				Check: gate.CheckEnvelope, Logs: []verifyLog{func(context.Context, translog.Options) (*translog.Report, error) {
					t.Error("the log is read")
					return &translog.Report{}, nil
				}}})
			if !failure.Is(err, c.kind) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestBusy verifies that an audit goes on when a registry refuses a request for a while.
func TestBusy(t *testing.T) {
	t.Parallel()
	h := oci.NewHostile(t)
	h.Tag("v1", h.PushImage("a"))
	var refused atomic.Int32
	h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/tags/list"):
			fmt.Fprint(w, `{"tags":["v1"]}`)
		case strings.Contains(r.URL.Path, "/referrers/") && refused.Add(1) == 1:
			w.WriteHeader(http.StatusTooManyRequests)
		default:
			return false
		}
		return true
	}
	registries := registry.New(registry.Options{PlainHTTP: true, Limits: Limits})
	defer registries.Close()
	report, err := Run(t.Context(), Options{Registries: registries, Repository: h.Address + "/app",
		Check: gate.CheckEnvelope, Logs: []verifyLog{func(context.Context, translog.Options) (*translog.Report, error) {
			return &translog.Report{}, nil
		}}})
	if err != nil || report.Images != 1 || refused.Load() != 2 {
		t.Errorf("%+v after %d requests: %v", report, refused.Load(), err)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// endless is a list of referrers that always has a next page.
func endless(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	w.Header().Set("Link", fmt.Sprintf(`<%s>; rel="next"`, r.URL.Path))
	fmt.Fprint(w, `{"manifests":[]}`)
}

// crowded is a page with more elements than a page may have.
func crowded(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	fmt.Fprint(w, `{"manifests":[`+strings.Repeat(`{},`, 30000)+`{}]}`)
}

// nested is an index that cannot be read.
func nested(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	fmt.Fprint(w, strings.Repeat("[", 1000))
}

// TestListFirst verifies that an incident has the tag of its image when the list of its referrers is read first.
func TestListFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	image := w.image("v9")
	envelope, err := w.us.Sign(jws.MediaTypeEnvelope, image, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := w.hang(jws.MediaTypeEnvelope, envelope, image)
	d.ArtifactType = notationType
	list, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	tag := "sha256-" + image.Digest.Encoded()
	w.memory.Put(ocispec.MediaTypeImageIndex, list, tag)
	registries := registry.New(registry.Options{PlainHTTP: true, Limits: Limits})
	defer registries.Close()
	walk := newWalk(Options{Registries: registries, Repository: w.memory.Address + "/app", Check: gate.CheckEnvelope})
	for _, one := range []string{tag, "v9"} {
		if err := walk.tag(t.Context(), one); err != nil {
			t.Fatal(err)
		}
	}
	if found := walk.sorted(); len(found) != 1 || found[0].Tag != "v9" {
		t.Errorf("%+v", found)
	}
}
