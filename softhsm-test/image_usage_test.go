package softhsmtest

import (
	"strings"
	"testing"
)

// TestImageUsage refuses to encrypt to keys that can't open the image, without having written anything, and opens with
// the others what was encrypted to them by their URI alone: with a PIN and without.
func TestImageUsage(t *testing.T) {
	u := newImageUser(t, NewToken(t, "node"), "RSA-2048", "EC-256")
	testUsage(t, u.hsmImage, []string{u.keys["RSA-2048"].uri, u.keys["EC-256"].uri}, map[string]string{
		generateSigning(t, "pkcs11:token=node", "RSA-2048"): "CKA_ENCRYPT is false",
		generateSigning(t, "pkcs11:token=node", "EC-256"):   "CKA_DERIVE is false",
	})
	t.Setenv("NOTATION_HSM_PIN", "")
	t.Chdir(t.TempDir())
	writeImage(t, "source", "app", 1000, "linux/amd64")
	_, stderr, err := u.try(t, "encrypt", "oci:source:app", "oci:app:app", "--recipient", "pkcs11:object=signing-EC-256")
	if err != nil || !strings.Contains(stderr,
		`warning: recipient "pkcs11:object=signing-EC-256": its module does not tell what the key may do without a PIN`) {
		t.Errorf("without a PIN: %v\n%s", err, stderr)
	}
	if _, stderr, err := u.try(t, "encrypt", "oci:source:app", "oci:none:app", "--recipient",
		"pkcs11:object=signing-RSA-2048"); err == nil {
		t.Errorf("without a PIN, it encrypted to a key for signing\n%s", stderr)
	}
}

// generateSigning makes a key for signatures and returns its URI.
func generateSigning(t *testing.T, token, spec string) string {
	t.Helper()
	Run(t, Build(t, "notation-hsm"), "key", "generate", "--token", strings.TrimPrefix(token, "pkcs11:token="), "--label",
		"signing-"+spec, "--spec", spec)
	return token + ";object=signing-" + spec
}
