package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notaryproject/notation-go/dir"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

const subject = "CN=release,O=Example,C=CH,ST=Zurich"

// commandLine runs commands in this process, with keys in memory.
type commandLine struct {
	*testing.T
	module *keystoretest.Module
}

func newCommandLine(t *testing.T, tokens ...string) *commandLine {
	t.Helper()
	home := t.TempDir()
	for name, value := range map[string]string{
		"HOME": home, "XDG_CONFIG_HOME": filepath.Join(home, "config"), "NOTATION_HSM_CONFIG": "",
		"NOTATION_HSM_CA_DIR": "", "NOTATION_HSM_TRUST": "",
		"NOTATION_HSM_MODULE_PATH": keystoretest.Path, "NOTATION_HSM_PIN": keystoretest.PIN,
	} {
		t.Setenv(name, value)
	}
	config, libexec := dir.UserConfigDir, dir.UserLibexecDir
	dir.UserConfigDir = filepath.Join(home, "notation")
	dir.UserLibexecDir = dir.UserConfigDir
	t.Cleanup(func() { dir.UserConfigDir, dir.UserLibexecDir = config, libexec })
	return &commandLine{t, keystoretest.New(tokens...)}
}

// run runs a command line and returns its exit code, standard output and standard error.
func (c *commandLine) run(args ...string) (code int, stdout, stderr string) {
	c.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		c.Fatal(err)
	}
	failed := make(chan string)
	go func() {
		text, _ := io.ReadAll(r)
		failed <- string(text)
	}()
	standard := os.Stderr
	os.Stderr = w // for failures
	root := command(c.module.Keystore())
	var out, errors bytes.Buffer
	root.SetArgs(args)
	root.SetIn(strings.NewReader(""))
	root.SetOut(&out)
	root.SetErr(&errors)
	code = cli.Run(context.Background(), root)
	os.Stderr = standard
	w.Close()
	return code, out.String(), errors.String() + <-failed
}

