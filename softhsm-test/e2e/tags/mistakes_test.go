package tags

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// desk is where one person signs the tags of a repository, with all keys on one token.
type desk struct {
	*softhsmtest.Notation
	t                testing.TB
	image, dir, name string // the program, the folder of files, the repository
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	d := &desk{Notation: softhsmtest.NewNotation(t, token), t: t, image: softhsmtest.Build(t, "hsm-image"),
		dir:  t.TempDir(),
		name: oci.StartRegistry(t) + "/" + repository}
	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", filepath.Join(d.dir, "trust.yaml"))
	for _, label := range []string{"root-1", "root-2", "targets", "snapshot", "timestamp", "other"} {
		softhsmtest.NewCAKey(t, d.Plugin, token.Label, "EC-256", label)
	}
	return d
}

func uri(label string) string { return "pkcs11:token=signing;object=" + label }

// run runs a command of hsm-image tag in the desk's folder, and returns what it prints and its exit code.
func (d *desk) run(args ...string) (text string, code int) {
	d.t.Helper()
	c := exec.CommandContext(d.t.Context(), d.image, append(append([]string{"tag"}, args...), "--plain-http")...)
	c.Dir, c.Env = d.dir, softhsmtest.Environ(d.t)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Fatal(err)
	}
	return string(out), c.ProcessState.ExitCode()
}

// must runs a command that has to succeed.
func (d *desk) must(args ...string) string {
	d.t.Helper()
	text, code := d.run(args...)
	if code != 0 {
		d.t.Fatalf("%q ends with %d: %s", args, code, text)
	}
	return text
}

// fails runs a command that has to fail with an exit code and words.
func (d *desk) fails(code int, words string, args ...string) {
	d.t.Helper()
	if text, got := d.run(args...); got != code || !strings.Contains(text, words) {
		d.t.Errorf("%q ends with %d, not %d, or without %q: %s", args, got, code, words, text)
	}
}

func (d *desk) online() []string {
	return []string{"--snapshot", uri("snapshot"), "--timestamp", uri("timestamp")}
}

// init makes the first metadata, with a root of two keys of two.
func (d *desk) init() {
	d.t.Helper()
	d.must(slices.Concat(d.initCommand(), d.online())...)
}

func (d *desk) initCommand() []string {
	return []string{"init", d.name, "--root", uri("root-1"), "--root", uri("root-2"), "--threshold", "2", "--targets",
		uri("targets")}
}

func (d *desk) file(name string) string {
	d.t.Helper()
	data, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		d.t.Fatal(err)
	}
	return string(data)
}

// TestMistakesOfSigners makes mistakes that are easy to make when tags are signed: each is told at once.
func TestMistakesOfSigners(t *testing.T) {
	d := newDesk(t)
	d.fails(2, "--threshold", append(slices.Concat(d.initCommand(), d.online()), "--threshold", "0")...)
	d.init()
	if _, err := oci.PushImage(t.Context(), d.name+":v1", "one"); err != nil {
		t.Fatal(err)
	}
	v1 := d.name + ":v1"
	sign := []string{"sign", v1, "--key", uri("targets")}
	d.fails(2, "--timestamp is required", append(sign, "--snapshot", uri("snapshot"))...)
	d.fails(2, "--snapshot is required", append(sign, "--timestamp", uri("timestamp"))...)
	d.fails(5, "waiting for the publisher", append(sign, "--wait", "3s")...)
	d.must(append([]string{"refresh", d.name}, d.online()...)...)
	d.must(append([]string{"remove", v1, "--key", uri("targets")}, d.online()...)...)
	d.fails(3, "the key is of no role that signs tags: ", "sign", v1, "--key", uri("other"))
	d.fails(3, "no key is of a role that signs tags", "refresh", d.name, "--key", uri("other"))
	d.fails(4, "push the image", "sign", d.name+":v2", "--key", uri("targets"))
	d.fails(4, "does not sign v1", append([]string{"remove", v1, "--key", uri("targets")}, d.online()...)...)
	d.must(append(sign, d.online()...)...)
	d.fails(4, "does not sign V1", append([]string{"remove", d.name + ":V1", "--key", uri("targets")}, d.online()...)...)
	d.must(append([]string{"remove", v1, "--key", uri("targets")}, d.online()...)...)
	d.fails(3, "is not signed", "show", v1)
	d.fails(1, "is not a root", "root", "show", filepath.Join(d.dir, "trust.yaml"))
	if err := os.Remove(filepath.Join(d.dir, "trust.yaml")); err != nil {
		t.Fatal(err)
	}
	// A root that nobody can publish does not replace the file with the root that verifiers pin.
	before := d.file("root-app.json")
	d.fails(1, "has signed tags already", slices.Concat(d.initCommand(), d.online())...)
	if d.file("root-app.json") != before {
		t.Error("a root that was not published replaced the published one in its file")
	}
	softhsmtest.Run(t, d.Plugin, "trust", "init")
	softhsmtest.Run(t, d.Plugin, "trust", "tags", "add", "127.0.0.1:1/"+repository, "--root", filepath.Join(d.dir,
		"root-app.json"))
	d.fails(5, "check the registry", "sign", "127.0.0.1:1/"+repository+":v1", "--key", uri("targets"))
}

