package kubernetes

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestAdmissionApprovals asks Kyverno's engine about images in repositories that need approvals. Kyverno does not
// verify bundles; it has to see that the attestor signed one of this very image.
func TestAdmissionApprovals(t *testing.T) {
	kyverno := clusterProgram(t, "kubectl-kyverno")
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	repository := strings.Replace(oci.StartRegistry(t), "127.0.0.1", "localhost", 1) + "/team"
	folder := t.TempDir()
	for _, name := range []string{"alice", "attestor"} {
		uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", token.Label, "--spec", "EC-256",
			"--label", name))
		pem := filepath.Join(folder, name+".pem")
		softhsmtest.Write(t, pem, softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject",
			"CN="+name+",O=Example,C=CH,ST=Zurich"))
		softhsmtest.Run(t, n.Plugin, "cert", "import", uri, pem)
	}
	sign := func(signer, reference string) {
		t.Helper()
		if signer != "" {
			softhsmtest.Run(t, n.Program, "sign", "--plugin", "hsm", "--id", "pkcs11:token=signing;object="+signer, reference)
		}
	}
	another, err := oci.PushImage(t.Context(), repository+"/app:other", "another image")
	if err != nil {
		t.Fatal(err)
	}
	const about, ofOther = "this image", "another image"
	tests := []struct{ name, repository, signer, bundle, attestor string }{
		{"approved", "app", "alice", about, "attestor"},
		{"no bundle", "app", "alice", "", ""},
		{"a bundle that nobody signed", "app", "alice", about, ""},
		{"a bundle that the signer signed", "app", "alice", about, "alice"},
		{"the bundle of another image", "app", "alice", ofOther, "attestor"},
		{"no signature of the image", "app", "", about, "attestor"},
		{"another repository", "tools", "alice", "", ""},
	}
	var images []string
	for _, test := range tests {
		name := repository + "/" + test.repository
		image, err := oci.PushImage(t.Context(), name+":v1", test.name)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, name+"@"+image.String())
		sign(test.signer, name+"@"+image.String())
		if test.bundle != "" {
			target := image
			if test.bundle == ofOther {
				target = another
			}
			sign(test.attestor, name+"@"+pushBundle(t, name+":v1", target).String())
		}
	}
	path := filepath.Join(folder, "trust.yaml")
	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", path)
	softhsmtest.Run(t, n.Plugin, "trust", "init")
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "alice", "--scope", repository+"/app", "--scope", repository+
		"/tools", "--cert", filepath.Join(folder, "alice.pem"))
	addApprover(t, n.Plugin, filepath.Join(folder, "approvers.json"))
	for scope, good := range map[string][]string{
		repository + "/app": {"approved", "another repository"}, "*": {"approved"}} {
		softhsmtest.Run(t, n.Plugin, "trust", "approvals", "add", scope, "--group", "release=bob:1", "--kinds", "ssh",
			"--log", logKey)
		policy := filepath.Join(folder, "kyverno.yaml")
		export := []string{"trust", "export", "--format", "kyverno", "--to", policy}
		if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, export...); err == nil ||
			!strings.Contains(stderr, "need approvals") {
			t.Errorf("approvals were left out: %v\n%s", err, stderr)
		}
		softhsmtest.Run(t, n.Plugin, append(export, "--approvals-attestor", filepath.Join(folder, "attestor.pem"))...)
		for i, passed := range askKyverno(t, kyverno, policy, "containers", images) {
			if wanted := strings.Contains(strings.Join(good, ","), tests[i].name); passed != wanted {
				t.Errorf("approvals of %s: the answer for %s is %v", scope, tests[i].name, passed)
			}
		}
		softhsmtest.Run(t, n.Plugin, "trust", "approvals", "remove", scope)
	}
}

