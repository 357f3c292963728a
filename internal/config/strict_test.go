package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

type part struct {
	Name string `yaml:"name"`
	Size int    `yaml:"size"`
}

type document struct {
	Top   string `yaml:"top"`
	Parts []part `yaml:"parts"`
	One   *part  `yaml:"one"`
	part  `yaml:",inline"`
}

// TestStrict accepts the names of a struct and nothing else, and no alias: a reviewer sees every value in its place.
func TestStrict(t *testing.T) {
	t.Parallel()
	var d document
	if err := Strict("a.yaml", []byte("top: a\nparts: [{name: b, size: 1}]\none: {name: c}\nname: d\n"), &d); err != nil ||
		d.Top != "a" || d.Parts[0].Size != 1 || d.One.Name != "c" || d.Name != "d" {
		t.Errorf("%+v, %v", d, err)
	}
	for text, c := range map[string]struct{ message, hint string }{
		"":                                {"it is empty", "name"},
		"# comment":                       {"it is empty", "name"},
		"top: [":                          {"cannot parse a.yaml", "quotes"},
		"topp: a":                         {`unknown name "topp" in a.yaml:1`, "did you mean top?"},
		"top: a\nparts:\n- nam: b":        {`unknown name "nam" in a.yaml:3`, "did you mean name?"},
		"one: {sice: 1}":                  {`unknown name "sice" in a.yaml:1`, "did you mean size?"},
		"parts: [{size: many}]":           {"cannot parse a.yaml", "line"},
		"top: &a b\nname: *a":             {"YAML alias in a.yaml:2", "write the value out"},
		"parts:\n- &a {name: b}\none: *a": {"YAML alias in a.yaml:3", "write the value out"},
		strings.Repeat("#", MaxFile+1):    {"cannot parse a.yaml", ""},
	} {
		var d document
		if err := Strict("a.yaml", []byte(text), &d); !failure.Is(err, failure.Invalid) ||
			!strings.Contains(err.Error(), c.message) || !strings.Contains(failure.From(err).Hint, c.hint) {
			t.Errorf("%.40q: %v, hint %q", text, err, failure.From(err).Hint)
		}
	}
}

// TestLasting stores settings that mean the same in every working directory.
func TestLasting(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	stored, err := Lasting(map[string]string{ModulePath: "lib/p11.so", CertificateChain: "chain.pem", Token: "a/b",
		PINSource: ""})
	if err != nil || stored[ModulePath] != filepath.Join(dir, "lib/p11.so") ||
		stored[CertificateChain] != filepath.Join(dir, "chain.pem") || stored[Token] != "a/b" {
		t.Errorf("%v, %v", stored, err)
	}
	stored, err = Lasting(map[string]string{ModulePath: "libp11.so"})
	if err != nil || stored[ModulePath] != "libp11.so" {
		t.Errorf("a module that the linker finds: %v, %v", stored, err)
	}
}

// TestPINPlace shows where the PIN comes from, and nothing that may be the PIN.
func TestPINPlace(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"": "no pin-source is set", "env:A": "env:A", "file:/run/pin": "file:/run/pin", "exec:agent read": "exec:agent read",
		"|agent": "|agent", "prompt": "prompt", "none": "none", marker: "a malformed pin-source",
	} {
		if got := (&Settings{PINSource: source}).PINPlace(); !strings.Contains(got, want) || strings.Contains(got, marker) {
			t.Errorf("%q: %q", source, got)
		}
	}
	if got := (&Settings{PIN: marker}).PINPlace(); strings.Contains(got, marker) {
		t.Errorf("it shows the PIN: %s", got)
	}
}

// TestWithPrograms adds programs to the config file as it is, and says how to do it by hand.
func TestWithPrograms(t *testing.T) {
	path := configured(t, "# mine\nmodules: [/a.so]\n")
	more := Programs{Modules: []string{"/b.so"}, Commands: []string{"agent read"}}
	text, err := WithPrograms(more)
	if err != nil || text != "# mine\nmodules: [/b.so, /a.so]\ncommands:\n- agent read\n" {
		t.Errorf("%q, %v", text, err)
	}
	if hint := more.HowToList(); !strings.Contains(hint, path+": modules: [/a.so, /b.so]") ||
		!strings.Contains(hint, path+": commands: [agent read]") {
		t.Errorf("the hint is %q", hint)
	}
	if more.None() || !(Programs{}).None() {
		t.Error("None counts wrong")
	}
	if err := os.WriteFile(path, []byte("{timeout: 1s}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := WithPrograms(more); !failure.Is(err, failure.Invalid) {
		t.Errorf("a file in braces: %q, %v", text, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if text, err := WithPrograms(more); err != nil || text != "modules:\n- /b.so\ncommands:\n- agent read\n" {
		t.Errorf("without a file: %q, %v", text, err)
	}
}

// TestOpenLog appends to a file that only its owner can read.
func TestOpenLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	t.Setenv(logVariable, "")
	if file, err := OpenLog(); file != nil || err != nil {
		t.Errorf("%v, %v", file, err)
	}
	t.Setenv(logVariable, path)
	for range 2 {
		file, err := OpenLog()
		if err != nil {
			t.Fatal(err)
		}
		slog.Debug("step")
		file.Close()
	}
	data, err := os.ReadFile(path)
	if err != nil || strings.Count(string(data), "msg=step") != 2 {
		t.Errorf("%q, %v", data, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	t.Setenv(logVariable, filepath.Join(path, "below"))
	if _, err := OpenLog(); err == nil || !strings.Contains(failure.From(err).Hint, logVariable) {
		t.Error(err)
	}
	t.Setenv(logVariable, "")
	if _, err := OpenLog(); err != nil {
		t.Fatal(err)
	}
}
