package custody

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// A lure is one way for data to name a program: a key's URI, and settings that are stored with it.
type lure struct {
	uri      string
	settings map[string]string
}

// lures are all ways to name the library or the command of a trap for a key.
func lures(trap *softhsmtest.Trap, uri string) map[string]lure {
	command := strings.ReplaceAll(trap.Command, " ", "%20")
	return map[string]lure{
		"library":                 {uri, map[string]string{"module-path": trap.Library}},
		"library in the URI":      {uri + "?module-path=" + trap.Library, nil},
		"library in a token URI":  {uri, map[string]string{"token": "pkcs11:token=signing?module-path=" + trap.Library}},
		"command":                 {uri, map[string]string{"pin-source": "exec:" + trap.Command}},
		"command after a bar":     {uri, map[string]string{"pin-source": "|" + trap.Command}},
		"command in the URI":      {uri + "?pin-source=exec:" + command, nil},
		"command in the URI, too": {uri + "?pin-source=%7C" + command, nil},
		"command in a token URI":  {uri, map[string]string{"token": "pkcs11:token=signing?pin-source=exec:" + command}},
	}
}

// springs runs a command for each kind of list: with none, and with near misses, it fails and says which line to write,
// and nothing has run. With the very library or command listed it runs, so that the test would notice.
func springs(t *testing.T, trap *softhsmtest.Trap, name string, args ...string) {
	t.Helper()
	for _, lists := range [][2][]string{{},
		{{trap.Library + "x", trap.Command}, {trap.Command + " ", trap.Library, strings.Fields(trap.Command)[0]}}} {
		softhsmtest.AllowPrograms(t, lists[0], lists[1])
		_, stderr, err := softhsmtest.Try(t, "", name, args...)
		if trap.Sprung() {
			t.Fatalf("it ran with the lists %q: %v: %s", lists, err, stderr)
		}
		if err == nil || !strings.Contains(stderr, "the config file does not list it") ||
			!strings.Contains(stderr, softhsmtest.ConfigFile(t)) ||
			!strings.Contains(stderr, trap.Library+"]") && !strings.Contains(stderr, trap.Command+"]") {
			t.Errorf("with the lists %q: %v: %s", lists, err, stderr)
		}
	}
	softhsmtest.AllowPrograms(t, []string{trap.Library}, []string{trap.Command})
	if _, stderr, _ := softhsmtest.Try(t, "", name, args...); !trap.Sprung() {
		t.Errorf("it did not run although it is listed: %s", stderr)
	}
}

// TestDataRunsNothing has each place that keeps keys and settings for later name a library and a command.
func TestDataRunsNothing(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "release", "--key", uri)
	trap := softhsmtest.NewTrap(t)
	registry := oci.StartRegistry(t)
	digest, err := oci.PushImage(context.Background(), registry+"/app:v1", "data")
	if err != nil {
		t.Fatal(err)
	}
	image := registry + "/app@" + digest.String()
	signingKeys := filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation", "signingkeys.json")
	registered := softhsmtest.Read(t, signingKeys)
	for name, l := range lures(trap, uri) {
		t.Run("Notation's list/"+name, func(t *testing.T) {
			defer softhsmtest.Write(t, signingKeys, registered)
			entry := map[string]any{"name": "release", "id": l.uri, "pluginName": "hsm", "pluginConfig": l.settings}
			softhsmtest.WriteJSON(t, signingKeys, map[string]any{"default": "release", "keys": []any{entry}})
			springs(t, trap, n.Program, "sign", "--insecure-registry", "--key", "release", image)
			springs(t, trap, n.Plugin, "key", "rotate", "release", "--yes")
			softhsmtest.AllowPrograms(t, nil, nil)
			if stdout, stderr, err := softhsmtest.Try(t, "", n.Plugin, "doctor"); err == nil || trap.Sprung() ||
				!strings.Contains(stdout, "the config file does not list it") {
				t.Errorf("doctor: %v: %s%s", err, stdout, stderr)
			}
		})
		t.Run("plugin config/"+name, func(t *testing.T) {
			args := []string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", l.uri, image}
			for setting, value := range l.settings {
				args = append(args, "--plugin-config", setting+"="+value)
			}
			springs(t, trap, n.Program, args...)
		})
	}
	// What the user says of the same key stays possible.
	softhsmtest.AllowPrograms(t, nil, nil)
	softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--key", "release", "--plugin-config", "module-path="+
		token.Module,
		image)
	printPIN := "printenv NOTATION_HSM_PIN"
	softhsmtest.AllowPrograms(t, []string{token.Module}, []string{printPIN})
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", "")
	softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--key", "release", "--plugin-config", "module-path="+
		token.Module,
		"--plugin-config", "pin-source=exec:"+printPIN, image)
}

