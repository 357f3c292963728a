package gate

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestCopiedImage verifies that an image that is copied to another repository with its signature is verified under the
// statement of that repository, and that a repository under a new name has no statement.
func TestCopiedImage(t *testing.T) {
	alice, bob := newForger(t), newForger(t)
	folder := trusting(t, "strict", alice)
	put(t, filepath.Join(folder, "truststore", "x509", "ca", "bob", "bob.pem"), string(bob.PEM()), 0o600)
	h := oci.NewHostile(t)
	put(t, filepath.Join(folder, "trustpolicy.json"), strings.ReplaceAll(`{"version": "1.0", "trustPolicies": [
		{"name": "alices", "registryScopes": ["HOST/app"], "trustStores": ["ca:store"], "trustedIdentities": ["*"],
			"signatureVerification": {"level": "strict"}},
		{"name": "bobs", "registryScopes": ["HOST/copy"], "trustStores": ["ca:bob"], "trustedIdentities": ["*"],
			"signatureVerification": {"level": "strict"}}]}`, "HOST", h.Address), 0o600)
	g := openGate(t, Options{TrustDir: folder})
	image := h.PushImage("image")
	h.Sign(t, alice, jws.MediaTypeEnvelope, image, nil)
	for repository, want := range map[string]struct{ policy, reason string }{
		"app":     {"alices", ""},
		"copy":    {"bobs", "does not contain any trusted certificate"},
		"renamed": {"", "no statement of the trust policy is for " + h.Address + "/renamed"},
		"app/sub": {"", "no statement of the trust policy is for " + h.Address + "/app/sub"},
	} {
		name := h.Address + "/" + repository + "@" + image.Digest.String()
		d := g.Verify(t.Context(), []string{name}, "", time.Minute)[0]
		if d.Passed() != (want.reason == "") || d.Policy != want.policy || !strings.Contains(d.Reason, want.reason) {
			t.Errorf("%s: %+v", repository, d)
		}
	}
}

// TestNormalizeScopes verifies that scopes are replaced by their normal forms, and that no two of them are one
// repository, in one statement or in two.
func TestNormalizeScopes(t *testing.T) {
	t.Parallel()
	policy := func(scopes ...[]string) *trustpolicy.Document {
		document := &trustpolicy.Document{Version: "1.0"}
		for i, list := range scopes {
			statement := trustpolicy.TrustPolicy{Name: fmt.Sprint(i), RegistryScopes: list,
				TrustStores: []string{"ca:store"}, TrustedIdentities: []string{"*"}}
			statement.SignatureVerification.VerificationLevel = "strict"
			document.TrustPolicies = append(document.TrustPolicies, statement)
		}
		return document
	}
	good := policy([]string{"REGISTRY.example.com:443/app", "index.docker.io/library/alpine"}, []string{"*"})
	if err := normalizeScopes(good); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(good.TrustPolicies[0].RegistryScopes, good.TrustPolicies[1].RegistryScopes); got !=
		"[registry.example.com/app docker.io/library/alpine] [*]" {
		t.Error(got)
	}
	for reason, scopes := range map[string][][]string{
		`"example.com/app" and "example.com:80/app" are one`: {{"example.com/app"}, {"example.com:80/app"}},
		`"example.com/app" and "Example.com/app" are one`:    {{"example.com/app", "Example.com/app"}},
		`"docker.io/alpine" and "docker.io/library/alpine"`:  {{"docker.io/alpine"}, {"docker.io/library/alpine"}},
		`the scope "127.1/app" of the statement "0"`:         {{"127.1/app"}},
		"version": nil,
	} {
		document := policy(scopes...)
		if scopes == nil {
			document = &trustpolicy.Document{}
		}
		if err := normalizeScopes(document); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%v: %v, want %q", scopes, err, reason)
		}
	}
}

// TestAnotherDigest verifies that a registry cannot answer with another image than the one that was named.
func TestAnotherDigest(t *testing.T) {
	a := newAttack(t)
	other := a.PushImage("other")
	a.Sign(t, a.alice, jws.MediaTypeEnvelope, other, nil)
	a.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			w.Header().Set("Content-Type", other.MediaType)
			w.Header().Set("Content-Length", fmt.Sprint(other.Size))
			w.Header().Set("Docker-Content-Digest", other.Digest.String())
		}
		return r.Method == http.MethodHead
	}
	if d := a.verify(t); d.Passed() {
		t.Errorf("%+v", d)
	}
	// In a layout, the digest may be the tag of another image.
	folder := writeLayout(t, func(add func(string, []byte) ocispec.Descriptor,
		_ ocispec.Descriptor) []ocispec.Descriptor {
		tagged := add(ocispec.MediaTypeImageManifest, []byte(`{}`))
		tagged.Annotations = map[string]string{ocispec.AnnotationRefName: a.image.Digest.String()}
		return []ocispec.Descriptor{tagged}
	})
	name := "oci:" + folder + "@" + a.image.Digest.String()
	if d := a.gate.Verify(t.Context(), []string{name}, "example.com/app", time.Minute)[0]; d.Passed() ||
		!strings.Contains(d.Reason, folder+" returned sha256:") {
		t.Errorf("%+v", d)
	}
}

// TestSignatureOfAnotherImage says what a signature was made for.
func TestSignatureOfAnotherImage(t *testing.T) {
	a := newAttack(t)
	other := a.PushImage("other image")
	envelope, err := a.alice.Sign(jws.MediaTypeEnvelope, other, nil)
	if err != nil {
		t.Fatal(err)
	}
	a.Hang(t, a.Add(jws.MediaTypeEnvelope, envelope), a.image, time.Now())
	a.expect(t, fmt.Sprintf("it was made for something else, %s of %d bytes", other.Digest, other.Size), "/blobs/", 1,
		1<<20)
}

// statements writes a policy with as many statements, each for a repository, and one for all others.
func statements(b *testing.B, folder string, n int) {
	b.Helper()
	document := trustpolicy.Document{Version: "1.0"}
	for i := range n {
		statement := trustpolicy.TrustPolicy{Name: fmt.Sprint(i), TrustStores: []string{"ca:store"},
			RegistryScopes: []string{fmt.Sprintf("registry.example.com/team/app%d", i)}, TrustedIdentities: []string{"*"}}
		if i == 0 {
			statement.RegistryScopes = []string{"*"}
		}
		statement.SignatureVerification.VerificationLevel = "strict"
		document.TrustPolicies = append(document.TrustPolicies, statement)
	}
	text, err := json.Marshal(document)
	if err != nil {
		b.Fatal(err)
	}
	put(b, filepath.Join(folder, "trustpolicy.json"), string(text), 0o600)
}

// BenchmarkOpen measures how long it takes to read a trust policy, which a node does for each image.
func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			folder := trusting(b, "strict")
			statements(b, folder, n)
			options := Options{TrustDir: folder, CacheDir: b.TempDir()}
			b.ReportAllocs()
			for b.Loop() {
				g, err := Open(options)
				if err != nil {
					b.Fatal(err)
				}
				g.Close()
			}
		})
	}
}

// BenchmarkPolicy measures the lookup of the statement for an image, the last of all or the one for all others.
func BenchmarkPolicy(b *testing.B) {
	for _, n := range []int{2, 100, 1000} {
		folder := trusting(b, "strict")
		statements(b, folder, n)
		g := openGate(b, Options{TrustDir: folder})
		for name, repository := range map[string]string{"last": fmt.Sprintf("registry.example.com/team/app%d", n-1),
			"others": "registry.example.com/other"} {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := g.policy.GetApplicableTrustPolicy(repository + "@" + signedImage.Digest.String()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
