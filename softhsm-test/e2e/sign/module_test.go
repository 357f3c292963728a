package sign

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestNoise shows that a module that prints on descriptors 1 and 2 in every call reaches neither Notation nor a script.
func TestNoise(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	registry := oci.StartRegistry(t)
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_NOISE", "1")
	softhsmtest.Signs(t, n, softhsmtest.Request(uri, nil))
	softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request("pkcs11:token=signing;object=none",
		nil)).Expect(t, "VALIDATION_ERROR")
	if out := softhsmtest.Run(t, n.Plugin, "key", "list", "--token", "signing", "--json"); !json.Valid([]byte(out)) {
		t.Errorf("key list --json printed %q", out)
	}
	n.Trust(t, pem)
	digest, err := oci.PushImage(context.Background(), registry+"/app:v1", "noise")
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", uri, registry+"/app@"+
		digest.String())
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", registry+"/app@"+digest.String())
}

// TestCalls counts the calls of a whole 'notation sign' with pkcs11-spy.
func TestCalls(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	registry := oci.StartRegistry(t)
	digest, err := oci.PushImage(context.Background(), registry+"/app:v1", "calls")
	if err != nil {
		t.Fatal(err)
	}
	// Behind the second key is a CA, whose certificate is on the token too.
	softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "root")
	softhsmtest.Run(t, n.Plugin, "ca", "init", "root", "--key", "pkcs11:token=signing;object=root", "--subject",
		"CN=Root,O=Example,C=CH,ST=Zurich", "--days", "90")
	for _, spec := range []string{"RSA-2048", "EC-256"} {
		uri, pem := softhsmtest.NewKey(t, token, n.Plugin, spec, "key-"+spec)
		if spec == "EC-256" {
			uri = strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label",
				"issued"))
			softhsmtest.Write(t, pem, softhsmtest.Run(t, n.Plugin, "ca", "issue", "--ca", "root", "--key", uri, "--subject",
				"CN=issued,O=Example,C=CH,ST=Zurich", "--days", "30"))
		}
		for _, c := range []struct {
			name                 string
			arguments            []string
			most, logins, opened int
		}{
			{"with a chain file", []string{"--plugin-config", "certificate-chain=" + pem}, 16, 1, 1},
			{"from the token", nil, 34, 2, 2},
		} {
			t.Run(spec+" "+c.name, func(t *testing.T) {
				log := filepath.Join(t.TempDir(), "spy")
				softhsmtest.Setenv(t, "PKCS11SPY", token.Module)
				softhsmtest.Setenv(t, "PKCS11SPY_OUTPUT", log)
				softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Spy(t))
				softhsmtest.Run(t, n.Program, append([]string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", uri,
					registry + "/app@" + digest.String()}, c.arguments...)...)
				calls := softhsmtest.Calls(t, log)
				t.Logf("%d calls: %s", len(calls), strings.Join(calls, " "))
				if len(calls) == 0 || len(calls) > c.most {
					t.Errorf("%d calls, and at most %d are allowed", len(calls), c.most)
				}
				if logins := softhsmtest.Count(calls, "C_Login"); logins > c.logins {
					t.Errorf("%d logins, and at most %d are allowed", logins, c.logins)
				}
				if opened, closed := softhsmtest.Count(calls, "C_OpenSession"), softhsmtest.Count(calls,
					"C_CloseSession"); opened != c.opened ||
					closed != opened {
					t.Errorf("%d sessions opened, %d closed", opened, closed)
				}
			})
		}
	}
}

// TestPIN shows that a wrong PIN is tried once, and not at all when that could lock the token.
func TestPIN(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	softhsmtest.Setenv(t, "SHIM_LOG", log)
	logins := func() int {
		count := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login")
		_ = os.Remove(log)
		return count
	}
	softhsmtest.Setenv(t, "SHIM_PIN", softhsmtest.PIN)
	const finalTry, locked, pinpad = "20000", "40000", "100"
	for _, c := range []struct {
		name, pin, flags, settings, code, word string
		logins                                 int
	}{
		{"right", softhsmtest.PIN, "0", "", "", "", 1},
		{"wrong", "0000", "0", "", "ACCESS_DENIED", "CKR_PIN_INCORRECT", 1},
		{"final try", softhsmtest.PIN, finalTry, "", "ACCESS_DENIED", "allow-final-pin-try", 0},
		{"final try allowed", softhsmtest.PIN, finalTry, "true", "", "", 1},
		{"locked", softhsmtest.PIN, locked, "true", "ACCESS_DENIED", "CKR_PIN_LOCKED", 0},
		{"own PIN pad", "", pinpad, "", "", "", 1},
		{"no PIN", "", "0", "", "ACCESS_DENIED", "no pin-source", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			softhsmtest.Setenv(t, "NOTATION_HSM_PIN", c.pin)
			softhsmtest.Setenv(t, "SHIM_TOKEN_FLAGS", c.flags)
			softhsmtest.Setenv(t, "NOTATION_HSM_ALLOW_FINAL_PIN_TRY", c.settings)
			if c.code == "" {
				softhsmtest.Signs(t, n, softhsmtest.Request(uri, nil))
			} else {
				softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request(uri, nil)).Expect(t, c.code, c.word)
			}
			if count := logins(); count != c.logins {
				t.Errorf("%d logins, not %d", count, c.logins)
			}
		})
	}
}

