package gate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/oci"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// FuzzRequest verifies that no request crashes, and that a request that is accepted is about one digest.
func FuzzRequest(f *testing.F) {
	sum := string(digest.FromString("image"))
	descriptor, err := json.Marshal(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.Digest(sum),
		Size: 7})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("docker.io/library/alpine:latest", sum, ocispec.MediaTypeDescriptor, descriptor)
	f.Add("docker.io/library/alpine@"+sum, sum, ocispec.MediaTypeDescriptor, descriptor)
	f.Add("127.0.0.1:5000/app:v1@"+sum, sum, ocispec.MediaTypeDescriptor, []byte(`{"digest":"sha256:","size":-1}`))
	f.Add("alpine", string(digest.FromString("another")), ocispec.MediaTypeDescriptor, descriptor)
	f.Add("-name", "--", "", []byte("{}{}"))
	f.Add("a\nb", "sha512:", "text/plain", []byte("null"))
	f.Fuzz(func(t *testing.T, name, sum, mediaType string, stdin []byte) {
		args := []string{"-name", name, "-digest", sum, "-stdin-media-type", mediaType}
		if line := imageName(args); strings.ContainsAny(line, "\n\r\x1b") {
			t.Errorf("%q would be logged", line)
		}
		var r *request
		var err error
		boundtest.Budget{Bytes: 64 << 10, BytesPerByte: 100}.Check(t, len(name)+len(sum)+len(stdin),
			func() { r, err = parseRequest(args, bytes.NewReader(stdin)) })
		if err != nil {
			if failure.Is(err, failure.Internal) {
				t.Errorf("%v is taken for a fault of ours", err)
			}
			return
		}
		if string(r.descriptor.Digest) != sum || r.descriptor.Digest.Validate() != nil || r.descriptor.Size <= 0 ||
			r.scope == "" {
			t.Errorf("%+v was accepted", r)
		}
	})
}

