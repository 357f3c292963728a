package layerkey

import (
	"context"
	"crypto"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// generateFor makes a key for a usage.
func generateFor(t *testing.T, usage key.Usage, label, spec string) {
	t.Helper()
	s, err := backends.Keystore().Resolve("", nil, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := key.ParseSpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Generate(context.Background(),
		key.Request{Spec: parsed, Usage: usage, Label: label}); err != nil {
		t.Fatal(err)
	}
}

// publicOf is the public half of a key on the token.
func publicOf(t *testing.T, label string) crypto.PublicKey {
	t.Helper()
	parsed, err := IdentifyRecipients(context.Background(), backends.Keystore(), []string{uri(label)}, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	return parsed[0].Public
}

func recipient(name string) (Recipient, error) {
	parsed, err := ParseRecipients(context.Background(), backends.Keystore(), []string{name}, config.Flags)
	if err != nil {
		return Recipient{}, err
	}
	return parsed[0], nil
}

// TestCanOpen refuses recipients whose key cannot open what is encrypted to it, as far as SoftHSM tells, with a PIN and
// without. It chooses the hash of OAEP, and warns where nobody could be asked.
func TestCanOpen(t *testing.T) {
	token := softhsmtest.NewToken(t, "recipients")
	use(t, token)
	generateFor(t, key.Sign, "signing-rsa", "RSA-2048")
	generateFor(t, key.Sign, "signing-ec", "EC-256")
	generateFor(t, key.Decrypt, "rsa", "RSA-2048")
	generateFor(t, key.Decrypt, "ec", "EC-256")
	softhsmtest.AddVisibleKey(t, token, "visible")
	log := filepath.Join(t.TempDir(), "calls")
	t.Setenv("NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	t.Setenv("SHIM_LOG", log)
	file := "pubkey:" + pemFile(t, "PUBLIC KEY", publicDER(t, publicOf(t, "rsa")))
	const none, wrong = "", "0000"
	for _, test := range []struct {
		name, pin string
		fault     string // of the module
		refused   string // words of the error
		warning   string // words of the warning
		oaep      crypto.Hash
		logins    int
	}{
		{uri("signing-rsa"), softhsmtest.PIN, "", "CKA_ENCRYPT is false", "", 0, 0},
		{uri("signing-rsa"), none, "", "CKA_ENCRYPT is false", "", 0, 0},
		{uri("signing-ec"), softhsmtest.PIN, "", "CKA_DERIVE is false", "", 0, 1},
		{uri("signing-ec"), none, "", "", "does not tell what the key may do without a PIN", 0, 0},
		{uri("signing-ec"), wrong, "", "can't log in", "", 0, 1},
		{uri("visible"), none, "", "CKA_DECRYPT is false", "", 0, 0},
		{uri("rsa"), softhsmtest.PIN, "", "", "", crypto.SHA1, 0},
		{uri("rsa"), none, "", "", "", crypto.SHA1, 0},
		{uri("rsa") + "?oaep=sha1", none, "", "", "", crypto.SHA1, 0},
		{uri("rsa") + "?oaep=sha256", none, "", "OAEP with SHA-256", "", 0, 0},
		{uri("ec"), softhsmtest.PIN, "", "", "", 0, 0},
		{uri("ec"), none, "", "", "", 0, 0},
		{uri("rsa"), none, "C_GetMechanismInfo:70", "does not list the mechanism CKM_RSA_PKCS_OAEP", "", 0, 0},
		{uri("ec"), none, "C_GetMechanismInfo:70", "does not list the mechanism CKM_ECDH1_DERIVE", "", 0, 0},
		{uri("rsa"), none, "C_GetMechanismInfo:54", "", "", crypto.SHA1, 0},
		// A module that encrypts nothing with public keys: the key is tried, or there is a warning.
		{uri("rsa"), softhsmtest.PIN, "C_EncryptInit:54", "", "", crypto.SHA1, 1},
		{uri("rsa") + "?oaep=sha256", softhsmtest.PIN, "C_EncryptInit:54", "OAEP with SHA-256", "", 0, 1},
		{uri("rsa"), none, "C_EncryptInit:54", "", "for a module that knows SHA-1 alone, add ?oaep=sha1", crypto.SHA256, 0},
		{file, softhsmtest.PIN, "", "", "no module was asked what its key can do", crypto.SHA256, 0},
		{file + "?oaep=sha1", softhsmtest.PIN, "", "", "decrypt, with RSA-OAEP and SHA-1", crypto.SHA1, 0},
	} {
		t.Run(test.name+" "+test.pin+" "+test.fault, func(t *testing.T) {
			t.Setenv("NOTATION_HSM_PIN", test.pin)
			t.Setenv("SHIM_FAULT", test.fault)
			t.Setenv("SHIM_FAULT_TIMES", "0")
			if err := os.WriteFile(log, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := recipient(test.name)
			switch {
			case test.refused != "":
				if err == nil || !strings.Contains(err.Error(), test.refused) || failure.From(err).Hint == "" {
					t.Errorf("it fails with %v, which does not say %q", err, test.refused)
				}
			case err != nil || r.OAEP != test.oaep || !strings.Contains(r.Warning, test.warning) || test.warning == "" &&
				r.Warning != "":
				t.Errorf("it is %+v, %v", r, err)
			}
			if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != test.logins {
				t.Errorf("it took %d logins, not %d", n, test.logins)
			}
			if test.refused != "" {
				t.Setenv("SHIM_FAULT", "")
				if _, err := IdentifyRecipients(context.Background(), backends.Keystore(), []string{test.name}, config.Flags); err != nil {
					t.Errorf("to know who it is: %v", err)
				}
			}
		})
	}
}

// TestTryAnother refuses a recipient whose public key is another key's.
func TestTryAnother(t *testing.T) {
	keys, others := plainKeys(t), plainKeys(t)
	for i, c := range keys {
		r := Recipient{Name: c.name, Public: c.public}
		if err := r.tryKey(t.Context(), c.key); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := r.tryKey(t.Context(), others[i].key); err == nil || !strings.Contains(err.Error(), "cannot open what is encrypted to it") {
			t.Errorf("with another's public key, %s: %v", c.name, err)
		}
	}
}

// TestChooseOAEP takes SHA-256 where a module does it.
func TestChooseOAEP(t *testing.T) {
	for name, token := range map[string]func(testing.TB) *softhsmtest.Token{"openCryptoki": softhsmtest.OpenCryptoki,
		"TPM": softhsmtest.TPM} {
		t.Run(name, func(t *testing.T) {
			use(t, token(t))
			generateFor(t, key.Decrypt, "rsa", "RSA-2048")
			r, err := recipient(uri("rsa"))
			if err != nil || r.OAEP != crypto.SHA256 || r.Warning != "" {
				t.Errorf("it is %+v, %v", r, err)
			}
			mustOpen(t, seal(t, uri("rsa")), uri("rsa"))
		})
	}
}

// TestCertificateRules refuses certificates that do not let their key be a recipient's now.
func TestCertificateRules(t *testing.T) {
	use(t, softhsmtest.NewToken(t, "recipients"))
	ca := softhsmtest.NewCA(t, "recipients", nil)
	keys := map[string]crypto.PublicKey{"rsa": generate(t, "rsa", "RSA-2048"), "ec": generate(t, "ec", "EC-256")}
	for _, test := range []struct {
		key    string
		change func(*x509.Certificate)
		words  string
	}{
		{"rsa", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, ""},
		{"rsa", func(c *x509.Certificate) { c.KeyUsage = 0 }, ""},
		{"rsa", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, "not for encryption"},
		{"rsa", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment },
			"not for encryption"},
		{"ec", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }, ""},
		{"ec", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement | x509.KeyUsageEncipherOnly }, ""},
		{"ec", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement | x509.KeyUsageDecipherOnly },
			"not for encryption"},
		{"ec", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, "not for encryption"},
		{"ec", func(c *x509.Certificate) { c.KeyUsage, c.NotAfter = 0, time.Now().Add(-time.Minute) }, "expired on"},
		{"ec", func(c *x509.Certificate) { c.KeyUsage, c.NotBefore = 0, time.Now().Add(30*time.Minute) },
			"is not valid before"},
	} {
		template := softhsmtest.Template(test.key)
		test.change(template)
		name := "cert:" + pemFile(t, "CERTIFICATE", ca.Issue(t, template, keys[test.key]).Raw)
		r, err := recipient(name)
		if (err == nil) != (test.words == "") || err != nil && !strings.Contains(err.Error(), test.words) || err == nil &&
			r.Warning == "" {
			t.Errorf("key usage %b, valid %s to %s: %+v, %v", template.KeyUsage, template.NotBefore, template.NotAfter, r, err)
		}
		if _, err := IdentifyRecipients(context.Background(), backends.Keystore(), []string{name}, config.Flags); err != nil {
			t.Errorf("to know who it is: %v", err)
		}
	}
}
