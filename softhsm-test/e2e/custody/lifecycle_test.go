package custody

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestDoctorPIN has the token say every state of its PIN. Where one more wrong PIN could lock it, no login is tried,
// even when the user has allowed signatures to.
func TestDoctorPIN(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "NOTATION_HSM_ALLOW_FINAL_PIN_TRY", "true")
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	for _, c := range []struct {
		flags, line string
		logins      int
	}{
		{"40000", "failure PIN the user PIN is locked", 0},
		{"20000", "failure PIN the PIN was not tried: one more wrong PIN locks the token", 0},
		{"60000", "failure PIN the user PIN is locked", 0},
		{"10000", "warning PIN a wrong PIN was entered since the last successful login", 1},
		{"80000", "warning PIN the PIN must be changed", 1},
		{"0", "ok PIN no wrong PIN was entered since the last successful login", 1},
	} {
		softhsmtest.Setenv(t, "SHIM_TOKEN_FLAGS", c.flags)
		_ = os.Remove(log)
		stdout, stderr, err := softhsmtest.Try(t, "", n.Plugin, "doctor", uri)
		if (err == nil) != (c.logins == 1) || !strings.Contains(squeeze(stdout), c.line) {
			t.Errorf("flags %s: %v\n%s%s", c.flags, err, stdout, stderr)
		}
		if c.logins == 0 && !strings.Contains(squeeze(stdout), "not checked login needs: PIN") {
			t.Errorf("flags %s: the login is not left out:\n%s", c.flags, stdout)
		}
		if logins := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); logins != c.logins {
			t.Errorf("flags %s: %d logins", c.flags, logins)
		}
		_ = os.Remove(log)
		_, _, _ = softhsmtest.Try(t, "", n.Plugin, "doctor") // it says the same, and never logs in
		if logins := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); logins != 0 {
			t.Errorf("flags %s: doctor without a key made %d logins", c.flags, logins)
		}
	}
}

// TestDoctorFaults has doctor find a wrong signature and an expired certificate.
func TestDoctorFaults(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	ca := softhsmtest.NewCA(t, "Root", nil)
	template := softhsmtest.Template("release")
	template.NotBefore, template.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	other := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "other"))
	leaf := ca.Issue(t, template, parseRequest(t,
		softhsmtest.Run(t, n.Plugin, "cert", "csr", other, "--subject", "CN=release,O=Example,C=CH,ST=Zurich")).PublicKey)
	chain := filepath.Join(t.TempDir(), "chain.pem")
	softhsmtest.Write(t, chain, softhsmtest.PEM(leaf)+ca.PEM())
	stdout, _, err := softhsmtest.Try(t, "", n.Plugin, "doctor", other, "--certificate-chain", chain)
	for _, line := range []string{"failure expiry the certificate of", "expired on",
		"ok chain complete up to the root (length 2)", "ok test signature"} {
		if err == nil || !strings.Contains(squeeze(stdout), line) {
			t.Errorf("%q is missing:\n%s", line, stdout)
		}
	}

	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_FAULT", "C_Sign:wrong")
	stdout, _, err = softhsmtest.Try(t, "", n.Plugin, "doctor", uri)
	if err == nil || !strings.Contains(squeeze(stdout), "failure test signature a test signature does not verify") {
		t.Errorf("%v\n%s", err, stdout)
	}
}

func parseRequest(t testing.TB, text string) *x509.CertificateRequest {
	t.Helper()
	block, _ := pem.Decode([]byte(text))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// squeeze makes columns comparable.
func squeeze(text string) string { return strings.Join(strings.Fields(text), " ") }

// TestRotate signs an image, rotates the key, signs another, and verifies both.
func TestRotate(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	registry := oci.StartRegistry(t)
	uri, old := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "release", "--key", uri)
	n.Trust(t, old)
	before := signImage(t, n, registry, "before", "release")
	softhsmtest.Run(t, n.Plugin, "key", "rotate", "release", "--yes")
	after := signImage(t, n, registry, "after", "release")
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", before)
	if _, _, err := softhsmtest.Try(t, "", n.Program, "verify", "--insecure-registry", after); err == nil {
		t.Error("the new certificate is trusted, although nobody said so: the old key has signed")
	}
	both := filepath.Join(t.TempDir(), "both.pem")
	softhsmtest.Write(t, both, softhsmtest.Read(t, old)+softhsmtest.Run(t, n.Plugin, "cert", "export",
		"pkcs11:token=signing;object=release-2"))
	n.Trust(t, both)
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", before)
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", after)
}

