package keyprovider

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const options = `{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`

// TestMain gives the tests no settings but the PIN of a module in memory, whatever this machine has.
func TestMain(m *testing.M) {
	err := errors.Join(os.Setenv("NOTATION_HSM_CONFIG", "/dev/null"), os.Setenv("NOTATION_HSM_PIN", keystoretest.PIN))
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// newModule returns a module in memory with three keys that decrypt, and one that signs.
func newModule(t *testing.T) *keystoretest.Module {
	t.Helper()
	m := keystoretest.New("recipients")
	spec, _ := key.ParseSpec("EC-256")
	for label, usage := range map[string]key.Usage{
		"one": key.Decrypt, "two": key.Decrypt, "three": key.Decrypt, "signing": key.Sign,
	} {
		private, err := keystoretest.NewKey(spec)
		if err != nil {
			t.Fatal(err)
		}
		m.Key(t, "recipients", label, private, usage)
	}
	return m
}

func serve(t *testing.T, ks *keystore.Keystore, request any) (answer, error) {
	t.Helper()
	data, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var a answer
	if err := Serve(t.Context(), ks, bytes.NewReader(data), &out); err != nil {
		if out.Len() > 0 {
			t.Errorf("a request that failed was answered with %q", out.String())
		}
		return a, err
	}
	return a, json.Unmarshal(out.Bytes(), &a)
}

func wrapRequest(recipients ...string) map[string]any {
	return map[string]any{"op": "keywrap", "keywrapparams": map[string]any{
		"ec": map[string]any{"Parameters": named(recipients)}, "optsdata": []byte(options)}}
}

func unwrapRequest(annotation []byte, keys ...string) map[string]any {
	return map[string]any{"op": "keyunwrap",
		"keyunwrapparams": map[string]any{"dc": map[string]any{"Parameters": named(keys)}, "annotation": annotation}}
}

func named(texts []string) map[string][][]byte {
	all := map[string][][]byte{}
	for _, text := range texts {
		all[provider] = append(all[provider], []byte(text))
	}
	return all
}

// TestProtocol wraps for two recipients and unwraps for one, named and not named, as ocicrypt asks for it.
func TestProtocol(t *testing.T) {
	t.Parallel()
	m := newModule(t)
	ks := m.Keystore()
	wrapped, err := serve(t, ks, wrapRequest("pkcs11:object=one", "pkcs11:object=two"))
	if err != nil || m.Calls("Login") != 0 {
		t.Fatalf("%v, after %d logins", err, m.Calls("Login"))
	}
	for _, keys := range [][]string{{"pkcs11:object=one"}, {"pkcs11:object=two"},
		{"pkcs11:object=three", "pkcs11:object=two"}, {"Enabled"}, {""}, nil} {
		got, err := serve(t, ks, unwrapRequest(wrapped.Wrapped.Annotation, keys...))
		if err != nil || string(got.Unwrapped.Options) != options {
			t.Errorf("with the keys %q: %v, and got %q", keys, err, got.Unwrapped.Options)
		}
	}
	for words, request := range map[string]any{
		"no key here opens the layer":  unwrapRequest(wrapped.Wrapped.Annotation, "pkcs11:object=three"),
		"there is no recipient":        wrapRequest(),
		"cannot decrypt what":          wrapRequest("pkcs11:object=one", "pkcs11:object=signing"),
		"has no annotation":            unwrapRequest(nil),
		"has no key of a layer":        map[string]any{"op": "keywrap"},
		`unknown operation "keyxwrap"`: map[string]any{"op": "keyxwrap"},
		`is configured as "myhsm"`: map[string]any{"op": "keyunwrap",
			"keyunwrapparams": map[string]any{"dc": map[string]any{"Parameters": map[string][][]byte{"myhsm": nil}},
				"annotation": []byte("x")}},
		"is not JSON":    "x",
		"is larger than": strings.Repeat("x", requestLimit),
	} {
		if _, err := serve(t, ks, request); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("the failure is %v, without %q", err, words)
		}
	}
	if n := m.OpenStores(); n != 0 {
		t.Errorf("%d stores are open", n)
	}
}

// TestTwoKeyProviders leaves the values for other key providers alone.
func TestTwoKeyProviders(t *testing.T) {
	t.Parallel()
	request := wrapRequest("pkcs11:object=one")
	request["keywrapparams"].(map[string]any)["ec"] = map[string]any{"Parameters": map[string][][]byte{
		"hsm": {[]byte("pkcs11:object=one")}, "otherhsm": {[]byte("pkcs11:object=nobody")}}}
	if _, err := serve(t, newModule(t).Keystore(), request); err != nil {
		t.Error(err)
	}
}

