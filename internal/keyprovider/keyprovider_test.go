package keyprovider

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const options = `{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`

func serve(t *testing.T, request any) (answer, error) {
	t.Helper()
	data, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	var a answer
	if err := Serve(context.Background(), backends.Keystore(), bytes.NewReader(data), &out); err != nil {
		return a, err
	}
	return a, json.Unmarshal(out.Bytes(), &a)
}

func wrapping(recipients ...string) map[string]any {
	return map[string]any{"op": "keywrap", "keywrapparams": map[string]any{
		"ec": map[string]any{"Parameters": values(recipients)}, "optsdata": []byte(options)}}
}

func unwrapping(annotation []byte, keys ...string) map[string]any {
	return map[string]any{"op": "keyunwrap",
		"keyunwrapparams": map[string]any{"dc": map[string]any{"Parameters": values(keys)}, "annotation": annotation}}
}

func values(texts []string) map[string][][]byte {
	all := map[string][][]byte{}
	for _, text := range texts {
		all[provider] = append(all[provider], []byte(text))
	}
	return all
}

// TestProtocol wraps for two recipients and unwraps for one, named and not named, as ocicrypt asks for it.
func TestProtocol(t *testing.T) {
	token := softhsmtest.NewToken(t, "recipients")
	t.Setenv("NOTATION_HSM_CONFIG", "/dev/null")
	t.Setenv("NOTATION_HSM_MODULE_PATH", token.Module)
	t.Setenv("NOTATION_HSM_PIN", softhsmtest.PIN)
	s, err := backends.Keystore().Resolve("", nil, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	spec, _ := key.ParseSpec("EC-256")
	for _, label := range []string{"one", "two", "three"} {
		if _, err := s.Generate(context.Background(),
			key.Request{Spec: spec, Usage: key.Decrypt, Label: label}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Generate(context.Background(),
		key.Request{Spec: spec, Usage: key.Sign, Label: "signing"}); err != nil {
		t.Fatal(err)
	}
	wrapped, err := serve(t, wrapping("pkcs11:object=one", "pkcs11:object=two"))
	if err != nil {
		t.Fatal(err)
	}
	for _, keys := range [][]string{{"pkcs11:object=one"}, {"pkcs11:object=two"},
		{"pkcs11:object=three", "pkcs11:object=two"}, {"Enabled"}, {""}, nil} {
		got, err := serve(t, unwrapping(wrapped.Wrapped.Annotation, keys...))
		if err != nil || string(got.Unwrapped.Options) != options {
			t.Errorf("with the keys %q: %v, and got %q", keys, err, got.Unwrapped.Options)
		}
	}
	for words, request := range map[string]any{
		"no key here opens the layer":  unwrapping(wrapped.Wrapped.Annotation, "pkcs11:object=three"),
		"there is no recipient":        wrapping(),
		"may not derive":               wrapping("pkcs11:object=one", "pkcs11:object=signing"),
		"has no annotation":            unwrapping(nil),
		"has no key of a layer":        map[string]any{"op": "keywrap"},
		`unknown operation "keyxwrap"`: map[string]any{"op": "keyxwrap"},
		"is configured as": map[string]any{"op": "keyunwrap",
			"keyunwrapparams": map[string]any{"dc": map[string]any{"Parameters": map[string][][]byte{"myhsm": nil}},
				"annotation": []byte("x")}},
		"is not JSON":    "x",
		"is larger than": strings.Repeat("x", requestLimit),
	} {
		if _, err := serve(t, request); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("the failure is %v, without %q", err, words)
		}
	}
}

// TestRequestRunsNothing has a request name a library and a command, which runs none unless the config file lists it.
func TestRequestRunsNothing(t *testing.T) {
	token := softhsmtest.NewToken(t, "recipients")
	settings := filepath.Join(t.TempDir(), "config.yaml")
	t.Setenv("NOTATION_HSM_CONFIG", settings)
	t.Setenv("NOTATION_HSM_MODULE_PATH", token.Module)
	t.Setenv("NOTATION_HSM_PIN", softhsmtest.PIN)
	list := func(text string) {
		t.Helper()
		if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list("")
	s, err := backends.Keystore().Resolve("", nil, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	spec, _ := key.ParseSpec("EC-256")
	if _, err := s.Generate(context.Background(),
		key.Request{Spec: spec, Usage: key.Decrypt, Label: "one"}); err != nil {
		t.Fatal(err)
	}
	wrapped, err := serve(t, wrapping("pkcs11:object=one"))
	if err != nil {
		t.Fatal(err)
	}
	library := func(trap *softhsmtest.Trap) string { return "pkcs11:object=one?module-path=" + trap.Library }
	command := func(trap *softhsmtest.Trap) string {
		return "pkcs11:object=one?pin-source=exec:" + strings.ReplaceAll(trap.Command, " ", "%20")
	}
	for name, ask := range map[string]func(*softhsmtest.Trap) map[string]any{
		"recipient, library": func(trap *softhsmtest.Trap) map[string]any { return wrapping(library(trap)) },
		"recipient, command": func(trap *softhsmtest.Trap) map[string]any { return wrapping(command(trap)) },
		"key, library": func(trap *softhsmtest.Trap) map[string]any {
			return unwrapping(wrapped.Wrapped.Annotation, library(trap))
		},
		"key, command": func(trap *softhsmtest.Trap) map[string]any {
			return unwrapping(wrapped.Wrapped.Annotation, command(trap))
		},
	} {
		trap := softhsmtest.NewTrap(t) // a library is loaded into one process once
		request := ask(trap)
		list("")
		if _, err := serve(t, request); trap.Sprung() || !failure.Is(err, failure.Denied) ||
			!strings.Contains(err.Error(), "that the key URI in the key provider's request names") {
			t.Errorf("%s: %v", name, err)
		}
		list("modules: [" + trap.Library + "]\ncommands: [" + trap.Command + "]\n")
		if _, err := serve(t, request); !trap.Sprung() && name != "recipient, command" { // which may need no PIN
			t.Errorf("%s, listed: %v", name, err)
		}
	}
}

// TestCostly shows that requests that are made to cost much are refused, for no more than their size allows.
func TestCostly(t *testing.T) {
	t.Setenv("NOTATION_HSM_CONFIG", "/dev/null")
	t.Setenv("NOTATION_HSM_MODULE_PATH", "/nonexistent/module.so")
	many := wrapping()
	many["keywrapparams"].(map[string]any)["ec"] = map[string]any{
		"Parameters": values(slices.Repeat([]string{"pkcs11:object=one"}, valuesLimit+1))}
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
		if err := Serve(context.Background(), backends.Keystore(), strings.NewReader(request), io.Discard); err == nil ||
			!strings.Contains(err.Error(), words) {
			t.Errorf("%.50q fails with %v, which does not say %q", request, err, words)
		}
	}
}

// checkCost reads a request, which may allocate so much for its size.
func checkCost(t *testing.T, data []byte) {
	t.Helper()
	boundtest.Budget{Bytes: 64 << 10, BytesPerByte: 100}.Check(t, len(data), func() {
		if r, err := readRequest(bytes.NewReader(data)); err == nil {
			_, _ = ours(r.Wrap.Encrypt.Parameters)
			_, _ = ours(r.Unwrap.Decrypt.Parameters)
		}
	})
}

// FuzzRequest reads what may come on standard input: it costs no more than its size allows.
func FuzzRequest(f *testing.F) {
	for _, request := range []any{wrapping("cert:x.pem"), unwrapping([]byte("{}"), ""), map[string]any{"op": 1}} {
		data, _ := json.Marshal(request)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { checkCost(t, data) })
}
