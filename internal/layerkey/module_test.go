package layerkey

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocicrypt "github.com/containers/ocicrypt/config"
	ocijwe "github.com/containers/ocicrypt/keywrap/jwe"
	ocipkcs11 "github.com/containers/ocicrypt/keywrap/pkcs11"
	ocipkcs7 "github.com/containers/ocicrypt/keywrap/pkcs7"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// The tests of this file need real modules.

// use returns a fixture with a token of a real module. While t.Setenv is in effect, the settings name this token.
func use(t *testing.T, token *softhsmtest.Token) fixture {
	t.Helper()
	t.Setenv("NOTATION_HSM_MODULE_PATH", token.Module)
	t.Setenv("NOTATION_HSM_TOKEN", token.Label)
	t.Setenv("NOTATION_HSM_PIN", softhsmtest.PIN)
	return fixture{t, backends.Keystore()}
}

// shim has the module's calls logged to the file that it returns.
func shim(t *testing.T, token *softhsmtest.Token) (log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "calls")
	t.Setenv("NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	t.Setenv("SHIM_LOG", log)
	return log
}

// TestModuleTells refuses recipients as far as SoftHSM tells what their keys can do, with a PIN and without, and
// chooses the hash of OAEP.
func TestModuleTells(t *testing.T) {
	token := softhsmtest.NewToken(t, "recipients")
	f := use(t, token)
	f.generate("signing-rsa", "RSA-2048", key.Sign)
	f.generate("signing-ec", "EC-256", key.Sign)
	f.generate("rsa", "RSA-2048", key.Decrypt)
	f.generate("ec", "EC-256", key.Decrypt)
	softhsmtest.AddVisibleKey(t, token, "visible")
	log := shim(t, token)
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
		{uri("signing-ec"), wrong, "", "log in", "", 0, 1},
		{uri("visible"), none, "", "CKA_DECRYPT is false", "", 0, 0},
		{uri("rsa"), none, "", "", "", crypto.SHA1, 0},
		{uri("rsa") + "?oaep=sha256", none, "", "OAEP with SHA-256", "", 0, 0},
		{uri("ec"), none, "", "", "", 0, 0},
		{uri("rsa"), none, "C_GetMechanismInfo:70", "CKM_RSA_PKCS_OAEP", "", 0, 0},
		{uri("ec"), none, "C_GetMechanismInfo:70", "CKM_ECDH1_DERIVE", "", 0, 0},
		{uri("rsa"), none, "C_GetMechanismInfo:54", "", "", crypto.SHA1, 0},
		// A module that encrypts nothing with public keys: the key is tried, or there is a warning.
		{uri("rsa"), softhsmtest.PIN, "C_EncryptInit:54", "", "", crypto.SHA1, 1},
		{uri("rsa") + "?oaep=sha256", softhsmtest.PIN, "C_EncryptInit:54", "OAEP with SHA-256", "", 0, 1},
		{uri("rsa"), none, "C_EncryptInit:54", "", "add ?oaep=sha1", crypto.SHA256, 0},
	} {
		t.Run(test.name+" "+test.pin+" "+test.fault, func(t *testing.T) {
			t.Setenv("NOTATION_HSM_PIN", test.pin)
			t.Setenv("SHIM_FAULT", test.fault)
			t.Setenv("SHIM_FAULT_TIMES", "0")
			if err := os.WriteFile(log, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			f := fixture{t, backends.Keystore()} // as a process of its own has it: a keystore remembers a refused PIN
			r, err := f.recipient(test.name)
			switch {
			case test.refused != "":
				if err == nil || !strings.Contains(err.Error(), test.refused) || failure.From(err).Hint == "" {
					t.Errorf("it fails with %v, which does not say %q", err, test.refused)
				}
			case err != nil || r.OAEP != test.oaep || !strings.Contains(r.Warning, test.warning) ||
				test.warning == "" && r.Warning != "":
				t.Errorf("it is %+v, %v", r, err)
			}
			if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != test.logins {
				t.Errorf("it took %d logins, not %d", n, test.logins)
			}
			if test.refused != "" {
				t.Setenv("SHIM_FAULT", "")
				f.identify(test.name)
			}
		})
	}
}

