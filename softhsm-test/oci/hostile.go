package oci

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
)

// Hostile is a registry over plain HTTP with one repository, which serves what it is given, and counts what it sends.
type Hostile struct {
	Address string
	// Answer may answer a request in another way than a registry does; it returns whether it has.
	Answer func(w http.ResponseWriter, r *http.Request) bool

	mutex     sync.Mutex
	types     map[string]string // by digest
	content   map[string][]byte
	referrers map[string][]ocispec.Descriptor // by the digest of an image
	requests  []string
	sent      int
}

// NewHostile starts a registry that ends with the test.
func NewHostile(t testing.TB) *Hostile {
	t.Helper()
	f := &Hostile{types: map[string]string{}, content: map[string][]byte{}, referrers: map[string][]ocispec.Descriptor{}}
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	f.Address = strings.TrimPrefix(server.URL, "http://")
	return f
}

// Name returns the name of an image, by its digest.
func (f *Hostile) Name(image ocispec.Descriptor) string {
	return f.Address + "/app@" + image.Digest.String()
}

// Add makes content available.
func (f *Hostile) Add(mediaType string, data []byte) ocispec.Descriptor {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	d := content.NewDescriptorFromBytes(mediaType, data)
	f.types[d.Digest.String()], f.content[d.Digest.String()] = mediaType, data
	return d
}

// Tag makes content available by a tag too, in place of what had the tag.
func (f *Hostile) Tag(tag string, d ocispec.Descriptor) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.types[tag], f.content[tag] = d.MediaType, f.content[d.Digest.String()]
}

// PushImage makes an image, which is no more than a name here.
func (f *Hostile) PushImage(name string) ocispec.Descriptor {
	return f.Add(ocispec.MediaTypeImageManifest,
		fmt.Appendf(nil, `{"schemaVersion":2,"layers":[],"annotations":{"name":%q}}`, name))
}

// Hang makes a signature's manifest, and lists it.
func (f *Hostile) Hang(t testing.TB, envelope, image ocispec.Descriptor, created time.Time) ocispec.Descriptor {
	t.Helper()
	data, err := SignatureManifest(envelope, image, created)
	if err != nil {
		t.Fatal(err)
	}
	d := f.Add(ocispec.MediaTypeImageManifest, data)
	f.List(image, d, created)
	return d
}

// List lists a signature's manifest, which need not be there.
func (f *Hostile) List(image, manifest ocispec.Descriptor, created time.Time) {
	manifest.ArtifactType, manifest.Annotations = notationregistry.ArtifactTypeNotation,
		map[string]string{ocispec.AnnotationCreated: created.UTC().Format(time.RFC3339)}
	f.Refer(image, manifest)
}

// Refer lists a manifest as a referrer of an image, with its artifact type and annotations.
func (f *Hostile) Refer(image, manifest ocispec.Descriptor) {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	f.referrers[image.Digest.String()] = append(f.referrers[image.Digest.String()], manifest)
}

// Referrers returns the index of an image's referrers.
func (f *Hostile) Referrers(t testing.TB, image ocispec.Descriptor) []byte {
	t.Helper()
	f.mutex.Lock()
	defer f.mutex.Unlock()
	data, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex, Manifests: append([]ocispec.Descriptor{},
			f.referrers[image.Digest.String()]...)})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Sign hangs a signature on an image.
func (f *Hostile) Sign(t testing.TB, by *Forger, mediaType string, image ocispec.Descriptor,
	attributes map[string]string) ocispec.Descriptor {
	t.Helper()
	envelope, err := by.Sign(mediaType, image, attributes)
	if err != nil {
		t.Fatal(err)
	}
	return f.Hang(t, f.Add(mediaType, envelope), image, time.Now().Add(-time.Minute))
}

// Count returns how many requests there were whose path has a part, and how many bytes were sent in all.
func (f *Hostile) Count(part string) (requests, sent int) {
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
	f *Hostile
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
func (f *Hostile) ServeHTTP(plain http.ResponseWriter, r *http.Request) {
	w := counted{plain, f}
	f.mutex.Lock()
	f.requests = append(f.requests, r.URL.Path)
	f.mutex.Unlock()
	if f.Answer != nil && f.Answer(w, r) {
		return
	}
	sum := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	f.mutex.Lock()
	data, ok := f.content[sum]
	mediaType, referrers := f.types[sum], f.referrers[sum]
	f.mutex.Unlock()
	if strings.Contains(r.URL.Path, "/referrers/") {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		_ = json.NewEncoder(w).Encode(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex,
			Manifests: append([]ocispec.Descriptor{}, referrers...)})
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

// Flood writes until nobody reads any more. It does not end for a request of HEAD, of which no body is sent.
func Flood(w io.Writer, begin, chunk string) {
	_, err := io.WriteString(w, begin)
	for err == nil {
		_, err = io.WriteString(w, chunk)
	}
}
