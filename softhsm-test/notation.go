package softhsmtest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Notation is a user of the notation command with a configuration folder of their own, who has the plugin installed and
// trusts what Trust is given.
type Notation struct {
	Program string // the notation command
	Plugin  string // bin/notation-hsm
	stores  int
}

// Patience is a timeout that no machine is too slow for, as NOTATION_HSM_TIMEOUT has it.
const Patience = "1h"

// NewNotation installs the plugin for a new user. PIN, module and token stand in the environment.
func NewNotation(t testing.TB, token *Token) *Notation {
	t.Helper()
	n := &Notation{Program: Build(t, "notation"), Plugin: Build(t, "notation-hsm")}
	Setenv(t, "XDG_CONFIG_HOME", filepath.Join(t.TempDir(), "config"))
	Setenv(t, "XDG_CACHE_HOME", filepath.Join(t.TempDir(), "cache"))
	Setenv(t, "NOTATION_HSM_MODULE_PATH", token.Module)
	Setenv(t, "NOTATION_HSM_PIN", PIN)
	for _, name := range []string{"CONFIG", "LOG", "TOKEN", "SLOT_ID", "PIN_SOURCE", "CERTIFICATE_CHAIN"} {
		Setenv(t, "NOTATION_HSM_"+name, "") // whatever the developer has set
	}
	Setenv(t, "NOTATION_HSM_TIMEOUT", Patience)
	if token.InitArgs != "" {
		WriteFile(t, ConfigFile(t), fmt.Appendf(nil, "tokens:\n  %q:\n    init-args: %q\n", token.Label, token.InitArgs))
	}
	Run(t, n.Plugin, "install")
	return n
}

// Trust makes a certificate file the only one that signatures verify under.
func (n *Notation) Trust(t testing.TB, pem string) {
	t.Helper()
	// Stores are kept apart by their number, so that what one key signs does not verify by another's certificate.
	n.stores++
	store := fmt.Sprintf("store-%d", n.stores)
	Run(t, n.Program, "cert", "add", "--type", "ca", "--store", store, pem)
	policy, err := json.Marshal(map[string]any{"version": "1.0", "trustPolicies": []any{map[string]any{
		"name": "test", "registryScopes": []string{"*"}, "trustedIdentities": []string{"*"},
		"signatureVerification": map[string]string{"level": "strict"}, "trustStores": []string{"ca:" + store},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "trustpolicy.json")
	if err := os.WriteFile(file, policy, 0o600); err != nil {
		t.Fatal(err)
	}
	Run(t, n.Program, "policy", "import", "--force", file)
}

// ConfigFile is the user's.
func ConfigFile(t testing.TB) string {
	t.Helper()
	return filepath.Join(Getenv(t, "XDG_CONFIG_HOME"), "notation-hsm", "config.yaml")
}

// AllowPrograms lists libraries and commands in the user's config file, and nothing else. Without any there is no file.
func AllowPrograms(t testing.TB, modules, commands []string) {
	t.Helper()
	if len(modules)+len(commands) == 0 {
		_ = os.Remove(ConfigFile(t))
		return
	}
	text, err := json.Marshal(map[string][]string{"modules": modules, "commands": commands}) // which is YAML
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(ConfigFile(t)), 0o700); err != nil {
		t.Fatal(err)
	}
	Write(t, ConfigFile(t), string(text))
}
