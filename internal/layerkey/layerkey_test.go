package layerkey

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestSealAndOpen has a key of each spec open what was sealed for it, named by the key, by its public half and by its
// certificate.
func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	ca := softhsmtest.NewCA(t, "recipients", nil)
	for _, spec := range []string{"RSA-2048", "EC-256", "EC-384", "EC-521"} {
		t.Run(spec, func(t *testing.T) {
			t.Parallel()
			m := newMemory(t)
			label := strings.ToLower(spec)
			public := m.add(spec, key.Decrypt)
			template := softhsmtest.Template(label)
			template.KeyUsage = x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement
			cert := ca.Issue(t, template, public)
			certificate := "cert:" + pemFile(t, "CERTIFICATE", cert.Raw)
			for _, name := range []string{uri(label), publicFile(t, public), certificate} {
				m.mustOpen(m.seal(name), uri(label))
				m.mustOpen(m.seal(name)) // the key is found on the token, by its kid
			}
			if n := m.OpenStores(); n != 0 {
				t.Errorf("%d stores are open", n)
			}
		})
	}
}

// TestOnlyRecipients opens a layer with the key of any recipient, and with no other key.
func TestOnlyRecipients(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	m.add("RSA-2048", key.Decrypt)
	m.add("EC-384", key.Decrypt)
	m.add("EC-256", key.Decrypt)
	m.addAs("other", "EC-256", key.Decrypt)
	both := m.seal(uri("rsa-2048"), uri("ec-384"))
	m.mustOpen(both, uri("rsa-2048"))
	m.mustOpen(both, uri("ec-384"))
	m.mustOpen(both, uri("ec-256"), uri("ec-384"))
	first, second := packetOf(t, m.seal(uri("ec-256"))), packetOf(t, m.seal(uri("ec-384")))
	m.mustOpen(annotation(schemeHSM, first, second), uri("ec-384"))
	before := m.Calls("ECDH")
	m.mustFail(failure.Invalid, "it is encrypted for kid", both, uri("ec-256"))
	m.mustFail(failure.Invalid, "it is encrypted for kid", m.seal(uri("ec-256")), uri("other"))
	if n := m.Calls("ECDH"); n != before {
		t.Errorf("%d keys that are no recipient's were used", n-before)
	}
}

// TestOAEP encrypts with a hash that the module supports, and opens no other.
func TestOAEP(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	public := m.add("RSA-2048", key.Decrypt)
	m.OAEP(token, crypto.SHA1)
	m.mustOpen(m.seal(uri("rsa-2048")), uri("rsa-2048"))
	if _, err := m.recipient(uri("rsa-2048") + "?oaep=sha256"); !failure.Is(err, failure.Unsupported) {
		t.Errorf("with a hash that the module does not support: %v", err)
	}
	unchecked := m.seal(publicFile(t, public))
	m.mustFail(failure.Unsupported, "OAEP with SHA-256", unchecked, uri("rsa-2048"))
	// A second packet in an algorithm that the module supports is opened.
	m.mustOpen(annotation(schemeHSM, packetOf(t, unchecked), packetOf(t, m.seal(uri("rsa-2048")))), uri("rsa-2048"))
}

// TestChanged opens nothing that was changed.
func TestChanged(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	m.add("EC-256", key.Decrypt)
	jwe := string(packetOf(t, m.seal(uri("ec-256"))))
	for _, field := range []string{"ciphertext", "tag", "iv", "encrypted_key", "protected"} {
		changed := strings.Replace(jwe, `"`+field+`":"`, `"`+field+`":"AA`, 1)
		if changed == jwe {
			t.Fatalf("there is no %s in %s", field, jwe)
		}
		m.mustFail(failure.Invalid, "", annotation(schemeHSM, []byte(changed)), uri("ec-256"))
	}
}

