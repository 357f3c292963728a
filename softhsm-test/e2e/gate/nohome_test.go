package gate

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestNoHome plants folders where the programs would find them if they looked in the working directory: a policy that
// lets everything pass, and a signing key. Without a home, or with one that is relative, nothing there is read or
// written, and the message says what is missing.
func TestNoHome(t *testing.T) {
	softhsmtest.Parallel(t)
	image, plugin := softhsmtest.Build(t, "hsm-image"), softhsmtest.Build(t, "notation-hsm")
	h := oci.NewHostile(t)
	unsigned := h.Name(h.PushImage("unsigned"))
	here := t.TempDir()
	for _, folder := range []string{".notation", "notation", ".config/notation"} {
		if err := os.MkdirAll(filepath.Join(here, folder, "truststore"), 0o700); err != nil {
			t.Fatal(err)
		}
		softhsmtest.Write(t, filepath.Join(here, folder, "trustpolicy.json"),
			`{"version": "1.0", "trustPolicies": [{"name": "planted", "registryScopes": ["*"], `+
				`"signatureVerification": {"level": "skip"}}]}`)
		softhsmtest.Write(t, filepath.Join(here, folder, "signingkeys.json"),
			`{"default": "planted", "keys": [{"name": "planted", `+
				`"id": "pkcs11:token=planted;object=planted", "pluginName": "hsm"}]}`)
	}
	manifest := filepath.Join(t.TempDir(), "trust.yaml")
	softhsmtest.Run(t, plugin, "trust", "init", "--manifest", manifest)
	forger, err := oci.NewForger("alice", "")
	if err != nil {
		t.Fatal(err)
	}
	pem := filepath.Join(t.TempDir(), "alice.pem")
	softhsmtest.Write(t, pem, string(forger.PEM()))
	softhsmtest.Run(t, plugin, "trust", "signer", "add", "alice", "--scope", "registry.example.com/app", "--cert", pem,
		"--manifest", manifest)
	files := func() (list []string) {
		if err := filepath.WalkDir(here, func(path string, entry os.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				path += ": " + softhsmtest.Read(t, path)
			}
			list = append(list, path)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return list
	}
	before := files()
	for _, environment := range [][]string{
		{}, {"HOME="}, {"HOME=."}, {"HOME=" + filepath.Base(here)}, {"XDG_CONFIG_HOME=."},
		{"XDG_CONFIG_HOME=.config", "HOME=."},
		{"NOTATION_CONFIG=.notation"}, {"NOTATION_CONFIG=.notation", "NOTATION_LIBEXEC=.notation",
			"NOTATION_CACHE=.notation",
			"HOME=" + t.TempDir()},
	} {
		for _, c := range [][]string{
			{image, "verify", "--plain-http", unsigned},
			{plugin, "install"},
			{plugin, "install", "--key-name", "mine", "--key", "pkcs11:token=t;object=o", "--module-path", "/nonexistent.so"},
			{plugin, "trust", "export", "--manifest", manifest},
			{plugin, "doctor"},
			{plugin, "key", "rotate", "planted", "--ca-dir", "/proc/none"},
		} {
			stdout, stderr, err := softhsmtest.Try(t, "", "env",
				slices.Concat([]string{"-i", "-C", here, "PATH=" + softhsmtest.Getenv(t, "PATH"),
					"NOTATION_HSM_MODULE_PATH=/nonexistent.so"},
					environment, c)...)
			said := stdout + stderr
			if !strings.Contains(said, "to an absolute path") {
				t.Errorf("%v %v does not say what to set: %v %s", environment, c[1:], err, said)
			}
			if err == nil || strings.Contains(said, "planted:") || strings.Contains(said, "token=planted") {
				t.Errorf("%v %v used what was planted: %v %s", environment, c[1:], err, said)
			}
		}
	}
	if after := files(); !slices.Equal(before, after) {
		t.Errorf("in the working directory there was\n%s\nand then\n%s", strings.Join(before, "\n"),
			strings.Join(after, "\n"))
	}
	// With a folder that is named, no home is needed.
	trust := filepath.Join(t.TempDir(), "trust")
	for _, c := range [][]string{{plugin, "trust", "export", "--manifest", manifest, "--to", trust},
		{image, "verify", "--plain-http", "--trust-dir", trust, unsigned}} {
		_, stderr, err := softhsmtest.Try(t, "", "env", slices.Concat([]string{"-i", "-C", here, "PATH=" +
			softhsmtest.Getenv(t, "PATH")}, c)...)
		if strings.Contains(stderr, "HOME") || c[1] == "trust" && err != nil {
			t.Errorf("%v: %v %s", c, err, stderr)
		}
	}
	if after := files(); !slices.Equal(before, after) {
		t.Errorf("revocation lists are kept in the working directory:\n%s", strings.Join(after, "\n"))
	}
}
