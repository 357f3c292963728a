package custody

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notaryproject/notation-go/dir"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestInstall copies this program to Notation's folder of plugins, and replaces another version.
func TestInstall(t *testing.T) {
	fixture(t)
	wantPlugin := func(outcome Outcome, text string) {
		t.Helper()
		c, err := checkPlugin(t.Context())
		if err != nil {
			c = failed(err)
		}
		c.Name = "plugin"
		wantCheck(t, []Check{c}, "plugin", outcome, text)
	}
	path := filepath.Join(dir.UserLibexecDir, "plugins", "hsm", "notation-hsm")
	wantPlugin(Failed, "is not installed")
	for range 2 {
		if installed, err := Install(); err != nil || installed != path {
			t.Fatal(installed, err)
		}
	}
	wantPlugin(OK, path)
	own := must[[]byte](t)(os.ReadFile(must[string](t)(os.Executable())))
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, own) {
		t.Error("it is not this program", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	wantPlugin(Failed, "is not executable")
	if err := os.WriteFile(path, []byte("older"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	wantPlugin(Warning, "another version")
	if _, err := Install(); err != nil {
		t.Fatal(err)
	}
	wantPlugin(OK, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(must[string](t)(os.Executable()), path); err != nil {
		t.Fatal(err)
	}
	wantPlugin(OK, path) // Notation starts this very file
}

// TestRegister adds a key to Notation's list once, and replaces no other.
func TestRegister(t *testing.T) {
	m := fixture(t, "a")
	generate(t, m, "a", "release")
	const uri = "pkcs11:token=a;object=release"
	given := map[string]string{config.PINSource: "env:PIN"}
	for i, c := range []struct {
		given       map[string]string
		makeDefault bool
		added       bool
	}{{given, false, true}, {given, false, false}, {given, true, false}} {
		added, err := Register(t.Context(), "release", uri, c.given, c.makeDefault, silent)
		if err != nil || added != c.added {
			t.Errorf("%d: %t, %v", i, added, err)
		}
	}
	keys := must[*signingKeys](t)(loadSigningKeys())
	if len(keys.Keys) != 1 || *keys.Default != "release" || keys.Keys[0].PluginConfig[config.PINSource] != "env:PIN" {
		t.Errorf("%+v", keys)
	}
	for name, c := range map[string]struct {
		reference string
		given     map[string]string
	}{"other settings": {uri, nil}, "another key": {"pkcs11:token=a;object=other", given}} {
		_, err := Register(t.Context(), "release", c.reference, c.given, false, silent)
		wantFailure(t, name, err, failure.Conflict, `another signing key named "release"`)
	}
	if _, err := Register(t.Context(), "bad", "alias", nil, false, silent); err == nil {
		t.Error("a reference that the plugin would refuse was added")
	}
}

// TestRegisterPrograms adds the programs that a key names to the config file, and reports each.
func TestRegisterPrograms(t *testing.T) {
	m := fixture(t, "a")
	generate(t, m, "a", "release")
	var told []string
	notify := func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) }
	given := map[string]string{config.ModulePath: "/opt/hsm/p11.so", config.PINSource: "exec:print pin"}
	const uri = "pkcs11:token=a;object=release"
	if added, err := Register(t.Context(), "release", uri, given, false, notify); err != nil || !added {
		t.Fatal(added, err)
	}
	path := config.Path()
	text := string(must[[]byte](t)(os.ReadFile(path)))
	if len(told) != 2 || !strings.Contains(text, "- /opt/hsm/p11.so\n") || !strings.Contains(text, "- print pin\n") {
		t.Errorf("%q, %s", told, text)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	told = nil
	if _, err := Register(t.Context(), "release", uri, given, true, notify); err != nil || told != nil {
		t.Errorf("%v: told again: %q", err, told)
	}

	// What Notation's list has, and nothing allows, is added once it is confirmed.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	var shown config.Programs
	err := AllowRegistered(t.Context(), "release", func(p config.Programs) error { shown = p; return errInjected }, notify)
	if err == nil || exists(path) || len(shown.Modules) != 1 || len(shown.Commands) != 1 {
		t.Errorf("not confirmed: %v, %+v", err, shown)
	}
	confirm := func(config.Programs) error { return nil }
	if err := AllowRegistered(t.Context(), "release", confirm, notify); err != nil || len(told) != 2 {
		t.Errorf("%v, %q", err, told)
	}
	refuse := func(config.Programs) error { return errInjected }
	if err := AllowRegistered(t.Context(), "release", refuse, notify); err != nil {
		t.Errorf("it asks for what is listed already: %v", err)
	}
	err = AllowRegistered(t.Context(), "none", confirm, notify)
	wantFailure(t, "no such key", err, failure.NotFound, "no signing key")
	keys := must[*signingKeys](t)(loadSigningKeys())
	keys.Keys = append(keys.Keys, signingKey{Name: "other", ID: "1", PluginName: "other"})
	if err := keys.save(); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, "another plugin's", AllowRegistered(t.Context(), "other", confirm, notify), failure.Invalid,
		"not a key of this plugin")
}

// TestAllowKeepsFile leaves a config file alone that cannot be changed as it is written, and keeps a link.
func TestAllowKeepsFile(t *testing.T) {
	fixture(t)
	named := map[string]string{config.ModulePath: "/opt/hsm/p11.so"}
	allow := func() error { return Allow(t.Context(), "pkcs11:object=a", named, config.PluginConfig, silent) }
	path := config.Path()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{timeout: 30s}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, "flow style", allow(), failure.Invalid, "cannot add programs to the config file")
	target := filepath.Join(t.TempDir(), "dotfile.yaml")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target, []byte("timeout: 30s\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	if err := allow(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	data := string(must[[]byte](t)(os.ReadFile(target)))
	if err != nil || info.Mode()&os.ModeSymlink == 0 || !strings.HasPrefix(data, "timeout: 30s\n") ||
		!strings.Contains(data, "/opt/hsm/p11.so") {
		t.Errorf("%v, %v: %s", info.Mode(), err, data)
	}
	if info, err := os.Stat(target); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
