package tufstore

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// inFlight is the number of bytes that a server may have sent and nobody has read: in its buffers and the system's.
const inFlight = 16 << 20

// attacker is a registry that serves any manifest under a tag, and a store that reads from it.
type attacker struct {
	*oci.Hostile
	store *Store
	tags  map[string][]byte // manifests
	// answer may answer a request in another way
	answer func(w http.ResponseWriter, r *http.Request) bool
	mutex  sync.Mutex
}

func newAttacker(t *testing.T) *attacker {
	t.Helper()
	a := &attacker{Hostile: oci.NewHostile(t), tags: map[string][]byte{}}
	registries := registry.New(registry.Options{PlainHTTP: true, Limits: Round})
	t.Cleanup(registries.Close)
	a.store = New(registries.Repository(a.Address + "/app"))
	a.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		if a.answer != nil && a.answer(w, r) {
			return true
		}
		a.mutex.Lock()
		defer a.mutex.Unlock()
		reference := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		if reference == "list" {
			writeTags(w, slices.Sorted(maps.Keys(a.tags)))
			return true
		}
		manifest, ok := a.tags[reference]
		if ok {
			serveManifest(w, manifest)
		}
		return ok
	}
	return a
}

func writeTags(w http.ResponseWriter, tags []string) {
	_ = json.NewEncoder(w).Encode(map[string]any{"name": "app", "tags": tags})
}

func serveManifest(w http.ResponseWriter, manifest []byte) {
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	w.Header().Set("Content-Length", fmt.Sprint(len(manifest)))
	w.Header().Set("Docker-Content-Digest", sum(manifest).String())
	_, _ = w.Write(manifest)
}

// add serves files and returns their descriptors.
func (a *attacker) add(all map[string]string) files {
	f := files{}
	for name, text := range all {
		a.Add(fileType, []byte(text))
		f[name] = describe(name, []byte(text))
	}
	return f
}

// expect compares an error with its kind and words, and the work that the registry caused with its bounds.
func (a *attacker) expect(t *testing.T, err error, kind failure.Kind, words string, requests, bytes int) {
	t.Helper()
	if !failure.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("it fails with %v (%s), which is not %s with %q", err, failure.From(err).Kind, kind, words)
	}
	if n, sent := a.Count("/"); n > requests || sent > bytes {
		t.Errorf("%d requests, and %d bytes were sent; at most it is %d and %d", n, sent, requests, bytes)
	}
}

// TestHostileManifest verifies that what stands under the tag is refused with one request, unless it is a manifest.
func TestHostileManifest(t *testing.T) {
	good, err := files{}.encode(publishedType)
	if err != nil {
		t.Fatal(err)
	}
	status := func(code int) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.WriteHeader(code) }
	}
	header := func(name, value string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			serveManifest(headerWriter{w, name, value}, good)
		}
	}
	other := sum([]byte("x")).String()
	for name, c := range map[string]struct {
		answer   func(http.ResponseWriter)
		kind     failure.Kind
		words    string
		requests int
	}{
		"absent":        {status(http.StatusNotFound), failure.NotFound, "not found", 1},
		"secret":        {status(http.StatusForbidden), failure.Denied, "403", 1},
		"broken":        {status(http.StatusBadGateway), failure.Unavailable, "502", 1},
		"busy":          {status(http.StatusTooManyRequests), failure.Throttled, "429", 1},
		"another type":  {header("Content-Type", ocispec.MediaTypeImageIndex), failure.Invalid, "has the media type", 1},
		"no type":       {header("Content-Type", "/"), failure.Invalid, "Content-Type", 1},
		"other content": {header("Docker-Content-Digest", other), failure.Invalid, "mismatched digest", 1},
		"no digest":     {header("Docker-Content-Digest", "../../etc/passwd"), failure.Invalid, "digest", 1},
		"long": {func(w http.ResponseWriter) { serveManifest(w, make([]byte, maxManifest+1)) }, failure.Invalid,
			"more than 262144", 1},
		"longer than said": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(1<<40))
			oci.Flood(headerWriter{w, "Content-Type", ocispec.MediaTypeImageManifest}, "", strings.Repeat("a", 1<<20))
		}, failure.Invalid, "", 1},
		"endless": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			oci.Flood(w, "", strings.Repeat("a", 1<<20))
		}, failure.Invalid, "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttacker(t)
			a.answer = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead {
					w.WriteHeader(http.StatusBadRequest)
				} else {
					c.answer(w)
				}
				return true
			}
			_, err := a.store.Published(t.Context())
			a.expect(t, err, c.kind, c.words, c.requests, inFlight)
		})
	}
}

