package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestURIRoundTrip prints URIs that parse to the same values.
func TestURIRoundTrip(t *testing.T) {
	slot := uint(7)
	for _, uri := range []URI{
		{Token: "signing", Object: "release"},
		{Token: "a;b/c?d&e=f 100% ü", Object: "\xff\x00", ID: []byte{0, 0xff, ';'}},
		{Serial: "12 34", Manufacturer: "ACME, Inc.", Model: "v2", SlotID: &slot},
	} {
		text := uri.String()
		parsed, err := ParseURI(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if again := parsed.String(); again != text {
			t.Errorf("%s came back as %s", text, again)
		}
		if parsed.Object != uri.Object || string(parsed.ID) != string(uri.ID) || parsed.Token != uri.Token {
			t.Errorf("%s parses as %+v", text, parsed)
		}
	}
}

// uriCost is what parsing a key reference may allocate.
var uriCost = boundtest.Budget{Bytes: 32 << 10, BytesPerByte: 128}

// FuzzURI parses any key reference without a crash. A parsed URI prints as one that means the same.
func FuzzURI(f *testing.F) {
	for _, seed := range []string{
		"pkcs11:token=signing;object=release", "pkcs11:id=%00%01;slot-id=3?module-path=/usr/lib/m.so&pin-source=file:/pin",
		"pkcs11:", "pkcs11:?", "pkcs11:token", "pkcs11:token=%", "pkcs11:token=a;token=b", "nethsm:key",
		"pkcs11:type=private;serial=%41",
		"pkcs11:object=a?pin-value=1234&pin-source=|cmd", "pkcs11:slot-id=-1", "pkcs11:slot-id=99999999999999999999",
		"nethsm:", "nethsm:release-1.2_x", "nethsm:rel*", "nethsm:../users", "nethsm:a?b=c", "nethsm:\x00",
		"broker:", "broker:release", "broker:a%2Fb", "broker:..", "broker:%3F",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var uri URI
		var err error
		uriCost.Check(t, len(text), func() { uri, err = ParseURI(text) })
		if err != nil {
			if !failure.Is(err, failure.Invalid) {
				t.Errorf("%q: %v is not of kind Invalid", text, err)
			}
			return
		}
		again, err := ParseURI(uri.String())
		if err != nil || again.String() != uri.String() {
			t.Errorf("%q prints as %q, which means something else: %v", text, uri.String(), err)
		}
	})
}

// fileCost is what parsing a config file may allocate: the parser has a node of some 500 bytes for each value.
var fileCost = boundtest.Budget{Bytes: 64 << 10, BytesPerByte: 2 << 10}

// FuzzConfigFile parses any config file without a crash and within its budget. Every error names the file. Adding
// programs keeps everything else.
func FuzzConfigFile(f *testing.F) {
	for _, seed := range []string{
		"", "# nothing", "timeout: 30s", "keys:\n  release:\n    uri: pkcs11:object=a\n",
		"tokens:\n  signing:\n    env:\n      A: b\n",
		"keys: [1]", "keys: 1", "a: &x {b: *x}", "timeout: {a: b}", "keys:\n  a: {uri: x, uri: y}", "- a", "? [a]\n: b",
		"tokens: {a: {env: [x]}}", "!!binary a: b",
		"x: &a [*a]", "<<: {timeout: 1s}",
		"modules:\n- /a.so # why\ncommands: [get a, 'get b']\n", "modules:\n  - /a.so\n\n# end\n...\n",
		"commands:\nmodules: [./a.so]", "{modules: []}", "modules: &a [x]\ncommands: *a", "modules:\r- a\r- b",
		"nethsm:\n  instances: [https://a.example.com, https://b.example.com]\n  user: a~b\n", "nethsm: [x]",
		"nethsm: {instances: [[x]], user: [a]}", "nethsm: {instances: &a [*a]}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := newFile("config.yaml")
		var err error
		fileCost.Check(t, len(data), func() { err = c.parse(data) })
		if err != nil {
			if !strings.Contains(err.Error(), "config.yaml") {
				t.Errorf("%q: the error does not name the file: %v", data, err)
			}
			return
		}
		more := Programs{Modules: []string{"/added.so"}, Commands: []string{"added: #1"}}
		text, err := more.addTo(string(data), "config.yaml")
		if err != nil {
			return
		}
		after := newFile("config.yaml")
		if err := after.parse([]byte(text)); err != nil || len(after.modules) != len(c.modules)+1 ||
			len(after.commands) != len(c.commands)+1 {
			t.Errorf("%q: with programs added it is %q: %v", data, text, err)
		}
		for comment := range strings.SplitSeq(string(data), "\n") {
			if !strings.Contains(text, comment) && strings.HasPrefix(strings.TrimSpace(comment), "#") {
				t.Errorf("%q: with programs added it is %q", data, text)
			}
		}
	})
}

