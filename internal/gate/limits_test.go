package gate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// inFlight is the number of bytes that a server may have sent and nobody has read: in its buffers and the system's.
const inFlight = 16 << 20

// attack is a hostile registry with an image, and a gate that trusts alice.
type attack struct {
	*oci.Hostile
	gate           *Gate
	alice, mallory *oci.Forger
	image          ocispec.Descriptor
}

func newAttack(t testing.TB) *attack {
	t.Helper()
	a := &attack{Hostile: oci.NewHostile(t), alice: newForger(t), mallory: newForger(t)}
	a.gate = openGate(t, Options{TrustDir: trusting(t, "strict", a.alice)})
	a.image = a.PushImage("image")
	return a
}

func (a *attack) verify(t testing.TB) Decision {
	t.Helper()
	return a.gate.Verify(t.Context(), []string{a.Name(a.image)}, "", time.Minute)[0]
}

// expect verifies the image and compares the reason ("" is a pass). The registry may have got at most so many requests
// whose path contains part, and may have sent so many bytes.
func (a *attack) expect(t testing.TB, reason, part string, requests, bytes int) {
	t.Helper()
	r := a.verify(t)
	if r.Passed() != (reason == "") || !strings.Contains(r.Reason, reason) {
		t.Errorf("%s: %s, not %q", r.Verdict, r.Reason, reason)
	}
	if n, sent := a.Count(part); n > requests || sent > bytes {
		t.Errorf("%d requests for %s, and %d bytes were sent; at most it is %d and %d", n, part, sent, requests, bytes)
	}
}

// forge attaches n signatures by mallory to the image, with a time of creation.
func (a *attack) forge(t testing.TB, n int, created time.Time) {
	t.Helper()
	envelope, err := a.mallory.Sign(jws.MediaTypeEnvelope, a.image, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n { // each is another manifest
		a.Hang(t, a.Add(jws.MediaTypeEnvelope, append(bytes.Clone(envelope), bytes.Repeat([]byte(" "), i)...)), a.image,
			created)
	}
}

// TestLongEnvelopes verifies that envelopes that are too long are not fetched, and that a valid signature is found
// beside them.
func TestLongEnvelopes(t *testing.T) {
	a := newAttack(t)
	for i := range 20 {
		a.Hang(t, ocispec.Descriptor{MediaType: jws.MediaTypeEnvelope, Digest: digest.FromString(fmt.Sprint(i)),
			Size: 33 << 20}, a.image, time.Now())
	}
	a.expect(t, "it has 34603008 bytes, more than 1048576", "/blobs/", 0, 1<<20)
	a.Sign(t, a.alice, jws.MediaTypeEnvelope, a.image, nil)
	a.expect(t, "", "/blobs/", 1, 1<<20)
}

// TestEnvelopes verifies that the manifest of a signature has one envelope: with two, it would be chance which one
// counts.
func TestEnvelopes(t *testing.T) {
	a := newAttack(t)
	envelope, err := a.alice.Sign(jws.MediaTypeEnvelope, a.image, nil)
	if err != nil {
		t.Fatal(err)
	}
	layer := a.Add(jws.MediaTypeEnvelope, envelope)
	for n, reason := range []string{"has 0 envelopes, not 1", "", "has 2 envelopes, not 1"} {
		manifest, err := json.Marshal(ocispec.Manifest{Layers: slices.Repeat([]ocispec.Descriptor{layer}, n)})
		if err != nil {
			t.Fatal(err)
		}
		s := source{manifests: storage(manifest), blobs: storage(envelope)}
		_, _, err = s.fetchSignature(t.Context(), ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))})
		if (err == nil) != (reason == "") || err != nil && !strings.Contains(err.Error(), reason) {
			t.Errorf("%d envelopes: %v", n, err)
		}
	}
	index := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex}
	if _, _, err := (source{}).fetchSignature(t.Context(), index); err == nil ||
		!strings.Contains(err.Error(), "the signature's manifest has the media type") {
		t.Error(err)
	}
}

// TestLyingSizes sends more than a descriptor says, with and without a length in the header.
func TestLyingSizes(t *testing.T) {
	for _, declared := range []bool{true, false} {
		for _, part := range []string{"/blobs/", "/manifests/"} {
			a := newAttack(t)
			a.Sign(t, a.mallory, jws.MediaTypeEnvelope, a.image, nil)
			image := a.image.Digest.String()
			a.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, part) || strings.HasSuffix(r.URL.Path, image) {
					return false
				}
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				if declared {
					w.Header().Set("Content-Length", fmt.Sprint(1<<40))
				}
				oci.Flood(w, "", string(make([]byte, 1<<20)))
				return true
			}
			a.expect(t, "cannot read the signature's", part, 3, inFlight)
		}
	}
}

// TestEnvelopeAtTheBound verifies an envelope of the largest size, and refuses one with a byte more.
func TestEnvelopeAtTheBound(t *testing.T) {
	for more, reason := range map[int]string{0: "", 1: "more than 1048576"} {
		a := newAttack(t)
		envelope, err := a.alice.Sign(jws.MediaTypeEnvelope, a.image, nil)
		if err != nil {
			t.Fatal(err)
		}
		a.Hang(t, a.Add(jws.MediaTypeEnvelope,
			append(envelope, bytes.Repeat([]byte(" "), maxEnvelope+more-len(envelope))...)), a.image, time.Now())
		a.expect(t, reason, "/blobs/", 1, 2<<20)
	}
}

