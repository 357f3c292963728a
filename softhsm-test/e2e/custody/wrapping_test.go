package custody

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/miekg/pkcs11"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestWrappingKeyNeedsLogin uses the wrapping key, which is a public object, by hand: without the PIN nobody opens a
// backup with it, or makes a MAC key that they know; and with the PIN nobody reads what was in a backup.
func TestWrappingKeyNeedsLogin(t *testing.T) {
	softhsmtest.Parallel(t)
	b := newBackedUp(t, map[string][]string{"release": nil})
	text, err := os.ReadFile(b.file("release"))
	if err != nil {
		t.Fatal(err)
	}
	var backup struct {
		Wrapped []byte `json:"wrapped"`
	}
	if err := json.Unmarshal(text, &backup); err != nil {
		t.Fatal(err)
	}
	aes := []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_KEY_WRAP_PAD, nil)}
	with := func(template []*pkcs11.Attribute, private, sensitive bool) []*pkcs11.Attribute {
		return append(template, pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false),
			pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true),
			pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, private), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, sensitive))
	}
	attack := func(module *pkcs11.Ctx, session pkcs11.SessionHandle, who string, loggedIn bool) {
		wrapping, err := findSecretKey(module, session)
		if err != nil {
			t.Fatal(err)
		}
		for _, private := range []bool{false, true} {
			for _, sensitive := range []bool{false, true} {
				opened, err := module.UnwrapKey(session, aes, wrapping, backup.Wrapped, with([]*pkcs11.Attribute{
					pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
					pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_EC),
				}, private, sensitive))
				if good := loggedIn && private && sensitive; (err == nil) != good {
					t.Errorf("%s: opening a backup, private %t, sensitive %t: %v", who, private, sensitive, err)
				}
				if err == nil {
					value, err := module.GetAttributeValue(session, opened,
						[]*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_VALUE, nil)})
					if err == nil {
						t.Errorf("%s: the key of the backup has %d bytes", who, len(value[0].Value))
					}
				}
				if loggedIn {
					continue
				}
				known, err := module.CreateObject(session, with([]*pkcs11.Attribute{
					pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
					pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
					pkcs11.NewAttribute(pkcs11.CKA_VALUE, bytes.Repeat([]byte{1}, 32)),
				}, private, sensitive))
				if err != nil {
					continue
				}
				if _, err := module.WrapKey(session, aes, wrapping, known); err == nil {
					t.Errorf("%s: a known MAC key was wrapped, private %t, sensitive %t", who, private, sensitive)
				}
			}
		}
	}
	err = b.token.InSession(t, func(module *pkcs11.Ctx, session pkcs11.SessionHandle) error {
		attack(module, session, "with the PIN", true)
		if err := module.Logout(session); err != nil {
			return err
		}
		attack(module, session, "without the PIN", false)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.run(t, "key", "restore", b.file("release"), "--token", "spare")
}

// findSecretKey returns the one secret key on a token.
func findSecretKey(module *pkcs11.Ctx, session pkcs11.SessionHandle) (pkcs11.ObjectHandle, error) {
	if err := module.FindObjectsInit(session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY), pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
	}); err != nil {
		return 0, err
	}
	found, _, err := module.FindObjects(session, 1)
	if err != nil || len(found) == 0 {
		return 0, err
	}
	return found[0], module.FindObjectsFinal(session)
}
