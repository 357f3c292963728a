package approver

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// shelf is a registry that has what a test puts there, by path.
type shelf struct {
	t      *testing.T
	host   string
	files  map[string][]byte
	types  map[string]string
	digest string // that replies claim
	status int
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	s := &shelf{t: t, files: map[string][]byte{}, types: map[string]string{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, exists := s.files[r.URL.Path]
		switch {
		case s.status != 0:
			w.WriteHeader(s.status)
		case !exists:
			w.WriteHeader(http.StatusNotFound)
		default:
			w.Header().Set("Content-Type", s.types[r.URL.Path])
			if s.digest != "" {
				w.Header().Set("Docker-Content-Digest", s.digest)
			}
			_, _ = w.Write(data)
		}
	}))
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	return s
}

// put puts a document there, and returns its descriptor.
func (s *shelf) put(kind, mediaType string, value any) ocispec.Descriptor {
	s.t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		s.t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	path := "/v2/app/" + kind + "/" + d.Digest.String()
	s.files[path], s.types[path] = data, mediaType
	return d
}

func (s *shelf) image(architecture string) ocispec.Descriptor {
	config := s.put("blobs", ocispec.MediaTypeImageConfig, map[string]any{"os": "linux", "architecture": architecture,
		"created": "2030-01-01T00:00:00Z", "config": map[string]any{"Labels": map[string]string{
			ocispec.AnnotationRevision: "c0ffee\x1b[2J"}}})
	m := s.put("manifests", ocispec.MediaTypeImageManifest, map[string]any{"config": config,
		"layers": []ocispec.Descriptor{{Size: 1}}, "annotations": map[string]string{ocispec.AnnotationVersion: "1.2"}})
	m.Platform = &ocispec.Platform{OS: "linux", Architecture: architecture}
	return m
}

// scene returns a request to sign what the shelf has.
func (s *shelf) scene(all ...ocispec.Descriptor) *scene {
	s.t.Helper()
	sc := newScene(s.t, target("", nil))
	p := &sc.statement.Predicate
	p.Targets, sc.statement.Subjects, p.Repository = nil, nil, s.host+"/app"
	for _, d := range all {
		t := target(d.MediaType, s.files["/v2/app/manifests/"+d.Digest.String()])
		t.Digest, t.Size = d.Digest.String(), d.Size
		p.Targets = append(p.Targets, t)
		subject := sc.statement.Subjects
		sc.statement.Subjects = append(subject, newScene(s.t, t).statement.Subjects...)
	}
	sc.seal()
	return sc
}

func (s *shelf) fetch(sc *scene) ([]Artifact, error) {
	s.t.Helper()
	seen, err := sc.read()
	if err != nil {
		s.t.Fatal(err)
	}
	registries := registry.New(registry.Options{PlainHTTP: true, AuthFile: filepath.Join(s.t.TempDir(), "none.json")})
	defer registries.Close()
	return seen.Fetch(s.t.Context(), registries)
}

// TestFetch shows platforms and claims of an index and of an image.
func TestFetch(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	amd64, arm64 := s.image("amd64"), s.image("arm64")
	unknown := amd64
	unknown.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	index := s.put("manifests", ocispec.MediaTypeImageIndex,
		map[string]any{"manifests": []ocispec.Descriptor{amd64, arm64, unknown}})
	all, err := s.fetch(s.scene(index, amd64, arm64))
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	got := text([]Table{all[0].Table(), all[1].Table()})
	for _, want := range []string{"IN THE REGISTRY | " + index.Digest.String(),
		"platform | linux/amd64 " + amd64.Digest.String(), "platform | linux/arm64 " + arm64.Digest.String(), "layers | 1",
		"claims version | 1.2"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if all, err = s.fetch(s.scene(amd64)); err != nil {
		t.Fatal(err)
	}
	got = text([]Table{all[0].Table()})
	for _, want := range []string{"platform | linux/amd64", "claims created | 2030-01-01T00:00:00Z",
		"claims revision | c0ffee"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
}

// TestFetchRefuses artifacts that are not what the statement says.
func TestFetchRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*shelf, *scene, string)
		kind   failure.Kind
		want   string
	}{
		"other bytes": {func(s *shelf, _ *scene, path string) { s.files[path] = []byte(`{}`) }, failure.Denied, ""},
		"claims the digest": {func(s *shelf, sc *scene, path string) {
			s.digest = sc.statement.Predicate.Targets[0].Digest
			s.files[path] = append(s.files[path][:len(s.files[path])-1:len(s.files[path])-1], ' ')
		}, failure.Denied, "something else"},
		"absent": {func(s *shelf, _ *scene, path string) { delete(s.files, path) }, failure.Denied, "not found"},
		"other type": {func(s *shelf, _ *scene, path string) { s.types[path] = ocispec.MediaTypeImageIndex }, failure.Denied,
			"it is of type"},
		"other size": {func(_ *shelf, sc *scene, _ string) { sc.statement.Predicate.Targets[0].Size++ }, failure.Denied,
			"bytes, not"},
		"no credentials": {func(s *shelf, _ *scene, _ string) { s.status = http.StatusForbidden }, failure.Denied, "403"},
		"broken": {func(s *shelf, _ *scene, _ string) { s.status = http.StatusInternalServerError },
			failure.Unavailable, "500"},
		"no repository": {func(_ *shelf, sc *scene, _ string) { sc.statement.Predicate.Repository = "" }, failure.Invalid,
			"names no repository"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShelf(t)
			image := s.image("amd64")
			sc := s.scene(image)
			c.change(s, sc, "/v2/app/manifests/"+image.Digest.String())
			sc.seal()
			if _, err := s.fetch(sc); !failure.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Error(err)
			}
		})
	}
}

// TestPlainRegistry names the flag for a registry that speaks plain HTTP.
func TestPlainRegistry(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	seen, err := s.scene(s.image("amd64")).read()
	if err != nil {
		t.Fatal(err)
	}
	registries := registry.New(registry.Options{AuthFile: filepath.Join(t.TempDir(), "none.json")})
	defer registries.Close()
	_, err = seen.Fetch(t.Context(), registries)
	if !strings.Contains(failure.From(err).Hint, "--plain-http") {
		t.Errorf("%v, hint %q", err, failure.From(err).Hint)
	}
}
