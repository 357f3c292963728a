package attach

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	notationregistry "github.com/notaryproject/notation-go/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	access "github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// hash returns a text in the form of a SHA-256.
func hash(digit string) string { return "sha256:" + strings.Repeat(digit, 64) }

// newBundle returns a bundle of the signature of a payload, under a checkpoint with some signatures.
func newBundle(t testing.TB, payload string, size int64, signatures int) []byte {
	t.Helper()
	e := entry.Event{Type: entry.Signed, Request: "R1", Key: "release", Payload: payload, Signature: hash("b"),
		Time: "2026-11-27T10:00:00.000Z"}
	data, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b := proof.Bundle{Approvals: [][]byte{}, Rules: [][]byte{}, Statement: []byte("statement"),
		Checkpoint: "origin\n9\nroot\n" + strings.Repeat("\n\u2014 name signature", signatures) + "\n",
		Entries:    []proof.Entry{{Entry: data, Hashes: [][]byte{[]byte(strings.Repeat("h", int(size)))}, Index: 7}}}
	encoded, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// withReferrers starts a registry with the referrers API, and returns its address.
func withReferrers(t testing.TB) string {
	t.Helper()
	m := oci.StartMemory()
	t.Cleanup(m.Close)
	return m.Address
}

// pushed returns a repository with an image.
func pushed(t testing.TB, address string) (*remote.Repository, ocispec.Descriptor) {
	t.Helper()
	d, err := oci.PushImage(t.Context(), address+"/team/app:v1", "hello")
	if err != nil {
		t.Fatal(err)
	}
	repository := access.New(access.Options{PlainHTTP: true}).Repository(address + "/team/app")
	image, err := repository.Resolve(t.Context(), d.String())
	if err != nil {
		t.Fatal(err)
	}
	return repository, image
}

func count(t testing.TB, from *remote.Repository, image ocispec.Descriptor) []ocispec.Descriptor {
	t.Helper()
	listed, more, err := List(t.Context(), from, image, proof.MediaType, 10)
	if err != nil || more {
		t.Fatal(more, err)
	}
	return listed
}

// TestPush verifies that a bundle is attached once, with and without the referrers API, and is read as it was.
func TestPush(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) string{"tags": oci.StartRegistry, "referrers": withReferrers} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			repository, image := pushed(t, start(t))
			first := newBundle(t, hash("a"), 32, 1)
			push := func(bundle []byte, payload string, want bool) ocispec.Descriptor {
				t.Helper()
				d, added, err := Push(t.Context(), repository, image, bundle, payload)
				if err != nil || added != want {
					t.Fatalf("added %v: %v", added, err)
				}
				return d
			}
			d := push(first, hash("a"), true)
			if again := push(first, hash("a"), false); again.Digest != d.Digest {
				t.Errorf("the second push is %s, not %s", again.Digest, d.Digest)
			}
			push(newBundle(t, hash("a"), 30, 1), hash("a"), false) // other proofs
			push(newBundle(t, hash("a"), 32, 2), hash("a"), true)  // a cosignature more
			push(newBundle(t, hash("c"), 32, 1), hash("c"), true)  // another signature
			listed := count(t, repository, image)
			if len(listed) != 3 {
				t.Fatalf("%d bundles are listed", len(listed))
			}
			for _, l := range listed {
				data, err := Fetch(t.Context(), repository, l)
				if err != nil {
					t.Fatal(err)
				}
				if l.Digest == d.Digest && (!bytes.Equal(data, first) || l.Annotations[proof.AnnotationPayload] != hash("a") ||
					l.Annotations[ocispec.AnnotationCreated] != "2026-11-27T10:00:00Z") {
					t.Errorf("read %v, %s", l.Annotations, data)
				}
			}
			if found, _, err := Signatures(t.Context(), repository, image, 10); err != nil || len(found) != 0 {
				t.Errorf("%d signatures: %v", len(found), err)
			}
			_, _, err := Push(t.Context(), repository, image, first, hash("d"))
			if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "of another signature") {
				t.Errorf("another signature's: %v", err)
			}
		})
	}
}

// TestLargest verifies that the largest bundle is attached, and read with one request.
func TestLargest(t *testing.T) {
	t.Parallel()
	repository, image := pushed(t, withReferrers(t))
	small := len(newBundle(t, hash("a"), 0, 1))
	bundle := newBundle(t, hash("a"), int64(proof.MaxBundle-small)/4*3, 1)
	if len(bundle) < proof.MaxBundle-4 {
		t.Fatalf("the bundle has %d bytes", len(bundle))
	}
	if _, _, err := Push(t.Context(), repository, image, bundle, hash("a")); err != nil {
		t.Fatal(err)
	}
	from := &manifestsAlone{repository}
	if data, err := Fetch(t.Context(), from, count(t, repository, image)[0]); err != nil || !bytes.Equal(data, bundle) {
		t.Errorf("%d bytes: %v", len(data), err)
	}
}

// manifestsAlone fetches no blobs.
type manifestsAlone struct{ from *remote.Repository }

func (m *manifestsAlone) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return m.from.Manifests().Fetch(ctx, d)
}

