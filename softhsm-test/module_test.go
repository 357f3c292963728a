package softhsmtest

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNoise shows that a module that prints on descriptors 1 and 2 in every call reaches neither Notation nor a script.
func TestNoise(t *testing.T) {
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	uri, pem := newKey(t, token, n.Plugin, "EC-256", "release")
	registry := StartRegistry(t)
	t.Setenv("NOTATION_HSM_MODULE_PATH", Shim(t, token.Module))
	t.Setenv("SHIM_NOISE", "1")
	signs(t, n, request(uri, nil))
	refused(t, n.Plugin, "generate-signature", request("pkcs11:token=signing;object=none", nil)).expect(t,
		"VALIDATION_ERROR")
	if out := Run(t, n.Plugin, "key", "list", "--token", "signing", "--json"); !json.Valid([]byte(out)) {
		t.Errorf("key list --json printed %q", out)
	}
	n.Trust(t, pem)
	digest, err := PushImage(context.Background(), registry+"/app:v1", "noise")
	if err != nil {
		t.Fatal(err)
	}
	Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", uri, registry+"/app@"+digest.String())
	Run(t, n.Program, "verify", "--insecure-registry", registry+"/app@"+digest.String())
}

// TestCalls counts the calls of a whole 'notation sign' with pkcs11-spy.
func TestCalls(t *testing.T) {
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	registry := StartRegistry(t)
	digest, err := PushImage(context.Background(), registry+"/app:v1", "calls")
	if err != nil {
		t.Fatal(err)
	}
	// Behind the second key is a CA, whose certificate is on the token too.
	Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "root")
	Run(t, n.Plugin, "ca", "init", "root", "--key", "pkcs11:token=signing;object=root", "--subject",
		"CN=Root,O=Example,C=CH,ST=Zurich", "--days", "90")
	for _, spec := range []string{"RSA-2048", "EC-256"} {
		uri, pem := newKey(t, token, n.Plugin, spec, "key-"+spec)
		if spec == "EC-256" {
			uri = strings.TrimSpace(Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "issued"))
			write(t, pem, Run(t, n.Plugin, "ca", "issue", "--ca", "root", "--key", uri, "--subject",
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
				t.Setenv("PKCS11SPY", token.Module)
				t.Setenv("PKCS11SPY_OUTPUT", log)
				t.Setenv("NOTATION_HSM_MODULE_PATH", Spy(t))
				Run(t, n.Program, append([]string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", uri,
					registry + "/app@" + digest.String()}, c.arguments...)...)
				calls := Calls(t, log)
				t.Logf("%d calls: %s", len(calls), strings.Join(calls, " "))
				if len(calls) == 0 || len(calls) > c.most {
					t.Errorf("%d calls, and at most %d are allowed", len(calls), c.most)
				}
				if logins := Count(calls, "C_Login"); logins > c.logins {
					t.Errorf("%d logins, and at most %d are allowed", logins, c.logins)
				}
				if opened, closed := Count(calls, "C_OpenSession"), Count(calls, "C_CloseSession"); opened != c.opened ||
					closed != opened {
					t.Errorf("%d sessions opened, %d closed", opened, closed)
				}
			})
		}
	}
}

