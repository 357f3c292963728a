package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// trustDir writes a trust directory in which a policy skips verification for one repository, and is for no other.
func trustDir(t *testing.T) (folder string) {
	t.Helper()
	folder = t.TempDir()
	const policy = `{"version": "1.0", "trustPolicies": [{"name": "nothing", "registryScopes": ["example.com/app"],
		"signatureVerification": {"level": "skip"}}]}`
	if err := os.WriteFile(filepath.Join(folder, "trustpolicy.json"), []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	return folder
}

// layout writes an OCI layout with an image under the tag v1.
func layout(t *testing.T) (folder string) {
	t.Helper()
	folder = t.TempDir()
	const digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" // of {}
	blobs := filepath.Join(folder, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		filepath.Join(blobs, digest):        "{}",
		filepath.Join(folder, "oci-layout"): `{"imageLayoutVersion":"1.0.0"}`,
		filepath.Join(folder, "index.json"): `{"schemaVersion":2,"manifests":[{"size":2,"digest":"sha256:` + digest + `",
			"mediaType":"application/vnd.oci.image.manifest.v1+json",
			"annotations":{"org.opencontainers.image.ref.name":"v1"}}]}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// execute runs hsm-image and returns what it prints.
func execute(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	c := command(keystore.New(nil)) // which opens no module
	var out bytes.Buffer
	c.SetOut(&out)
	c.SetErr(&bytes.Buffer{})
	c.SetArgs(args)
	err = c.ExecuteContext(t.Context())
	return out.String(), err
}

// TestVerify verifies that the command prints every decision, logs it, and fails unless all images pass.
func TestVerify(t *testing.T) {
	trust, folder, log := trustDir(t), layout(t), filepath.Join(t.TempDir(), "decisions.jsonl")
	verify := []string{"verify", "--trust-dir", trust, "--scope", "example.com/app", "--log", log, "oci:" + folder + ":v1"}
	out, err := execute(t, verify...)
	if err != nil || !strings.Contains(out, "oci:"+folder+":v1: pass\n") ||
		!strings.Contains(out, "  policy  nothing (skip)\n") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = execute(t, append(verify, "--json", "oci:"+folder+":v2")...)
	var decisions []gate.Decision
	if decodeErr := json.Unmarshal([]byte(out), &decisions); decodeErr != nil || len(decisions) != 2 ||
		!decisions[0].Passed() || decisions[1].Passed() {
		t.Errorf("%v: %s", decodeErr, out)
	}
	if !failure.Is(err, failure.Denied) || err.Error() != "1 of 2 images did not pass" {
		t.Errorf("%v", err)
	}
	if text, err := os.ReadFile(log); err != nil || bytes.Count(text, []byte("\n")) != 3 {
		t.Errorf("the log has %q, %v", text, err)
	}
}

// TestVerifyFails verifies that a decision that cannot be logged fails the command, and so do wrong flags.
func TestVerifyFails(t *testing.T) {
	trust, folder := trustDir(t), layout(t)
	for reason, args := range map[string][]string{
		"cannot write the decision log":  {"--log", folder},
		"--log is empty":                 {"--log", ""},
		"--trust-dir is empty":           {"--trust-dir", ""},
		"--scope is empty":               {"--scope", ""},
		"--timeout has to be more than":  {"--timeout", "0s"},
		"cannot read the trust policy":   {"--trust-dir", folder},
		"is not the name of a verificat": {"--verification-plugin", "../evil"},
	} {
		args = append([]string{"verify", "--trust-dir", trust, "--scope", "example.com/app"}, args...)
		if out, err := execute(t, append(args, "oci:"+folder+":v1")...); err == nil ||
			!strings.Contains(err.Error(), reason) || out != "" {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	if _, err := execute(t, "verify"); err == nil {
		t.Error("no image was named")
	}
}

// TestResolveFails prints nothing on standard output for an image that is refused.
func TestResolveFails(t *testing.T) {
	trust, folder := trustDir(t), layout(t)
	for reason, args := range map[string][]string{
		"accepts 1 arg(s), received 0": {},
		"accepts 1 arg(s), received 2": {"example.com/app", "example.com/app:2"},
		"it is in no registry":         {"oci:" + folder + ":v1"},
		"is not an image's name":       {"example.com/App:v1"},
		"--log is empty":               {"--log", "", "example.com/app"},
		"cannot find the image":        {"--plain-http", "127.0.0.1:1/other:v1"},
	} {
		if out, err := execute(t, append([]string{"resolve", "--trust-dir", trust}, args...)...); err == nil ||
			!strings.Contains(err.Error(), reason) || out != "" {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}

// TestPrintInstallation verifies that the installation warns of what weakens it.
func TestPrintInstallation(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	printInstallation(&out, &gate.Installation{Path: "/bin/dir/hsm-image-verifier", Log: "/state/decisions.jsonl",
		Others: []string{"other"}, Root: true, Skip: []string{`"system"`}, AnySigner: []string{`"all"`}})
	for _, want := range []string{`warning: statement "system" of the trust policy skips verification`,
		`warning: statement "all" of the trust policy accepts a signature by any signer`,
		"warning: containerd will run /bin/dir/other as well", "warning: the verifier will run as root",
		"wrote /bin/dir/hsm-image-verifier; decisions go to /state/decisions.jsonl", "Landlock"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
	out.Reset()
	printInstallation(&out, &gate.Installation{User: "hsm-image"})
	if !strings.HasPrefix(out.String(), "the verifier will run as user hsm-image\n") {
		t.Error(out.String())
	}
}

// TestInstallVerifierFlags refuses an installation without the folders that it needs.
func TestInstallVerifierFlags(t *testing.T) {
	t.Parallel()
	for reason, args := range map[string][]string{
		"--bin-dir and --trust-dir are needed": {"--bin-dir", "/bin"},
		"--user is empty":                      {"--bin-dir", "/bin", "--trust-dir", "/trust", "--user", ""},
		"--state-dir is empty":                 {"--bin-dir", "/bin", "--trust-dir", "/trust", "--state-dir", ""},
		"the timeout is 1ms":                   {"--bin-dir", "/bin", "--trust-dir", "/trust", "--timeout", "1ms"},
	} {
		if _, err := execute(t, append([]string{"install-verifier"}, args...)...); err == nil ||
			!strings.Contains(err.Error(), reason) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// TestContainerdConfig refuses paths that containerd would not find, and PINs that others could read.
func TestContainerdConfig(t *testing.T) {
	t.Parallel()
	for reason, args := range map[string][]string{
		"bin/hsm-image is not a full path": {"--path", "bin/hsm-image"},
		"could be read by others":          {"--key", "pkcs11:object=a?pin-value=123"},
		"--user is empty":                  {"--user", ""},
	} {
		if out, err := execute(t, append([]string{"containerd-config"}, args...)...); err == nil ||
			!strings.Contains(err.Error(), reason) || out != "" {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
}
