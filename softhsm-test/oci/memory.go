package oci

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Memory is a registry over plain HTTP with one repository in memory, under any name. Unlike the distribution registry
// it has the referrers API.
type Memory struct {
	Address string

	server    *httptest.Server
	mutex     sync.Mutex
	content   map[string]memoryContent // by digest
	tags      map[string]string        // digests
	sorted    []string                 // tags; nil after a change
	referrers map[string][]ocispec.Descriptor
}

type memoryContent struct {
	mediaType string
	data      []byte
}

// StartMemory starts a registry, which has to be closed.
func StartMemory() *Memory {
	m := &Memory{content: map[string]memoryContent{}, tags: map[string]string{},
		referrers: map[string][]ocispec.Descriptor{}}
	m.server = httptest.NewServer(m)
	m.Address = strings.TrimPrefix(m.server.URL, "http://")
	return m
}

// Close ends the registry.
func (m *Memory) Close() { m.server.Close() }

// Put stores a manifest, under a tag if it is not "", or a blob.
func (m *Memory) Put(mediaType string, data []byte, tag string) ocispec.Descriptor {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	d := Descriptor(mediaType, data)
	sum := d.Digest.String()
	if _, exists := m.content[sum]; !exists {
		m.content[sum] = memoryContent{mediaType, data}
		m.refer(d, data)
	}
	if tag != "" {
		m.tags[tag], m.sorted = sum, nil
	}
	return d
}

// refer lists a manifest as a referrer of its subject, if it has one.
func (m *Memory) refer(d ocispec.Descriptor, data []byte) {
	var manifest ocispec.Manifest
	if d.MediaType != ocispec.MediaTypeImageManifest || json.Unmarshal(data, &manifest) != nil || manifest.Subject == nil {
		return
	}
	d.ArtifactType, d.Annotations = manifest.ArtifactType, manifest.Annotations
	if d.ArtifactType == "" {
		d.ArtifactType = manifest.Config.MediaType
	}
	subject := manifest.Subject.Digest.String()
	m.referrers[subject] = append(m.referrers[subject], d)
}

// ServeHTTP answers as the distribution specification says.
func (m *Memory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	last := path[strings.LastIndexByte(path, '/')+1:]
	switch {
	case strings.HasSuffix(path, "/tags/list"):
		m.list(w, r.URL)
	case strings.Contains(path, "/referrers/"):
		m.mutex.Lock()
		index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
		index.SchemaVersion = 2
		index.Manifests = append(index.Manifests, m.referrers[last]...)
		m.mutex.Unlock()
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		_ = json.NewEncoder(w).Encode(index)
	case r.Method == http.MethodPost:
		w.Header().Set("Location", path+"/1")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut:
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		tag := last
		if _, err := digest.Parse(tag); err == nil || strings.Contains(path, "/blobs/") {
			tag = ""
		}
		w.Header().Set("Docker-Content-Digest", m.Put(r.Header.Get("Content-Type"), data, tag).Digest.String())
		var manifest ocispec.Manifest
		if json.Unmarshal(data, &manifest) == nil && manifest.Subject != nil {
			w.Header().Set("OCI-Subject", manifest.Subject.Digest.String())
		}
		w.WriteHeader(http.StatusCreated)
	default:
		m.get(w, r, last)
	}
}

// get answers a request for a manifest or a blob.
func (m *Memory) get(w http.ResponseWriter, r *http.Request, reference string) {
	m.mutex.Lock()
	if sum, tagged := m.tags[reference]; tagged {
		reference = sum
	}
	c, exists := m.content[reference]
	m.mutex.Unlock()
	if !exists {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", c.mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(c.data)))
	w.Header().Set("Docker-Content-Digest", reference)
	if r.Method != http.MethodHead {
		_, _ = w.Write(c.data)
	}
}

// list answers with a page of tags.
func (m *Memory) list(w http.ResponseWriter, u *url.URL) {
	m.mutex.Lock()
	if m.sorted == nil {
		for tag := range m.tags {
			m.sorted = append(m.sorted, tag)
		}
		slices.Sort(m.sorted)
	}
	all := m.sorted
	m.mutex.Unlock()
	if last := u.Query().Get("last"); last != "" {
		at, found := slices.BinarySearch(all, last)
		if found {
			at++
		}
		all = all[at:]
	}
	if n, err := strconv.Atoi(u.Query().Get("n")); err == nil && n > 0 && n < len(all) {
		all = all[:n]
		w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d&last=%s>; rel="next"`, u.Path, n, url.QueryEscape(all[n-1])))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"name": "app", "tags": append([]string{}, all...)})
}
