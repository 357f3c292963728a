package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	_ "crypto/sha1" // to make a certificate that must be refused
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

func TestRefusedRequests(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.NewKey(t, token, n.Plugin, "RSA-2048", "other")
	dir := t.TempDir()
	openPIN, notLibrary := filepath.Join(dir, "open.pin"), filepath.Join(dir, "notes.so")
	softhsmtest.Write(t, notLibrary, "these are notes")
	softhsmtest.Write(t, openPIN, "wrong-pin")
	if err := os.Chmod(openPIN, 0o644); err != nil {
		t.Fatal(err)
	}
	softhsmtest.AllowPrograms(t, []string{"/no/such/module.so", notLibrary, "libc.so.6", dir},
		[]string{"false", "/no/such/command", "true"})
	for _, c := range []struct {
		name, request, code string
		words               []string
	}{
		{"empty", "", "VALIDATION_ERROR", []string{"empty"}},
		{"not JSON", "sign this", "VALIDATION_ERROR", []string{"not valid JSON"}},
		{"two objects", softhsmtest.Request(uri, nil) + softhsmtest.Request(uri, nil), "VALIDATION_ERROR",
			[]string{"not valid JSON"}},
		{"an array", "[]", "VALIDATION_ERROR", []string{"wrong type"}},
		{"a wrong type", softhsmtest.Request(uri, map[string]any{"keySpec": 7}), "VALIDATION_ERROR", []string{"keySpec",
			"wrong type"}},
		{"payload not base64", softhsmtest.Request(uri, map[string]any{"payload": "%%"}), "VALIDATION_ERROR", nil},
		{"no key", softhsmtest.Request(uri, map[string]any{"keyId": nil}), "VALIDATION_ERROR", []string{"keyId"}},
		{"no payload", softhsmtest.Request(uri, map[string]any{"payload": nil}), "VALIDATION_ERROR", []string{"payload"}},
		{"no version", softhsmtest.Request(uri, map[string]any{"contractVersion": nil}), "VALIDATION_ERROR",
			[]string{"contractVersion"}},
		{"another version", softhsmtest.Request(uri, map[string]any{"contractVersion": "2.0"}),
			"UNSUPPORTED_CONTRACT_VERSION",
			[]string{"2.0", "1.0"}},
		{"unknown spec", softhsmtest.Request(uri, map[string]any{"keySpec": "EC-255"}), "VALIDATION_ERROR",
			[]string{"EC-255", "EC-256"}},
		{"spec of another key", softhsmtest.Request(uri, map[string]any{"keySpec": "RSA-2048"}), "VALIDATION_ERROR",
			[]string{"RSA-2048", "EC-256"}},
		{"hash of another spec", softhsmtest.Request(uri, map[string]any{"hashAlgorithm": "SHA-512"}), "VALIDATION_ERROR",
			[]string{"SHA-512", "SHA-256"}},
		{"20 MiB payload", softhsmtest.Request(uri, map[string]any{"payload": make([]byte, 20<<20)}), "VALIDATION_ERROR",
			[]string{"longer than"}},
		{"unknown key", softhsmtest.Request("pkcs11:token=signing;object=relaese", nil), "VALIDATION_ERROR",
			[]string{"relaese", "object=release", "object=other"}},
		{"unknown id", softhsmtest.Request("pkcs11:token=signing;id=%00%01", nil), "VALIDATION_ERROR",
			[]string{"0001", "object=release"}},
		{"unknown token", softhsmtest.Request("pkcs11:token=sining;object=release", nil), "VALIDATION_ERROR",
			[]string{"sining", "token=signing"}},
		{"unknown alias", softhsmtest.Request("release", nil), "VALIDATION_ERROR", []string{"release", "alias"}},
		{"unknown attribute", softhsmtest.Request("pkcs11:token=signing;label=release", nil), "VALIDATION_ERROR",
			[]string{"label", "URI"}},
		{"malformed URI", softhsmtest.Request("pkcs11:token=signing;object=%zz", nil), "VALIDATION_ERROR",
			[]string{"invalid key URI"}},
		{"certificate URI", softhsmtest.Request("pkcs11:token=signing;object=release;type=cert", nil), "VALIDATION_ERROR",
			[]string{"type=private"}},
		{"unknown setting", softhsmtest.Request(uri, softhsmtest.PluginConfig("pinsource", "none")), "VALIDATION_ERROR",
			[]string{"did you mean pin-source"}},
		{"PIN in plugin config", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin", "wrong-pin")), "VALIDATION_ERROR",
			[]string{"PIN", "pin-source"}},
		{"PIN in the key id", softhsmtest.Request(uri+"?pin-value=wrong-pin", nil), "VALIDATION_ERROR",
			[]string{"pin-value", "pin-source"}},
		{"malformed timeout", softhsmtest.Request(uri, softhsmtest.PluginConfig("timeout", "soon")), "VALIDATION_ERROR",
			[]string{"soon", "30s"}},
		{"malformed slot", softhsmtest.Request(uri, softhsmtest.PluginConfig("slot-id", "first")), "VALIDATION_ERROR",
			[]string{"first"}},
		{"wrong PIN", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "env:WRONG_PIN")), "ACCESS_DENIED",
			[]string{"CKR_PIN_INCORRECT", `token "signing"`}},
		{"no PIN", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "env:NO_SUCH_PIN")), "ACCESS_DENIED",
			[]string{"NO_SUCH_PIN"}},
		{"no PIN pad", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "none")), "ACCESS_DENIED",
			[]string{"PIN pad"}},
		{"no PIN file", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "file:/no/such/pin")),
			"ACCESS_DENIED",
			[]string{"/no/such/pin"}},
		{"PIN file open to others", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "file:"+openPIN)),
			"ACCESS_DENIED",
			[]string{"chmod 600"}},
		{"PIN command fails", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "exec:false")),
			"ACCESS_DENIED",
			[]string{"false", "exit status 1"}},
		{"PIN command missing", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "exec:/no/such/command")),
			"ACCESS_DENIED",
			[]string{"/no/such/command"}},
		{"PIN command prints nothing", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "exec:true")),
			"ACCESS_DENIED",
			[]string{"empty"}},
		{"PIN for a PIN source", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "wrong-pin")),
			"VALIDATION_ERROR",
			[]string{"env:NAME"}},
		{"unknown PIN source", softhsmtest.Request(uri, softhsmtest.PluginConfig("pin-source", "vault:pin")),
			"VALIDATION_ERROR",
			[]string{"env:NAME"}},
		{"module missing", softhsmtest.Request(uri, softhsmtest.PluginConfig("module-path", "/no/such/module.so")),
			"VALIDATION_ERROR",
			[]string{"/no/such/module.so"}},
		{"module not a library", softhsmtest.Request(uri, softhsmtest.PluginConfig("module-path", notLibrary)),
			"VALIDATION_ERROR",
			[]string{notLibrary}},
		{"module without PKCS#11", softhsmtest.Request(uri, softhsmtest.PluginConfig("module-path", "libc.so.6")),
			"VALIDATION_ERROR",
			[]string{"C_GetFunctionList"}},
		{"module is a folder", softhsmtest.Request(uri, softhsmtest.PluginConfig("module-path", dir)), "VALIDATION_ERROR",
			[]string{"folder"}},
		{"chain missing", softhsmtest.Request(uri, softhsmtest.PluginConfig("certificate-chain", "/no/such.pem")),
			"VALIDATION_ERROR",
			[]string{"/no/such.pem"}},
		{"chain not PEM", softhsmtest.Request(uri, softhsmtest.PluginConfig("certificate-chain", notLibrary)),
			"VALIDATION_ERROR", []string{"PEM"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			softhsmtest.Setenv(t, "WRONG_PIN", "wrong-pin")
			softhsmtest.Refused(t, n.Plugin, "generate-signature", c.request).Expect(t, c.code, c.words...)
		})
	}
	t.Run("closed standard input", func(t *testing.T) {
		cmd := softhsmtest.Command(t, "sh", "-c", "exec "+n.Plugin+" describe-key <&-")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Run(); err == nil || !json.Valid(stderr.Bytes()) {
			t.Errorf("%v: %s", err, stderr.String())
		}
	})
	t.Run("verbs of other plugins", func(t *testing.T) {
		softhsmtest.Refused(t, n.Plugin, "verify-signature", "{}").Expect(t, "VALIDATION_ERROR", "verify-signature")
	})
	t.Run("the right request passes", func(t *testing.T) { // or the cases above would prove nothing
		if stdout, stderr, err := softhsmtest.Try(t, softhsmtest.Request(uri, nil), n.Plugin,
			"generate-signature"); err != nil {
			t.Fatal(stdout, stderr)
		}
	})
}

