package cosign

import (
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestNetHSM signs with elliptic curve keys on a NetHSM.
func TestNetHSM(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	server := nethsmtest.Start(t)
	server.Provision("admin passphrase", "operator passphrase")
	for name, value := range map[string]string{
		"NETHSM_INSTANCES": server.URL, "NETHSM_USER": nethsmtest.OperatorUser,
		"NETHSM_FINGERPRINTS":  "sha256:" + server.Fingerprint(),
		"NETHSM_ADMINISTRATOR": nethsmtest.AdminUser, "NETHSM_ADMINISTRATOR_PIN_SOURCE": "env:TEST_ADMIN",
		"PIN": "", "PIN_SOURCE": "env:TEST_OPERATOR",
	} {
		softhsmtest.Setenv(t, "NOTATION_HSM_"+name, value)
	}
	softhsmtest.Setenv(t, "TEST_ADMIN", "admin passphrase")
	softhsmtest.Setenv(t, "TEST_OPERATOR", "operator passphrase")
	u.token.Label = "nethsm:"
	for _, spec := range []string{"EC-256", "EC-384"} {
		label := "release-" + spec
		key, public := u.key(t, spec, label)
		if key != "hsm://nethsm:"+label {
			t.Errorf("the key is named %s", key)
		}
		image := u.image(t, spec)
		if stderr, err := u.sign(t, key, "sign", image); err != nil {
			t.Errorf("%s: %v\n%s", spec, err, stderr)
		}
		u.verifies(t, key, "verify", image)
		u.verifies(t, public, append([]string{"verify", image}, digestOf(spec)...)...)
	}
	// An RSA key that notation-hsm makes there signs with RSASSA-PSS alone, as Notation does.
	key, _ := u.key(t, "RSA-2048", "rsa")
	stderr, err := u.sign(t, key, "sign", u.image(t, "image"))
	refused(t, stderr, err, "RSA_Signature_PKCS1")
	softhsmtest.Setenv(t, "TEST_OPERATOR", "another passphrase")
	stderr, err = u.sign(t, "hsm://nethsm:release-EC-256", "sign", u.image(t, "image"))
	refused(t, stderr, err, "rejected the credentials")
}
