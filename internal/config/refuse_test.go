package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestURIRefused names what is wrong with a URI. An attribute that were ignored could match another key.
func TestURIRefused(t *testing.T) {
	t.Parallel()
	for text, message := range map[string]string{
		"pkcs11:token":           "an attribute has no value",
		"pkcs11:token=a;token=b": "the attribute token is given twice",
		"pkcs11:token=a?pin-source=env:A&pin-source=env:A": "the attribute pin-source is given twice",
		"pkcs11:object=%zz":                  "the percent-encoding of object is wrong",
		"pkcs11:object=a;type=cert":          `its type is "cert" and not private`,
		"pkcs11:object=a;type=public":        `its type is "public" and not private`,
		"pkcs11:slot-id=first":               "a value is not allowed",
		"pkcs11:label=a":                     `unknown attribute "label"`,
		"pkcs11:object=a?module-name=p11":    `unknown attribute "module-name"`,
		"pkcs11:object=a?module-path=p11.so": "a value is not allowed",
	} {
		if _, err := ParseURI(text); !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if uri, err := ParseURI("pkcs11:object=a;type=private"); err != nil || uri.Object != "a" {
		t.Errorf("%+v, %v", uri, err)
	}
}

// TestPINRefused refuses a PIN wherever others would see it.
func TestPINRefused(t *testing.T) {
	path := configure(t, "keys: {release: {uri: 'pkcs11:object=a?pin-value=1234'}}\n")
	for _, origin := range []Origin{Flags, PluginConfig, Stored("ca.json")} {
		_, err := Resolve("pkcs11:object=a?pin-value="+marker, nil, origin)
		if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "carries a PIN") {
			t.Errorf("in a URI of %s: %v", origin.name, err)
		}
		showsNot(t, origin.name, err)
		for _, name := range []string{"pin", "pin-value", "PIN_VALUE", "user-pin", "password", "passphrase"} {
			_, err := Resolve("pkcs11:object=a", map[string]string{name: marker}, origin)
			if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "carries a PIN") ||
				!strings.Contains(failure.From(err).Hint, "pin-source") {
				t.Errorf("%s in %s: %v", name, origin.name, err)
			}
			showsNot(t, name, err)
		}
	}
	// The config file may have one, if others cannot read it.
	if s, err := Resolve("release", nil, PluginConfig); err != nil || s.PIN != "1234" {
		t.Errorf("%+v, %v", s, err)
	}
	if err := os.Chmod(filepath.Join(path, "config.yaml"), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve("release", nil, PluginConfig); !failure.Is(err, failure.Denied) ||
		!strings.Contains(failure.From(err).Hint, "chmod 600") {
		t.Error(err)
	}
}

// TestFileRefused names the file, the line and what is wrong there.
func TestFileRefused(t *testing.T) {
	for text, message := range map[string]string{
		"timeout: 1s\ntimeout: 2s":                      ":2: the config file has \"timeout\" twice",
		"keys:\n  a: {uri: 'pkcs11:object=a'}\n  a: {}": ":3: keys has \"a\" twice",
		"keys:\n  a: {timeout: 1s}":                     `the key "a" has no uri`,
		"keys:\n- a":                                    ":2: keys is not a mapping",
		"timeout: [1s]":                                 `:1: "timeout" is not a single value`,
		"tokens:\n  a: {env: {A: [b]}}":                 `:2: "A" is not a single value`,
		"tokens:\n  a: {token: b}":                      `unknown setting "token" in token "a"`,
		"timeout: soon":                                 `invalid timeout "soon"`,
		"allow-final-pin-try: perhaps":                  `invalid allow-final-pin-try "perhaps"`,
		"slot-id: first":                                `invalid slot-id "first"`,
		"a: [":                                          "cannot parse the config file",
	} {
		dir := configure(t, text)
		_, err := Resolve("pkcs11:object=a", nil, Flags)
		if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), message) {
			t.Errorf("%q: %v", text, err)
		} else if !strings.Contains(err.Error(), dir) && !strings.Contains(message, "slot-id") {
			t.Errorf("%q: the error does not name the file: %v", text, err)
		}
	}
	configure(t, "")
	t.Setenv("NOTATION_HSM_CONFIG", filepath.Join(t.TempDir(), "none.yaml"))
	if _, err := Resolve("pkcs11:object=a", nil, Flags); !failure.Is(err, failure.NotFound) {
		t.Errorf("a file that does not exist: %v", err)
	}
}

// TestUnknownKey suggests the nearest alias.
func TestUnknownKey(t *testing.T) {
	configure(t, "keys: {release: {uri: 'pkcs11:object=a'}}\n")
	for reference, hint := range map[string]string{"relaese": "did you mean release?", "x": "known aliases: release"} {
		if _, err := Resolve(reference, nil, Flags); !failure.Is(err, failure.NotFound) ||
			!strings.Contains(failure.From(err).Hint, hint) {
			t.Errorf("%s: %v, hint %q", reference, err, failure.From(err).Hint)
		}
	}
}

// TestPlaces takes each setting from the strongest place, and relative paths from the place that they stand in.
func TestPlaces(t *testing.T) {
	dir := configure(t, "certificate-chain: top.pem\npin-source: env:TOP\n"+
		"tokens: {signing: {certificate-chain: token.pem}}\n"+
		"keys: {release: {uri: 'pkcs11:token=signing;object=release', certificate-chain: /own.pem}}\n")
	for _, c := range []struct {
		reference, variable, given string
		chain                      string
		own                        bool
	}{
		{"pkcs11:token=other;object=release", "", "", filepath.Join(dir, "top.pem"), false},
		{"pkcs11:token=signing;object=release", "", "", filepath.Join(dir, "token.pem"), false},
		{"release", "", "", "/own.pem", true},
		{"release", "variable.pem", "", "variable.pem", false},
		{"release", "variable.pem", "given.pem", "given.pem", false},
	} {
		t.Setenv("NOTATION_HSM_CERTIFICATE_CHAIN", c.variable)
		s, err := Resolve(c.reference, map[string]string{CertificateChain: c.given}, Flags)
		if err != nil || s.CertificateChain != c.chain || s.OwnChain != c.own {
			t.Errorf("%+v: %q, %v, %v", c, s.CertificateChain, s.OwnChain, err)
		}
	}
	t.Setenv("NOTATION_HSM_PIN", "1234")
	if s, err := Resolve("release", nil, Flags); err != nil || s.PINSource != "env:NOTATION_HSM_PIN" {
		t.Errorf("%q, %v", s.PINSource, err)
	}
	t.Setenv("NOTATION_HSM_PIN_SOURCE", "prompt")
	if s, err := Resolve("release", nil, Flags); err != nil || s.PINSource != "prompt" {
		t.Errorf("NOTATION_HSM_PIN is stronger than NOTATION_HSM_PIN_SOURCE: %q, %v", s.PINSource, err)
	}
}