// TestApprovalsExport holds the policy with an attestor against what Kyverno publishes, and Ratify's export is refused.
func TestApprovalsExport(t *testing.T) {
	softhsmtest.Parallel(t)
	plugin, folder := softhsmtest.Build(t, "notation-hsm"), t.TempDir()
	manifest, attestor := filepath.Join(folder, "trust.yaml"), filepath.Join(folder, "attestor.pem")
	softhsmtest.Write(t, manifest, softhsmtest.Read(t, filepath.Join(softhsmtest.Root(), "deploy", "kubernetes",
		"trust.yaml")))
	softhsmtest.Write(t, attestor, softhsmtest.NewCA(t, "Attestors", nil).PEM())
	addApprover(t, plugin, filepath.Join(folder, "approvers.json"), "--manifest", manifest)
	softhsmtest.Run(t, plugin, "trust", "approvals", "add", "registry.example.com/team/app", "--manifest", manifest,
		"--group", "release=bob:1", "--kinds", "ssh", "--log", logKey)
	policy := filepath.Join(folder, "kyverno.yaml")
	softhsmtest.Run(t, plugin, "trust", "export", "--manifest", manifest, "--format", "kyverno", "--approvals-attestor",
		attestor, "--to", policy)
	for _, resource := range softhsmtest.Documents(t, policy) {
		if err := openDefinitions(t).check(resource); err != nil {
			t.Error(err)
		}
	}
	if text := softhsmtest.Read(t, policy); !strings.Contains(text, "# The manifest needs approvals, and Kyverno cannot") {
		t.Errorf("the policy does not say what is not checked:\n%s", text)
	}
	_, stderr, err := softhsmtest.Try(t, "", plugin, "trust", "export", "--manifest", manifest, "--format", "ratify")
	if err == nil || !strings.Contains(stderr, "need approvals") {
		t.Errorf("approvals were left out: %v\n%s", err, stderr)
	}
}

// logKey is the verifier key of a log.
const logKey = "broker.example.com/log+71307029+AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"

// addApprover adds bob to the manifest.
func addApprover(t testing.TB, plugin, file string, flags ...string) {
	t.Helper()
	public := append([]byte("\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"), make([]byte, 32)...)
	const id = "00112233445566778899aabbccddeeff"
	document, err := (&approval.Credential{Approver: id, Kind: approval.SSH, Public: public,
		Salt: strings.Repeat("5a", 32)}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, file, fmt.Sprintf(`[{"name":"bob","id":%q,"credentials":[%q]}]`, id,
		base64.StdEncoding.EncodeToString(document)))
	softhsmtest.Run(t, plugin, append([]string{"trust", "approver", "add", "--from", file}, flags...)...)
}

// pushBundle attaches a bundle of approvals to the image of a tag, whose statement is about a target, and returns the
// digest of its manifest.
func pushBundle(t testing.TB, tag string, target digest.Digest) digest.Digest {
	t.Helper()
	statement, err := (&approval.Statement{Predicate: approval.Predicate{Action: "use",
		Targets: []approval.Target{{Digest: target.String()}}}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := (&proof.Bundle{Statement: statement}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	repository, err := oci.Open(tag)
	if err != nil {
		t.Fatal(err)
	}
	image, err := repository.Resolve(t.Context(), repository.Reference.Reference)
	if err != nil {
		t.Fatal(err)
	}
	if err := oci.PushAll(t.Context(), repository, map[string][]byte{proof.MediaType: bundle,
		ocispec.DescriptorEmptyJSON.MediaType: ocispec.DescriptorEmptyJSON.Data}); err != nil {
		t.Fatal(err)
	}
	layer := oci.Descriptor(proof.MediaType, bundle)
	layer.Data = bundle
	manifest, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: proof.MediaType, Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{layer}, Subject: &image})
	if err != nil {
		t.Fatal(err)
	}
	d := oci.Descriptor(ocispec.MediaTypeImageManifest, manifest)
	if err := repository.Push(t.Context(), d, bytes.NewReader(manifest)); err != nil {
		t.Fatal(err)
	}
	return d.Digest
}