// TestHostile verifies that what is no bundle is refused, and does not keep a bundle from being attached.
func TestHostile(t *testing.T) {
	t.Parallel()
	bundle := newBundle(t, hash("a"), 32, 1)
	layer := oci.Descriptor(proof.MediaType, bundle)
	text := func(layers string) string {
		return `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","artifactType":"` + proof.MediaType +
			`","layers":[` + layers + `]}`
	}
	embedded := `{"mediaType":"` + proof.MediaType + `","digest":"` + layer.Digest.String() + `","size":2,"data":"aGk="}`
	for name, c := range map[string]struct{ manifest, reason string }{
		"no JSON":     {`{`, "cannot read the manifest of the bundle"},
		"deep":        {strings.Repeat("[", 5000), "cannot read the manifest of the bundle"},
		"other type":  {strings.ReplaceAll(text(embedded), "approvals.v1", "other"), "not that of one bundle"},
		"no layer":    {text(""), "not that of one bundle"},
		"two layers":  {text(embedded + "," + embedded), "not that of one bundle"},
		"other bytes": {text(embedded), "other content than its digest"},
		"missing": {text(`{"mediaType":"` + proof.MediaType + `","digest":"` + layer.Digest.String() + `","size":2}`),
			"cannot read the bundle"},
		"large": {text(`{"mediaType":"` + proof.MediaType + `","digest":"` + layer.Digest.String() + `","size":2000000}`),
			"more than 1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			h := oci.NewHostile(t)
			d := h.Add(ocispec.MediaTypeImageManifest, []byte(c.manifest))
			from := access.New(access.Options{PlainHTTP: true}).Repository(h.Address + "/app")
			if _, err := Fetch(t.Context(), from, d); err == nil || !strings.Contains(err.Error(), c.reason) {
				t.Errorf("got %v, want %q", err, c.reason)
			}
		})
	}
	h := oci.NewHostile(t)
	d := h.Add(ocispec.MediaTypeImageManifest, []byte(text("")))
	d.Size = 3 << 20
	if _, err := Fetch(t.Context(), access.New(access.Options{PlainHTTP: true}).Repository(h.Address+"/app"),
		d); err == nil {
		t.Error("a manifest that is too large was fetched")
	}
}

// TestInTheWay verifies that a manifest that claims to have the bundle does not keep the bundle from being attached.
func TestInTheWay(t *testing.T) {
	t.Parallel()
	repository, image := pushed(t, withReferrers(t))
	forged, err := encode(image, []byte("no bundle"), hash("a"), entryTime(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := repository.Push(t.Context(), oci.Descriptor(ocispec.MediaTypeImageManifest, forged),
		bytes.NewReader(forged)); err != nil {
		t.Fatal(err)
	}
	if len(count(t, repository, image)) != 1 {
		t.Fatal("the forged bundle is not listed")
	}
	if _, added, err := Push(t.Context(), repository, image, newBundle(t, hash("a"), 32, 1), hash("a")); err != nil ||
		!added {
		t.Errorf("added %v: %v", added, err)
	}
}

// TestListed verifies the limit of a list, and that an image of another repository has none.
func TestListed(t *testing.T) {
	t.Parallel()
	h := oci.NewHostile(t)
	image := h.PushImage("a")
	for _, name := range []string{"b", "c", "c", "d"} {
		h.List(image, h.PushImage(name), entryTime(t))
	}
	from := access.New(access.Options{PlainHTTP: true}).Repository(h.Address + "/app")
	for limit, want := range map[int]int{2: 2, 3: 3, 10: 3} {
		found, more, err := Signatures(t.Context(), from, image, limit)
		if err != nil || len(found) != want || more != (limit < 3) || found[0].ArtifactType !=
			notationregistry.ArtifactTypeNotation {
			t.Errorf("limit %d: %d, more %v, %v", limit, len(found), more, err)
		}
	}
}

func entryTime(t testing.TB) time.Time {
	t.Helper()
	b, err := proof.Decode(newBundle(t, hash("a"), 1, 1))
	if err != nil {
		t.Fatal(err)
	}
	return Signed(b, hash("a")).At()
}

// TestOverwritten verifies that a bundle is listed although another writer has overwritten the list of referrers, in a
// registry without the referrers API.
func TestOverwritten(t *testing.T) {
	t.Parallel()
	m := oci.StartMemory()
	t.Cleanup(m.Close)
	lists, dropped := 0, 1
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/referrers/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		answer := httptest.NewRecorder()
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/sha256-") {
			if lists++; lists <= dropped { // another writer has put its list there since
				w.WriteHeader(http.StatusCreated)
				return
			}
		}
		m.ServeHTTP(answer, r)
		answer.Header().Del("OCI-Subject")
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	}))
	t.Cleanup(server.Close)
	repository, image := pushed(t, strings.TrimPrefix(server.URL, "http://"))
	_, added, err := Push(t.Context(), repository, image, newBundle(t, hash("a"), 32, 1), hash("a"))
	if err != nil || !added || lists != 2 || len(count(t, repository, image)) != 1 {
		t.Errorf("added %v after %d lists: %v", added, lists, err)
	}
	dropped = 1000
	_, _, err = Push(t.Context(), repository, image, newBundle(t, hash("c"), 32, 1), hash("c"))
	if err == nil || !strings.Contains(err.Error(), "does not list it after 3 attempts") {
		t.Errorf("a registry that loses lists: %v", err)
	}
}
