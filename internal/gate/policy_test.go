package gate

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// trustingFor writes a trust directory in which the scopes need a signature by alice, and all others none.
func trustingFor(t testing.TB, alice *oci.Forger, scopes ...string) (folder string) {
	t.Helper()
	folder = trusting(t, "strict", alice)
	list, err := json.Marshal(scopes)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(folder, "trustpolicy.json"), fmt.Sprintf(`{"version": "1.0", "trustPolicies": [
		{"name": "guarded", "registryScopes": %s, "trustStores": ["ca:store"], "trustedIdentities": ["*"],
			"signatureVerification": {"level": "strict"}},
		{"name": "others", "registryScopes": ["*"], "signatureVerification": {"level": "skip"}}]}`, list), 0o600)
	return folder
}

// TestSpelling verifies that an image is verified under the statement of its repository, however the registry is
// spelled in the name or in the policy: by Gate and by Node.
func TestSpelling(t *testing.T) {
	alice := newForger(t)
	h := oci.NewHostile(t)
	image := h.PushImage("unsigned")
	_, port, _ := strings.Cut(h.Address, ":")
	layout := writeLayout(t, nil)
	for _, scope := range []string{"localhost:" + port + "/app", "LOCALHOST:" + port + "/app",
		"LocalHost:0" + port + "/app"} {
		g := openGate(t, Options{TrustDir: trustingFor(t, alice, scope)})
		node := Node{Options: Options{TrustDir: g.options.TrustDir}, StateDir: t.TempDir(), Timeout: time.Minute}
		for _, name := range []string{"localhost:" + port + "/app", "LOCALHOST:" + port + "/app",
			"lOcAlHoSt:00" + port + "/app"} {
			descriptor, err := json.Marshal(image)
			if err != nil {
				t.Fatal(err)
			}
			for how, r := range map[string]Decision{
				"verify": g.Verify(t.Context(), []string{name + "@" + image.Digest.String()}, "", time.Minute)[0],
				"layout": g.Verify(t.Context(), []string{"oci:" + layout + ":v1"}, name, time.Minute)[0],
				"containerd": node.Verify(t.Context(),
					[]string{"-name", name + ":v1", "-digest", image.Digest.String(), "-stdin-media-type",
						ocispec.MediaTypeDescriptor},
					strings.NewReader(string(descriptor))),
			} {
				if r.Passed() || r.Policy != "guarded" || r.Reason != "it has no signature" {
					t.Errorf("%s of %s, where the policy has %s: %+v", how, name, scope, r)
				}
			}
		}
	}
	for _, scopes := range [][]string{{"example.com/app", "EXAMPLE.com/app"}, {"example.com/app", "example.com:443/app"}} {
		if g, err := Open(Options{TrustDir: trustingFor(t, alice, scopes...), CacheDir: t.TempDir()}); err == nil ||
			!strings.Contains(err.Error(), "are one repository") {
			g.Close()
			t.Errorf("%v: %v", scopes, err)
		}
	}
}

// TestUnreadablePolicy fails with the kind of the reason why the trust policy cannot be read.
func TestUnreadablePolicy(t *testing.T) {
	malformed := t.TempDir()
	put(t, filepath.Join(malformed, "trustpolicy.json"), "{", 0o600)
	for folder, want := range map[string]failure.Kind{
		filepath.Join(t.TempDir(), "none"): failure.NotFound,
		t.TempDir():                        failure.NotFound,
		malformed:                          failure.Invalid,
	} {
		if _, err := Open(Options{TrustDir: folder, CacheDir: t.TempDir()}); !failure.Is(err, want) ||
			!strings.Contains(err.Error(), "cannot read the trust policy in "+folder) {
			t.Errorf("%v, instead of a failure of the kind %v", err, want)
		}
	}
}