// TestNames names keys in every way there is: percent-encoded ids and labels, one of two keys of a label, one of two
// tokens.
func TestNames(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	odd := "été 100%;a=b/c?d&e"
	oddURI, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", odd)
	softhsmtest.Signs(t, n, softhsmtest.Request(oddURI, nil))
	softhsmtest.Signs(t, n, softhsmtest.Request("pkcs11:token=signing;object=%C3%A9t%C3%A9%20100%25%3Ba%3Db%2Fc%3Fd%26e",
		nil))
	id := uri[strings.Index(uri, "id="):strings.Index(uri, ";object")]
	softhsmtest.Signs(t, n, softhsmtest.Request("pkcs11:token=signing;"+id, nil))
	softhsmtest.Signs(t, n, softhsmtest.Request("pkcs11:object=release;type=private",
		map[string]any{"pluginConfig": map[string]string{"token": "signing"}}))

	// A second key with the label, made by another tool, which does not refuse that.
	softhsmtest.Run(t, softhsmtest.Program(t, "pkcs11-tool"), "--module", token.Module, "--token-label", "signing",
		"--login", "--pin", softhsmtest.PIN,
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", "release", "--id", "0badcafe")
	softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request("pkcs11:token=signing;object=release",
		nil)).
		Expect(t, "VALIDATION_ERROR", "more than one", id, "id=%0B%AD%CA%FE")
	softhsmtest.Signs(t, n, softhsmtest.Request("pkcs11:token=signing;object=release;"+id, nil))

	token.Init(t, "signing")
	softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request(oddURI, nil)).Expect(t, "VALIDATION_ERROR",
		"2 tokens match", "serial=")
	var tokens []struct{ Label, Serial string }
	if err := json.Unmarshal([]byte(softhsmtest.Run(t, n.Plugin, "token", "list", "--json")), &tokens); err != nil {
		t.Fatal(err)
	}
	signed := 0
	for _, candidate := range tokens {
		if candidate.Label == "signing" {
			if _, _, err := softhsmtest.Try(t, softhsmtest.Request(strings.Replace(oddURI, "token=signing",
				"token=signing;serial="+candidate.Serial, 1),
				nil), n.Plugin, "generate-signature"); err == nil {
				signed++
			}
		}
	}
	if signed != 1 {
		t.Errorf("%d of the two tokens signed, not 1", signed)
	}
}

// TestLeafByKey finds the right certificate on the token when labels and ids point at a wrong one, or at none.
func TestLeafByKey(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--spec", "EC-256",
		"--label", "release"))
	softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request(uri, nil)).Expect(t, "VALIDATION_ERROR",
		"no certificate", "self-sign")
	dir := t.TempDir()
	pem := softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject", "CN=right,O=Example,C=CH,ST=Zurich")
	put := func(text, label, id string) {
		t.Helper()
		file := filepath.Join(dir, label)
		softhsmtest.Write(t, file+".pem", text)
		softhsmtest.Run(t, softhsmtest.Program(t, "openssl"), "x509", "-in", file+".pem", "-outform", "DER", "-out", file+
			".der")
		softhsmtest.Run(t, softhsmtest.Program(t, "pkcs11-tool"), "--module", token.Module, "--token-label", "signing",
			"--login", "--pin", softhsmtest.PIN,
			"--write-object", file+".der", "--type", "cert", "--label", label, "--id", id)
	}
	put(pem, "filed elsewhere", "77")
	softhsmtest.Signs(t, n, softhsmtest.Request("pkcs11:token=signing;object=release", nil))
	put(softhsmtest.PEM(softhsmtest.NewCA(t, "Wrong", nil).Cert), "release", "78")
	softhsmtest.Signs(t, n, softhsmtest.Request("pkcs11:token=signing;object=release", nil))
}