// TestModuleSHA256 takes SHA-256 for OAEP where a module supports it.
func TestModuleSHA256(t *testing.T) {
	for name, token := range map[string]func(testing.TB) *softhsmtest.Token{
		"openCryptoki": softhsmtest.OpenCryptoki, "TPM": softhsmtest.TPM,
	} {
		t.Run(name, func(t *testing.T) {
			f := use(t, token(t))
			f.generate("rsa", "RSA-2048", key.Decrypt)
			r, err := f.recipient(uri("rsa"))
			if err != nil || r.OAEP != crypto.SHA256 || r.Warning != "" {
				t.Errorf("it is %+v, %v", r, err)
			}
			f.mustOpen(f.seal(uri("rsa")), uri("rsa"))
		})
	}
}

// TestModuleCalls opens many layers, with keys of each kind, in a bounded number of calls.
func TestModuleCalls(t *testing.T) {
	token := softhsmtest.NewToken(t, "recipients")
	f := use(t, token)
	f.generate("rsa", "RSA-2048", key.Decrypt)
	f.generate("ec", "EC-256", key.Decrypt)
	sealed := map[string]map[string]string{"rsa": f.seal(uri("rsa")), "ec": f.seal(uri("ec"))}
	log := shim(t, token)
	for label, want := range map[string]map[string]int{
		"rsa": {"C_Login": 1, "C_DecryptInit": 10, "C_Decrypt": 10, "C_OpenSession": 1, "C_CloseSession": 1},
		"ec":  {"C_Login": 1, "C_DeriveKey": 10, "C_DestroyObject": 10, "C_OpenSession": 1, "C_CloseSession": 1},
	} {
		os.Remove(log)
		keys := OpenKeys(f.ks, []string{uri(label)}, config.Flags)
		for range 10 {
			if _, err := keys.Open(t.Context(), sealed[label]); err != nil {
				t.Fatal(err)
			}
		}
		if err := keys.Close(); err != nil {
			t.Fatal(err)
		}
		calls := softhsmtest.Calls(t, log)
		for name, n := range want {
			if got := softhsmtest.Count(calls, name); got != n {
				t.Errorf("ten layers took %d %s, not %d", got, name, n)
			}
		}
	}
}

// TestModuleOpensOthers opens what ocicrypt wraps by itself for a public key or a certificate, on SoftHSM, on
// openCryptoki and in a TPM; the latter two support OAEP with SHA-256.
func TestModuleOpensOthers(t *testing.T) {
	for _, module := range []struct {
		name  string
		token func(testing.TB) *softhsmtest.Token
		ec    bool
		hash  string // of OAEP
	}{
		{"SoftHSM", func(t testing.TB) *softhsmtest.Token { return softhsmtest.NewToken(t, "recipients") }, true, "sha1"},
		{"openCryptoki", softhsmtest.OpenCryptoki, false, "sha256"},
		{"TPM", softhsmtest.TPM, false, "sha256"},
	} {
		t.Run(module.name, func(t *testing.T) {
			f := use(t, module.token(t))
			public := f.generate("rsa", "RSA-2048", key.Decrypt)
			pemKey, certificates := publicPEM(t, public), recipientCertificates(t, public)
			config := func(name string, values ...[]byte) *ocicrypt.EncryptConfig {
				return &ocicrypt.EncryptConfig{Parameters: map[string][][]byte{name: values}}
			}
			wrapped := map[string]*ocicrypt.EncryptConfig{
				"jwe": config("pubkeys", pemKey), "pkcs7": config("x509s", certificates...),
				"pkcs11": config("pkcs11-pubkeys", pemKey),
			}
			if module.ec {
				ec := publicPEM(t, f.generate("ec", "EC-384", key.Decrypt))
				wrapped["jwe to an elliptic curve key"] = config("pubkeys", pemKey, ec)
			}
			t.Setenv("OCICRYPT_OAEP_HASHALG", module.hash)
			for name, config := range wrapped {
				t.Run(name, func(t *testing.T) { f.openOther(t, name, config) })
			}
		})
	}
}

