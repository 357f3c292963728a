package layerkey

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
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

// options is what ocicrypt wraps: 32 bytes of key, a nonce, and the digest of the layer.
const options = `{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","cipheroptions":{"nonce":"AAECAwQFBgcICQoLDA0ODw=="}}`

// use makes a module's token the one that the settings name.
func use(t *testing.T, token *softhsmtest.Token) {
	t.Helper()
	t.Setenv("NOTATION_HSM_CONFIG", "/dev/null")
	t.Setenv("NOTATION_HSM_MODULE_PATH", token.Module)
	t.Setenv("NOTATION_HSM_TOKEN", token.Label)
	t.Setenv("NOTATION_HSM_PIN", softhsmtest.PIN)
}

// generate makes a recipient's key and returns its public half.
func generate(t *testing.T, label, spec string) crypto.PublicKey {
	t.Helper()
	s, err := backends.Keystore().Resolve("", nil, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := key.ParseSpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Generate(context.Background(), key.Request{Spec: parsed, Usage: key.Decrypt, Label: label})
	if err != nil {
		t.Fatal(err)
	}
	return info.Public
}

func uri(label string) string { return "pkcs11:object=" + label }

func seal(t *testing.T, recipients ...string) map[string]string {
	t.Helper()
	parsed, err := ParseRecipients(context.Background(), backends.Keystore(), recipients, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := Seal([]byte(options), parsed)
	if err != nil {
		t.Fatal(err)
	}
	return annotation(schemeHSM, jwe)
}

func annotation(scheme string, packets ...[]byte) map[string]string {
	var texts []string
	for _, p := range packets {
		texts = append(texts, base64.StdEncoding.EncodeToString(p))
	}
	return map[string]string{AnnotationPrefix + scheme: strings.Join(texts, ",")}
}

// opens opens annotations with keys, each of which is used for this alone.
func opens(t *testing.T, annotations map[string]string, references ...string) (string, error) {
	t.Helper()
	keys := OpenKeys(backends.Keystore(), references, config.Flags)
	defer keys.Close()
	opened, err := keys.Open(t.Context(), annotations)
	return string(opened), err
}

func mustOpen(t *testing.T, annotations map[string]string, references ...string) {
	t.Helper()
	if opened, err := opens(t, annotations, references...); err != nil || opened != options {
		t.Errorf("opening with %q: %v, and got %q", references, err, opened)
	}
}

func mustFail(t *testing.T, kind failure.Kind, words string, annotations map[string]string, references ...string) {
	t.Helper()
	opened, err := opens(t, annotations, references...)
	if err == nil {
		t.Fatalf("it opened with %q: %q", references, opened)
	}
	if !failure.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("the failure is %q of kind %v, not one with %q", err, failure.From(err).Kind, words)
	}
}

// pemFile writes a public key or certificate to a file.
func pemFile(t *testing.T, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "recipient.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func publicDER(t *testing.T, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestSealAndOpen has every kind of recipient's key open what was sealed for it, named by the key, by its public half
// and by its certificate, alone and among others; and no other key.
func TestSealAndOpen(t *testing.T) {
	use(t, softhsmtest.NewToken(t, "recipients"))
	ca := softhsmtest.NewCA(t, "recipients", nil)
	for _, spec := range []string{"RSA-2048", "EC-256", "EC-384", "EC-521"} {
		t.Run(spec, func(t *testing.T) {
			label, oaep := strings.ToLower(spec), ""
			if strings.HasPrefix(spec, "RSA") {
				oaep = "?oaep=sha1" // SoftHSM knows no other
			}
			public := generate(t, label, spec)
			template := softhsmtest.Template(label)
			template.KeyUsage = x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement
			cert := ca.Issue(t, template, public)
			mustOpen(t, seal(t, uri(label)+oaep), uri(label))
			mustOpen(t, seal(t, "pubkey:"+pemFile(t, "PUBLIC KEY", publicDER(t, public))+oaep), uri(label))
			mustOpen(t, seal(t, "cert:"+pemFile(t, "CERTIFICATE", cert.Raw)+oaep), uri(label))
			mustOpen(t, seal(t, uri(label)+oaep)) // found by its kid on the token
			mustOpen(t, seal(t, uri(label)))      // with the hash that the module does
		})
	}
	t.Run("several", func(t *testing.T) {
		both := seal(t, uri("rsa-2048")+"?oaep=sha1", uri("ec-384"))
		mustOpen(t, both, uri("rsa-2048"))
		mustOpen(t, both, uri("ec-384"))
		mustOpen(t, both, uri("ec-256"), uri("ec-384"))
		mustFail(t, failure.Invalid, "it is encrypted for kid", both, uri("ec-256"))
	})
	t.Run("OAEP with SHA-256", func(t *testing.T) {
		unasked := seal(t, "pubkey:"+pemFile(t, "PUBLIC KEY", publicDER(t, publicOf(t, "rsa-2048"))))
		mustFail(t, failure.Unsupported, "OAEP with SHA-256", unasked, uri("rsa-2048"))
		first, _ := base64.StdEncoding.DecodeString(unasked[Annotation])
		second, _ := base64.StdEncoding.DecodeString(seal(t, uri("rsa-2048")+"?oaep=sha1")[Annotation])
		mustOpen(t, annotation(schemeHSM, first, second), uri("rsa-2048"))
	})
	t.Run("changed", func(t *testing.T) {
		sealed := seal(t, uri("ec-256"))
		jwe, _ := base64.StdEncoding.DecodeString(sealed[Annotation])
		for _, field := range []string{"ciphertext", "tag", "iv", "encrypted_key", "protected"} {
			changed := strings.Replace(string(jwe), `"`+field+`":"`, `"`+field+`":"AA`, 1)
			if changed == string(jwe) {
				t.Fatalf("there is no %s in %s", field, jwe)
			}
			mustFail(t, failure.Invalid, "", annotation(schemeHSM, []byte(changed)), uri("ec-256"))
		}
	})
	t.Run("two packets", func(t *testing.T) {
		first, _ := base64.StdEncoding.DecodeString(seal(t, uri("ec-256"))[Annotation])
		second, _ := base64.StdEncoding.DecodeString(seal(t, uri("ec-521"))[Annotation])
		mustOpen(t, annotation(schemeHSM, first, second), uri("ec-521"))
	})
	t.Run("a signing key", func(t *testing.T) {
		s, _ := backends.Keystore().Resolve("", nil, config.Flags)
		spec, _ := key.ParseSpec("EC-256")
		made, err := s.Generate(context.Background(), key.Request{Spec: spec, Usage: key.Sign, Label: "signing"})
		if err != nil {
			t.Fatal(err)
		}
		sealed := seal(t, "pubkey:"+pemFile(t, "PUBLIC KEY", publicDER(t, made.Public)))
		mustFail(t, failure.Denied, "may not derive (CKA_DERIVE is false)", sealed, uri("signing"))
	})
}

// TestLoginOnce opens many layers, with keys of each kind, for one login and a bounded number of calls each; and seals
// for none.
func TestLoginOnce(t *testing.T) {
	token := softhsmtest.NewToken(t, "recipients")
	use(t, token)
	generate(t, "rsa", "RSA-2048")
	ec := generate(t, "ec", "EC-256")
	log := filepath.Join(t.TempDir(), "calls")
	t.Setenv("NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	t.Setenv("SHIM_LOG", log)

	t.Setenv("NOTATION_HSM_PIN", "")
	sealed := []map[string]string{seal(t, uri("rsa")+"?oaep=sha1"), seal(t, uri("ec"))}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 0 {
		t.Errorf("sealing took %d logins", n)
	}
	os.Remove(log)
	template := softhsmtest.Template("ec")
	template.KeyUsage = x509.KeyUsageKeyAgreement
	chain := pemFile(t, "CERTIFICATE", softhsmtest.NewCA(t, "recipients", nil).Issue(t, template, ec).Raw)
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("keys:\n  nodes:\n    uri: "+uri("ec")+"\n    certificate-chain: "+chain+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTATION_HSM_CONFIG", file)
	sealed[1] = seal(t, "nodes")
	if _, err := os.Stat(log); err == nil {
		t.Errorf("with the certificate at hand, sealing called the module: %v", softhsmtest.Calls(t, log))
	}
	t.Setenv("NOTATION_HSM_PIN", softhsmtest.PIN)
	for i, want := range []map[string]int{
		{"C_Login": 1, "C_DecryptInit": 10, "C_Decrypt": 10, "C_OpenSession": 1, "C_CloseSession": 1},
		{"C_Login": 1, "C_DeriveKey": 10, "C_DestroyObject": 10, "C_OpenSession": 1, "C_CloseSession": 1},
	} {
		os.Remove(log)
		keys := OpenKeys(backends.Keystore(), []string{uri([]string{"rsa", "ec"}[i])}, config.Flags)
		for range 10 {
			if _, err := keys.Open(t.Context(), sealed[i]); err != nil {
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
	os.Remove(log)
	mustFail(t, failure.Invalid, "no key here opens the layer", sealed[0], uri("ec"))
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 0 {
		t.Errorf("a key that is none of the recipients took %d logins", n)
	}
	os.Remove(log)
	t.Setenv("NOTATION_HSM_PIN", "0000")
	keys := OpenKeys(backends.Keystore(), []string{uri("ec")}, config.Flags)
	defer keys.Close()
	for range 3 {
		if _, err := keys.Open(t.Context(), sealed[1]); failure.From(err).CKR != "CKR_PIN_INCORRECT" {
			t.Errorf("a wrong PIN fails with %v", err)
		}
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 1 {
		t.Errorf("a wrong PIN was tried %d times", n)
	}
}

// TestOthers opens what ocicrypt wraps by itself for a public key or a certificate, on SoftHSM, on openCryptoki and in
// a TPM; the latter two do OAEP with SHA-256.
func TestOthers(t *testing.T) {
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
			use(t, module.token(t))
			wrapped := map[string]*ocicrypt.EncryptConfig{}
			public := generate(t, "rsa", "RSA-2048")
			pemKey := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER(t, public)})
			cert := softhsmtest.NewCA(t, "recipients", nil).Issue(t, softhsmtest.Template("rsa"), public)
			other := softhsmtest.NewCA(t, "others", nil).Issue(t, &x509.Certificate{
				SerialNumber: big.NewInt(77), Subject: pkix.Name{CommonName: "other"}, NotAfter: time.Now().Add(time.Hour),
			}, otherKey(t))
			certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
			otherPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Raw})
			wrapped["jwe"] = &ocicrypt.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {pemKey}}}
			if module.ec {
				ec := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER(t, generate(t, "ec", "EC-384"))})
				wrapped["jwe to an elliptic curve key"] = &ocicrypt.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": {pemKey, ec}}}
			}
			wrapped["pkcs7"] = &ocicrypt.EncryptConfig{Parameters: map[string][][]byte{"x509s": {otherPEM, certPEM}}}
			t.Setenv("OCICRYPT_OAEP_HASHALG", module.hash)
			wrapped["pkcs11"] = &ocicrypt.EncryptConfig{Parameters: map[string][][]byte{"pkcs11-pubkeys": {pemKey}}}
			for name, config := range wrapped {
				t.Run(name, func(t *testing.T) {
					scheme, reference := strings.Fields(name)[0], uri("rsa")
					wrap := map[string]func(*ocicrypt.EncryptConfig, []byte) ([]byte, error){
						"jwe": ocijwe.NewKeyWrapper().WrapKeys, "pkcs7": ocipkcs7.NewKeyWrapper().WrapKeys, "pkcs11": ocipkcs11.NewKeyWrapper().WrapKeys,
					}[scheme]
					content := options
					if scheme == "pkcs11" { // OAEP itself has no room for more
						content = `{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`
					}
					packet, err := wrap(config, []byte(content))
					if err != nil {
						t.Fatal(err)
					}
					if strings.Contains(name, "elliptic") {
						reference = uri("ec")
					}
					for _, references := range [][]string{{reference}, nil} {
						if opened, err := opens(t, annotation(scheme, packet), references...); err != nil || opened != content {
							t.Errorf("opening with %q: %v, and got %q", references, err, opened)
						}
					}
					recipients, err := ReadRecipients(annotation(scheme, packet))
					if err != nil || len(recipients) != max(len(config.Parameters["pubkeys"]), len(config.Parameters["x509s"]), 1) {
						t.Errorf("the recipients are %v, %v", recipients, err)
					}
				})
			}
		})
	}
}

