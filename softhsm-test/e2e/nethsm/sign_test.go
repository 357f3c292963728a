// Package nethsm tests, end to end, keys on a NetHSM, and what deploy/nethsm deploys.
package nethsm

import (
	"debug/elf"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestNetHSMSign signs and verifies with the real notation and keys on a NetHSM: six specs, two envelopes, with the
// chain beside the key and in a file.
func TestNetHSMSign(t *testing.T) {
	softhsmtest.Parallel(t)
	h, n := NewNetHSM(t)
	registry := oci.StartRegistry(t)
	for _, spec := range softhsmtest.KeySpecs {
		t.Run(spec, func(t *testing.T) {
			uri, pem := softhsmtest.NewKey(t, h.Token, n.Plugin, spec, h.Key("key-"+spec))
			if want := "nethsm:" + h.Key("key-"+spec); uri != want {
				t.Errorf("the key is named %s, not %s", uri, want)
			}
			n.Trust(t, pem)
			for _, format := range []string{"jws", "cose"} {
				name := strings.ToLower(spec) + "-" + format
				signAndVerify(t, n, registry, name, uri, "--signature-format", format)
				signAndVerify(t, n, registry, name+"-file", uri, "--signature-format", format, "--plugin-config",
					"certificate-chain="+pem)
			}
		})
	}
}

// TestNetHSMRequests counts the requests of one 'notation sign': one with a chain file, three without.
func TestNetHSMRequests(t *testing.T) {
	softhsmtest.Parallel(t)
	h, n := NewNetHSM(t)
	if h.Server == nil {
		t.Skip("a real NetHSM tells nobody its requests")
	}
	registry := oci.StartRegistry(t)
	uri, pem := softhsmtest.NewKey(t, h.Token, n.Plugin, "EC-256", "release")
	n.Trust(t, pem)
	for name, c := range map[string]struct {
		arguments []string
		most      int
	}{"with": {[]string{"--plugin-config", "certificate-chain=" + pem}, 1}, "without": {nil, 3}} {
		h.Server.ResetRequests()
		signAndVerify(t, n, registry, name, uri, c.arguments...)
		if all := h.Server.Requests(); len(all) > c.most {
			t.Errorf("%s a chain file: %+v", name, all)
		}
	}
}

// TestNetHSMStatic signs with the build that has no C in it, with nothing in PATH.
func TestNetHSMStatic(t *testing.T) {
	softhsmtest.Parallel(t)
	h, n := NewNetHSM(t)
	registry := oci.StartRegistry(t)
	uri, pem := softhsmtest.NewKey(t, h.Token, n.Plugin, "EC-384", h.Key("static"))
	n.Trust(t, pem)
	static := filepath.Join(t.TempDir(), "notation-hsm")
	build := softhsmtest.Go(softhsmtest.Root(), "build", "-trimpath", "-o", static, "./cmd/notation-hsm")
	build.Env = append(build.Env, "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	program, err := elf.Open(static)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if libraries, err := program.ImportedLibraries(); err != nil || len(libraries) > 0 ||
		program.Section(".interp") != nil {
		t.Errorf("it is not static: %v, %v", libraries, err)
	}
	if version := softhsmtest.Run(t, static, "--version"); !strings.Contains(version, "without PKCS#11 modules") {
		t.Errorf("--version says %s", version)
	}
	softhsmtest.Run(t, static, "install")
	softhsmtest.Setenv(t, "PATH", "")
	signAndVerify(t, n, registry, "static", uri)

	_, stderr, err := softhsmtest.Try(t, "", static, "token", "list")
	if err == nil || !strings.Contains(stderr, "this build has no PKCS#11") {
		t.Errorf("%v: %s", err, stderr)
	}
}

// TestNetHSMKeep runs the commands around a key: setup with least privilege, list, show, doctor, rotate, delete.
func TestNetHSMKeep(t *testing.T) {
	softhsmtest.Parallel(t)
	h, n := NewNetHSM(t)
	if h.Server == nil {
		t.Skip("namespaces are not made on a real NetHSM")
	}
	h.Server.AddUser("root", nethsmtest.Administrator, rootPassphrase)
	softhsmtest.Setenv(t, "TEST_ROOT", rootPassphrase)
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_USER", "signing~operator")
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_ADMINISTRATOR", "signing~admin")
	setup := []string{"nethsm", "setup", "--key", "release", "--tag", "pipeline", "--spec", "EC-256", "--subject",
		"CN=release,O=Example,C=CH,ST=Zurich",
		"--root-administrator", "root", "--root-pin-source", "env:TEST_ROOT"}
	if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, setup...); err == nil || len(h.Server.Keys("signing")) > 0 {
		t.Errorf("without a yes: %v, %s", err, stderr)
	}
	for _, want := range []string{"create", "exists"} { // a second run creates nothing
		_, stderr, err := softhsmtest.Try(t, "", n.Plugin, append(setup, "--yes")...)
		if err != nil || !strings.Contains(stderr, want+"  namespace signing") ||
			!strings.Contains(stderr, want+"  user signing~operator") {
			t.Fatalf("%v: %s", err, stderr)
		}
	}
	registry := oci.StartRegistry(t)
	pem := filepath.Join(t.TempDir(), "release.pem")
	softhsmtest.Write(t, pem, softhsmtest.Run(t, n.Plugin, "cert", "export", "nethsm:release"))
	n.Trust(t, pem)
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "release", "--key", "nethsm:release", "--default")
	signAndVerify(t, n, registry, "kept", "nethsm:release")

	// The operator is no administrator.
	if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, "key", "generate", "--token", "nethsm:", "--label", "other",
		"--spec",
		"EC-256"); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_ADMINISTRATOR", "signing~operator")
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_ADMINISTRATOR_PIN_SOURCE", "env:TEST_OPERATOR")
	if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, "key", "delete", "nethsm:other", "--yes"); err == nil ||
		!strings.Contains(stderr, "(403)") {
		t.Errorf("an operator deletes: %v, %s", err, stderr)
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_ADMINISTRATOR", "signing~admin")
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_ADMINISTRATOR_PIN_SOURCE", "env:TEST_ADMIN")

	var listed []struct{ URI, Spec string }
	if err := json.Unmarshal([]byte(softhsmtest.Run(t, n.Plugin, "key", "list", "--token", "nethsm:rel*", "--json")),
		&listed); err != nil || len(listed) != 1 || listed[0].Spec != "EC-256" {
		t.Errorf("%+v, %v", listed, err)
	}
	if shown := softhsmtest.Run(t, n.Plugin, "key", "show", "nethsm:release"); !strings.Contains(shown, "can sign") {
		t.Error(shown)
	}
	if report := softhsmtest.Run(t, n.Plugin, "doctor", "nethsm:release"); !strings.Contains(report,
		"made in the module, and verified") {
		t.Error(report)
	}
	softhsmtest.Run(t, n.Plugin, "key", "rotate", "release", "--yes")
	softhsmtest.Write(t, pem, softhsmtest.Run(t, n.Plugin, "cert", "export", "nethsm:release-2"))
	n.Trust(t, pem)
	signAndVerify(t, n, registry, "rotated", "nethsm:release-2")

	// The new key is for the users of the old one alone.
	h.Server.AddUser("signing~visitor", nethsmtest.Operator, operatorPassphrase)
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_USER", "signing~visitor")
	request :=
		`{"contractVersion":"1.0","keyId":"nethsm:release-2","keySpec":"EC-256","hashAlgorithm":"SHA-256","payload":"eA=="}`
	if _, stderr, err := softhsmtest.Try(t, request, n.Plugin, "generate-signature"); err == nil ||
		!strings.Contains(stderr, "(403)") {
		t.Errorf("a user without the tag signs: %v, %s", err, stderr)
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_USER", "signing~operator")

	if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, "key", "delete", "nethsm:release-2", "--yes"); err == nil ||
		!strings.Contains(stderr, "Notation signs with it") {
		t.Errorf("%v: %s", err, stderr)
	}
	softhsmtest.Run(t, n.Plugin, "key", "delete", "nethsm:other", "--yes")
	if keys := h.Server.Keys("signing"); strings.Join(keys, " ") != "release release-2" {
		t.Errorf("keys are %v", keys)
	}
}

