package broker

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestPage runs the example of docs/broker-api.md.
func TestPage(t *testing.T) {
	softhsmtest.Parallel(t)
	for _, program := range []string{"curl", "base64", "sha256sum"} {
		if _, err := exec.LookPath(program); err != nil {
			softhsmtest.Missing(t, program)
		}
	}
	page, err := os.ReadFile(filepath.Join(softhsmtest.Root(), "docs", "broker-api.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "## An example\n")
	_, rest, _ = strings.Cut(rest, "```sh\n")
	example, _, found := strings.Cut(rest, "```\n")
	if !found {
		t.Fatal("the page has no example")
	}
	token := softhsmtest.NewToken(t, "signing")
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", softhsmtest.PIN)
	softhsmtest.NewKey(t, token, softhsmtest.Build(t, "notation-hsm"), "EC-256", "release")
	agent := softhsmtest.StartAgent(t, token)
	softhsmtest.Setenv(t, "socket", agent.Socket)
	answer := softhsmtest.Run(t, "sh", "-euc", example)
	var signature brokerapi.Signature
	if err := json.Unmarshal([]byte(answer), &signature); err != nil || len(signature.Signature) == 0 ||
		signature.Artifact.Size != 525 {
		t.Errorf("%v: %s", err, answer)
	}
}

// TestConfirmed signs what the program in SSH_ASKPASS says yes to, and nothing else.
func TestConfirmed(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	dir := t.TempDir()
	softhsmtest.Write(t, filepath.Join(dir, "askpass"), `#!/bin/sh
echo "$1" >>`+filepath.Join(dir, "asked")+`
case "$1" in *'"stage" = "production"'*) exit 1 ;; esac
`)
	if err := os.Chmod(filepath.Join(dir, "askpass"), 0o700); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Setenv(t, "SSH_ASKPASS", filepath.Join(dir, "askpass"))
	softhsmtest.Setenv(t, "SSH_ASKPASS_REQUIRE", "force")
	softhsmtest.StartAgent(t, token, "--confirm").Use(t)
	registry := oci.StartRegistry(t)
	digest, err := oci.PushImage(t.Context(), registry+"/app:v1", "confirmed")
	if err != nil {
		t.Fatal(err)
	}
	sign := []string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", "broker:release",
		registry + "/app@" + digest.String(), "--user-metadata"}
	_, stderr, err := softhsmtest.Try(t, "", n.Program, append(sign, "stage=production")...)
	if err == nil || !strings.Contains(stderr, "was not confirmed") {
		t.Errorf("%v: %s", err, stderr)
	}
	softhsmtest.Run(t, n.Program, append(sign, "stage=test")...)
	asked, err := os.ReadFile(filepath.Join(dir, "asked"))
	if err != nil || strings.Count(string(asked), digest.String()) != 2 ||
		!strings.Contains(string(asked), "notation-hsm") {
		t.Errorf("%v: %s", err, asked)
	}
}