// TestRefusedChains shows that each way for a chain to be wrong has words of its own, and that the module is not asked
// to sign then.
func TestRefusedChains(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", token.Label, "--spec", "EC-256",
		"--label", "release"))
	public := softhsmtest.PublicKey(t, n, uri)
	root := softhsmtest.NewCA(t, "Root", nil)
	intermediate := softhsmtest.NewCA(t, "Intermediate", root)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(change func(*x509.Certificate)) *x509.Certificate {
		template := softhsmtest.Template("release")
		change(template)
		return intermediate.Issue(t, template, public)
	}
	good := leaf(func(*x509.Certificate) {})
	file := filepath.Join(t.TempDir(), "chain.pem")
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	issuers := []*x509.Certificate{intermediate.Cert, root.Cert}
	for _, c := range []struct {
		name  string
		chain []*x509.Certificate
		words []string
	}{
		{"leaf of another key", append(issuers, intermediate.Issue(t, softhsmtest.Template("stranger"),
			&stranger.PublicKey)),
			[]string{"another key"}},
		{"leaf missing", issuers, []string{"no certificate for the key"}},
		{"root missing", []*x509.Certificate{good, intermediate.Cert}, []string{"missing", "CN=Root"}},
		{"intermediate missing", []*x509.Certificate{good, root.Cert}, []string{"missing", "CN=Intermediate"}},
		{"expired", append(issuers, leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })),
			[]string{"expired"}},
		{"not yet valid", append(issuers, leaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(24 * time.Hour) })),
			[]string{"not valid before"}},
		{"key usage not critical", append(issuers, leaf(uncriticalKeyUsage)), []string{"not marked critical"}},
		{"no key usage", append(issuers, leaf(func(c *x509.Certificate) { c.KeyUsage = 0 })), []string{"no key usage"}},
		{"wrong key usage", append(issuers, leaf(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyAgreement })),
			[]string{"digitalSignature only"}},
		{"wrong extended key usage", append(issuers,
			leaf(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })),
			[]string{"server authentication", "codeSigning"}},
		{"CA as leaf", append(issuers, leaf(func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true,
				x509.KeyUsageCertSign
		})),
			[]string{"CA certificate"}},
		{"SHA-1 signature", append(issuers, sha1Signed(t, good, intermediate)), []string{"SHA1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			softhsmtest.Write(t, file, softhsmtest.PEM(c.chain...))
			_ = os.Remove(log)
			r := softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request(uri,
				softhsmtest.PluginConfig("certificate-chain", file)))
			r.Expect(t, "VALIDATION_ERROR", c.words...)
			calls := softhsmtest.Calls(t, log)
			if softhsmtest.Count(calls, "C_Sign") > 0 &&
				c.name != "leaf of another key" { // which only the key itself can tell
				t.Errorf("the module was asked to sign: %v", calls)
			}
			if softhsmtest.Count(calls, "C_OpenSession") != softhsmtest.Count(calls, "C_CloseSession") {
				t.Errorf("a session was left open: %v", calls)
			}
			if softhsmtest.Count(calls, "C_Login") > 1 {
				t.Errorf("more than one login: %v", calls)
			}
		})
	}
}