// TestNetHSMLookAfter shows the state of instances, and makes a backup.
func TestNetHSMLookAfter(t *testing.T) {
	softhsmtest.Parallel(t)
	h, n := NewNetHSM(t)
	if h.Server == nil {
		t.Skip("a real NetHSM is not locked by a test")
	}
	second := h.Server.Instance()
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_INSTANCES", h.Server.URL+","+second.URL)
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_FINGERPRINTS", h.Server.Fingerprint()+","+second.Fingerprint())
	second.SetState(nethsmtest.Locked)
	var status struct {
		Instances []struct{ URL, State, Version string }
		Members   []struct{ ID string }
	}
	if err := json.Unmarshal([]byte(softhsmtest.Run(t, n.Plugin, "nethsm", "status", "--json")), &status); err != nil ||
		len(status.Instances) != 2 ||
		status.Instances[0].State != "Operational" || status.Instances[0].Version == "" ||
		status.Instances[1].State != "Locked" || len(status.Members) != 2 {
		t.Errorf("%+v, %v", status, err)
	}
	if table := softhsmtest.Run(t, n.Plugin, "nethsm", "status"); !strings.Contains(table, "Operational") ||
		!strings.Contains(table, "Locked") || !strings.Contains(table, "MEMBER") {
		t.Error(table)
	}

	file := filepath.Join(t.TempDir(), "backup.bin")
	h.Server.AddUser("backup", nethsmtest.Backup, backupPassphrase)
	if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, "nethsm", "backup", file); err == nil ||
		!strings.Contains(stderr, "no backup passphrase") {
		t.Errorf("%v: %s", err, stderr)
	}
	setBackupPassphrase(t, h.Server)
	if out := softhsmtest.Run(t, n.Plugin, "nethsm", "backup", file); !strings.Contains(out, "sha256:") {
		t.Error(out)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Errorf("%v, %v", info, err)
	}
	before, _ := os.ReadFile(file)
	h.Server.Inject("POST", "/system/backup", 0, nethsmtest.RespondWith(200, "application/octet-stream", "<html>"))
	if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, "nethsm", "backup", file); err == nil ||
		!strings.Contains(stderr, "does not begin like a backup") {
		t.Errorf("%v: %s", err, stderr)
	}
	if after, _ := os.ReadFile(file); string(after) != string(before) {
		t.Error("a backup that failed has replaced the one that was there")
	}
	h.Server.SetState(nethsmtest.Locked)
	if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, "nethsm", "status"); err == nil ||
		!strings.Contains(stderr, "no instance is operational") {
		t.Errorf("%v: %s", err, stderr)
	}
}
