package gate

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// FuzzRequest holds that nothing containerd could send crashes, and that what is accepted is about one digest.
func FuzzRequest(f *testing.F) {
	sum := string(digest.FromString("image"))
	descriptor, err := json.Marshal(ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.Digest(sum), Size: 7})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("docker.io/library/alpine:latest", sum, ocispec.MediaTypeDescriptor, descriptor)
	f.Add("alpine@"+sum, sum, ocispec.MediaTypeDescriptor, descriptor)
	f.Add("127.0.0.1:5000/app:v1@"+sum, sum, ocispec.MediaTypeDescriptor, []byte(`{"digest":"sha256:","size":-1}`))
	f.Add("alpine", string(digest.FromString("another")), ocispec.MediaTypeDescriptor, descriptor)
	f.Add("-name", "--", "", []byte("{}{}"))
	f.Add("a\nb", "sha512:", "text/plain", []byte("null"))
	f.Fuzz(func(t *testing.T, name, sum, mediaType string, stdin []byte) {
		args := []string{"-name", name, "-digest", sum, "-stdin-media-type", mediaType}
		if line := nameIn(args); strings.ContainsAny(line, "\n\r\x1b") {
			t.Errorf("%q would be logged", line)
		}
		r, err := parseRequest(args, bytes.NewReader(stdin))
		if err != nil {
			if failure.Is(err, failure.Internal) {
				t.Errorf("%v is taken for a fault of ours", err)
			}
			return
		}
		if string(r.descriptor.Digest) != sum || r.descriptor.Digest.Validate() != nil || r.descriptor.Size <= 0 || r.repository == "" {
			t.Errorf("%+v was accepted", r)
		}
	})
}

// FuzzImage holds that no name of an image crashes.
func FuzzImage(f *testing.F) {
	for _, seed := range []string{"alpine", "docker://a/b:c", "oci:dir:tag", "oci:dir@sha256:0", "oci::", "oci:", "a@sha256:1", "localhost:5000/a:b"} {
		f.Add(seed, "example.com/app")
	}
	f.Fuzz(func(t *testing.T, text, scope string) {
		if i, err := parseImage(text, scope); err == nil && (i.name == "" || i.reference == "" || i.digest != "" && i.digest.Validate() != nil) {
			t.Errorf("%q is %+v", text, i)
		}
	})
}

func TestParseImage(t *testing.T) {
	sum := digest.FromString("image").String()
	for text, want := range map[string]image{
		"alpine":                              {name: "docker.io/library/alpine", reference: "latest"},
		"docker://team/app:1":                 {name: "docker.io/team/app", reference: "1"},
		"registry.example.com/app":            {name: "registry.example.com/app", reference: "latest"},
		"127.0.0.1:5000/team/app:1@" + sum:    {name: "127.0.0.1:5000/team/app", reference: sum, digest: digest.Digest(sum)},
		"index.docker.io/library/alpine:3.20": {name: "docker.io/library/alpine", reference: "3.20"},
	} {
		if got, err := parseImage(text, ""); err != nil || got != want {
			t.Errorf("%s is %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "Alpine", "a@sha256:1", "oci:" + t.TempDir() + ":tag", "https://example.com/app"} {
		if got, err := parseImage(text, "example.com/app"); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

// TestEndpoint speaks to a mirror below another path, with its headers and the name of the registry that it stands for, and to others
// as ever.
func TestEndpoint(t *testing.T) {
	var got *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }))
	defer server.Close()
	client := &http.Client{Transport: &endpoint{base: http.DefaultTransport, host: strings.TrimPrefix(server.URL, "http://"), path: "/v2/hub", header: http.Header{"X-Team": {"a"}}, namespace: "docker.io"}}
	for _, c := range []struct{ path, want, team string }{
		{"/v2/library/alpine/referrers/sha256:0?n=1", "/v2/hub/library/alpine/referrers/sha256:0?n=1&ns=docker.io", "a"},
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

// TestPanic is a no.
func TestPanic(t *testing.T) {
	r := within(t.Context(), DefaultTimeout, "image", func(context.Context) Result { panic("at the door") })
	if r.Passed() || !strings.Contains(r.Reason, "internal error: at the door") {
		t.Errorf("%+v", r)
	}
}