// ok runs a command line that has to succeed and returns its standard output.
func (c *commandLine) ok(args ...string) string {
	c.Helper()
	code, stdout, stderr := c.run(args...)
	if code != 0 {
		c.Fatalf("%s: exit code %d\n%s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// file writes a file and returns its path.
func (c *commandLine) file(text string) string {
	c.Helper()
	path := filepath.Join(c.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.Fatal(err)
	}
	return path
}

// certified generates a signing key with a self-signed certificate and returns its URI.
func (c *commandLine) certified(label string) string {
	c.Helper()
	uri := strings.TrimSpace(c.ok("key", "generate", "--token", "signing", "--label", label))
	c.ok("cert", "import", uri, c.file(c.ok("cert", "self-sign", uri, "--subject", subject)))
	return uri
}

// TestWrongCalls ends with exit code 2 where a flag is missing or contradicts another, before anything is done.
func TestWrongCalls(t *testing.T) {
	c := newCommandLine(t, "signing")
	for _, call := range []struct{ args, message string }{
		{"key generate", "--label is required"},
		{"key backup URI", "--to is required"},
		{"key backup-key generate", "--label is required"},
		{"key backup-key generate --label a", "--folder is required"},
		{"key backup-key generate --label a --folder f", "--threshold is required"},
		{"key backup-key generate --label a --folder f --threshold 2", "--so-pin-source is required"},
		{"key backup-key generate --label a --folder f --threshold 2 --so-pin-source prompt", "--to or --shares is required"},
		{"key backup-key restore", "--shares is required"},
		{"key backup-key restore --shares a", "--so-pin-source is required"},
		{"key rotate a --csr a --cert b", "--csr excludes --cert and --ca"},
		{"key rotate a --csr a --ca b", "--csr excludes --cert and --ca"},
		{"key rotate", "accepts 1 arg(s), received 0"},
		{"key delete", "accepts 1 arg(s), received 0"},
		{"cert self-sign URI", "--subject is required"},
		{"cert csr URI", "--subject is required"},
		{"cert import URI", "accepts 2 arg(s), received 1"},
		{"install --key URI", "--key-name and --key are both required"},
		{"install --default", "--key-name and --key are both required"},
		{"install --key-name a --timeout 5s", "--key-name and --key are both required"},
		{"ca init a", "--key is required"},
		{"ca init a --key URI", "--subject is required"},
		{"ca init a --key URI --subject CN=a", "--days is required"},
		{"ca issue", "exactly one of --csr and --key is required"},
		{"ca issue --csr a --key b", "exactly one of --csr and --key is required"},
		{"ca issue --key b --days 1", "--subject is required"},
		{"ca issue --csr a", "--days is required"},
		{"ca issue --csr a --days 1", "--ca is required"},
		{"ca revoke", "exactly one of --serial, --key and --cert is required"},
		{"ca revoke --serial a --key b", "exactly one of --serial, --key and --cert is required"},
		{"ca revoke --serial a", "--reason is required"},
		{"ca revoke --serial a --reason superseded", "--ca is required"},
		{"ca crl", "--ca is required"},
		{"ca recover", "--ca is required"},
		{"ca recover --crl a --no-crl", "--crl and --no-crl exclude each other"},
		{"ceremony a", "--out or --dry-run is required"},
		{"trust signer add a", "--scope is required"},
		{"trust signer add a --scope s --cert c --ca d", "--cert, --key and --ca exclude each other"},
		{"trust signer add a --scope s --key k --subject CN=a", "--subject needs --ca or --cert"},
		{"trust signer add a --scope s --cert c --token t", "the settings of a token need --key"},
		{"trust signer add a --scope s --threshold 2", "Notation always accepts one valid signature"},
		{"trust approver add alice", "--from is required"},
		{"trust approvals add a --kinds key --log l", "--group is required"},
		{"trust approvals add a --group g=alice:1 --log l", "--kinds is required"},
		{"trust approvals add a --group g=alice:1 --kinds key", "--log is required"},
		{"trust approvals add a --group g=alice --kinds key --log l", `"g=alice" is not a group`},
		{"trust export --format helm", `unknown --format "helm"`},
		{"nethsm setup", "--key is required"},
		{"nethsm setup --key a --usage decrypt --subject CN=a", "--subject needs --usage sign"},
		{"doctor a b", "accepts at most 1 arg(s), received 2"},
		{"token lost", `unknown command "lost"`},
	} {
		code, stdout, stderr := c.run(strings.Fields(call.args)...)
		if code != 2 || stdout != "" || !strings.HasPrefix(stderr, "error: ") || !strings.Contains(stderr, call.message) ||
			strings.Count(stderr, "hint: ") != 1 {
			t.Errorf("%s: exit code %d, %q, want %q", call.args, code, stderr, call.message)
		}
	}
	if c.module.Calls("Open") != 0 {
		t.Error("a token was opened")
	}
}

// TestExitCodes tells by the exit code what went wrong.
func TestExitCodes(t *testing.T) {
	c := newCommandLine(t, "signing")
	c.certified("release")
	for _, call := range []struct {
		args string
		code int
	}{
		{"key show pkcs11:token=signing;object=none", 4},
		{"key show pkcs11:token=none;object=release", 4},
		{"key rotate none --yes", 4},
		{"key restore /no/such/file --token signing", 4},
		{"key rotate x --yes --ca-dir /no/such/folder", 4},
		{"key backup pkcs11:token=signing;object=release --to /no/such/folder/file", 3},
		{"key generate --token signing --label release", 1},
		{"key generate --token signing --label x --spec EC-1", 1},
		{"doctor pkcs11:token=signing;object=release", 1},
	} {
		if code, _, stderr := c.run(strings.Fields(call.args)...); code != call.code {
			t.Errorf("%s: exit code %d, want %d: %s", call.args, code, call.code, stderr)
		}
	}
	t.Setenv("NOTATION_HSM_PIN", "1234")
	if code, _, stderr := c.run("key", "list", "--token", "signing"); code != 3 ||
		!strings.Contains(stderr, "CKR_PIN_INCORRECT") {
		t.Errorf("a wrong PIN: exit code %d: %s", code, stderr)
	}
}

// TestKeyCommands generates, shows, rotates, backs up, restores and deletes a key.
func TestKeyCommands(t *testing.T) {
	c := newCommandLine(t, "signing", "spare")
	if out := c.ok("token", "list"); !strings.Contains(out, `"signing"`) || !strings.Contains(out, "login required") {
		t.Error(out)
	}
	if out := c.ok("token", "list", "--json"); !strings.Contains(out, `"label": "spare"`) {
		t.Error(out)
	}
	uri := c.certified("release")
	for _, want := range []string{"EC-256", `"release"`, "sign", "can sign", uri} {
		if out := c.ok("key", "list", "--token", "signing"); !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if out := c.ok("key", "list", "--token", "signing", "--json"); !strings.Contains(out, `"usable": true`) {
		t.Error(out)
	}
	for _, want := range []string{"Generated on the token:", "CN=release,O=Example", "can sign"} {
		if out := c.ok("key", "show", uri); !strings.Contains(out, want) {
			t.Errorf("no %q in %s", want, out)
		}
	}
	if out := c.ok("key", "show", uri, "--json"); !strings.Contains(out, `"sensitive": true`) {
		t.Error(out)
	}
	if out := c.ok("cert", "export", uri); !strings.HasPrefix(out, "-----BEGIN CERTIFICATE-----") {
		t.Error(out)
	}
	if out := c.ok("cert", "export", "--public", uri); !strings.HasPrefix(out, "-----BEGIN PUBLIC KEY-----") {
		t.Error(out)
	}
	out := c.ok("cert", "csr", uri, "--subject", subject)
	if !strings.HasPrefix(out, "-----BEGIN CERTIFICATE REQUEST-----") {
		t.Error(out)
	}
	if _, _, stderr := c.run("cert", "csr", uri, "--subject", "CN=release"); !strings.Contains(stderr, "has no C, ST, O") {
		t.Error(stderr)
	}
	c.ok("install", "--key-name", "release", "--key", uri, "--default")
	if _, _, stderr := c.run("install", "--key-name", "release", "--key", uri); !strings.Contains(stderr, "already has") {
		t.Error(stderr)
	}
	c.ok("install", "--key-name", "release")
	if code, out, stderr := c.run("doctor", uri); code != 0 || !strings.Contains(out, "signing key") {
		t.Errorf("%d, %s%s", code, out, stderr)
	}
	if out := c.ok("doctor", "--json"); !strings.Contains(out, `"result": "ok"`) {
		t.Error(out)
	}
	if code, _, stderr := c.run("key", "rotate", "release", "--yes"); code != 0 ||
		!strings.Contains(stderr, "self-signed") {
		t.Errorf("%d, %s", code, stderr)
	}
	if code, _, stderr := c.run("key", "delete", uri, "--yes"); code != 3 || !strings.Contains(stderr, "release-old-1") {
		t.Errorf("%d, %s", code, stderr)
	}
	if !c.module.Has("signing", "release") || !c.module.Has("signing", "release-2") {
		t.Error("keys are missing")
	}
	old := strings.TrimSpace(c.ok("key", "generate", "--token", "spare", "--label", "old", "--usage", "decrypt"))
	if code, _, stderr := c.run("key", "delete", old, "--yes"); code != 0 || c.module.Has("spare", "old") ||
		!strings.Contains(stderr, "deleting "+old) || !strings.HasSuffix(stderr, "deleted\n") {
		t.Errorf("%d, %s", code, stderr)
	}
}

// TestBackupCommands brings a key to another token, with the shares of its wrapping key.
func TestBackupCommands(t *testing.T) {
	c := newCommandLine(t, "signing", "spare")
	folder := t.TempDir()
	code, _, stderr := c.run("key", "backup-key", "generate", "--token", "signing", "--label", "backup", "--shares", "3",
		"--threshold", "2", "--folder", folder, "--so-pin-source", "env:SO")
	if code != 0 || !strings.Contains(stderr, "backup-share-3-of-3.json") ||
		!strings.Contains(stderr, "are not encrypted") {
		t.Fatalf("%d, %s", code, stderr)
	}
	shares := filepath.Join(folder, "backup-share-1-of-3.json") + "," + filepath.Join(folder, "backup-share-3-of-3.json")
	c.ok("key", "backup-key", "restore", "--token", "spare", "--so-pin-source", "env:SO", "--shares", shares)
	code, stdout, stderr := c.run("key", "generate", "--token", "signing", "--label", "release", "--backup-key", "backup")
	if code != 0 || !strings.Contains(stderr, "warning: this key can leave the token") {
		t.Fatalf("%d, %s", code, stderr)
	}
	path := filepath.Join(folder, "release.json")
	c.ok("key", "backup", strings.TrimSpace(stdout), "--to", path)
	code, stdout, stderr = c.run("key", "restore", path, "--token", "spare")
	if code != 0 || !strings.Contains(stdout, "token=spare") || !strings.Contains(stderr, "its test signature verifies") {
		t.Errorf("%d, %s%s", code, stdout, stderr)
	}
}

// TestCACommands makes a root, issues a certificate for a key and for a request, revokes it, and lists all.
func TestCACommands(t *testing.T) {
	c := newCommandLine(t, "signing")
	c.ok("key", "generate", "--token", "signing", "--label", "root")
	out := c.ok("ca", "init", "root", "--key", "pkcs11:token=signing;object=root", "--subject", "CN=Root,O=Example,C=CH",
		"--days", "300", "--path-length", "0")
	if !strings.HasPrefix(out, "-----BEGIN CERTIFICATE-----") {
		t.Error(out)
	}
	uri := strings.TrimSpace(c.ok("key", "generate", "--token", "signing", "--label", "release"))
	c.ok("ca", "issue", "--ca", "root", "--key", uri, "--subject", subject, "--days", "30")
	request := c.file(c.ok("cert", "csr", uri, "--subject", subject))
	code, leaf, stderr := c.run("ca", "issue", "--ca", "root", "--csr", request, "--days", "20", "--yes")
	if code != 0 || !strings.Contains(stderr, "Certificate of the CA root") {
		t.Fatalf("%d, %s", code, stderr)
	}
	if out := c.ok("ca", "list"); !strings.Contains(out, "no CRL yet") {
		t.Error(out)
	}
	if out := c.ok("ca", "show", "root", "--json"); !strings.Contains(out, `"revoked": 0`) {
		t.Error(out)
	}
	code, _, stderr = c.run("ca", "revoke", "--ca", "root", "--cert", c.file(leaf), "--reason", "superseded")
	if code != 0 || !strings.Contains(stderr, "is revoked since") ||
		!strings.Contains(stderr, "next: notation-hsm ca crl") {
		t.Errorf("%d, %s", code, stderr)
	}
	list := filepath.Join(t.TempDir(), "root.crl")
	code, stdout, stderr := c.run("ca", "crl", "--ca", "root", "--out", list)
	if code != 0 || stdout != list+"\n" || !strings.Contains(stderr, "1 revoked certificates") {
		t.Errorf("%d, %s%s", code, stdout, stderr)
	}
	if out := c.ok("ca", "show", "root"); !strings.Contains(out, "superseded") || !strings.Contains(out, "signed") {
		t.Error(out)
	}
	if code, _, stderr := c.run("ca", "recover", "--ca", "root", "--yes"); code == 0 {
		t.Errorf("a ledger that is complete was rebuilt: %s", stderr)
	}
	ledger := filepath.Join(os.Getenv("XDG_CONFIG_HOME"), "notation-hsm", "ca", "root", "ledger.jsonl")
	if err := os.Remove(ledger); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = c.run("ca", "recover", "--ca", "root", "--yes")
	if code != 0 || !strings.Contains(stderr, "KNOWN FROM") || !strings.Contains(stderr, "unknown: ") {
		t.Errorf("%d, %s", code, stderr)
	}
}

// TestTrustCommands adds a signer, exports the policy, and removes the signer.
func TestTrustCommands(t *testing.T) {
	c := newCommandLine(t, "signing")
	uri := c.certified("release")
	leaf := c.file(c.ok("cert", "export", uri))
	for _, want := range []string{"created ", "exists already"} {
		if code, _, stderr := c.run("trust", "init"); code != 0 || !strings.Contains(stderr, want) {
			t.Errorf("%d, %s, want %q", code, stderr, want)
		}
	}
	const scope = "registry.example.com/team/app"
	for _, by := range [][]string{{"--cert", leaf}, {"--key", uri, "--timeout", "5s"}} {
		code, _, stderr := c.run(append([]string{"trust", "signer", "add", "release", "--scope", scope}, by...)...)
		if code != 0 || !strings.Contains(stderr, `signer "release" may sign for `+scope) {
			t.Errorf("%d, %s", code, stderr)
		}
	}
	if out := c.ok("trust", "signer", "list"); !strings.Contains(out, scope) {
		t.Error(out)
	}
	if code, _, stderr := c.run("trust", "export"); code != 0 ||
		!strings.Contains(stderr, "statements of signers: 1, of others: 0") {
		t.Errorf("%d, %s", code, stderr)
	}
	if out := c.ok("trust", "export", "--format", "kyverno"); !strings.Contains(out, "kind: ImageValidatingPolicy") {
		t.Error(out)
	}
	if _, out, _ := c.run("doctor", uri); !strings.Contains(out, "accepted by statement") {
		t.Error(out)
	}
	approvalCommands(t, c, scope)
	if code, _, stderr := c.run("trust", "signer", "remove", "release"); code != 0 ||
		!strings.Contains(stderr, "is removed") {
		t.Errorf("%d, %s", code, stderr)
	}
}

// approvalCommands adds approvers and approvals of a scope, exports them, and removes them.
func approvalCommands(t *testing.T, c *commandLine, scope string) {
	t.Helper()
	const (
		id    = "00112233445566778899aabbccddeeff"
		alice = `{"approver":"` + id + `","kind":"ssh",` +
			`"public":"AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f",` +
			`"salt":"5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a","type":"credential/v1"}`
		log = "broker.example.com/log+71307029+AQABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
	)
	document := base64.StdEncoding.EncodeToString([]byte(alice))
	from := c.file(`[{"name":"alice","id":"` + id + `","credentials":["` + document + `"]}]`)
	add := []string{"trust", "approvals", "add", scope, "--kinds", "ssh", "--log", log, "--max-age", "2160h", "--group"}
	for _, test := range []struct {
		args []string
		ok   bool
		want string
	}{
		{[]string{"trust", "approver", "add", "--from", from, "bob"}, false, `no approver "bob"`},
		{[]string{"trust", "approver", "add", "--from", from, "alice"}, true, "ssh SHA256:"},
		{append(slices.Clone(add), "release=alice:2"), false, "2 of 1"},
		{append(slices.Clone(add), "release=alice:1"), true, "1 of 1 release"},
		{[]string{"trust", "export"}, true, "need approvals, which 'notation verify' does not check"},
		{[]string{"trust", "export", "--format", "ratify"}, false, "approvals"},
		{[]string{"trust", "approver", "remove", "alice"}, false, "is in a group"},
	} {
		if code, _, stderr := c.run(test.args...); (code == 0) != test.ok || !strings.Contains(stderr, test.want) {
			t.Errorf("%v: %d, %s", test.args, code, stderr)
		}
	}
	if out := c.ok("trust", "approver", "list"); !strings.Contains(out, id) || !strings.Contains(out, "SHA256:") {
		t.Error(out)
	}
	if out := c.ok("trust", "approver", "list", "--json"); !strings.Contains(out, `"id": "`+id) {
		t.Error(out)
	}
	out := c.ok("trust", "approvals", "list")
	if !strings.Contains(out, "1 of alice") || !strings.Contains(out, "broker.example.com/log") ||
		!strings.Contains(out, "2160h") {
		t.Error(out)
	}
	if out := c.ok("trust", "approvals", "list", "--json"); !strings.Contains(out, `"maxAge": "2160h"`) {
		t.Error(out)
	}
	for _, args := range [][]string{{"trust", "approvals", "remove", scope}, {"trust", "approver", "remove", "alice"}} {
		if code, _, stderr := c.run(args...); code != 0 || !strings.Contains(stderr, "removed") {
			t.Errorf("%d, %s", code, stderr)
		}
	}
}