// TestRotateUnderCA rotates a key whose certificate is from a CA on another token: who trusts the root has nothing to
// do.
func TestRotateUnderCA(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	token.Init(t, "vault")
	n := softhsmtest.NewNotation(t, token)
	registry := oci.StartRegistry(t)
	root := filepath.Join(t.TempDir(), "root.pem")
	softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "vault", "--spec", "EC-384", "--label", "root")
	softhsmtest.Write(t, root, softhsmtest.Run(t, n.Plugin, "ca", "init", "root", "--key",
		"pkcs11:token=vault;object=root", "--subject", "CN=Root,O=Example,C=CH,ST=Zurich", "--days", "300"))
	uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--spec", "RSA-2048",
		"--label", "release"))
	softhsmtest.Run(t, n.Plugin, "ca", "issue", "--ca", "root", "--key", uri, "--subject",
		"CN=release,O=Example,C=CH,ST=Zurich", "--days", "30")
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "release", "--key", uri)
	n.Trust(t, root)
	var images []string
	for i := range 3 {
		images = append(images, signImage(t, n, registry, fmt.Sprintf("image-%d", i), "release"))
		softhsmtest.Run(t, n.Plugin, "key", "rotate", "release", "--yes")
		if stdout, _, err := softhsmtest.Try(t, "", n.Plugin, "doctor",
			fmt.Sprintf("pkcs11:token=signing;object=release-%d", i+2)); err != nil ||
			!strings.Contains(squeeze(stdout), "ok trust policy accepted by") {
			t.Error(stdout)
		}
	}
	for _, image := range images {
		softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)
	}
}

// signImage pushes an image and signs it with a key of Notation's list.
func signImage(t testing.TB, n *softhsmtest.Notation, registry, name, key string) string {
	t.Helper()
	digest, err := oci.PushImage(context.Background(), registry+"/"+name+":v1", name)
	if err != nil {
		t.Fatal(err)
	}
	image := registry + "/" + name + "@" + digest.String()
	softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--key", key, image)
	return image
}

// TestBackup backs a key up, destroys its token, and makes it again on a new one from the shares of two custodians of
// three. The same entry of Notation's signs again, and what it signs verifies under the old certificate.
func TestBackup(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	registry := oci.StartRegistry(t)
	dir := t.TempDir()
	softhsmtest.Setenv(t, "SOPIN", softhsmtest.SOPIN)
	log := filepath.Join(dir, "log")
	softhsmtest.Setenv(t, "NOTATION_HSM_LOG", log)
	softhsmtest.Run(t, n.Plugin, "key", "backup-key", "generate", "--token", "signing", "--label", "backup", "--shares",
		"3", "--threshold", "2", "--folder", dir, "--so-pin-source", "env:SOPIN")
	pems := map[string]string{}
	for _, spec := range softhsmtest.KeySpecs {
		uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--spec", spec,
			"--label", spec, "--backup-key", "backup"))
		pems[spec] = filepath.Join(dir, spec+".pem")
		softhsmtest.Write(t, pems[spec], softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject",
			"CN=release,O=Example,C=CH,ST=Zurich"))
		softhsmtest.Run(t, n.Plugin, "cert", "import", uri, pems[spec])
		softhsmtest.Run(t, n.Plugin, "install", "--key-name", spec, "--key", "pkcs11:token=signing;object="+spec)
		softhsmtest.Run(t, n.Plugin, "key", "backup", uri, "--to", filepath.Join(dir, spec+".json"))
	}
	softhsmtest.Run(t, "rm", "-rf", filepath.Join(token.Dir, "tokens"))
	if err := os.Mkdir(filepath.Join(token.Dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	token.Init(t, "signing")
	share := func(i int) string { return filepath.Join(dir, fmt.Sprintf("backup-share-%d-of-3.json", i)) }
	softhsmtest.Run(t, n.Plugin, "key", "backup-key", "restore", "--token", "signing", "--shares", share(3)+","+share(1),
		"--so-pin-source", "env:SOPIN")
	for _, spec := range softhsmtest.KeySpecs {
		softhsmtest.Run(t, n.Plugin, "key", "restore", filepath.Join(dir, spec+".json"), "--token", "signing")
		n.Trust(t, pems[spec])
		softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", signImage(t, n, registry, "restored-"+
			strings.ToLower(spec), spec))
	}
	for _, secret := range []string{softhsmtest.PIN, softhsmtest.SOPIN, shareValue(t, share(1)), shareValue(t,
		share(2))} {
		if softhsmtest.HasWord(softhsmtest.Read(t, log), secret) {
			t.Errorf("a secret stands in the log")
		}
	}
}

func shareValue(t testing.TB, path string) string {
	t.Helper()
	var share struct {
		Value string `json:"value"`
	}
	if err := json.Unmarshal([]byte(softhsmtest.Read(t, path)), &share); err != nil || share.Value == "" {
		t.Fatalf("%s: %v", path, err)
	}
	return share.Value
}