// TestRequestRunsNothing has a request name a library and a command, neither of which runs unless the config file lists
// it.
func TestRequestRunsNothing(t *testing.T) {
	settings := filepath.Join(t.TempDir(), "config.yaml")
	t.Setenv("NOTATION_HSM_CONFIG", settings)
	list := func(text string) {
		t.Helper()
		if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list("")
	m := newModule(t)
	wrapped, err := serve(t, m.Keystore(), wrapRequest("pkcs11:object=one"))
	if err != nil {
		t.Fatal(err)
	}
	library := func(trap *softhsmtest.Trap) string { return "pkcs11:object=one?module-path=" + trap.Library }
	command := func(trap *softhsmtest.Trap) string {
		return "pkcs11:object=one?pin-source=exec:" + strings.ReplaceAll(trap.Command, " ", "%20")
	}
	for name, ask := range map[string]func(*softhsmtest.Trap) map[string]any{
		"recipient, library": func(trap *softhsmtest.Trap) map[string]any { return wrapRequest(library(trap)) },
		"recipient, command": func(trap *softhsmtest.Trap) map[string]any { return wrapRequest(command(trap)) },
		"key, library": func(trap *softhsmtest.Trap) map[string]any {
			return unwrapRequest(wrapped.Wrapped.Annotation, library(trap))
		},
		"key, command": func(trap *softhsmtest.Trap) map[string]any {
			return unwrapRequest(wrapped.Wrapped.Annotation, command(trap))
		},
	} {
		trap := softhsmtest.NewTrap(t) // a library is loaded into one process once
		request := ask(trap)
		list("")
		t.Setenv("NOTATION_HSM_PIN", "")
		if _, err := serve(t, m.Keystore(), request); trap.Sprung() || !failure.Is(err, failure.Denied) ||
			!strings.Contains(err.Error(), "that the key URI in the key provider's request names") {
			t.Errorf("%s: %v", name, err)
		}
		list("modules: [" + trap.Library + "]\ncommands: [" + trap.Command + "]\n")
		ks := m.Keystore()
		if strings.HasSuffix(name, "library") {
			ks = backends.Keystore() // loads it
		}
		if _, err := serve(t, ks, request); !trap.Sprung() && name != "recipient, command" { // which needs no PIN
			t.Errorf("%s, listed: %v", name, err)
		}
	}
}

// TestCostly refuses requests that are made to cost much, for no more than their size allows.
func TestCostly(t *testing.T) {
	many := wrapRequest()
	many["keywrapparams"].(map[string]any)["ec"] = map[string]any{
		"Parameters": named(slices.Repeat([]string{"pkcs11:object=one"}, valuesLimit+1))}
	text, err := json.Marshal(many)
	if err != nil {
		t.Fatal(err)
	}
	for words, request := range map[string]string{
		"is nested deeper than 16":         `{"op":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`,
		"has more than 4096 elements":      `{"op":"keywrap","x":[` + strings.Repeat("0,", 5000) + `0]}`,
		`has the name "op" twice`:          `{"op":"keywrap","op":"keyunwrap"}`,
		"names 65 keys, more than 64":      string(text),
		"has no key of a layer (optsdata)": `{"op":"keywrap"}`,
	} {
		checkCost(t, []byte(request))
		if err := Serve(t.Context(), newModule(t).Keystore(), strings.NewReader(request), io.Discard); err == nil ||
			!strings.Contains(err.Error(), words) {
			t.Errorf("%.50q fails with %v, which does not say %q", request, err, words)
		}
	}
}

// checkCost reads a request, and fails the test if that allocates more than its size allows.
func checkCost(t *testing.T, data []byte) {
	t.Helper()
	boundtest.Budget{Bytes: 64 << 10, BytesPerByte: 100}.Check(t, len(data), func() {
		if r, err := readRequest(bytes.NewReader(data)); err == nil {
			_, _ = values(r.Wrap.Encrypt.Parameters)
			_, _ = values(r.Unwrap.Decrypt.Parameters)
		}
	})
}

// FuzzRequest reads requests: none costs more than its size allows.
func FuzzRequest(f *testing.F) {
	for _, request := range []any{wrapRequest("cert:x.pem"), unwrapRequest([]byte("{}"), ""), map[string]any{"op": 1}} {
		data, _ := json.Marshal(request)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { checkCost(t, data) })
}
