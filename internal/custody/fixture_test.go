package custody

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notaryproject/notation-go/dir"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

const testSubject = "CN=release,O=Example,C=CH,ST=Zurich"

// silent is a Notify that shows nothing.
func silent(string, ...any) {}

// useNotation gives the test a Notation configuration directory of its own and returns the path of signingkeys.json.
func useNotation(t *testing.T) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "notation")
	old, oldLibexec := dir.UserConfigDir, dir.UserLibexecDir
	dir.UserConfigDir, dir.UserLibexecDir = folder, folder
	t.Cleanup(func() { dir.UserConfigDir, dir.UserLibexecDir = old, oldLibexec })
	return filepath.Join(folder, "signingkeys.json")
}

// fixture returns a module in memory whose settings are in the environment, and gives the test folders of its own.
func fixture(t *testing.T, tokens ...string) *keystoretest.Module {
	t.Helper()
	home := t.TempDir()
	for name, value := range map[string]string{
		"HOME": home, "XDG_CONFIG_HOME": filepath.Join(home, "config"), "NOTATION_HSM_CONFIG": "",
		"NOTATION_HSM_MODULE_PATH": keystoretest.Path, "NOTATION_HSM_PIN": keystoretest.PIN,
	} {
		t.Setenv(name, value)
	}
	useNotation(t)
	m := keystoretest.New(tokens...)
	t.Cleanup(func() {
		if n := m.OpenStores(); n != 0 {
			t.Errorf("%d stores are open", n)
		}
	})
	return m
}

// generate generates a signing key with a self-signed certificate and returns its reference.
func generate(t *testing.T, m *keystoretest.Module, token, label string) *keystore.Reference {
	t.Helper()
	s := m.Reference(token, "")
	if _, _, err := Generate(t.Context(), s, KeyRequest{Spec: "EC-256", Usage: "sign", Label: label}); err != nil {
		t.Fatal(err)
	}
	s = m.Reference(token, label)
	data, _, err := SelfSign(t.Context(), s, testSubject, 365)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := Import(t.Context(), s, file(t, data)); err != nil {
		t.Fatal(err)
	}
	return s
}

// register adds a key to Notation's list.
func register(t *testing.T, name, reference string) {
	t.Helper()
	if added, err := Register(t.Context(), name, reference, nil, true, silent); err != nil || !added {
		t.Fatal(added, err)
	}
}

// newCA makes a root CA with a key of its own and returns the folder of the CAs.
func newCA(t *testing.T, m *keystoretest.Module, token, name string) string {
	t.Helper()
	if _, _, err := Generate(t.Context(), m.Reference(token, ""), KeyRequest{Spec: "EC-256", Usage: "sign",
		Label: name}); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(t.TempDir(), "ca")
	uri := "pkcs11:token=" + token + ";object=" + name
	_, err := ca.Init(t.Context(), m.Keystore(), folder, name, uri, nil, config.Flags, "",
		ca.Terms{Subject: "CN=" + name + ",O=Example,C=CH,ST=Zurich", Days: 3650})
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

// keysOf returns the labels of the keys on a token.
func keysOf(t *testing.T, m *keystoretest.Module, token string) (labels []string) {
	t.Helper()
	keys, err := Keys(t.Context(), m.Reference(token, ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		labels = append(labels, k.Label)
	}
	return labels
}

// wantFailure fails the test unless err is a failure of a kind whose message has a text, and has a hint.
func wantFailure(t *testing.T, name string, err error, kind failure.Kind, text string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no failure, want %q", name, text)
		return
	}
	f := failure.From(err)
	if f.Kind != kind || !strings.Contains(f.Error(), text) || f.Hint == "" {
		t.Errorf("%s: %+v, want kind %d and %q", name, f, kind, text)
	}
}

// exists reports whether a file exists.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// openSpy notes the settings that tokens are opened with.
type openSpy struct {
	*keystoretest.Module
	opened []config.Settings
}

// Open opens a token.
func (o *openSpy) Open(ctx context.Context, s *config.Settings) (keystore.Store, error) {
	o.opened = append(o.opened, *s)
	return o.Module.Open(ctx, s)
}