// TestPIN shows that a wrong PIN is tried once, and not at all when that could lock the token.
func TestPIN(t *testing.T) {
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	uri, _ := newKey(t, token, n.Plugin, "EC-256", "release")
	log := filepath.Join(t.TempDir(), "calls")
	t.Setenv("NOTATION_HSM_MODULE_PATH", Shim(t, token.Module))
	t.Setenv("SHIM_LOG", log)
	logins := func() int {
		count := Count(Calls(t, log), "C_Login")
		_ = os.Remove(log)
		return count
	}
	t.Setenv("SHIM_PIN", PIN)
	const finalTry, locked, pinpad = "20000", "40000", "100"
	for _, c := range []struct {
		name, pin, flags, settings, code, word string
		logins                                 int
	}{
		{"right", PIN, "0", "", "", "", 1},
		{"wrong", "0000", "0", "", "ACCESS_DENIED", "CKR_PIN_INCORRECT", 1},
		{"final try", PIN, finalTry, "", "ACCESS_DENIED", "allow-final-pin-try", 0},
		{"final try allowed", PIN, finalTry, "true", "", "", 1},
		{"locked", PIN, locked, "true", "ACCESS_DENIED", "CKR_PIN_LOCKED", 0},
		{"own PIN pad", "", pinpad, "", "", "", 1},
		{"no PIN", "", "0", "", "ACCESS_DENIED", "no pin-source", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("NOTATION_HSM_PIN", c.pin)
			t.Setenv("SHIM_TOKEN_FLAGS", c.flags)
			t.Setenv("NOTATION_HSM_ALLOW_FINAL_PIN_TRY", c.settings)
			if c.code == "" {
				signs(t, n, request(uri, nil))
			} else {
				refused(t, n.Plugin, "generate-signature", request(uri, nil)).expect(t, c.code, c.word)
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
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	uri, _ := newKey(t, token, n.Plugin, "EC-256", "release")
	odd := "été 100%;a=b/c?d&e"
	oddURI, _ := newKey(t, token, n.Plugin, "EC-256", odd)
	signs(t, n, request(oddURI, nil))
	signs(t, n, request("pkcs11:token=signing;object=%C3%A9t%C3%A9%20100%25%3Ba%3Db%2Fc%3Fd%26e", nil))
	id := uri[strings.Index(uri, "id="):strings.Index(uri, ";object")]
	signs(t, n, request("pkcs11:token=signing;"+id, nil))
	signs(t, n, request("pkcs11:object=release;type=private",
		map[string]any{"pluginConfig": map[string]string{"token": "signing"}}))

	// A second key with the label, made by another tool, which does not refuse that.
	Run(t, Program(t, "pkcs11-tool"), "--module", token.Module, "--token-label", "signing", "--login", "--pin", PIN,
		"--keypairgen", "--key-type", "EC:prime256v1", "--label", "release", "--id", "0badcafe")
	refused(t, n.Plugin, "generate-signature", request("pkcs11:token=signing;object=release", nil)).
		expect(t, "VALIDATION_ERROR", "more than one", id, "id=%0B%AD%CA%FE")
	signs(t, n, request("pkcs11:token=signing;object=release;"+id, nil))

	token.Init(t, "signing")
	refused(t, n.Plugin, "generate-signature", request(oddURI, nil)).expect(t, "VALIDATION_ERROR", "2 tokens match",
		"serial=")
	var tokens []struct{ Label, Serial string }
	if err := json.Unmarshal([]byte(Run(t, n.Plugin, "token", "list", "--json")), &tokens); err != nil {
		t.Fatal(err)
	}
	signed := 0
	for _, candidate := range tokens {
		if candidate.Label == "signing" {
			if _, _, err := try(t, request(strings.Replace(oddURI, "token=signing", "token=signing;serial="+candidate.Serial, 1),
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
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	uri := strings.TrimSpace(Run(t, n.Plugin, "key", "generate", "--token", "signing", "--spec", "EC-256", "--label",
		"release"))
	refused(t, n.Plugin, "generate-signature", request(uri, nil)).expect(t, "VALIDATION_ERROR", "no certificate",
		"self-sign")
	dir := t.TempDir()
	pem := Run(t, n.Plugin, "cert", "self-sign", uri, "--subject", "CN=right,O=Example,C=CH,ST=Zurich")
	put := func(text, label, id string) {
		t.Helper()
		file := filepath.Join(dir, label)
		write(t, file+".pem", text)
		Run(t, Program(t, "openssl"), "x509", "-in", file+".pem", "-outform", "DER", "-out", file+".der")
		Run(t, Program(t, "pkcs11-tool"), "--module", token.Module, "--token-label", "signing", "--login", "--pin", PIN,
			"--write-object", file+".der", "--type", "cert", "--label", label, "--id", id)
	}
	put(pem, "filed elsewhere", "77")
	signs(t, n, request("pkcs11:token=signing;object=release", nil))
	put(PEM(NewCA(t, "Wrong", nil).Cert), "release", "78")
	signs(t, n, request("pkcs11:token=signing;object=release", nil))
}

// TestConfigFile takes everything from the config file, and shows that a mistake in it is named.
func TestConfigFile(t *testing.T) {
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	_, pem := newKey(t, token, n.Plugin, "EC-256", "release")
	dir := t.TempDir()
	pin := filepath.Join(dir, "pin")
	write(t, pin, PIN+"\n")
	write(t, filepath.Join(dir, "chain.pem"), read(t, pem))
	conf := filepath.Join(dir, "config.yaml")
	t.Setenv("NOTATION_HSM_CONFIG", conf)
	t.Setenv("NOTATION_HSM_MODULE_PATH", "")
	t.Setenv("NOTATION_HSM_PIN", "")
	softhsm := os.Getenv("SOFTHSM2_CONF")
	t.Setenv("SOFTHSM2_CONF", "/no/such/file")
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
	write(t, conf, whole)
	signs(t, n, request("release", nil))
	t.Run("pin-value in the file", func(t *testing.T) {
		inFile := strings.Replace(whole, "object=release", "object=release?pin-value="+PIN, 1)
		write(t, conf, strings.Replace(inFile, "    pin-source", "    #", 1))
		signs(t, n, request("release", nil))
		if err := os.Chmod(conf, 0o644); err != nil {
			t.Fatal(err)
		}
		refused(t, n.Plugin, "generate-signature", request("release", nil)).expect(t, "ACCESS_DENIED", "chmod 600")
	})
	for _, c := range []struct{ name, old, new, word string }{
		{"unknown setting", "timeout", "timeuot", "did you mean timeout"},
		{"unknown setting of a key", "certificate-chain", "certificate-chian", "did you mean certificate-chain"},
		{"unknown setting of a token", "pin-source", "pin-sauce", "did you mean pin-source"},
		{"no uri", "uri: ", "timeout: 1s # ", "no uri"},
		{"twice", "timeout: 20s", "timeout: 20s\ntimeout: 30s", "timeout"},
		{"not YAML", "keys:", "keys: [", "YAML"},
		{"alias misspelt", "release:", "relaese:", "did you mean relaese"},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(t, conf, strings.Replace(whole, c.old, c.new, 1))
			refused(t, n.Plugin, "generate-signature", request("release", nil)).expect(t, "VALIDATION_ERROR", c.word)
		})
	}
}

// TestPrecedence gives the same setting in each place there is; the stronger one has to win.
func TestPrecedence(t *testing.T) {
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	uri, _ := newKey(t, token, n.Plugin, "EC-256", "release")
	conf := filepath.Join(t.TempDir(), "config.yaml")
	write(t, conf, "module-path: /from/the/file.so\nmodules: [/from/the/uri.so, /from/plugin/config.so]\n")
	t.Setenv("NOTATION_HSM_CONFIG", conf)
	says := func(request, want string) {
		t.Helper()
		refused(t, n.Plugin, "generate-signature", request).expect(t, "VALIDATION_ERROR", want)
	}
	t.Setenv("NOTATION_HSM_MODULE_PATH", "")
	says(request(uri, nil), "/from/the/file.so")
	t.Setenv("NOTATION_HSM_MODULE_PATH", "/from/the/environment.so")
	says(request(uri, nil), "/from/the/environment.so")
	says(request(uri+"?module-path=/from/the/uri.so", nil), "/from/the/uri.so")
	says(request(uri+"?module-path=/from/the/uri.so", pluginConfig("module-path", "/from/plugin/config.so")),
		"/from/plugin/config.so")
}

// TestObjects shows that the number of calls does not grow with what else is on the token.
func TestObjects(t *testing.T) {
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	uri, _ := newKey(t, token, n.Plugin, "EC-256", "release")
	log := filepath.Join(t.TempDir(), "calls")
	count := func() int {
		t.Setenv("SHIM_LOG", log)
		for _, verb := range []string{"describe-key", "generate-signature"} {
			if _, stderr, err := try(t, request(uri, nil), n.Plugin, verb); err != nil {
				t.Fatal(stderr)
			}
		}
		calls := len(Calls(t, log))
		_ = os.Remove(log)
		return calls
	}
	t.Setenv("NOTATION_HSM_MODULE_PATH", Shim(t, token.Module))
	few := count()
	AddObjects(t, token, 300)
	if many := count(); many != few || few == 0 {
		t.Errorf("%d calls with a few objects, %d with 300 more", few, many)
	}
}

// TestOddTokens uses tokens with odd labels and PINs.
func TestOddTokens(t *testing.T) {
	token := NewToken(t, "signing")
	n := NewNotation(t, token)
	for _, c := range []struct{ label, pin string }{
		{"\xff\xfe latin", PIN},                        // not UTF-8
		{"padded  ", PIN},                              // the blanks are the padding's
		{"exactly thirty-two bytes long...", PIN},      // no padding at all
		{"cloud", "crypto_user:pass:word"},             // AWS CloudHSM writes user and password so
		{"sp ace/slash?and&more=#", "ünïcødé pin 123"}, // all that a URI escapes
	} {
		Run(t, Program(t, "softhsm2-util"), "--init-token", "--free", "--label", c.label, "--pin", c.pin, "--so-pin", SOPIN)
		t.Setenv("NOTATION_HSM_PIN", c.pin)
		uri := strings.TrimSpace(Run(t, n.Plugin, "key", "generate", "--token", c.label, "--label", "release"))
		file := filepath.Join(t.TempDir(), "release.pem")
		write(t, file, Run(t, n.Plugin, "cert", "self-sign", uri, "--subject", "CN=release,O=Example,C=CH,ST=Zurich"))
		Run(t, n.Plugin, "cert", "import", uri, file)
		signs(t, n, request(uri, nil))
	}
}
