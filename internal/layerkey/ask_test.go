package layerkey

import (
	"crypto"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestCheckKey refuses recipients whose key cannot decrypt what is encrypted to it, chooses the hash of OAEP, and warns
// where the module does not say what the key can do. It logs in only where it has to try the key.
func TestCheckKey(t *testing.T) {
	const none, wrong = "", "0000"
	sha1, sha256 := []crypto.Hash{crypto.SHA1}, []crypto.Hash{crypto.SHA256, crypto.SHA1}
	for name, test := range map[string]struct {
		spec    string
		usage   key.Usage
		oaep    []crypto.Hash // of the module
		silent  bool
		chosen  string // after the recipient's name
		pin     string
		refused string // words of the error
		warning string // words of the warning
		want    crypto.Hash
		logins  int
	}{
		"signing RSA key":      {"RSA-2048", key.Sign, sha256, false, "", none, "CKA_DECRYPT is false", "", 0, 0},
		"signing EC key":       {"EC-256", key.Sign, nil, false, "", none, "CKA_DECRYPT is false", "", 0, 0},
		"RSA key":              {"RSA-2048", key.Decrypt, sha256, false, "", none, "", "", crypto.SHA256, 0},
		"RSA key, SHA-1 alone": {"RSA-2048", key.Decrypt, sha1, false, "", none, "", "", crypto.SHA1, 0},
		"RSA key, chosen":      {"RSA-2048", key.Decrypt, sha256, false, "?oaep=sha1", none, "", "", crypto.SHA1, 0},
		"RSA key, not supported": {"RSA-2048", key.Decrypt, sha1, false, "?oaep=sha256", none,
			"does not support OAEP with SHA-256", "", 0, 0},
		"RSA key without OAEP": {"RSA-2048", key.Decrypt, []crypto.Hash{}, false, "", none,
			"does not support OAEP", "", 0, 0},
		"EC key": {"EC-256", key.Decrypt, nil, false, "", none, "", "", 0, 0},
		"silent RSA key": {"RSA-2048", key.Decrypt, sha1, true, "", keystoretest.PIN, "", "",
			crypto.SHA1, 1},
		"silent RSA key, no PIN": {"RSA-2048", key.Decrypt, sha1, true, "", none, "",
			"for a module that knows SHA-1 alone, add ?oaep=sha1", crypto.SHA256, 0},
		"silent RSA key, not supported": {"RSA-2048", key.Decrypt, sha1, true, "?oaep=sha256", keystoretest.PIN,
			"OAEP with SHA-256", "", 0, 1},
		"silent EC key":             {"EC-256", key.Decrypt, nil, true, "", keystoretest.PIN, "", "", 0, 1},
		"silent EC key, no PIN":     {"EC-256", key.Decrypt, nil, true, "", none, "", "(CKA_DERIVE), with ECDH", 0, 0},
		"silent signing EC key":     {"EC-256", key.Sign, nil, true, "", keystoretest.PIN, "may not", "", 0, 1},
		"silent signing RSA key":    {"RSA-2048", key.Sign, nil, true, "", keystoretest.PIN, "may not", "", 0, 1},
		"silent EC key, wrong PIN":  {"EC-256", key.Decrypt, nil, true, "", wrong, "cannot log in", "", 0, 1},
		"silent EC key, no PIN yet": {"EC-256", key.Decrypt, nil, true, "", "env:NO_SUCH_PIN", "", "NO_SUCH_PIN", 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t)
			m.add(test.spec, test.usage)
			m.OAEP(token, test.oaep...)
			if test.silent {
				m.Silence(token)
			}
			t.Setenv("NOTATION_HSM_PIN", test.pin)
			if strings.HasPrefix(test.pin, "env:") {
				t.Setenv("NOTATION_HSM_PIN", "")
				t.Setenv("NOTATION_HSM_PIN_SOURCE", test.pin)
			}
			recipient := uri(strings.ToLower(test.spec)) + test.chosen
			r, err := m.recipient(recipient)
			switch {
			case test.refused != "":
				if err == nil || !strings.Contains(err.Error(), test.refused) {
					t.Errorf("it fails with %v, which does not say %q", err, test.refused)
				}
			case err != nil || r.OAEP != test.want || !strings.Contains(r.Warning, test.warning) ||
				test.warning == "" && r.Warning != "":
				t.Errorf("it is %+v, %v", r, err)
			}
			if n := m.Calls("Login"); n != test.logins {
				t.Errorf("it took %d logins, not %d", n, test.logins)
			}
			if m.identify(recipient) == nil || m.OpenStores() != 0 {
				t.Error("it is not identified, or a store is open")
			}
		})
	}
}

// TestUncheckedFile warns that nobody checked what the key in a file can do.
func TestUncheckedFile(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	file := publicFile(t, private(t, "rsa-2048", "RSA-2048").Public())
	for name, want := range map[string]struct {
		hash    crypto.Hash
		warning string
	}{
		file:                {crypto.SHA256, "no module was asked what its key can do"},
		file + "?oaep=sha1": {crypto.SHA1, "decrypt, with RSA-OAEP and SHA-1"},
	} {
		if r, err := m.recipient(name); err != nil || r.OAEP != want.hash || !strings.Contains(r.Warning, want.warning) {
			t.Errorf("it is %+v, %v", r, err)
		}
	}
	if m.Calls("Open") != 0 {
		t.Error("the module was opened")
	}
}

// TestTryAnother refuses a recipient whose public key is another key's.
func TestTryAnother(t *testing.T) {
	t.Parallel()
	keys, others := plainKeys(t), plainKeys(t)
	for i, c := range keys {
		r := Recipient{Name: c.name, Public: c.public}
		if err := r.tryKey(t.Context(), c.key); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := r.tryKey(t.Context(), others[i].key); err == nil ||
			!strings.Contains(err.Error(), "cannot decrypt what is encrypted to it") {
			t.Errorf("with another's public key, %s: %v", c.name, err)
		}
	}
}

// TestCertificateRules refuses certificates that do not let their key be a recipient's now.
func TestCertificateRules(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	ca := softhsmtest.NewCA(t, "recipients", nil)
	keys := map[string]crypto.PublicKey{
		"rsa": private(t, "rsa-2048", "RSA-2048").Public(), "ec": private(t, "ec-256", "EC-256").Public(),
	}
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
		r, err := m.recipient(name)
		if (err == nil) != (test.words == "") || err == nil && r.Warning == "" ||
			err != nil && (!strings.Contains(err.Error(), test.words) || !failure.Is(err, failure.Invalid)) {
			t.Errorf("key usage %b, valid %s to %s: %+v, %v", template.KeyUsage, template.NotBefore, template.NotAfter, r, err)
		}
		if _, err := IdentifyRecipients(t.Context(), m.ks, []string{name}, config.Flags); err != nil {
			t.Errorf("to identify it: %v", err)
		}
	}
}