func otherKey(t *testing.T) crypto.PublicKey {
	t.Helper()
	other, err := rsa.GenerateKey(nil, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return other.Public()
}

// TestRefuse is what makes no recipient, and no wrapped key.
func TestRefuse(t *testing.T) {
	use(t, softhsmtest.NewToken(t, "recipients"))
	generate(t, "ec", "EC-256")
	public := generate(t, "other", "EC-256")
	signing := softhsmtest.NewCA(t, "recipients", nil).Issue(t, softhsmtest.Template("release"), public)
	chain := pemFile(t, "CERTIFICATE", signing.Raw)
	for name, words := range map[string]string{
		"": "is empty", "?oaep=sha1": "is empty", "pkcs11:object=ec?pin-value=4321&oaep=md5": "carries a PIN", "cert:" + chain: "not for encryption",
		"cert:/nowhere.pem": " read ", "pubkey:/nowhere.pem": " read ", uri("nobody"): "there is no key",
		uri("ec") + "?oaep=sha1": "no OAEP", uri("ec") + "?oaep=md5": "md5", "pubkey:layerkey.go": "no public key",
	} {
		if _, err := ParseRecipients(context.Background(), backends.Keystore(), []string{name}, config.Flags); err == nil || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "4321") {
			t.Errorf("the recipient %q fails with %v, which does not say %q", name, err, words)
		}
	}
	// A chain that is set for everything may be another key's.
	t.Setenv("NOTATION_HSM_CERTIFICATE_CHAIN", chain)
	parsed, err := ParseRecipients(context.Background(), backends.Keystore(), []string{uri("ec"), uri("ec")}, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Seal([]byte(options), parsed); err == nil {
		t.Error("one recipient was taken twice")
	}
	if parsed[0].KeyID() == thumbprint(public) {
		t.Error("the recipient is another key's certificate")
	}
	if _, err := opens(t, seal(t, uri("ec")), ""); err == nil || !strings.Contains(err.Error(), "empty key reference") {
		t.Errorf("a key without a name: %v", err)
	}
	for words, annotations := range map[string]map[string]string{
		"not encrypted":           {"org.example": "x"},
		`encrypted by "pgp"`:      annotation("pgp", []byte("x")),
		"is damaged":              {Annotation: "!"},
		"it has no recipients":    annotation(schemePKCS11, []byte("{}")),
		"no CMS EnvelopedData":    annotation(schemePKCS7, []byte("0\x00")),
		"is too large":            annotation(schemeJWE, make([]byte, packetLimit)),
		"provider.hsm is damaged": annotation(schemeHSM, []byte(`{"recipients":[]}`)),
		"is not a thumbprint":        annotation(schemeHSM, []byte(kidNamed(t, "evil\u001b[2J"))),
	} {
		mustFail(t, kindOf(annotations), words, annotations, uri("ec"))
	}
}

// kidNamed is a JWE whose recipient has this kid, written as in JSON.
func kidNamed(t *testing.T, kid string) string {
	t.Helper()
	jwe, err := base64.StdEncoding.DecodeString(seal(t, uri("ec"))[Annotation])
	if err != nil {
		t.Fatal(err)
	}
	var parts map[string]string
	if err := json.Unmarshal(jwe, &parts); err != nil {
		t.Fatal(err)
	}
	protected, err := base64.RawURLEncoding.DecodeString(parts["protected"])
	if err != nil {
		t.Fatal(err)
	}
	var header map[string]any
	if err := json.Unmarshal(protected, &header); err != nil {
		t.Fatal(err)
	}
	header["kid"] = kid
	if protected, err = json.Marshal(header); err != nil {
		t.Fatal(err)
	}
	parts["protected"] = base64.RawURLEncoding.EncodeToString(protected)
	changed, err := json.Marshal(parts)
	if err != nil {
		t.Fatal(err)
	}
	return string(changed)
}

func kindOf(annotations map[string]string) failure.Kind {
	if annotations[AnnotationPrefix+"pgp"] != "" {
		return failure.Unsupported
	}
	return failure.Invalid
}