// TestBackupWrapping has the security officer's PIN one try away from its end: it is not tried.
func TestBackupWrapping(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SOPIN", softhsmtest.SOPIN)
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	for _, flags := range []string{"200000", "400000"} {
		softhsmtest.Setenv(t, "SHIM_TOKEN_FLAGS", flags)
		_, stderr, err := softhsmtest.Try(t, "", n.Plugin, "key", "backup-key", "generate", "--token", "signing", "--label",
			"backup", "--shares", "3", "--threshold", "2", "--folder", t.TempDir(), "--so-pin-source", "env:SOPIN")
		if err == nil || !strings.Contains(stderr, "so it was not tried") {
			t.Errorf("%v: %s", err, stderr)
		}
	}
	if logins := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); logins != 0 {
		t.Errorf("%d logins", logins)
	}
}

// TestRotateKilled kills 'key rotate' at each write, its own and the module's, and runs it again. That has to finish
// it: one new key, one certificate from the CA, Notation's entry re-pointed and the old key kept.
func TestRotateKilled(t *testing.T) {
	softhsmtest.Parallel(t)
	const parts = 4 // each kills at one write of four
	for part := range parts {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			softhsmtest.Parallel(t)
			rotateKilled(t, 1+part, parts)
		})
	}
}

func rotateKilled(t *testing.T, first, step int) {
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "root")
	softhsmtest.Run(t, n.Plugin, "ca", "init", "root", "--key", "pkcs11:token=signing;object=root", "--subject",
		"CN=Root,O=Example,C=CH,ST=Zurich", "--days", "300")
	softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "release")
	softhsmtest.Run(t, n.Plugin, "ca", "issue", "--ca", "root", "--key", "pkcs11:token=signing;object=release",
		"--subject", "CN=release,O=Example,C=CH,ST=Zurich", "--days", "30")
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "release", "--key", "pkcs11:token=signing;object=release")
	config, saved := softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), t.TempDir()
	tokens := filepath.Join(token.Dir, "tokens")
	softhsmtest.Run(t, "cp", "-a", config, tokens, saved)
	nameless := 0
	// SoftHSM empties the token's own file in each login before it writes it anew; a kill between the two loses the token,
	// and no caller can mend that.
	kills := killAtEvery(t, first, step, "token.object", func() {
		softhsmtest.Run(t, "rm", "-rf", config, tokens)
		softhsmtest.Run(t, "cp", "-a", filepath.Join(saved, "config"), config)
		softhsmtest.Run(t, "cp", "-a", filepath.Join(saved, "tokens"), tokens)
	}, func(at string) {
		stdout, stderr, err := softhsmtest.Try(t, "", n.Plugin, "key", "rotate", "release", "--yes")
		if err != nil {
			t.Errorf("killed at %s: %v\n%s%s", at, err, stdout, stderr)
			return
		}
		list := softhsmtest.Run(t, n.Plugin, "key", "list", "--token", "signing")
		if strings.Count(list, `"release`) != 2 || strings.Count(list, `"release-2"`) != 1 {
			t.Errorf("killed at %s: the keys are\n%s", at, list)
		}
		nameless += strings.Count(list, ` "" `)
		// The ledger is the record; a file in issued/ that a killed command did not come to is written with the CA's next
		// record.
		ledger, _ := os.ReadFile(filepath.Join(config, "notation-hsm", "ca", "root", "ledger.jsonl"))
		if issued := strings.Count(string(ledger), `"event":"issued"`); issued != 2 {
			t.Errorf("killed at %s: the CA has issued %d certificates", at, issued)
		}
		keys := squeeze(softhsmtest.Run(t, n.Program, "key", "list"))
		if strings.Count(keys, "object=") != 2 || !strings.Contains(keys, " release pkcs11:token=signing;id=") ||
			!strings.Contains(keys, "release-old-1 pkcs11:token=signing;object=release ") {
			t.Errorf("killed at %s: Notation's list is\n%s", at, keys)
		}
		if left, _ := filepath.Glob(filepath.Join(config, "notation-hsm", "rotations", "*.json")); len(left) > 0 {
			t.Errorf("killed at %s: the journal is left", at)
		}
		if report, _, err := softhsmtest.Try(t, "", n.Plugin, "doctor",
			"pkcs11:token=signing;object=release-2"); err != nil {
			t.Errorf("killed at %s: %s", at, report)
		}
	}, n.Plugin, "key", "rotate", "release", "--yes")
	t.Logf("killed and finished %d times; SoftHSM kept %d private key objects that it had not got to name", kills,
		nameless)
	if kills < 5 {
		t.Errorf("%d kills are too few", kills)
	}
}
