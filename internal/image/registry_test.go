package image

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// A registry is an OCI registry in memory, with one repository.
type registry struct {
	mu        sync.Mutex
	blobs     map[string][]byte
	manifests map[string][]byte // by tag and by digest
	types     map[string]string // of manifests, by digest
	puts      []string          // tags and digests of manifests, in the order in which they were put
	onPut     func(reference string) (status int)
	host      string
}

func newRegistry(t testing.TB) *registry {
	t.Helper()
	r := &registry{blobs: map[string][]byte{}, manifests: map[string][]byte{}, types: map[string]string{}}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// image returns the repository's image with a tag.
func (r *registry) image(t testing.TB, tag string) Reference {
	t.Helper()
	return mustParse(t, "docker://"+r.host+"/app:"+tag)
}

// plainHTTP is how the registry is reached.
var plainHTTP = Registry{Insecure: true}

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	body, _ := io.ReadAll(q.Body)
	kind, name, _ := strings.Cut(strings.TrimPrefix(q.URL.Path, "/v2/app/"), "/")
	read := q.Method == http.MethodGet || q.Method == http.MethodHead
	switch {
	case q.URL.Path == "/v2/":
	case kind == "blobs" && read:
		answer(w, q, r.blobs[name], "application/octet-stream")
	case kind == "blobs" && q.Method == http.MethodPost:
		w.Header().Set("Location", "/v2/app/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
	case kind == "blobs" && q.Method == http.MethodPatch:
		r.blobs["upload"] = body
		w.Header().Set("Location", "/v2/app/blobs/uploads/1")
		w.WriteHeader(http.StatusAccepted)
	case kind == "blobs" && q.Method == http.MethodPut:
		r.blobs[q.URL.Query().Get("digest")] = append(r.blobs["upload"], body...)
		w.WriteHeader(http.StatusCreated)
	case kind == "manifests" && read:
		data := r.manifests[name]
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(data).String())
		answer(w, q, data, r.types[digest.FromBytes(data).String()])
	case kind == "manifests" && q.Method == http.MethodPut:
		if r.onPut != nil {
			if status := r.onPut(name); status != 0 {
				w.WriteHeader(status)
				return
			}
		}
		d := digest.FromBytes(body).String()
		r.manifests[name], r.manifests[d], r.types[d] = body, body, q.Header.Get("Content-Type")
		r.puts = append(r.puts, name)
		w.WriteHeader(http.StatusCreated)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func answer(w http.ResponseWriter, q *http.Request, data []byte, mediaType string) {
	if data == nil {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if q.Method == http.MethodGet {
		_, _ = w.Write(data)
	}
}