// TestRotationsKeepThresholds replaces the keys of roles: their thresholds stay, and files of roots as well.
func TestRotationsKeepThresholds(t *testing.T) {
	d := newDesk(t)
	d.init()
	first := d.file("root-app.json")
	// with too few root keys, the new root goes to a file of its own, and collects signatures there
	rotate := []string{"rotate", d.name, "timestamp", "--new", uri("other"), "--root", uri("root-1")}
	d.must(rotate...)
	if d.file("root-app.json") != first {
		t.Error("the second root replaced the first one in its file")
	}
	second := d.file("root-app-2.json")
	d.fails(1, "still lacks signatures", rotate...)
	d.must("rotate", d.name, "timestamp", "--new", uri("other"), "--to", "unsigned.json")
	if text := d.must("root", "show", "unsigned.json"); !strings.Contains(text, "signed by -") {
		t.Errorf("a root that nobody has signed: %s", text)
	}
	if d.file("root-app-2.json") != second {
		t.Error("a third root replaced the second one, and its signature")
	}
	_, refused, err := softhsmtest.Try(t, "", d.Plugin, "trust", "tags", "add", "127.0.0.1:1/"+repository, "--root",
		filepath.Join(d.dir, "root-app-2.json"))
	if err == nil || !strings.Contains(refused, "lacks 1 signatures") {
		t.Errorf("a root that lacks a signature can be pinned: %v, %s", err, refused)
	}

	roots := []string{"--root", uri("root-1"), "--root", uri("root-2")}
	rotateRoot := slices.Concat([]string{"rotate", d.name, "root", "--new", uri("root-1")}, roots, d.online())
	d.fails(1, "the threshold is 2 of 1 keys", rotateRoot...)
	d.must(slices.Concat(rotateRoot, []string{"--new", uri("other")})...)
	d.must(slices.Concat([]string{"delegate", "add", d.name, "alice", "--paths", "a*", "--key", uri("root-1"), "--key",
		uri("root-2"), "--threshold", "2", "--targets", uri("targets")}, d.online())...)
	d.must(slices.Concat([]string{"rotate", d.name, "alice", "--new", uri("root-1"), "--new", uri("other"), "--targets",
		uri("targets")}, d.online())...)
	var s tags.Status
	if err := json.Unmarshal([]byte(d.must("status", d.name, "--json")), &s); err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{tuf.Root, "alice"} {
		i := slices.IndexFunc(s.Roles, func(r tuf.RoleInfo) bool { return r.Name == role })
		if i < 0 || s.Roles[i].Threshold != 2 {
			t.Errorf("the roles are %+v, without the threshold of %s", s.Roles, role)
		}
	}
}