// TestJournalRunsNothing changes the journal of a rotation that waits for its certificate.
func TestJournalRunsNothing(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "release", "--key", uri)
	trap := softhsmtest.NewTrap(t)
	csr := filepath.Join(t.TempDir(), "release.csr")
	softhsmtest.Run(t, n.Plugin, "key", "rotate", "release", "--csr", csr, "--yes")
	journal := filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation-hsm", "rotations", "release.json")
	var plan map[string]any
	if err := json.Unmarshal([]byte(softhsmtest.Read(t, journal)), &plan); err != nil {
		t.Fatal(err)
	}
	for name, l := range lures(trap, plan["newID"].(string)) {
		t.Run(name, func(t *testing.T) {
			changed := maps.Clone(plan)
			changed["newID"], changed["pluginConfig"] = l.uri, l.settings
			softhsmtest.WriteJSON(t, journal, changed)
			springs(t, trap, n.Plugin, "key", "rotate", "release", "--csr", csr, "--yes")
		})
	}
}

// TestCARunsNothing changes the record of a CA, and has ceremonies name programs.
func TestCARunsNothing(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	key := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "ca"))
	softhsmtest.Run(t, n.Plugin, "ca", "init", "root", "--key", key, "--subject", "CN=Root,O=Example,C=CH,ST=Zurich",
		"--days", "90")
	uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "release"))
	trap, dir := softhsmtest.NewTrap(t), t.TempDir()
	plan := filepath.Join(dir, "ceremony.json") // which is YAML
	crls := map[string]any{"crls": []any{map[string]string{"ca": "root", "next-update": "7d"}}}
	record := filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation-hsm", "ca", "root", "ca.json")
	original := softhsmtest.Read(t, record)
	for name, l := range lures(trap, key) {
		t.Run("record/"+name, func(t *testing.T) {
			defer softhsmtest.Write(t, record, original)
			softhsmtest.WriteJSON(t, record, map[string]any{"name": "root", "key": l.uri, "settings": l.settings,
				"created": "2026-01-01T00:00:00Z"})
			springs(t, trap, n.Plugin, "ca", "crl", "--ca", "root")
			softhsmtest.WriteJSON(t, plan, crls)
			springs(t, trap, n.Plugin, "ceremony", plan, "--out", filepath.Join(t.TempDir(), "out"))
		})
	}
	leaf := map[string]any{"name": "release", "ca": "root", "subject": "CN=release,O=Example,C=CH,ST=Zurich", "days": 30}
	for name, l := range lures(trap, uri) {
		steps := map[string]any{}
		if l.settings == nil {
			leaf["key"] = l.uri
			steps["leaves"] = []any{leaf}
		} else {
			made := map[string]string{"name": "new", "token": "signing", "label": "new", "spec": "EC-256"}
			for setting, value := range l.settings {
				made[setting] = value
			}
			steps["keys"] = []any{made}
		}
		t.Run("ceremony/"+name, func(t *testing.T) {
			softhsmtest.WriteJSON(t, plan, steps)
			springs(t, trap, n.Plugin, "ceremony", plan, "--out", filepath.Join(t.TempDir(), "out"))
			softhsmtest.AllowPrograms(t, nil, nil)
			if _, stderr, err := softhsmtest.Try(t, "", n.Plugin, "ceremony", plan, "--dry-run"); err == nil ||
				trap.Sprung() ||
				!strings.Contains(stderr, "does not list it") {
				t.Errorf("dry run: %v: %s", err, stderr)
			}
		})
	}
}

// TestBackupRunsNothing restores a backup whose names are the URIs of other modules.
func TestBackupRunsNothing(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	trap, dir := softhsmtest.NewTrap(t), t.TempDir()
	softhsmtest.Setenv(t, "SOPIN", softhsmtest.SOPIN)
	softhsmtest.Run(t, n.Plugin, "key", "backup-key", "generate", "--token", "signing", "--label", "backup", "--shares",
		"3", "--threshold", "2", "--folder", dir, "--so-pin-source", "env:SOPIN")
	uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "signing", "--label", "release",
		"--backup-key", "backup"))
	backup := filepath.Join(dir, "release.backup.json")
	softhsmtest.Run(t, n.Plugin, "key", "backup", uri, "--to", backup)
	softhsmtest.Run(t, n.Plugin, "key", "delete", uri, "--yes")
	lure := "pkcs11:token=signing;object=release?module-path=" + trap.Library + "&pin-source=exec:" +
		url.PathEscape(trap.Command)
	quoted, err := json.Marshal(lure)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"token", "label", "mechanism"} {
		text := regexp.MustCompile(`"`+field+`": "[^"]*"`).ReplaceAllLiteralString(softhsmtest.Read(t, backup),
			`"`+field+`": `+string(quoted))
		text = regexp.MustCompile(`,\s*"mac": \{[^}]*\}`).ReplaceAllLiteralString(text, "") // as the first version had none
		text = strings.Replace(text, `"version": 2`, `"version": 1`, 1)
		text = regexp.MustCompile(`"sha256": "[^"]*"`).ReplaceAllLiteralString(text, `"sha256": ""`)
		var line bytes.Buffer
		if err := json.Compact(&line, []byte(text)); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(line.Bytes())
		changed := filepath.Join(dir, field+".json")
		softhsmtest.Write(t, changed, strings.Replace(text, `"sha256": ""`, `"sha256": "`+hex.EncodeToString(sum[:])+`"`,
			1))
		_, stderr, err := softhsmtest.Try(t, "", n.Plugin, "key", "restore", changed, "--token", "signing",
			"--unauthenticated")
		if trap.Sprung() {
			t.Errorf("%s: %v: %s", field, err, stderr)
		}
	}
}