// TestYAMLBounds refuses a file that is too long, too deep, or has too many values with its aliases resolved.
func TestYAMLBounds(t *testing.T) {
	bomb := "a: &a [x]\n"
	for name := 'b'; name < 'p'; name++ {
		bomb += fmt.Sprintf("%c: &%c [*%c, *%c]\n", name, name, name-1, name-1)
	}
	for name, test := range map[string]struct{ text, what string }{
		"long":   {strings.Repeat("#\n", MaxFile), "bytes, more than"},
		"deep":   {strings.Repeat("[", 17) + strings.Repeat("]", 17), "nested deeper than 16"},
		"deeper": {strings.Repeat("[", MaxFile), "max depth"},
		"circle": {"a: &a {b: *a}", "nested deeper than 16"},
		"bomb":   {bomb, "nested deeper than 16"},
		"wide":   {"[" + strings.Repeat("a,", maxNodes) + "]", "more than 20000 values"},
		"repeated": {"a: &a [" + strings.Repeat("x,", 200) + "]\nb: [" + strings.Repeat("*a,", 200) + "]\n",
			"more than 20000 values"},
		"fine": {strings.Repeat("[", 16) + strings.Repeat("]", 16), ""},
	} {
		_, err := YAML([]byte(test.text), MaxFile)
		if (err == nil) != (test.what == "") || err != nil && !strings.Contains(err.Error(), test.what) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTokenFromOnePlace takes all attributes of the token from one place.
func TestTokenFromOnePlace(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	for _, name := range Names {
		t.Setenv(EnvironmentName(name), "")
	}
	t.Setenv("NOTATION_HSM_SLOT_ID", "5")
	s, err := Resolve("pkcs11:token=signing;object=release", nil, PluginConfig)
	if err != nil || s.Key.SlotID != nil || s.Key.Token != "signing" {
		t.Errorf("%+v, %v", s, err)
	}
	s, err = Resolve("pkcs11:token=signing;object=release", map[string]string{"slot-id": "6"}, PluginConfig)
	if err != nil || s.Key.Token != "" || *s.Key.SlotID != 6 || s.Key.Object != "release" {
		t.Errorf("%+v, %v", s, err)
	}
	t.Setenv("NOTATION_HSM_SLOT_ID", "")
	t.Setenv("NOTATION_HSM_TOKEN", "pkcs11:token=other;serial=42?pin-value=1234")
	s, err = Resolve("pkcs11:object=release", nil, PluginConfig)
	if err != nil || s.Key.Token != "other" || s.Key.Serial != "42" || s.PIN != "1234" || s.Key.Object != "release" {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err = Resolve("pkcs11:object=release", map[string]string{"token": "pkcs11:token=a?pin-value=1"},
		PluginConfig); err == nil || strings.Contains(err.Error(), "pin-value=1") {
		t.Errorf("a PIN in plugin config: %v", err)
	}
}

// TestConfigDirectory finds the config file, which is optional unless it is named.
func TestConfigDirectory(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("NOTATION_HSM_CONFIG", "")
	if Path() != filepath.Join(dir, "notation-hsm", "config.yaml") {
		t.Errorf("the config file is %s", Path())
	}
	if _, err := Resolve("pkcs11:object=a", nil, Flags); err != nil {
		t.Errorf("without a config file: %v", err)
	}
	t.Setenv("NOTATION_HSM_CONFIG", filepath.Join(dir, "none.yaml"))
	if _, err := Resolve("pkcs11:object=a", nil, Flags); err == nil {
		t.Error("a config file that is named and does not exist is ignored")
	}
	if err := os.WriteFile(Path(), []byte("timeout: -1s"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve("pkcs11:object=a", nil, Flags); err == nil ||
		!strings.Contains(failure.From(err).Error(), "-1s") {
		t.Errorf("a negative timeout: %v", err)
	}
}
