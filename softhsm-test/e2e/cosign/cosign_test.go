package cosign

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// digestOf are the flags with which cosign verifies by a public key in a file: it takes SHA-256 for any key, but signs
// with the hash of the key's curve.
func digestOf(spec string) []string {
	switch spec {
	case "EC-384":
		return []string{"--signature-digest-algorithm", "sha384"}
	case "EC-521":
		return []string{"--signature-digest-algorithm", "sha512"}
	}
	return nil
}

// TestImages signs an image with each kind of key, in cosign's envelopes of today and of before, and verifies it by the
// key in the module and by its public key in a file. A key that has not signed verifies nothing.
func TestImages(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	_, stranger := u.key(t, "EC-256", "stranger")
	for _, spec := range softhsmtest.KeySpecs {
		key, public := u.key(t, spec, "release-"+spec)
		image := u.image(t, "new "+spec)
		if stderr, err := u.sign(t, key, "sign", "--annotations", "build=7", image); err != nil {
			t.Fatalf("%s: %v\n%s", spec, err, stderr)
		}
		u.verifies(t, key, "verify", "--annotations", "build=7", image)
		u.verifies(t, public, append([]string{"verify", image}, digestOf(spec)...)...)
		if stderr, err := u.verify(t, stranger, "verify", image); err == nil {
			t.Errorf("%s verifies with another key: %s", spec, stderr)
		}
		if stderr, err := u.verify(t, key, "verify", u.image(t, "other "+spec)); err == nil {
			t.Errorf("%s: an unsigned image verifies: %s", spec, stderr)
		}

		image = u.image(t, "old "+spec)
		if stderr, err := u.signOld(t, key, "sign", image); err != nil {
			t.Fatalf("%s: %v\n%s", spec, err, stderr)
		}
		u.verifies(t, key, "verify", "--new-bundle-format=false", image)
		u.verifies(t, public, append([]string{"verify", "--new-bundle-format=false", image}, digestOf(spec)...)...)
	}
}

// TestAttestations attests what an image is, in both envelopes, and verifies that.
func TestAttestations(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	key, public := u.key(t, "EC-256", "release")
	predicate := u.file("predicate.json")
	softhsmtest.Write(t, predicate, `{"buildDefinition": {"buildType": "https://example.com/build/v1", `+
		`"externalParameters": {"ref": "refs/tags/v1"}}, "runDetails": {"builder": {"id": "https://example.com/builder"}}}`)
	attest := []string{"attest", "--type", "slsaprovenance1", "--predicate", predicate}
	image := u.image(t, "new")
	if stderr, err := u.sign(t, key, append(attest, image)...); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	u.verifies(t, key, "verify-attestation", "--type", "slsaprovenance1", image)
	u.verifies(t, public, "verify-attestation", "--type", "slsaprovenance1", image)
	if stderr, err := u.verify(t, key, "verify-attestation", "--type", "spdxjson", image); err == nil {
		t.Errorf("another attestation verifies: %s", stderr)
	}
	image = u.image(t, "old")
	if stderr, err := u.signOld(t, key, append(attest, image)...); err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	u.verifies(t, key, "verify-attestation", "--type", "slsaprovenance1", "--new-bundle-format=false", image)
	u.verifies(t, public, "verify-attestation", "--type", "slsaprovenance1", "--new-bundle-format=false", image)
}

// TestBlobs signs files, an empty one and one of many pages among them; one that was changed does not verify.
func TestBlobs(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	key, public := u.key(t, "RSA-2048", "release")
	for name, text := range map[string]string{"empty": "", "short": "hello\n", "long": strings.Repeat("hello\n", 1<<20)} {
		file, bundle := u.file(name), u.file(name+".bundle")
		softhsmtest.Write(t, file, text)
		if stderr, err := u.sign(t, key, "sign-blob", "--bundle", bundle, file); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, stderr)
		}
		u.verifies(t, key, "verify-blob", "--bundle", bundle, file)
		u.verifies(t, public, "verify-blob", "--bundle", bundle, file)
		u.verifies(t, key, "verify-blob", "--bundle", bundle, fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))))
		softhsmtest.Write(t, file, text+"x")
		if stderr, err := u.verify(t, key, "verify-blob", "--bundle", bundle, file); err == nil ||
			!strings.Contains(stderr, "the signature does not verify with key") {
			t.Errorf("%s: a changed file: %v\n%s", name, err, stderr)
		}
	}
}