// TestRequestHost verifies that names are refused in which the trust policy sees another registry than containerd,
// which takes the part before the first slash.
func TestRequestHost(t *testing.T) {
	sum := digest.FromString("image").String()
	for name, want := range map[string]string{
		"docker.io/library/alpine:3":      "docker.io/library/alpine",
		"docker.io/alpine:3":              "docker.io/library/alpine",
		"index.docker.io/library/alpine":  "docker.io/library/alpine",
		"registry-1.docker.io/team/app":   "docker.io/team/app",
		"REGISTRY.example.com/app@" + sum: "registry.example.com/app",
		"registry.example.com:0443/app":   "registry.example.com/app",
		"localhost/app":                   "localhost/app",
		"Team/app":                        "team/app",
		"team/app":                        "",
		"alpine":                          "",
		"alpine:3":                        "",
		"alpine@" + sum:                   "",
		"library/alpine@" + sum:           "",
	} {
		r, err := parseRequest([]string{"-name", name, "-digest", sum, "-stdin-media-type", ocispec.MediaTypeDescriptor},
			strings.NewReader(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"`+sum+`","size":7}`))
		if (err == nil) != (want != "") || err == nil && r.scope != want || err != nil &&
			!strings.Contains(err.Error(), "containerd pulls from") {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// FuzzImage verifies that no name of an image crashes.
func FuzzImage(f *testing.F) {
	for _, seed := range []string{"alpine", "docker://a/b:c", "oci:dir:tag", "oci:dir@sha256:0", "oci::", "oci:",
		"a@sha256:1", "localhost:5000/a:b"} {
		f.Add(seed, "example.com/app")
	}
	f.Fuzz(func(t *testing.T, text, scope string) {
		var i image
		var err error
		boundtest.Budget{Bytes: 64 << 10, BytesPerByte: 100}.Check(t, len(text)+len(scope),
			func() { i, err = parseImage(text, scope) })
		if err == nil && (i.scope == "" || i.reference == "" || i.digest != "" && i.digest.Validate() != nil) {
			t.Errorf("%q is %+v", text, i)
		}
	})
}

func TestParseImage(t *testing.T) {
	sum := digest.FromString("image").String()
	for text, want := range map[string]image{
		"alpine": {address: "docker.io/library/alpine", scope: "docker.io/library/alpine",
			reference: "latest", tag: "latest"},
		"docker://team/app:1": {address: "docker.io/team/app", scope: "docker.io/team/app", reference: "1", tag: "1"},
		"registry.example.com/app": {address: "registry.example.com/app", scope: "registry.example.com/app",
			reference: "latest", tag: "latest"},
		"127.0.0.1:5000/team/app:1@" + sum: {address: "127.0.0.1:5000/team/app", scope: "127.0.0.1:5000/team/app",
			reference: sum, tag: "1", digest: digest.Digest(sum)},
		"127.0.0.1:5000/team/app@" + sum: {address: "127.0.0.1:5000/team/app", scope: "127.0.0.1:5000/team/app",
			reference: sum, digest: digest.Digest(sum)},
		"REGISTRY.example.com:443/app": {address: "registry.example.com:443/app", scope: "registry.example.com/app",
			reference: "latest", tag: "latest"},
		"registry-1.docker.io/team/app:1": {address: "registry-1.docker.io/team/app", scope: "docker.io/team/app",
			reference: "1", tag: "1"},
		"index.docker.io/library/alpine:3.20": {address: "docker.io/library/alpine", scope: "docker.io/library/alpine",
			reference: "3.20", tag: "3.20"},
	} {
		if got, err := parseImage(text, ""); err != nil || got != want {
			t.Errorf("%s is %+v, %v", text, got, err)
		}
	}
	folder := filepath.Join(t.TempDir(), "a@b")
	if _, err := oci.New(folder); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]image{
		":v1":                              {reference: "v1"},
		":registry.example.com/team/app:1": {reference: "registry.example.com/team/app:1"},
		"@" + sum:                          {reference: sum, digest: digest.Digest(sum)},
	} {
		want.scope, want.layout = "example.com/app", folder
		if got, err := parseImage("oci:"+folder+text, "example.com/app"); err != nil || got != want {
			t.Errorf("%s is %+v, %v", text, got, err)
		}
	}
	for _, transport := range otherTransports {
		if _, err := parseImage(transport+":app", "example.com/app"); err == nil ||
			!strings.Contains(err.Error(), "cannot verify images in "+transport+": ") {
			t.Errorf("%s: %v", transport, err)
		}
	}
	for _, text := range []string{"oci:" + folder + "@sha256:1", "oci:" + folder, "oci:" + folder + ":", "", "Alpine",
		"a@sha256:1", "oci:" + t.TempDir() + ":tag", "https://example.com/app"} {
		if got, err := parseImage(text, "example.com/app"); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

// TestEndpoint verifies that requests to a mirror have its path, its headers and the registry that it mirrors, and that
// other requests are not changed.
func TestEndpoint(t *testing.T) {
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }))
	defer server.Close()
	client := &http.Client{Transport: &endpoint{base: http.DefaultTransport,
		host: strings.TrimPrefix(server.URL, "http://"), standardPath: "/v2/library/alpine/", path: "/v2/hub/library/alpine/",
		header: http.Header{"X-Team": {"a"}}, namespace: "docker.io"}}
	for _, c := range []struct{ path, want, team string }{
		{"/v2/library/alpine/referrers/sha256:0?n=1", "/v2/hub/library/alpine/referrers/sha256:0?n=1&ns=docker.io", "a"},
		{"/v2/hub/library/alpine/referrers/sha256:0?n=2", "/v2/hub/library/alpine/referrers/sha256:0?n=2&ns=docker.io", "a"},
		{"/v2/auth?service=x", "/v2/auth?service=x", ""},
		{"/token?service=x", "/token?service=x", ""},
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if got.URL.String() != c.want || got.Header.Get("X-Team") != c.team {
			t.Errorf("%s became %s with %q", c.path, got.URL, got.Header.Get("X-Team"))
		}
	}
}

// TestMirrorBelowAPath verifies that signatures are found in a mirror with a path of its own, which has tokens outside
// of that path, and links and redirects within it.
func TestMirrorBelowAPath(t *testing.T) {
	sum := digest.FromString("image")
	list := "/v2/hub/team/app/referrers/" + sum.String()
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page := r.URL.Query().Get("page")
		switch {
		case r.URL.Path == "/v2/auth":
			fmt.Fprint(w, `{"token": "t"}`)
			return
		case r.URL.Path != list:
			t.Errorf("it was asked for %s", r.URL)
			http.NotFound(w, r)
			return
		case r.Header.Get("Authorization") != "Bearer t":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q,service=\"x\",scope=\"repository:team/app:pull\"",
				server.URL+"/v2/auth"))
			w.WriteHeader(http.StatusUnauthorized)
			return
		case page == "":
			w.Header().Set("Link", "<"+list+`?page=2>; rel="next"`)
		case page == "2":
			http.Redirect(w, r, list+"?page=3", http.StatusTemporaryRedirect)
			return
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
		if err := json.NewEncoder(w).Encode(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex,
			Manifests: []ocispec.Descriptor{{
				MediaType: ocispec.MediaTypeImageManifest, ArtifactType: notationregistry.ArtifactTypeNotation,
				Digest: digest.FromString(page), Size: 7,
			}}}); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	hosts := filepath.Join(t.TempDir(), "registry.example.com", "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(hosts), 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\"]\noverride_path = true\n", server.URL+"/v2/hub")
	if err := os.WriteFile(hosts, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &Gate{options: Options{HostsDir: filepath.Dir(filepath.Dir(hosts))},
		registries: registry.New(registry.Options{AuthFile: filepath.Join(t.TempDir(), "none.json")})}
	sources, err := g.pullSources(t.Context(), "registry.example.com/team/app")
	if err != nil {
		t.Fatal(err)
	}
	if found, err := sources[0].list(t.Context(), ocispec.Descriptor{Digest: sum}, false); err != nil ||
		len(found.found) != 2 {
		t.Errorf("%d signatures, %v", len(found.found), err)
	}
}

// TestReferenceIsALine verifies that a name with line breaks is printed and logged as one line.
func TestReferenceIsALine(t *testing.T) {
	r := (&Gate{}).Verify(t.Context(), []string{"a\nregistry.example.com/app:1: pass"}, "", time.Minute)[0]
	if r.Passed() || strings.ContainsAny(r.Reference+r.Reason, "\n") || r.Reference == "" {
		t.Errorf("%+v", r)
	}
}

// TestPanicInGoroutine verifies that a panic in a goroutine of its own is an error.
func TestPanicInGoroutine(t *testing.T) {
	if _, err := listAhead(t.Context(), source{}, "", false).list(t.Context(), ocispec.Descriptor{}, false); err == nil ||
		!strings.Contains(err.Error(), "internal error: ") {
		t.Errorf("signatures: %v", err)
	}
}

// TestPanic verifies that a panic refuses the image.
func TestPanic(t *testing.T) {
	r := runWithTimeout(t.Context(), DefaultTimeout, "image", func(context.Context) Decision { panic("out of luck") })
	if r.Passed() || !strings.Contains(r.Reason, "internal error: out of luck") {
		t.Errorf("%+v", r)
	}
}