// TestConfigFile takes everything from the config file, and shows that a mistake in it is named.
func TestConfigFile(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	_, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin")
	softhsmtest.Write(t, pin, softhsmtest.PIN+"\n")
	softhsmtest.Write(t, filepath.Join(dir, "chain.pem"), softhsmtest.Read(t, pem))
	conf := filepath.Join(dir, "config.yaml")
	softhsmtest.Setenv(t, "NOTATION_HSM_CONFIG", conf)
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", "")
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", "")
	softhsm := softhsmtest.Getenv(t, "SOFTHSM2_CONF")
	softhsmtest.Setenv(t, "SOFTHSM2_CONF", "/no/such/file")
	whole := `
timeout: 20s
keys:
  release:
    uri: pkcs11:token=signing;object=release
    certificate-chain: chain.pem
tokens:
  signing:
    module-path: ` + token.Module + `
    pin-source: file:` + pin + `
    env:
      SOFTHSM2_CONF: ` + softhsm + `
`
	softhsmtest.Write(t, conf, whole)
	softhsmtest.Signs(t, n, softhsmtest.Request("release", nil))
	t.Run("pin-value in the file", func(t *testing.T) {
		inFile := strings.Replace(whole, "object=release", "object=release?pin-value="+softhsmtest.PIN, 1)
		softhsmtest.Write(t, conf, strings.Replace(inFile, "    pin-source", "    #", 1))
		softhsmtest.Signs(t, n, softhsmtest.Request("release", nil))
		if err := os.Chmod(conf, 0o644); err != nil {
			t.Fatal(err)
		}
		softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request("release", nil)).Expect(t,
			"ACCESS_DENIED", "chmod 600")
	})
	for _, c := range []struct{ name, old, new, word string }{
		{"unknown setting", "timeout", "timeuot", "did you mean timeout"},
		{"unknown setting of a key", "certificate-chain", "certificate-chian", "did you mean certificate-chain"},
		{"unknown setting of a token", "pin-source", "pin-sauce", "did you mean pin-source"},
		{"no uri", "uri: ", "timeout: 1s # ", "no uri"},
		{"twice", "timeout: 20s", "timeout: 20s\ntimeout: 30s", "timeout"},
		{"not YAML", "keys:", "keys: [", "cannot parse"},
		{"alias misspelt", "release:", "relaese:", "did you mean relaese"},
	} {
		t.Run(c.name, func(t *testing.T) {
			softhsmtest.Write(t, conf, strings.Replace(whole, c.old, c.new, 1))
			softhsmtest.Refused(t, n.Plugin, "generate-signature", softhsmtest.Request("release", nil)).Expect(t,
				"VALIDATION_ERROR", c.word)
		})
	}
}

// TestPrecedence gives the same setting in each place there is; the stronger one has to win.
func TestPrecedence(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	conf := filepath.Join(t.TempDir(), "config.yaml")
	softhsmtest.Write(t, conf, "module-path: /from/the/file.so\nmodules: [/from/the/uri.so, /from/plugin/config.so]\n")
	softhsmtest.Setenv(t, "NOTATION_HSM_CONFIG", conf)
	says := func(request, want string) {
		t.Helper()
		softhsmtest.Refused(t, n.Plugin, "generate-signature", request).Expect(t, "VALIDATION_ERROR", want)
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", "")
	says(softhsmtest.Request(uri, nil), "/from/the/file.so")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", "/from/the/environment.so")
	says(softhsmtest.Request(uri, nil), "/from/the/environment.so")
	says(softhsmtest.Request(uri+"?module-path=/from/the/uri.so", nil), "/from/the/uri.so")
	says(softhsmtest.Request(uri+"?module-path=/from/the/uri.so", softhsmtest.PluginConfig("module-path",
		"/from/plugin/config.so")), "/from/plugin/config.so")
}

// TestObjects shows that the number of calls does not grow with what else is on the token.
func TestObjects(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	log := filepath.Join(t.TempDir(), "calls")
	count := func() int {
		softhsmtest.Setenv(t, "SHIM_LOG", log)
		for _, verb := range []string{"describe-key", "generate-signature"} {
			if _, stderr, err := softhsmtest.Try(t, softhsmtest.Request(uri, nil), n.Plugin, verb); err != nil {
				t.Fatal(stderr)
			}
		}
		calls := len(softhsmtest.Calls(t, log))
		_ = os.Remove(log)
		return calls
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Shim(t, token.Module))
	few := count()
	softhsmtest.AddObjects(t, token, 300)
	if many := count(); many != few || few == 0 {
		t.Errorf("%d calls with a few objects, %d with 300 more", few, many)
	}
}

// TestOddTokens uses tokens with odd labels and PINs.
func TestOddTokens(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	for _, c := range []struct{ label, pin string }{
		{"\xff\xfe latin", softhsmtest.PIN},                   // not UTF-8
		{"padded  ", softhsmtest.PIN},                         // the blanks are the padding's
		{"exactly thirty-two bytes long...", softhsmtest.PIN}, // no padding at all
		{"cloud", "crypto_user:pass:word"},                    // AWS CloudHSM writes user and password so
		{"sp ace/slash?and&more=#", "ünïcødé pin 123"},        // all that a URI escapes
	} {
		softhsmtest.Run(t, softhsmtest.Program(t, "softhsm2-util"), "--init-token", "--free", "--label", c.label, "--pin",
			c.pin, "--so-pin", softhsmtest.SOPIN)
		softhsmtest.Setenv(t, "NOTATION_HSM_PIN", c.pin)
		uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", c.label, "--label", "release"))
		file := filepath.Join(t.TempDir(), "release.pem")
		softhsmtest.Write(t, file, softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject",
			"CN=release,O=Example,C=CH,ST=Zurich"))
		softhsmtest.Run(t, n.Plugin, "cert", "import", uri, file)
		softhsmtest.Signs(t, n, softhsmtest.Request(uri, nil))
	}
}