// TestReferences names the key in the ways that notation-hsm knows. Cosign hands on what stands after hsm:// unchanged.
func TestReferences(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	key, public := u.key(t, "EC-256", "a b%c://d?e#é")
	uri := strings.TrimPrefix(key, "hsm://")
	if !strings.Contains(uri, "object=a%20b%25c") {
		t.Fatalf("the label is not encoded: %s", uri)
	}
	softhsmtest.WriteFile(t, softhsmtest.ConfigFile(t), []byte("keys:\n  release:\n    uri: "+uri+"\n"))
	want := softhsmtest.Read(t, public)
	for _, reference := range []string{"hsm://release", key + "?pin-source=env:NOTATION_HSM_PIN",
		strings.Replace(key, "a%20b%25c", "%61%20%62%25%63", 1)} {
		if got := softhsmtest.Read(t, u.export(t, reference)); got != want {
			t.Errorf("%s is another key: %s", reference, got)
		}
		image := u.image(t, reference)
		if stderr, err := u.sign(t, reference, "sign", image); err != nil {
			t.Errorf("%s: %v\n%s", reference, err, stderr)
		}
		u.verifies(t, public, "verify", image)
	}
}

// TestRefusals gives the user one clear error for each thing that can be wrong.
func TestRefusals(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	key, _ := u.key(t, "EC-256", "release")
	image := u.image(t, "image")
	try := func(name, key string, words ...string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			stderr, err := u.sign(t, key, "sign", image)
			refused(t, stderr, err, words...)
		})
	}
	try("unknown alias", "hsm://releas", `unknown key "releas"`)
	try("unknown key", "hsm://pkcs11:token=signing;object=other", `there is no key "other" on token "signing"`)
	try("unknown token", "hsm://pkcs11:token=other;object=release", `no token matches pkcs11:token=other`)
	try("PIN in the URI", key+"?pin-value=1234", "carries a PIN")
	try("module in the URI", key+"?module-path=/other.so", "/other.so", "the config file does not list it")
	try("no key", "hsm://", "names no key")

	stdout, stderr, err := softhsmtest.Try(t, "", u.cosign, "generate-key-pair", "--kms", key)
	if refused(t, stderr, err, "notation-hsm key generate"); stdout != "" {
		t.Errorf("standard output has %q", stdout)
	}

	module := softhsmtest.Getenv(t, "NOTATION_HSM_MODULE_PATH")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", "/nonexistent.so")
	try("no module", key, "/nonexistent.so")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", module)
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", "wrong-pin")
	try("wrong PIN", key, "CKR_PIN_INCORRECT")
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", "")
	try("no PIN", key, "PIN")
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", softhsmtest.PIN)
	softhsmtest.Setenv(t, "NOTATION_HSM_TIMEOUT", "soon")
	try("malformed setting", key, `invalid timeout "soon"`)
}

// TestModules has the module print, crash and sign wrongly: cosign reads an answer, or one error.
func TestModules(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	key, public := u.key(t, "EC-256", "release")
	image := u.image(t, "image")
	log := filepath.Join(u.folder, "calls")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, u.token.Module))
	softhsmtest.Setenv(t, "SHIM_NOISE", "1")
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	stderr, err := u.sign(t, key, "sign", image)
	if err != nil || strings.Contains(stderr, "ACME") {
		t.Errorf("%v\n%s", err, stderr)
	}
	u.verifies(t, public, "verify", image)
	for _, call := range []string{"C_Login", "C_Sign"} {
		if n := softhsmtest.Count(softhsmtest.Calls(t, log), call); n != 1 {
			t.Errorf("one signature takes %d calls of %s", n, call)
		}
	}
	for how, words := range map[string]string{"crash": "shim.so crashed", "abort": "shim.so crashed",
		"wrong": "signature does not verify", "0x6": "CKR_FUNCTION_FAILED"} {
		softhsmtest.Setenv(t, "SHIM_FAULT", "C_Sign:"+how)
		stderr, err := u.sign(t, key, "sign", image)
		refused(t, stderr, err, words)
	}
}

// TestVersion answers people who start the plugin.
func TestVersion(t *testing.T) {
	softhsmtest.Parallel(t)
	plugin := softhsmtest.Build(t, "sigstore-kms-hsm")
	if out := softhsmtest.Run(t, plugin, "--version"); !strings.HasPrefix(out, "sigstore-kms-hsm version ") {
		t.Errorf("%q", out)
	}
	info, err := os.Stat(plugin)
	if err != nil || info.Size() > 16<<20 {
		t.Errorf("cosign starts a program of %d bytes five times for a signature: %v", info.Size(), err)
	}
}
