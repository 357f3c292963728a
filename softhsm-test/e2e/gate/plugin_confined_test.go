package gate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go/verifier"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestVerifierConfinedPlugin has a confined verifier start the plugin that the operator listed, as its own user, and no
// other.
func TestVerifierConfinedPlugin(t *testing.T) {
	softhsmtest.Parallel(t)
	if os.Geteuid() != 0 {
		softhsmtest.Missing(t, "root, as which containerd runs,")
	}
	registry, base := oci.StartRegistry(t), t.TempDir()
	trust, bin, state := filepath.Join(base, "trust"), filepath.Join(base, "bin"), filepath.Join(base, "state")
	alice, err := oci.NewForger("alice", "")
	if err != nil {
		t.Fatal(err)
	}
	put := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		softhsmtest.Write(t, path, text)
	}
	put(filepath.Join(trust, "truststore", "x509", "ca", "store", "alice.pem"), string(alice.PEM()))
	put(filepath.Join(trust, "trustpolicy.json"),
		`{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
		"trustStores": ["ca:store"], "trustedIdentities": ["*"], "signatureVerification": {"level": "strict"}}]}`)
	images := map[string]ocispec.Descriptor{}
	for _, name := range []string{"good", "other"} {
		put(filepath.Join(trust, "plugins", name, "notation-"+name), fmt.Sprintf(`#!/bin/sh
id -un >> %s/%s.ran
case $1 in
get-plugin-metadata) echo '{"name":"%[2]s","description":"d","version":"1.0.0","url":"https://example.com",
  "supportedContractVersions":["1.0"],"capabilities":["SIGNATURE_VERIFIER.TRUSTED_IDENTITY"]}';;
*) echo '{"verificationResults":{"SIGNATURE_VERIFIER.TRUSTED_IDENTITY":{"success":true}},"processedAttributes":[]}';;
esac
`, state, name))
		reference := registry + "/" + name + ":1"
		if _, err := oci.PushImage(context.Background(), reference, name); err != nil {
			t.Fatal(err)
		}
		if _, err := oci.PushSignature(context.Background(), reference, jws.MediaTypeEnvelope,
			func(d ocispec.Descriptor) ([]byte, error) {
				images[name] = d
				return alice.Sign(jws.MediaTypeEnvelope, d, map[string]string{verifier.HeaderVerificationPlugin: name})
			}); err != nil {
			t.Fatal(err)
		}
	}
	hosts := plainHosts(t, registry)
	for _, folder := range []string{trust, hosts} {
		share(t, folder)
	}
	for _, name := range []string{"good", "other"} {
		if err := os.Chmod(filepath.Join(trust, "plugins", name, "notation-"+name),
			0o755); err != nil { //nolint:gosec // it is run
			t.Fatal(err)
		}
	}
	softhsmtest.Run(t, softhsmtest.Build(t, "hsm-image"), "install-verifier", "--bin-dir", bin, "--trust-dir", trust,
		"--state-dir", state, "--hosts-dir", hosts, "--verification-plugin", "good", "--user", softhsmtest.Unprivileged)
	for name, want := range map[string]string{"good": "signed by CN=alice",
		"other": `it names the verification plugin "other"`} {
		d := images[name]
		stdout, stderr, _ := softhsmtest.Try(t, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, d.MediaType, d.Digest,
			d.Size),
			filepath.Join(bin, "hsm-image-verifier"),
			"-name", registry+"/"+name+":1", "-digest", d.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
		if !strings.Contains(stdout, want) {
			t.Errorf("%s: %s%s", name, stdout, stderr)
		}
	}
	if ran := softhsmtest.Read(t, filepath.Join(state, "good.ran")); ran != softhsmtest.Unprivileged+"\n"+
		softhsmtest.Unprivileged+"\n" {
		t.Errorf("the listed plugin ran as %q", ran)
	}
	if _, err := os.Stat(filepath.Join(state, "other.ran")); err == nil {
		t.Error("a plugin ran that is not listed")
	}
	// Who can change a plugin can change what it says.
	if err := os.Chmod(filepath.Join(trust, "plugins", "good"),
		0o777); err != nil { //nolint:gosec // that is what is refused
		t.Fatal(err)
	}
	stdout, _, err := softhsmtest.Try(t, "", filepath.Join(bin, "hsm-image-verifier"), "-name", registry+"/good:1")
	if err == nil || !strings.Contains(stdout, "can write to "+filepath.Join(trust, "plugins", "good")) {
		t.Errorf("%v %s", err, stdout)
	}
}