// openOther wraps options with ocicrypt, in the scheme that is the first word of name, and opens them.
func (f fixture) openOther(t *testing.T, name string, config *ocicrypt.EncryptConfig) {
	scheme, reference, content := strings.Fields(name)[0], uri("rsa"), options
	wrap := map[string]func(*ocicrypt.EncryptConfig, []byte) ([]byte, error){
		schemeJWE: ocijwe.NewKeyWrapper().WrapKeys, schemePKCS7: ocipkcs7.NewKeyWrapper().WrapKeys,
		schemePKCS11: ocipkcs11.NewKeyWrapper().WrapKeys,
	}[scheme]
	if scheme == schemePKCS11 { // OAEP itself has no room for more
		content = `{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`
	}
	if strings.Contains(name, "elliptic") {
		reference = uri("ec")
	}
	packet, err := wrap(config, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	for _, references := range [][]string{{reference}, nil} {
		if opened, err := f.open(annotation(scheme, packet), references...); err != nil || opened != content {
			t.Errorf("opening with %q: %v, and got %q", references, err, opened)
		}
	}
	infos, err := ReadRecipients(annotation(scheme, packet))
	if err != nil || len(infos) != max(len(config.Parameters["pubkeys"]), len(config.Parameters["x509s"]), 1) {
		t.Errorf("the recipients are %v, %v", infos, err)
	}
}

// recipientCertificates returns certificates of another key and of this one, in PEM.
func recipientCertificates(t *testing.T, public crypto.PublicKey) [][]byte {
	t.Helper()
	other, err := rsa.GenerateKey(nil, 2048)
	if err != nil {
		t.Fatal(err)
	}
	certificates := []*x509.Certificate{
		softhsmtest.NewCA(t, "others", nil).Issue(t, &x509.Certificate{
			SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "other"}, NotAfter: time.Now().Add(time.Hour),
		}, other.Public()),
		softhsmtest.NewCA(t, "recipients", nil).Issue(t, softhsmtest.Template("rsa"), public),
	}
	var texts [][]byte
	for _, cert := range certificates {
		texts = append(texts, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	}
	return texts
}

// TestModuleFaults has each call that opens a layer fail in every way a module can: the layer still opens, or
// there is one error, and no other content than the layer's. A module that hangs is abandoned.
// This test is the last of the file: a module that hangs is never finalised, and SoftHSM is one module however it is
// reached.
func TestModuleFaults(t *testing.T) {
	token := softhsmtest.NewToken(t, "recipients")
	f := use(t, token)
	f.generate("rsa", "RSA-2048", key.Decrypt)
	f.generate("ec", "EC-256", key.Decrypt)
	sealed := map[string]map[string]string{"rsa": f.seal(uri("rsa")), "ec": f.seal(uri("ec"))}
	log := shim(t, token)
	t.Setenv("SHIM_FAULT_TIMES", "0")
	t.Setenv("NOTATION_HSM_TIMEOUT", "300ms")
	const deviceError, functionFailed, sessionClosed, notLoggedIn, tooSmall = "30", "6", "B0", "101", "150"
	for label, calls := range map[string][]string{
		"rsa": {"C_DecryptInit", "C_Decrypt"}, "ec": {"C_DeriveKey", "C_GetAttributeValue", "C_DestroyObject"},
	} {
		for _, call := range calls {
			for _, how := range []string{deviceError, functionFailed, sessionClosed, notLoggedIn, tooSmall, "wrong", "short",
				"length", "hang"} {
				t.Run(call+":"+how, func(t *testing.T) {
					t.Setenv("SHIM_FAULT", call+":"+how)
					os.Remove(log)
					opened, err := f.openOnly(sealed[label], uri(label))
					if err == nil && opened != options {
						t.Errorf("it opened to %q", opened)
					}
					spoiled := how == "wrong" || how == "short" || how == "length" // a result, which these two do not have
					resultless := call == "C_DecryptInit" || call == "C_DeriveKey"
					if err == nil && call != "C_DestroyObject" && (!spoiled || !resultless) {
						t.Errorf("%s failed with %s, and nobody noticed", call, how)
					}
					if err != nil && failure.From(err).What == "" {
						t.Errorf("the failure says nothing: %v", err)
					}
					if err != nil && how == "hang" && !failure.Is(err, failure.Timeout) {
						t.Errorf("after a hang it fails with %v", err)
					}
					logins := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login")
					if logins > 1 && how != notLoggedIn { // which asks for the PIN for this use: one more, of another kind
						t.Errorf("there were %d logins", logins)
					}
				})
			}
		}
	}
}

// openOnly is open without a look at whether closing fails, as it does for a module that hangs.
func (f fixture) openOnly(annotations map[string]string, reference string) (string, error) {
	keys := OpenKeys(f.ks, []string{reference}, config.Flags)
	defer keys.Close()
	opened, err := keys.Open(f.Context(), annotations)
	return string(opened), err
}