// headerWriter sends another header than it is told.
type headerWriter struct {
	http.ResponseWriter
	name, value string
}

func (w headerWriter) Write(p []byte) (int, error) {
	w.Header().Set(w.name, w.value)
	return w.ResponseWriter.Write(p)
}

// TestHostileFile verifies that a file is refused that is not what the manifest says, and that a missing one is not
// taken for one that was never published.
func TestHostileFile(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter)
		kind   failure.Kind
		words  string
	}{
		"missing": {func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) }, failure.Unavailable, "not found"},
		"other":   {func(w http.ResponseWriter) { fmt.Fprint(w, `{"a":2}`) }, failure.Invalid, "mismatched digest"},
		"short":   {func(w http.ResponseWriter) { fmt.Fprint(w, `{"`) }, failure.Invalid, "Content-Length"},
		"long":    {func(w http.ResponseWriter) { fmt.Fprint(w, `{"a":1} `) }, failure.Invalid, "Content-Length"},
		"endless": {func(w http.ResponseWriter) { oci.Flood(w, `{"a":1}`, strings.Repeat(" ", 1<<20)) }, failure.Invalid, ""},
		"broken": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "7")
			fmt.Fprint(w, `{"a"`)
		}, failure.Unavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttacker(t)
			f := a.add(map[string]string{"1.root.json": `{"a":1}`})
			manifest, err := f.encode(publishedType)
			if err != nil {
				t.Fatal(err)
			}
			a.tags[Tag] = manifest
			a.answer = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/blobs/") {
					c.answer(w)
					return true
				}
				return false
			}
			p, err := a.store.Published(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Read(t.Context(), "1.root.json", maxFile)
			a.expect(t, err, c.kind, c.words, 2, inFlight)
			_, err = p.Read(t.Context(), "1.root.json", 6)
			a.expect(t, err, failure.Invalid, "it has 7 bytes, more than 6", 2, inFlight)
			_, err = p.Read(t.Context(), "2.root.json", maxFile)
			a.expect(t, err, failure.NotFound, "there is no such file", 2, inFlight)
		})
	}
}

// TestManyTags verifies that a repository with too many tags is refused in bounded work, however the registry pages.
func TestManyTags(t *testing.T) {
	proposal := func(i int) string { return fmt.Sprintf("%s%032x", proposalPrefix, i) }
	for name, c := range map[string]struct {
		page     func(page int) []string // page 0, 1, ...
		words    string
		requests int
	}{
		"a million":   {func(page int) []string { return numbered(1000*page, 1000, "v%07d") }, "1000 pages", 1000},
		"one by one":  {func(page int) []string { return numbered(page, 1, "v%07d") }, "1000 pages", 1000},
		"in one page": {func(int) []string { return numbered(0, 1000000, "v%07d") }, "the list is refused", 1},
		"the same":    {func(int) []string { return []string{proposal(0)} }, "1000 pages", 1000},
		"empty pages": {func(int) []string { return nil }, "1000 pages", 1000},
		"many proposals": {func(page int) []string { return numbered(500*page, 500, proposalPrefix+"%032x") },
			"more than 1000 proposals", 13},
	} {
		t.Run(name, func(t *testing.T) {
			a, page := newAttacker(t), 0
			a.answer = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "/tags/list") {
					return false
				}
				w.Header().Set("Link", "<"+r.URL.Path+"?next>; rel=\"next\"")
				writeTags(w, c.page(page))
				page++
				return true
			}
			_, err := a.store.Proposals(t.Context())
			a.expect(t, err, failure.Invalid, c.words, c.requests, inFlight)
		})
	}
}

// numbered returns tags made of a format and count numbers.
func numbered(first, count int, format string) []string {
	tags := make([]string, count)
	for i := range tags {
		tags[i] = fmt.Sprintf(format, first+i)
	}
	return tags
}
