package gate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go/verifier"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/containerd"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestSignatureRunsNothing pushes signatures that name a program for their own verification, and has them verified in
// every way there is: by the command, by the verifier that containerd starts, and by containerd. The program never
// starts, and the reason is told.
func TestSignatureRunsNothing(t *testing.T) {
	softhsmtest.Parallel(t)
	registry, image := oci.StartRegistry(t), softhsmtest.Build(t, "hsm-image")
	program := filepath.Join(t.TempDir(), "program")
	mark := program + ".ran"
	softhsmtest.Write(t, program, fmt.Sprintf("#!/bin/sh\ntouch %s\n", mark))
	if err := os.Chmod(program, 0o700); err != nil {
		t.Fatal(err)
	}
	mallory, err := oci.NewForger("mallory", "")
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := oci.NewForger("alice", "")
	if err != nil {
		t.Fatal(err)
	}
	var images []string
	for i, name := range oci.Climbing(program) {
		mediaType := []string{jws.MediaTypeEnvelope, cose.MediaTypeEnvelope}[i%2]
		reference := fmt.Sprintf("%s/app:%d", registry, i)
		if _, err := oci.PushImage(context.Background(), reference, name); err != nil {
			t.Fatal(err)
		}
		if _, err := oci.PushSignature(context.Background(), reference, mediaType, func(d ocispec.Descriptor) ([]byte,
			error) {
			return mallory.Sign(mediaType, d, map[string]string{verifier.HeaderVerificationPlugin: name})
		}); err != nil {
			t.Fatal(err)
		}
		images = append(images, reference)
	}
	const reason = "it names the verification plugin"
	untouched := func(how string) {
		t.Helper()
		if _, err := os.Stat(mark); err == nil {
			t.Fatalf("%s ran the program", how)
		}
	}
	for _, level := range []string{"strict", "permissive", "audit"} {
		base := t.TempDir()
		trust, bin := filepath.Join(base, "trust"), filepath.Join(base, "bin")
		store := filepath.Join(trust, "truststore", "x509", "ca", "store")
		for _, folder := range []string{store, bin} {
			if err := os.MkdirAll(folder, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		softhsmtest.Write(t, filepath.Join(store, "alice.pem"), string(trusted.PEM()))
		softhsmtest.Write(t, filepath.Join(trust, "trustpolicy.json"),
			fmt.Sprintf(`{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
			"trustStores": ["ca:store"], "trustedIdentities": ["*"], "signatureVerification": {"level": %q}}]}`, level))
		g := &gated{image: image, data: ""}
		results, err := g.verify(t, append([]string{"--trust-dir", trust}, images...)...)
		if err == nil {
			t.Errorf("%s: all passed", level)
		}
		for i, r := range results {
			if r.Verdict != "refuse" || !strings.Contains(r.Reason, reason) {
				t.Errorf("%s, %s: %+v", level, images[i], r)
			}
		}
		untouched("hsm-image verify")

		c := containerd.Start(t, containerd.Options{Verifiers: bin})
		softhsmtest.Run(t, image, "install-verifier", "--bin-dir", bin, "--trust-dir", trust, "--state-dir",
			filepath.Join(base, "state"), "--hosts-dir", plainHosts(t, registry))
		for i, name := range images {
			sum := results[i].Digest
			repository, err := oci.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			d, err := repository.Resolve(context.Background(), sum)
			if err != nil {
				t.Fatal(err)
			}
			stdout, _, err := softhsmtest.Try(t, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, d.MediaType, sum,
				d.Size),
				filepath.Join(bin, "hsm-image-verifier"),
				"-name", name, "-digest", sum, "-stdin-media-type", ocispec.MediaTypeDescriptor)
			if err == nil || !strings.Contains(stdout, reason) {
				t.Errorf("%s, the verifier, %s: %v %s", level, name, err, stdout)
			}
			untouched("the verifier")
		}
		for _, name := range images[:2] {
			if err := c.Pull(t, name); err == nil || !strings.Contains(err.Error(), reason) {
				t.Errorf("%s, containerd, %s: %v", level, name, err)
			}
			untouched("containerd")
		}
	}
}

// TestListedPluginRuns lists a plugin in each way there is, and has a signature verified by it that is refused without.
func TestListedPluginRuns(t *testing.T) {
	softhsmtest.Parallel(t)
	image, h, base := softhsmtest.Build(t, "hsm-image"), oci.NewHostile(t), t.TempDir()
	alice, err := oci.NewForger("alice", "")
	if err != nil {
		t.Fatal(err)
	}
	trust, bin := filepath.Join(base, "trust"), filepath.Join(base, "bin")
	store, plugins := filepath.Join(trust, "truststore", "x509", "ca", "store"), filepath.Join(trust, "plugins", "good")
	for _, folder := range []string{store, plugins, bin} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	softhsmtest.Write(t, filepath.Join(store, "alice.pem"), string(alice.PEM()))
	softhsmtest.Write(t, filepath.Join(trust, "trustpolicy.json"),
		`{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
		"trustStores": ["ca:store"], "trustedIdentities": ["*"], "signatureVerification": {"level": "strict"}}]}`)
	program := filepath.Join(plugins, "notation-good")
	softhsmtest.Write(t, program, `#!/bin/sh
case $1 in
get-plugin-metadata) echo '{"name":"good","description":"d","version":"1.0.0","url":"https://example.com",
  "supportedContractVersions":["1.0"],"capabilities":["SIGNATURE_VERIFIER.TRUSTED_IDENTITY"]}';;
*) echo '{"verificationResults":{"SIGNATURE_VERIFIER.TRUSTED_IDENTITY":{"success":true}},"processedAttributes":[]}';;
esac
`)
	if err := os.Chmod(program, 0o700); err != nil {
		t.Fatal(err)
	}
	d := h.PushImage("image")
	h.Sign(t, alice, jws.MediaTypeEnvelope, d, map[string]string{verifier.HeaderVerificationPlugin: "good"})
	for _, listed := range [][]string{nil, {"--verification-plugin", "good"}} {
		stdout, stderr, err := softhsmtest.Try(t, "", image,
			append([]string{"verify", "--plain-http", "--trust-dir", trust, h.Name(d)}, listed...)...)
		if (err == nil) != (listed != nil) {
			t.Errorf("verify %v: %v %s%s", listed, err, stdout, stderr)
		}
		softhsmtest.Run(t, image, append([]string{"install-verifier", "--bin-dir", bin, "--trust-dir", trust, "--state-dir",
			filepath.Join(base, "state"), "--hosts-dir", plainHosts(t, h.Address)}, listed...)...)
		stdout, stderr, err = softhsmtest.Try(t, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, d.MediaType,
			d.Digest, d.Size),
			filepath.Join(bin, "hsm-image-verifier"),
			"-name", h.Name(d), "-digest", d.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
		if (err == nil) != (listed != nil) {
			t.Errorf("the verifier, %v: %v %s%s", listed, err, stdout, stderr)
		}
	}
	if _, stderr, err := softhsmtest.Try(t, "", image, "install-verifier", "--bin-dir", bin, "--trust-dir", trust,
		"--verification-plugin", "../good"); err == nil ||
		!strings.Contains(stderr, "is not the name of a verification plugin") {
		t.Errorf("a name that climbs: %v %s", err, stderr)
	}
}
