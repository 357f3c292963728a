package image

import (
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestImageUsage refuses to encrypt to keys that cannot open the image, without having written anything, and opens with
// the others what was encrypted to them by their URI alone: with a PIN and without.
func TestImageUsage(t *testing.T) {
	softhsmtest.Parallel(t)
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "RSA-2048", "EC-256")
	oci.CheckUsage(t, u.HSMImage, []string{u.Keys["RSA-2048"].URI, u.Keys["EC-256"].URI}, map[string]string{
		generateSigning(t, "pkcs11:token=node", "RSA-2048"): "CKA_ENCRYPT is false",
		generateSigning(t, "pkcs11:token=node", "EC-256"):   "CKA_DERIVE is false",
	})
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", "")
	dir := t.TempDir() + "/"
	oci.WriteImage(t, dir+"source", "app", 1000, "linux/amd64")
	_, stderr, err := u.Try(t, "encrypt", "oci:"+dir+"source:app", "oci:"+dir+"app:app", "--recipient",
		"pkcs11:object=signing-EC-256")
	if err != nil || !strings.Contains(stderr,
		`warning: recipient "pkcs11:object=signing-EC-256": its module does not tell what the key may do without a PIN`) {
		t.Errorf("without a PIN: %v\n%s", err, stderr)
	}
	if _, stderr, err := u.Try(t, "encrypt", "oci:"+dir+"source:app", "oci:"+dir+"none:app", "--recipient",
		"pkcs11:object=signing-RSA-2048"); err == nil {
		t.Errorf("without a PIN, it encrypted to a key for signing\n%s", stderr)
	}
}

// generateSigning makes a key for signatures and returns its URI.
func generateSigning(t *testing.T, token, spec string) string {
	t.Helper()
	softhsmtest.Run(t, softhsmtest.Build(t, "notation-hsm"), "key", "generate", "--token", strings.TrimPrefix(token,
		"pkcs11:token="), "--label", "signing-"+spec, "--spec", spec)
	return token + ";object=signing-" + spec
}