// TestNewestFirst verifies that the 50 newest signatures are verified, and that a time in the future counts as none.
func TestNewestFirst(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		forged  int
		created time.Time
		reason  string
		fetched int
	}{
		{200, now.Add(-time.Hour), "", 1},
		{200, now.Add(time.Hour), "", 1},
		{49, now, "", 50},
		{50, now, "there are more than 50", 50},
		{1200, now, "none of 50 signatures is valid; there are more than 50, and only the newest are verified: ", 50},
	} {
		a := newAttack(t)
		a.forge(t, c.forged, c.created)
		a.Sign(t, a.alice, jws.MediaTypeEnvelope, a.image, nil) // a minute ago
		a.expect(t, c.reason, "/blobs/", c.fetched, 2<<20)
	}
}

// TestEndlessPages verifies that a list ends after registry.MaxPages pages, and that signatures on them are found.
func TestEndlessPages(t *testing.T) {
	for _, signed := range []bool{true, false} {
		a := newAttack(t)
		reason := "it has no signature; there are more than 0"
		if signed {
			a.Sign(t, a.alice, jws.MediaTypeEnvelope, a.image, nil)
			reason = ""
		}
		pages := 0
		a.Answer = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/referrers/") {
				pages++
				w.Header().Set("Link", fmt.Sprintf("<%s?page=%d>; rel=\"next\"", r.URL.Path, pages))
			}
			return false
		}
		a.expect(t, reason, "/referrers/", registry.MaxPages, 1<<20)
	}
}

// TestPages verifies that a list is refused that is too long, endless, or has too many elements, from the referrers API
// and from the tag that replaces it.
func TestPages(t *testing.T) {
	endless := func(w io.Writer) { oci.Flood(w, `{"manifests":[`, strings.Repeat("{},", 10000)) }
	for name, c := range map[string]struct {
		write  func(io.Writer)
		reason string
	}{
		"endless": {endless, "it has 1048577 bytes, more than 1048576"},
		"many": {func(w io.Writer) { fmt.Fprintf(w, `{"manifests":[%s{}]}`, strings.Repeat("{},", 25000)) },
			"more than 20000 elements"},
		"deep": {func(w io.Writer) { fmt.Fprint(w, `{"annotations":`+strings.Repeat("[", 100000)) }, "nested deeper than 16"},
	} {
		// the second is the tag of those who have no first
		for _, way := range []string{"/referrers/", "/manifests/sha256-"} {
			t.Run(name+way, func(t *testing.T) {
				a := newAttack(t)
				a.Answer = func(w http.ResponseWriter, r *http.Request) bool {
					switch {
					case way != "/referrers/" && strings.Contains(r.URL.Path, "/referrers/"):
						http.NotFound(w, r)
					case strings.Contains(r.URL.Path, way):
						w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
						if way != "/referrers/" {
							w.Header().Set("Docker-Content-Digest", digest.FromString("list").String())
							w.Header().Set("Content-Length", fmt.Sprint(1<<30))
						}
						if r.Method == http.MethodGet {
							c.write(w)
						}
					default:
						return false
					}
					return true
				}
				reason := c.reason
				if way != "/referrers/" && name != "endless" {
					reason = "cannot list its signatures" // its length is wrong already
				}
				a.expect(t, reason, way, 1, inFlight)
			})
		}
	}
}

// TestDrip verifies that the timeout ends a reply that comes byte by byte, with its connection.
func TestDrip(t *testing.T) {
	for _, part := range []string{"/referrers/", "/blobs/"} {
		a := newAttack(t)
		a.Sign(t, a.mallory, jws.MediaTypeEnvelope, a.image, nil)
		var begun, gone atomic.Int32
		a.Answer = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, part) {
				return false
			}
			begun.Add(1)
			defer gone.Add(1)
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			for r.Context().Err() == nil {
				fmt.Fprint(w, " ")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Millisecond)
			}
			return true
		}
		// a busy machine needs longer to come to the reply
		for limit := 300 * time.Millisecond; begun.Load() == 0; limit *= 2 {
			r := a.gate.Verify(t.Context(), []string{a.Name(a.image)}, "", limit)[0]
			if r.Passed() || begun.Load() > 0 && !strings.Contains(r.Reason, "within "+limit.String()) {
				t.Errorf("%+v", r)
			}
		}
		for gone.Load() < begun.Load() {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestRedirectsAndTokens verifies that redirects end, and that replies with tokens and errors are limited.
func TestRedirectsAndTokens(t *testing.T) {
	endless := func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead { // whose writes never fail
			oci.Flood(w, `{"token":"`, strings.Repeat("a", 1<<20))
		}
	}
	a := newAttack(t)
	reasons := map[string]string{"redirects": "stopped after 10 redirects", "tokens": "failed to decode response",
		"errors": "500", "a header": "exceeded 65536 bytes"}
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"redirects": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"/", http.StatusTemporaryRedirect)
		},
		"tokens": func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/token") {
				endless(w, r)
				return
			}
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x"`, a.Address))
			w.WriteHeader(http.StatusUnauthorized)
			endless(w, r)
		},
		"errors": func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			endless(w, r)
		},
		"a header": func(w http.ResponseWriter, _ *http.Request) {
			for i := range 1000 {
				w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("a", 1000))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a = newAttack(t)
			a.Answer = func(w http.ResponseWriter, r *http.Request) bool { answer(w, r); return true }
			a.expect(t, reasons[name], "/", 30, 2*inFlight)
		})
	}
}