// writeLayout writes an OCI layout with an image under the tag v1, and the manifests that hang returns for it.
func writeLayout(t testing.TB, hang func(add func(mediaType string, data []byte) ocispec.Descriptor,
	image ocispec.Descriptor) []ocispec.Descriptor) (folder string) {
	t.Helper()
	folder = t.TempDir()
	add := func(mediaType string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		put(t, filepath.Join(folder, "blobs", "sha256", d.Digest.Encoded()), string(data), 0o600)
		return d
	}
	image := add(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"layers":[]}`))
	manifests := []ocispec.Descriptor{image}
	manifests[0].Annotations = map[string]string{ocispec.AnnotationRefName: "v1"}
	if hang != nil {
		manifests = append(manifests, hang(add, image)...)
	}
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: manifests})
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(folder, ocispec.ImageIndexFile), string(index), 0o600)
	put(t, filepath.Join(folder, ocispec.ImageLayoutFile), `{"imageLayoutVersion":"1.0.0"}`, 0o600)
	return folder
}

// TestLayout verifies that signatures are found in the index of a layout and in an index in it, and that what exceeds a
// limit is refused.
func TestLayout(t *testing.T) {
	alice := newForger(t)
	g := openGate(t, Options{TrustDir: trusting(t, "strict", alice)})
	verify := func(folder string) Decision {
		return g.Verify(t.Context(), []string{"oci:" + folder + ":v1"}, "example.com/app", time.Minute)[0]
	}
	signature := func(add func(string, []byte) ocispec.Descriptor, image ocispec.Descriptor,
		padding int) ocispec.Descriptor {
		envelope, err := alice.Sign(jws.MediaTypeEnvelope, image, nil)
		if err != nil {
			t.Fatal(err)
		}
		manifest, err := oci.SignatureManifest(
			add(jws.MediaTypeEnvelope, append(envelope, strings.Repeat(" ", padding)...)), image, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return add(ocispec.MediaTypeImageManifest, manifest)
	}
	missing := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("missing"), Size: 7}
	for name, c := range map[string]struct {
		hang   func(add func(string, []byte) ocispec.Descriptor, image ocispec.Descriptor) []ocispec.Descriptor
		reason string
	}{
		"none": {nil, "it has no signature"},
		"in the index": {func(add func(string, []byte) ocispec.Descriptor, image ocispec.Descriptor) []ocispec.Descriptor {
			return []ocispec.Descriptor{missing, signature(add, image, 0)}
		}, ""},
		"in an index in it": {func(add func(string, []byte) ocispec.Descriptor,
			image ocispec.Descriptor) []ocispec.Descriptor {
			index, _ := json.Marshal(ocispec.Index{Manifests: []ocispec.Descriptor{missing, signature(add, image, 0)}})
			return []ocispec.Descriptor{add(ocispec.MediaTypeImageIndex, index)}
		}, ""},
		"a long envelope": {func(add func(string, []byte) ocispec.Descriptor, image ocispec.Descriptor) []ocispec.Descriptor {
			return []ocispec.Descriptor{signature(add, image, maxEnvelope)}
		}, "more than 1048576"},
		"a long manifest": {func(add func(string, []byte) ocispec.Descriptor, image ocispec.Descriptor) []ocispec.Descriptor {
			d := signature(add, image, 0)
			d.Size = maxManifest + 1
			return []ocispec.Descriptor{d}
		}, "it has no signature"},
		"another's": {func(add func(string, []byte) ocispec.Descriptor, image ocispec.Descriptor) []ocispec.Descriptor {
			image.Digest = digest.FromString("another")
			return []ocispec.Descriptor{signature(add, image, 0)}
		}, "it has no signature"},
		"under the tag of another image": {func(add func(string, []byte) ocispec.Descriptor,
			image ocispec.Descriptor) []ocispec.Descriptor {
			other := add(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"layers":[],"annotations":{"another":""}}`))
			other.Annotations = map[string]string{ocispec.AnnotationRefName: "v1"}
			return []ocispec.Descriptor{other, signature(add, other, 0), signature(add, image, 0)}
		}, `"v1" is the tag of several images`},
		"too many": {func(add func(string, []byte) ocispec.Descriptor, _ ocispec.Descriptor) []ocispec.Descriptor {
			index, _ := json.Marshal(ocispec.Index{Manifests: make([]ocispec.Descriptor, maxNodes+1)})
			return []ocispec.Descriptor{add(ocispec.MediaTypeImageIndex, index[:min(len(index), maxIndex)])}
		}, "it has no signature"},
	} {
		if r := verify(writeLayout(t, c.hang)); r.Passed() != (c.reason == "") || !strings.Contains(r.Reason, c.reason) {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for name, write := range map[string]func(path string) error{
		"it has 4194305 bytes": func(path string) error { return os.WriteFile(path, make([]byte, maxIndex+1000), 0o600) },
		"more than 50000 elements": func(path string) error {
			return os.WriteFile(path, []byte("["+strings.Repeat("{},", 60000)+"{}]"), 0o600)
		},
		"is not a regular file": func(path string) error { return unix.Mkfifo(path, 0o600) },
		"nested deeper than 16": func(path string) error {
			return os.WriteFile(path, []byte(strings.Repeat("[", 1000)),
				0o600)
		},
		"no such file or directory": func(string) error { return nil },
	} {
		folder := writeLayout(t, nil)
		index := filepath.Join(folder, ocispec.ImageIndexFile)
		if err := os.Remove(index); err != nil {
			t.Fatal(err)
		}
		if err := write(index); err != nil {
			t.Fatal(err)
		}
		if r := verify(folder); r.Passed() || !strings.Contains(r.Reason, name) {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestLayoutLimits verifies that a search in a layout ends at the limits of manifests and bytes, and says so.
func TestLayoutLimits(t *testing.T) {
	g := openGate(t, Options{TrustDir: trusting(t, "strict")})
	many := func(n int, mediaType string, size int64, name string) (list []ocispec.Descriptor) {
		for i := range n {
			list = append(list, ocispec.Descriptor{MediaType: mediaType, Size: size,
				Digest: digest.FromString(fmt.Sprint(name, i))}) // none of which is there
		}
		return list
	}
	indexes := func(sizes ...int) func(func(string, []byte) ocispec.Descriptor,
		ocispec.Descriptor) []ocispec.Descriptor {
		return func(add func(string, []byte) ocispec.Descriptor, _ ocispec.Descriptor) (list []ocispec.Descriptor) {
			for i, n := range sizes {
				data, err := json.Marshal(ocispec.Index{Manifests: many(n, ocispec.MediaTypeImageManifest, 1, fmt.Sprint(i, "/"))})
				if err != nil {
					t.Fatal(err)
				}
				list = append(list, add(ocispec.MediaTypeImageIndex, data))
			}
			return list
		}
	}
	long := func(n int) func(func(string, []byte) ocispec.Descriptor, ocispec.Descriptor) []ocispec.Descriptor {
		return func(func(string, []byte) ocispec.Descriptor, ocispec.Descriptor) []ocispec.Descriptor {
			return many(n, ocispec.MediaTypeImageIndex, maxIndex, "long")
		}
	}
	for name, c := range map[string]struct {
		hang func(func(string, []byte) ocispec.Descriptor, ocispec.Descriptor) []ocispec.Descriptor
		more bool
	}{
		"few manifests":  {indexes(4000, 4000), false},
		"many manifests": {indexes(4000, 4000, 4000), true},
		"few bytes":      {long(maxBytes/maxIndex - 1), false},
		"many bytes":     {long(maxBytes/maxIndex + 1), true},
	} {
		folder := writeLayout(t, c.hang)
		d := g.Verify(t.Context(), []string{"oci:" + folder + ":v1"}, "example.com/app", time.Minute)[0]
		if d.Passed() || !strings.HasPrefix(d.Reason, "it has no signature") ||
			strings.Contains(d.Reason, "there are more than 0") != c.more {
			t.Errorf("%s: %+v", name, d)
		}
	}
}