// TestOneLogin opens many layers with one login and one session, and seals without a login.
func TestOneLogin(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	m.add("RSA-2048", key.Decrypt)
	m.add("EC-256", key.Decrypt)
	sealed := []map[string]string{m.seal(uri("rsa-2048")), m.seal(uri("ec-256"))}
	if n := m.Calls("Login"); n != 0 {
		t.Errorf("sealing took %d logins", n)
	}
	opened := m.Calls("Open")
	for i, reference := range []string{uri("rsa-2048"), uri("ec-256")} {
		keys := OpenKeys(m.ks, []string{reference}, config.Flags)
		for range 10 {
			if _, err := keys.Open(t.Context(), sealed[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := keys.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if m.Calls("Login") != 2 || m.Calls("Open")-opened != 2 || m.Calls("Decrypt") != 10 || m.Calls("ECDH") != 10 {
		t.Errorf("twice ten layers took %d logins, %d sessions, %d and %d operations", m.Calls("Login"),
			m.Calls("Open")-opened, m.Calls("Decrypt"), m.Calls("ECDH"))
	}
	m.mustFail(failure.Invalid, "no key here opens the layer", sealed[0], uri("ec-256"))
	if m.Calls("Login") != 2 {
		t.Error("a key that is no recipient's took a login")
	}
}

// TestWrongPIN tries a wrong PIN once, however many layers there are.
func TestWrongPIN(t *testing.T) {
	m := newMemory(t)
	m.add("EC-256", key.Decrypt)
	sealed := m.seal(uri("ec-256"))
	t.Setenv("NOTATION_HSM_PIN", "0000")
	for _, references := range [][]string{{uri("ec-256")}, nil} {
		keys := OpenKeys(m.ks, references, config.Flags)
		before := m.Calls("Login")
		for range 3 {
			if _, err := keys.Open(t.Context(), sealed); failure.From(err).CKR != "CKR_PIN_INCORRECT" {
				t.Errorf("a wrong PIN fails with %v", err)
			}
		}
		keys.Close()
		if n := m.Calls("Login") - before; n != 1 {
			t.Errorf("a wrong PIN was tried %d times", n)
		}
	}
}

// TestWhenTriesEnd tries the next wrapped key after a failure that another may mend, and none after Denied and Timeout.
func TestWhenTriesEnd(t *testing.T) {
	t.Parallel()
	for kind, c := range map[failure.Kind]struct{ tries, byKid int }{
		failure.Denied: {1, 1}, failure.Timeout: {1, 1}, failure.Unsupported: {3, 3}, failure.Invalid: {3, 1},
	} {
		m := newMemory(t)
		public := m.add("EC-256", key.Decrypt)
		m.Fail("ECDH", failure.New(kind, "the module fails"))
		other := theirs(t, schemeJWE, publicPEM(t, public), plainKey{})
		m.mustFail(kind, "the module fails", annotation(schemeJWE, other, other, other), uri("ec-256"))
		if n := m.Calls("ECDH"); n != c.tries {
			t.Errorf("after a failure of kind %v, the key was used %d times, not %d", kind, n, c.tries)
		}
		ours := packetOf(t, m.seal(uri("ec-256")))
		m.mustFail(kind, "the module fails", annotation(schemeHSM, ours, ours, ours), uri("ec-256"))
		if n := m.Calls("ECDH") - c.tries; n != c.byKid {
			t.Errorf("named by kid, after a failure of kind %v, the key was used %d times, not %d", kind, n, c.byKid)
		}
	}
	m := newMemory(t)
	sealed := m.seal(publicFile(t, m.add("EC-256", key.Sign)))
	m.mustFail(failure.Denied, "may not", sealed, uri("ec-256"))
}

// TestTries bounds what one layer can ask of a module, and what an error repeats.
func TestTries(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	m.add("RSA-2048", key.Decrypt)
	m.add("EC-256", key.Decrypt)
	annotations := annotation(schemePKCS11, blobsFor(100, "sha1"), blobsFor(100, "sha1"))
	_, err := m.open(annotations, uri("rsa-2048"))
	if n := m.Calls("Decrypt"); err == nil || n != triesLimit || len(err.Error()) > 1000 {
		t.Errorf("%d decryptions, and then: %v", n, err)
	}
	if _, err := m.open(annotations, uri("ec-256")); err == nil || len(err.Error()) > 1000 ||
		!strings.Contains(err.Error(), "195 more") {
		t.Errorf("with a key that fits none: %v", err)
	}
}

// TestUnnamedKeys has an image without kids use the only key of a kind on a token, and none of several.
func TestUnnamedKeys(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	packet := theirs(t, schemeJWE, publicPEM(t, m.add("EC-256", key.Decrypt)), plainKey{})
	m.mustOpen(annotation(schemeJWE, packet))
	m.addAs("other", "EC-256", key.Decrypt)
	before := m.Calls("ECDH")
	m.mustFail(failure.Invalid, "no key here opens the layer", annotation(schemeJWE, packet))
	if n := m.Calls("ECDH") - before; n != 0 {
		t.Errorf("keys that nobody named were used %d times", n)
	}
	m.mustOpen(annotation(schemeJWE, packet), uri("other"), uri("ec-256"))
}

// TestOthers opens what ocicrypt wraps by itself for a public key or a certificate.
func TestOthers(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	rsaKey := plainKey{rsa: private(t, "rsa-2048", "RSA-2048").(*rsa.PrivateKey)}
	rsaPEM, ecPEM := publicPEM(t, m.add("RSA-2048", key.Decrypt)), publicPEM(t, m.add("EC-384", key.Decrypt))
	for name, c := range map[string]struct {
		scheme    string
		public    []byte
		reference string
		content   string
		info      string
	}{
		"jwe, RSA": {schemeJWE, rsaPEM, uri("rsa-2048"), options, "RSA-OAEP"},
		"jwe, EC":  {schemeJWE, ecPEM, uri("ec-384"), options, "ECDH-ES+A256KW"},
		"pkcs7":    {schemePKCS7, rsaPEM, uri("rsa-2048"), options, "RSA-PKCS1-v1_5"},
		"pkcs11":   {schemePKCS11, rsaPEM, uri("rsa-2048"), "{}", "RSA-OAEP-256"},
	} {
		annotations := annotation(c.scheme, theirs(t, c.scheme, c.public, rsaKey))
		for _, references := range [][]string{{c.reference}, nil} {
			if opened, err := m.open(annotations, references...); err != nil || opened != c.content {
				t.Errorf("%s with %q: %v, and got %q", name, references, err, opened)
			}
		}
		infos, err := ReadRecipients(annotations)
		if err != nil || len(infos) != 1 || infos[0].Scheme != c.scheme || infos[0].Algorithm != c.info {
			t.Errorf("%s: the recipients are %v, %v", name, infos, err)
		}
	}
}

// TestOnlyGCMInJWE refuses a JWE with another content encryption before a key is used.
func TestOnlyGCMInJWE(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	public := m.add("RSA-2048", key.Decrypt)
	for _, content := range []jose.ContentEncryption{jose.A128CBC_HS256, jose.A256CBC_HS512, jose.A128GCM} {
		encrypter, err := jose.NewEncrypter(content,
			jose.Recipient{Algorithm: jose.RSA_OAEP_256, Key: public, KeyID: thumbprint(public)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		jwe, err := encrypter.Encrypt([]byte(options))
		if err != nil {
			t.Fatal(err)
		}
		for _, scheme := range []string{schemeHSM, schemeJWE} {
			m.mustFail(failure.Invalid, "is damaged", annotation(scheme, []byte(jwe.FullSerialize())), uri("rsa-2048"))
		}
	}
	if n := m.Calls("Decrypt"); n != 0 {
		t.Errorf("the key decrypted %d times", n)
	}
}

// TestPaddingHidden fails in one way for a content key of CMS with wrong padding of PKCS #1 v1.5, with right padding
// and a wrong key, and of a wrong length: a difference would let whoever publishes images decrypt with the key.
func TestPaddingHidden(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	public := m.add("RSA-2048", key.Decrypt).(*rsa.PublicKey)
	encrypt := func(contentKey []byte) []byte {
		encrypted, err := rsa.EncryptPKCS1v15(nil, public, contentKey) //nolint:staticcheck // as ocicrypt's pkcs7 does
		if err != nil {
			t.Fatal(err)
		}
		return encrypted
	}
	wrongPadding := make([]byte, public.Size())
	wrongPadding[len(wrongPadding)-1] = 2
	var first string
	for name, encrypted := range map[string][]byte{
		"wrong padding": wrongPadding, "wrong key": encrypt(make([]byte, 32)), "wrong length": encrypt(make([]byte, 7)),
	} {
		_, err := m.open(annotation(schemePKCS7, cmsWith(t, encrypted)), uri("rsa-2048"))
		if err == nil {
			t.Fatalf("it opened with a %s", name)
		}
		if first == "" {
			first = err.Error()
		}
		if err.Error() != first || failure.From(err).CKR != "" {
			t.Errorf("a %s fails with %q, and another with %q", name, err, first)
		}
	}
}

// cmsWith returns EnvelopedData for one recipient, with the encrypted key of the content.
func cmsWith(t *testing.T, encrypted []byte) []byte {
	t.Helper()
	info := cmsInfo(1, 1)
	info.Content.Recipients[0].Encrypted = encrypted
	return marshal(t, info)
}

// TestRefuseRecipients refuses what cannot be a recipient, without repeating a PIN.
func TestRefuseRecipients(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	m.add("EC-256", key.Decrypt)
	other := m.addAs("other", "EC-256", key.Decrypt)
	chain := pemFile(t, "CERTIFICATE",
		softhsmtest.NewCA(t, "recipients", nil).Issue(t, softhsmtest.Template("release"), other).Raw)
	secret := pemFile(t, "EC PRIVATE KEY", []byte("secret"))
	for name, words := range map[string]string{
		"": "is empty", "?oaep=sha1": "is empty", "pkcs11:object=ec?pin-value=4321&oaep=md5": "carries a PIN",
		"cert:" + chain: "not for encryption", "cert:/nowhere.pem": " read ", "pubkey:/nowhere.pem": " read ",
		uri("nobody"): "there is no key", uri("ec-256") + "?oaep=sha1": "no OAEP", uri("ec-256") + "?oaep=md5": "md5",
		"pubkey:layerkey.go": "no public key", "pubkey:" + secret: "has a private key",
		"pubkey:" + filepath.Dir(secret): " read ",
	} {
		if _, err := m.recipient(name); err == nil || !strings.Contains(err.Error(), words) ||
			strings.Contains(err.Error(), "4321") || failure.From(err).Hint == "" && name != uri("nobody") {
			t.Errorf("the recipient %q fails with %v, which does not say %q", name, err, words)
		}
	}
	if _, err := ParseRecipients(t.Context(), m.ks, nil, config.Flags); !failure.Is(err, failure.Invalid) {
		t.Errorf("no recipient: %v", err)
	}
}

// TestSealLimits seals for at least one recipient and at most 32, none of them twice.
func TestSealLimits(t *testing.T) {
	t.Parallel()
	r := Recipient{Name: "ec", Public: private(t, "ec-256", "EC-256").Public()}
	for words, recipients := range map[string][]Recipient{
		"for 0 recipients": nil, "for 33 recipients": slices.Repeat([]Recipient{r}, 33), "are the same key": {r, r},
	} {
		if _, err := Seal([]byte(options), recipients); !failure.Is(err, failure.Invalid) ||
			!strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", words, err)
		}
	}
}

// TestChainOfAnother takes a key's certificate from its own entry in the config file alone, and does not ask the module
// then. A certificate-chain that is set for all keys may be another key's.
func TestChainOfAnother(t *testing.T) {
	m := newMemory(t)
	public := m.add("EC-256", key.Decrypt)
	template := softhsmtest.Template("other")
	template.KeyUsage = x509.KeyUsageKeyAgreement
	other := m.addAs("other", "EC-256", key.Decrypt)
	chain := pemFile(t, "CERTIFICATE", softhsmtest.NewCA(t, "recipients", nil).Issue(t, template, other).Raw)
	t.Setenv("NOTATION_HSM_CERTIFICATE_CHAIN", chain)
	if r, err := m.recipient(uri("ec-256")); err != nil || r.KeyID() != thumbprint(public) {
		t.Errorf("it is %+v, %v", r, err)
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := fmt.Sprintf("keys:\n  nodes:\n    uri: %s\n    certificate-chain: %s\n", uri("other"), chain)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTATION_HSM_CERTIFICATE_CHAIN", "")
	t.Setenv("NOTATION_HSM_CONFIG", file)
	before := m.Calls("Open")
	r, err := m.recipient("nodes")
	if err != nil || r.KeyID() != thumbprint(other) || !strings.Contains(r.Warning, "its module was not asked") {
		t.Errorf("it is %+v, %v", r, err)
	}
	if m.Calls("Open") != before {
		t.Error("the module was asked")
	}
}

// TestRefuseAnnotations refuses what is no wrapped key.
func TestRefuseAnnotations(t *testing.T) {
	t.Parallel()
	m := newMemory(t)
	m.add("EC-256", key.Decrypt)
	for words, annotations := range map[string]map[string]string{
		"not encrypted":           {"org.example": "x"},
		`encrypted by "pgp"`:      annotation("pgp", []byte("x")),
		"is damaged":              {Annotation: "!"},
		"it has no recipients":    annotation(schemePKCS11, []byte("{}")),
		"version is unknown":      annotation(schemePKCS11, []byte(`{"version":1}`)),
		"no CMS EnvelopedData":    annotation(schemePKCS7, []byte("0\x00")),
		"is too large":            annotation(schemeJWE, make([]byte, packetLimit)),
		"provider.hsm is damaged": annotation(schemeHSM, []byte(`{"recipients":[]}`)),
		"is not a thumbprint":     annotation(schemeHSM, []byte(kidNamed(m, "evil\u001b[2J"))),
		"the key of a layer":      annotation(schemeHSM, sealText(m, "[]")),
	} {
		kind := failure.Invalid
		if annotations[AnnotationPrefix+"pgp"] != "" {
			kind = failure.Unsupported
		}
		m.mustFail(kind, words, annotations, uri("ec-256"))
	}
	if _, err := m.open(m.seal(uri("ec-256")), ""); err == nil || !strings.Contains(err.Error(), "empty key reference") {
		t.Errorf("a key without a name: %v", err)
	}
	if n := m.OpenStores(); n != 0 {
		t.Errorf("%d stores are open", n)
	}
}

// sealText seals something else than options.
func sealText(m memory, text string) []byte {
	m.Helper()
	r, err := m.recipient(uri("ec-256"))
	if err != nil {
		m.Fatal(err)
	}
	jwe, err := Seal([]byte(text), []Recipient{r})
	if err != nil {
		m.Fatal(err)
	}
	return jwe
}

// kidNamed is a JWE whose recipient has this kid, written as in JSON.
func kidNamed(m memory, kid string) string {
	m.Helper()
	var parts map[string]string
	if err := json.Unmarshal(packetOf(m.TB, m.seal(uri("ec-256"))), &parts); err != nil {
		m.Fatal(err)
	}
	protected, err := base64.RawURLEncoding.DecodeString(parts["protected"])
	if err != nil {
		m.Fatal(err)
	}
	var header map[string]any
	if err := json.Unmarshal(protected, &header); err != nil {
		m.Fatal(err)
	}
	header["kid"] = kid
	if protected, err = json.Marshal(header); err != nil {
		m.Fatal(err)
	}
	parts["protected"] = base64.RawURLEncoding.EncodeToString(protected)
	changed, err := json.Marshal(parts)
	if err != nil {
		m.Fatal(err)
	}
	return string(changed)
}

// BenchmarkOpen opens one layer with a key in memory that is open already, as each layer but the first is opened.
func BenchmarkOpen(b *testing.B) {
	m := newMemory(b)
	rsaKey := private(b, "rsa-2048", "RSA-2048")
	m.Key(b, token, "rsa-2048", rsaKey, key.Decrypt)
	m.add("EC-256", key.Decrypt)
	cms := theirs(b, schemePKCS7, publicPEM(b, rsaKey.Public()), plainKey{rsa: rsaKey.(*rsa.PrivateKey)})
	for _, c := range []struct {
		name, reference string
		annotations     map[string]string
	}{
		{"RSA-2048", uri("rsa-2048"), m.seal(uri("rsa-2048"))},
		{"EC-256", uri("ec-256"), m.seal(uri("ec-256"))},
		{"CMS", uri("rsa-2048"), annotation(schemePKCS7, cms)},
	} {
		b.Run(c.name, func(b *testing.B) {
			keys := OpenKeys(m.ks, []string{c.reference}, config.Flags)
			defer keys.Close()
			b.ReportAllocs()
			for b.Loop() {
				keys.tries = 0 // no image has as many layers
				if _, err := keys.Open(b.Context(), c.annotations); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
