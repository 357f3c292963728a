package softhsmtest

import (
	"strings"
	"testing"
)

// TestImageUsage refuses to encrypt to keys that can't open the image, without having written anything, and opens with
// the others what was encrypted to them by their URI alone: on SoftHSM, with a PIN and without, and on a NetHSM.
func TestImageUsage(t *testing.T) {
	t.Run("SoftHSM", func(t *testing.T) {
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
	})
	t.Run("NetHSM", func(t *testing.T) {
		h, n := NewNetHSM(t)
		generate := func(label, spec, usage string) string {
			return strings.TrimSpace(Run(t, n.Plugin, "key", "generate", "--token", "nethsm:", "--label", h.Key(label), "--spec",
				spec, "--usage", usage))
		}
		testUsage(t, Build(t, "hsm-image"), []string{generate("recipient", "RSA-2048", "decrypt")}, map[string]string{
			generate("rsa", "RSA-2048", "sign"): "does no OAEP",
			generate("ec", "EC-256", "sign"):    "a NetHSM does no ECDH",
		})
	})
}

// generateSigning makes a key for signatures and returns its URI.
func generateSigning(t *testing.T, token, spec string) string {
	t.Helper()
	Run(t, Build(t, "notation-hsm"), "key", "generate", "--token", strings.TrimPrefix(token, "pkcs11:token="), "--label",
		"signing-"+spec, "--spec", spec)
	return token + ";object=signing-" + spec
}

// testUsage encrypts an image to each of the recipients, which open it, and to those that are refused with the words
// given.
func testUsage(t *testing.T, hsmImage string, recipients []string, refused map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	writeImage(t, "source", "app", 1000, "linux/amd64")
	u := &imageUser{hsmImage: hsmImage}
	for _, uri := range recipients {
		name := "oci:" + strings.NewReplacer(":", "-", "=", "-", ";", "-").Replace(uri)
		_, stderr, err := u.try(t, "encrypt", "oci:source:app", name+":app", "--recipient", uri)
		if err != nil || strings.Contains(stderr, "warning:") {
			t.Fatalf("encrypting to %s: %v\n%s", uri, err, stderr)
		}
		Run(t, hsmImage, "decrypt", name+":app", name+"-plain:app", "--key", uri)
		for bad, words := range refused {
			for _, args := range [][]string{
				{"encrypt", "oci:source:app", "oci:none:app", "--recipient", uri, "--recipient", bad},
				{"recipients", "add", name + ":app", "--recipient", bad, "--key", uri},
			} {
				_, stderr, err := u.try(t, args...)
				if err == nil || !strings.Contains(stderr, "cannot open what is encrypted to it") ||
					!strings.Contains(stderr, words) || !strings.Contains(stderr, "hint: ") {
					t.Errorf("hsm-image %s: %v\n%s", args, err, stderr)
				}
			}
			if list := Run(t, hsmImage, "recipients", "list", name+":app", "--recipient", bad); strings.Contains(list, bad) {
				t.Errorf("%s was added:\n%s", bad, list)
			}
		}
	}
	if _, _, err := u.try(t, "layers", "oci:none:app"); err == nil {
		t.Error("a refused recipient's image was written")
	}
}
