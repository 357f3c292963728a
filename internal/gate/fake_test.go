package gate

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// fake is a registry with one repository, which serves what it is given, and counts what it sends.
type fake struct {
	address string
	// answer may answer a request in another way than a registry does; it returns whether it has.
	answer func(w http.ResponseWriter, r *http.Request) bool

	mutex     sync.Mutex
	types     map[string]string // by digest
	content   map[string][]byte
	referrers map[string][]ocispec.Descriptor // by the digest of an image
	requests  []string
	sent      int
}

func newFake(t testing.TB) *fake {
	t.Helper()
	f := &fake{types: map[string]string{}, content: map[string][]byte{}, referrers: map[string][]ocispec.Descriptor{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.address = strings.TrimPrefix(server.URL, "http://")
	return f
}

func (f *fake) name(image ocispec.Descriptor) string {
	return f.address + "/app@" + image.Digest.String()
}

// add makes content available, with the size that is told of it.
func (f *fake) add(mediaType string, data []byte) ocispec.Descriptor {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	d := content.NewDescriptorFromBytes(mediaType, data)
	f.types[d.Digest.String()], f.content[d.Digest.String()] = mediaType, data
	return d
}

// pushImage makes an image, which is no more than a name here.
func (f *fake) pushImage(name string) ocispec.Descriptor {
	return f.add(ocispec.MediaTypeImageManifest, fmt.Appendf(nil, `{"schemaVersion":2,"layers":[],"annotations":{"name":%q}}`, name))
}

// hang makes a signature's manifest, and lists it.
func (f *fake) hang(t testing.TB, envelope, image ocispec.Descriptor, created time.Time) ocispec.Descriptor {
	t.Helper()
	data, err := softhsmtest.SignatureManifest(envelope, image, created)
	if err != nil {
		t.Fatal(err)
	}
	d := f.add(ocispec.MediaTypeImageManifest, data)
	f.list(image, d, created)
	return d
}

func (f *fake) list(image, manifest ocispec.Descriptor, created time.Time) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	manifest.ArtifactType, manifest.Annotations = notationregistry.ArtifactTypeNotation, map[string]string{ocispec.AnnotationCreated: created.UTC().Format(time.RFC3339)}
	f.referrers[image.Digest.String()] = append(f.referrers[image.Digest.String()], manifest)
}

func (f *fake) sign(t testing.TB, by *softhsmtest.Forger, mediaType string, image ocispec.Descriptor, attributes map[string]string) ocispec.Descriptor {
	t.Helper()
	envelope, err := by.Sign(mediaType, image, attributes)
	if err != nil {
		t.Fatal(err)
	}
	return f.hang(t, f.add(mediaType, envelope), image, time.Now().Add(-time.Minute))
}

// count returns how many requests there were whose path has a part, and how many bytes were sent in all.
func (f *fake) count(part string) (requests, sent int) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	for _, path := range f.requests {
		if strings.Contains(path, part) {
			requests++
		}
	}
	return requests, f.sent
}

type counted struct {
	http.ResponseWriter
	f *fake
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.f.mutex.Lock()
	defer c.f.mutex.Unlock()
	c.f.sent += n
	return n, err
}

func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// ServeHTTP answers as a registry does.
func (f *fake) ServeHTTP(plain http.ResponseWriter, r *http.Request) {
	w := counted{plain, f}
	f.mutex.Lock()
	f.requests = append(f.requests, r.URL.Path)
	f.mutex.Unlock()
	if f.answer != nil && f.answer(w, r) {
		return
	}
	sum := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	f.mutex.Lock()
	data, ok := f.content[sum]
	mediaType, referrers := f.types[sum], f.referrers[sum]
	f.mutex.Unlock()
	if strings.Contains(r.URL.Path, "/referrers/") {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		_ = json.NewEncoder(w).Encode(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: append([]ocispec.Descriptor{}, referrers...)})
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(data).String())
	if r.Method != http.MethodHead {
		_, _ = w.Write(data)
	}
}