func uncriticalKeyUsage(c *x509.Certificate) {
	c.KeyUsage = 0
	c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 7, 0x80}}}
}

// sha1Signed returns the certificate with its signature algorithm changed to ECDSA with SHA-1, which crypto/x509 no
// longer makes.
func sha1Signed(t testing.TB, cert *x509.Certificate, issuer *softhsmtest.CA) *x509.Certificate {
	t.Helper()
	sha256, sha1 := asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}, asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 1}
	oldOID, _ := asn1.Marshal(sha256)
	newOID, _ := asn1.Marshal(sha1)
	type certificate struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	var parsed certificate
	if _, err := asn1.Unmarshal(cert.Raw, &parsed); err != nil {
		t.Fatal(err)
	}
	// The OID is a byte shorter, so the two lengths around it shrink with it.
	algorithm := append([]byte{0x30, byte(len(oldOID))}, oldOID...)
	body := bytes.Replace(parsed.TBS.Bytes, algorithm, append([]byte{0x30, byte(len(newOID))}, newOID...), 1)
	tbs, err := asn1.Marshal(asn1.RawValue{Class: 0, Tag: asn1.TagSequence, IsCompound: true, Bytes: body})
	if err != nil {
		t.Fatal(err)
	}
	digest := crypto.SHA1.New()
	digest.Write(tbs)
	signature, err := ecdsa.SignASN1(rand.Reader, issuer.Key, digest.Sum(nil))
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(certificate{asn1.RawValue{FullBytes: tbs}, pkix.AlgorithmIdentifier{Algorithm: sha1},
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
	if err != nil {
		t.Fatal(err)
	}
	weak, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return weak
}
