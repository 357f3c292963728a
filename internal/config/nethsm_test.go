package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// configure makes a config file the only place of settings, and returns its folder.
func configure(t *testing.T, text string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range Names {
		t.Setenv(EnvironmentName(name), "")
	}
	for _, name := range nethsmSettings {
		t.Setenv(nethsmEnvironment(name), "")
	}
	t.Setenv("NOTATION_HSM_PIN", "")
	path := filepath.Join(dir, "config.yaml")
	t.Setenv("NOTATION_HSM_CONFIG", path)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

const wholeSection = `
timeout: 1m
pin-source: env:ELSE
nethsm:
  instances: [https://a.example.com, "https://b.example.com:8443/api/v1/"]
  user: signing~operator
  pin-source: env:OPERATOR
  ca-file: ca.pem
  fingerprints: [` + "sha256:" + "0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789abcdef" + `]
  administrator: signing~admin
  administrator-pin-source: prompt
  backup-user: backup
  backup-pin-source: file:/backup
keys:
  release: {uri: "nethsm:release", timeout: 5s}
`

// TestNetHSM reads the section nethsm, and lets the environment and flags override it.
func TestNetHSM(t *testing.T) {
	dir := configure(t, wholeSection)
	s, err := Resolve("release", nil, PluginConfig)
	if err != nil {
		t.Fatal(err)
	}
	n := s.NetHSM
	if s.Key.String() != "nethsm:release" || s.Timeout != 5*time.Second || s.PINSource != "env:OPERATOR" ||
		n.User != "signing~operator" ||
		!slices.Equal(n.Instances, []string{"https://a.example.com", "https://b.example.com:8443"}) ||
		n.CAFile != filepath.Join(dir, "ca.pem") ||
		len(n.Fingerprints) != 1 || n.Fingerprints[0][1] != 0x23 || n.Insecure || n.AdministratorPINSource != "prompt" ||
		n.BackupUser != "backup" {
		t.Errorf("%+v, %+v", s, n)
	}
	// The environment is stronger than the file, and flags than the environment.
	t.Setenv("NOTATION_HSM_NETHSM_INSTANCES", "https://c.example.com, https://d.example.com")
	t.Setenv("NOTATION_HSM_PIN_SOURCE", "env:ENVIRONMENT")
	t.Setenv("NOTATION_HSM_NETHSM_CA_FILE", "here.pem")
	s, err = Resolve("nethsm:other", map[string]string{Timeout: "2s"}, Flags)
	if err != nil || len(s.NetHSM.Instances) != 2 || s.PINSource != "env:ENVIRONMENT" || s.Timeout != 2*time.Second ||
		s.NetHSM.CAFile != "here.pem" {
		t.Errorf("%+v, %v", s, err)
	}
	// The setting token may be "nethsm:", but not for a PKCS#11 key.
	if s, err = Resolve("", map[string]string{Token: "nethsm:"}, Flags); err != nil || s.NetHSM == nil ||
		s.Key.String() != "nethsm:" {
		t.Errorf("%+v, %v", s, err)
	}
	t.Setenv("NOTATION_HSM_TOKEN", "signing")
	if s, err = Resolve("nethsm:release", nil, Flags); err != nil || s.NetHSM == nil {
		t.Errorf("a token in the environment: %+v, %v", s, err)
	}
	if s, err = Resolve("pkcs11:object=release", nil, Flags); err != nil || s.NetHSM != nil || s.Key.Token != "signing" {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestNetHSMRefused refuses malformed settings, and shows no passphrase.
func TestNetHSMRefused(t *testing.T) {
	for name, c := range map[string]struct {
		section, reference string
		given              map[string]string
		message            string
	}{
		"no section": {"", "nethsm:release", nil, "no NetHSM is configured"},
		"misspelt":   {"nethsm: {instance: https://a.example.com}", "nethsm:release", nil, `unknown setting "instance"`},
		"http":       {"nethsm: {instances: http://a.example.com}", "nethsm:release", nil, "invalid instances"},
		"a path":     {"nethsm: {instances: https://a.example.com/x}", "nethsm:release", nil, "invalid instances"},
		"passphrase": {"nethsm: {instances: https://operator:secret@a.example.com}", "nethsm:release", nil,
			"invalid instances"},
		"fingerprint": {"nethsm: {instances: https://a.example.com, fingerprints: abcd}", "nethsm:release", nil,
			"invalid fingerprints"},
		"user": {"nethsm: {instances: https://a.example.com, user: a/b}", "nethsm:release", nil, "invalid user"},
		"insecure": {"nethsm: {instances: https://a.example.com, insecure: maybe}", "nethsm:release", nil,
			"invalid insecure"},
		"key ID": {"nethsm: {instances: https://a.example.com}", "nethsm:../users", nil, "invalid key reference"},
		"another token": {"nethsm: {instances: https://a.example.com}", "nethsm:release",
			map[string]string{Token: "signing"}, "is on another token"},
		"another key": {"nethsm: {instances: https://a.example.com}", "pkcs11:object=a",
			map[string]string{Token: "nethsm:"}, "is on another token"},
		"a module": {"nethsm: {instances: https://a.example.com}", "nethsm:release",
			map[string]string{ModulePath: "/m.so"}, "cannot use the module"},
		"value in a list": {"nethsm: {instances: [{a: b}]}", "nethsm:release", nil,
			"an entry of instances is not a single value"},
	} {
		t.Run(name, func(t *testing.T) {
			configure(t, c.section)
			_, err := Resolve(c.reference, c.given, Flags)
			if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), c.message) || failure.From(err).Hint == "" {
				t.Errorf("%v, want %q", err, c.message)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("it shows the passphrase: %v", err)
			}
		})
	}
}
