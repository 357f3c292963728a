package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// edit replaces a text, which is once in a file of a folder.
func edit(t *testing.T, path, old, replacement string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(data), old) != 1 {
		t.Fatalf("%q is not once in %s", old, path)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(data), old, replacement, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCheckConfig accepts what init writes.
func TestCheckConfig(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	out, err := runs("check-config", "--config", filepath.Join(dir, "config.yaml"))
	if err != nil || !strings.HasSuffix(out, "config.yaml: valid; warnings: 1\n") ||
		!strings.Contains(out, "log.checkpoint-file is on the disk of the store") {
		t.Error(out, err)
	}
}

// TestCheckConfigFindings finds each mistake and each reason to warn.
func TestCheckConfigFindings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		file, old, replacement string
		want                   string // of the output; it is valid if that begins with "warning: "
	}{
		"name": {"config.yaml", "policy:", "polcy:", "config.yaml:24: unknown name \"polcy\" (did you mean policy?"},
		"line": {"config.yaml", "version: 1", "version: 2", "config.yaml:2: version: is 2 (write version: 1)"},
		"host": {"config.yaml", "public-url: https://127.0.0.1:8443\nrp-id: 127.0.0.1",
			"public-url: https://localhost\nrp-id: localhost",
			"listen.https.certificate: x509: "},
		"certificate": {"config.yaml", "/tls.pem", "/absent.pem", "listen.https: cannot use the certificate and key: open "},
		"other key":   {"config.yaml", "/tls.key", "/ca/ci.key", "listen.https: cannot use the certificate and key: tls: "},
		"client CA":   {"config.yaml", "/ca/ca.pem", "/absent.pem", "cannot read a file of the config: open "},
		"no client CA": {"config.yaml", "/ca/ca.pem", "/policy.yaml",
			"/policy.yaml has no certificate (name a PEM file with the CA of callers' certificates)"},
		"chain": {"config.yaml", "log:\n", "keys: {release: {certificate-chain: /absent.pem}}\nlog:\n",
			"config.yaml: keys.release.certificate-chain: "},
		"absent key": {"config.yaml", "log:\n", "keys: {other: {}}\nlog:\n",
			"warning: DIR/config.yaml: keys.other: the policy has no such key"},
		"no PIN": {"config.yaml", "  pin-source: \"file:DIR/pin\"\n", "",
			"warning: DIR/config.yaml: the token pkcs11:token=signing has no pin-source"},
		"user": {"config.yaml", "  mtls: {}", "  mtls: {}\n  unix: {users: [no-such-user-here]}",
			"config.yaml: callers: cannot resolve callers.unix.users: "},
		"issuer's keys": {"config.yaml", "    type: github", "    type: github\n    jwks-file: /absent.json", "/absent.json"},
		"no policy": {"config.yaml", "DIR/policy.yaml", "DIR/other.yaml",
			"DIR/other.yaml: cannot read the policy: open DIR/other.yaml: no such file or directory (set policy in the " +
				"config file)"},
		"policy": {"policy.yaml", "per hour", "per week", "DIR/policy.yaml: line 12: keys.release.use[0].limit: "},
		"module": {"policy.yaml", "pkcs11:token=signing", "pkcs11:token=other",
			"DIR/policy.yaml: keys.release: no module of the config file has the token of pkcs11:token=other;object=release"},
		"contacts alone": {"config.yaml", "log:\n", "contacts: {alice: a@example.com}\nlog:\n",
			"warning: DIR/config.yaml: contacts has no effect: notices has no channel with email"},
		"unknown contact": {"config.yaml", "log:\n", "notices: [{name: mail, email: \"smtps://mail.example.com\", " +
			"from: b@example.com}]\ncontacts: {alice: a@example.com}\nlog:\n",
			"warning: DIR/config.yaml: contacts has people whom the policy does not name: alice"},
		"notices": {"config.yaml", "log:\n", "notices:\n- {name: hook, webhook: \"https://example.com/x\"}\nlog:\n",
			"notices[0].secret: is missing (name the file of the secret that signs requests)"},
		"several modules": {"policy.yaml", `"pkcs11:token=signing;object=release"`,
			"[pkcs11:token=signing;object=release, pkcs11:token=other;object=release]",
			"DIR/policy.yaml: keys.release.key[1]: no module of the config file has the token of pkcs11:token=other;"},
		"nobody knows the key": {"policy.yaml", `"pkcs11:token=signing;object=release"`,
			"[pkcs11:token=signing;object=release, pkcs11:token=signing;object=copy]",
			"warning: DIR/config.yaml: keys.release is in several modules, and no certificate-chain says which public key is " +
				"right"},
		"one is the log's key": {"policy.yaml", `"pkcs11:token=signing;object=release"`,
			"[pkcs11:token=signing;object=release, pkcs11:token=signing;object=broker-log]",
			"DIR/policy.yaml: keys.release.key[1]: it is the log's key (make a key of its own for the log)"},
		"log's key": {"policy.yaml", "object=release", "object=broker-log",
			"DIR/policy.yaml: keys.release: it is the log's key (make a key of its own for the log)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := initialised(t)
			in := func(text string) string { return strings.ReplaceAll(text, "DIR", dir) }
			edit(t, filepath.Join(dir, c.file), in(c.old), in(c.replacement))
			out, err := runs("check-config", "--config", filepath.Join(dir, "config.yaml"))
			good := strings.HasPrefix(c.want, "warning: ")
			if !strings.Contains(out, in(c.want)) || good != (err == nil) || !good && !failure.Is(err, failure.Invalid) {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// TestCheckConfigContacts finds people of the policy who get no mail.
func TestCheckConfigContacts(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	edit(t, filepath.Join(dir, "policy.yaml"), "\nkeys:\n", "\ngroups: {security: [erin, dave, carol]}\nkeys:\n")
	edit(t, filepath.Join(dir, "config.yaml"), "log:\n", `notices:
- {name: mail, email: "smtp://mail.example.com", from: hsm-broker@example.com}
contacts: {dave: dave@example.com}
log:
`)
	out, err := runs("check-config", "--config", filepath.Join(dir, "config.yaml"))
	if err != nil || !strings.Contains(out, "contacts does not have people of the policy, who get no mail: carol, erin\n") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestCheckConfigAll finds the mistakes of the config and of the policy at once.
func TestCheckConfigAll(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	path := filepath.Join(dir, "config.yaml")
	edit(t, path, "version: 1", "version: 2")
	edit(t, path, "object=broker-log", "type=private")
	edit(t, filepath.Join(dir, "policy.yaml"), "per hour", "per week")
	out, err := runs("check-config", "--config", path)
	if !failure.Is(err, failure.Invalid) || err.Error() != "3 mistakes" || strings.Count(out, "\n") != 3 ||
		!strings.Contains(out, "config.yaml:2: ") || !strings.Contains(out, "log.key: ") ||
		!strings.Contains(out, "policy.yaml: ") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := runs("check-config", "--config", filepath.Join(dir, "absent")); !failure.Is(err, failure.Invalid) ||
		!strings.Contains(out, "cannot read the config file: open ") {
		t.Errorf("%v\n%s", err, out)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := runs("check-config", "--config", path); err == nil || !strings.HasPrefix(out, path+": it is empty (") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestCheckConfigModes finds a private key that others can read, and a store that others can change.
func TestCheckConfigModes(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	if err := os.Chmod(filepath.Join(dir, "tls.key"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "store"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "store"), 0o777); err != nil {
		t.Fatal(err)
	}
	out, err := runs("check-config", "--config", filepath.Join(dir, "config.yaml"))
	if !failure.Is(err, failure.Invalid) || err.Error() != "2 mistakes" ||
		!strings.Contains(out, dir+"/tls.key: others can read the private key (chmod 600)") ||
		!strings.Contains(out, "config.yaml: store: ") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestCheckConfigDatabaseAway names a database that cannot be reached once, and tries no PIN without it.
func TestCheckConfigDatabaseAway(t *testing.T) {
	t.Parallel()
	dir := initialised(t)
	key, file := filepath.Join(dir, "replicas.key"), filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(key, []byte(strings.Repeat("0123456789abcdef", 4)), 0o600); err != nil {
		t.Fatal(err)
	}
	edit(t, file, "store: sqlite:"+filepath.Join(dir, "store", "broker.db"),
		"store: postgres://broker@127.0.0.1:1/broker?sslmode=disable\nreplicas: {key: "+key+"}")
	edit(t, file, "    type: github", "    type: github\n    jwks-url: https://127.0.0.1:1/keys")
	out, err := runs("check-config", "--online", "--config", file)
	if !failure.Is(err, failure.Invalid) || strings.Count(out, "cannot connect to the database") != 1 ||
		strings.Contains(out, "release") {
		t.Errorf("%v\n%s", err, out)
	}
}
