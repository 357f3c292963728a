// Package docker tests, end to end, docker-hsm in Docker's own command line, and podman with what hsm-image resolve
// prints.
package docker

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// A user has Docker's command line with the plugin, trusts one signer, and has an engine that is none.
type user struct {
	*softhsmtest.Notation
	*engine
	docker, image string // programs: docker and hsm-image
	key           string
	repository    string
	signed        string // digest of repository:signed; repository:unsigned has no signature
}

func newUser(t *testing.T) *user {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	u := &user{Notation: softhsmtest.NewNotation(t, token), engine: startEngine(t),
		docker: softhsmtest.Build(t, "docker"), image: softhsmtest.Build(t, "hsm-image")}
	registry := oci.StartRegistry(t)
	u.repository = registry + "/team/app"
	key, pem := softhsmtest.NewKey(t, token, u.Plugin, "EC-256", "release")
	u.key = key
	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", filepath.Join(t.TempDir(), "trust.yaml"))
	softhsmtest.Run(t, u.Plugin, "trust", "init")
	softhsmtest.Run(t, u.Plugin, "trust", "signer", "add", "release", "--scope", u.repository, "--cert", pem)
	softhsmtest.Run(t, u.Plugin, "trust", "export")
	settings := filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation", "config.json")
	softhsmtest.Write(t, settings, `{"insecureRegistries": ["`+registry+`"]}`)

	u.signed = u.push(t, "signed", "hello")
	u.sign(t, u.signed)
	u.push(t, "unsigned", "somebody else's")

	home := t.TempDir()
	plugins := filepath.Join(home, ".docker", "cli-plugins")
	if err := errors.Join(os.MkdirAll(plugins, 0o700), os.Symlink(softhsmtest.Build(t, "docker-hsm"),
		filepath.Join(plugins, "docker-hsm"))); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"HOME": home, "DOCKER_CONFIG": "", "DOCKER_CONTEXT": "",
		"DOCKER_HOST": "unix://" + u.socket, "DOCKER_CONTENT_TRUST": "1", "DOCKER_DEFAULT_PLATFORM": ""} {
		softhsmtest.Setenv(t, name, value)
	}
	return u
}

// push pushes an image under a tag and returns its digest.
func (u *user) push(t testing.TB, tag, text string) string {
	t.Helper()
	d, err := oci.PushImage(t.Context(), u.repository+":"+tag, text)
	if err != nil {
		t.Error(err)
	}
	return d.String()
}

func (u *user) sign(t *testing.T, digest string) {
	t.Helper()
	softhsmtest.Run(t, u.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", u.key, u.repository+"@"+digest)
}

// call runs docker and returns what it prints and its exit code.
func (u *user) call(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	stdout, stderr, err := softhsmtest.Try(t, "typed", u.docker, args...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		code = exit.ExitCode()
	}
	return stdout, stderr, code
}

// TestPlugin is found by docker and shown in its help.
func TestPlugin(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	for words, args := range map[string][]string{
		"Pull and run images whose signatures verify": {"--help"},
		"inspect     Show the digest of an image":     {"hsm", "--help"},
		"docker hsm pull [DOCKER PULL'S OPTIONS]":     {"hsm", "pull", "--help"},
		"docker hsm run [DOCKER RUN'S OPTIONS]":       {"hsm", "run", "--help"},
		"docker hsm inspect IMAGE":                    {"help", "hsm", "inspect"},
	} {
		if stdout, stderr, code := u.call(t, args...); code != 0 || !strings.Contains(stdout, words) {
			t.Errorf("%v: %d: %s%s", args, code, stdout, stderr)
		}
	}
	if requests := u.asked(); len(requests) > 0 {
		t.Errorf("the engine was asked: %v", requests)
	}
}

// TestPull has the engine pull what was verified, by its digest, and tag it. The tag moves in the registry between
// verification and pull, which makes no difference.
func TestPull(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	moved := ""
	u.onPull = func(string) { moved = u.push(t, "signed", "moved") }
	stdout, stderr, code := u.call(t, "--log-level", "warn", "hsm", "pull", "--platform", "linux/amd64",
		u.repository+":signed")
	pinned := u.repository + "@" + u.signed
	want := []string{"pull " + pinned + " linux/amd64", "tag " + pinned + " " + u.repository + ":signed"}
	if got := u.asked(); code != 0 || !slices.Equal(got, want) {
		t.Errorf("%d %s%s\n%q, want %q", code, stdout, stderr, got, want)
	}
	if moved == "" || moved == u.signed || u.images[u.repository+":signed"] != u.signed {
		t.Errorf("the tag moved to %q, and the engine has %v", moved, u.images)
	}
	// By now the tag is an image that nobody signed. By its digest, the good one is pulled, and gets no tag.
	if stdout, stderr, code := u.call(t, "hsm", "pull", u.repository+":signed"); code != 3 || stdout != "" ||
		!strings.Contains(stderr, "error: no valid trust data for "+u.repository+":signed: it has no signature\n") {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
	if stdout, stderr, code := u.call(t, "hsm", "pull", pinned); code != 0 {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
	if got := u.asked(); !slices.Equal(got, append(want, "pull "+pinned)) {
		t.Errorf("%q", got)
	}
}

// TestRefused asks nothing of the engine for an image without valid trust data, even if the engine has it under its
// tag.
func TestRefused(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	unsigned := u.repository + ":unsigned"
	u.holds(unsigned, u.signed)
	u.holds("docker.io/library/alpine:latest", u.signed)
	for _, c := range []struct {
		code   int
		reason string
		args   []string
	}{
		{3, "no valid trust data for " + unsigned + ": it has no signature", []string{"pull", unsigned}},
		{125, "no valid trust data for " + unsigned + ": it has no signature", []string{"run", unsigned}},
		{125, "no valid trust data for " + unsigned, []string{"run", "--pull=never", "-it", "--rm", unsigned, "sh"}},
		{125, "no valid trust data for " + unsigned, []string{"run", "-e", u.repository + ":signed", unsigned}},
		{3, "no valid trust data for " + u.repository + ":none: cannot find the image",
			[]string{"pull", u.repository + ":none"}},
		{125, "unknown option --gpu of docker run", []string{"run", "--gpu", "all", u.repository + ":signed"}},
		{125, "cannot verify the image of a mount",
			[]string{"run", "--mount", "type=image,source=alpine,target=/a", u.repository + ":signed"}},
		{125, "docker run needs an image", []string{"run", "--rm"}},
		{2, "cannot pull all tags", []string{"pull", "-a", u.repository}},
		{125, "cannot pull oci:dir:v1: it is in no registry", []string{"run", "oci:dir:v1"}},
		{125, "cannot read the trust policy", []string{"--trust-dir", t.TempDir(), "run", u.repository + ":signed"}},
		{3, "no valid trust data for " + unsigned, []string{"inspect", unsigned}},
	} {
		stdout, stderr, code := u.call(t, append([]string{"hsm"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, "error: "+c.reason) || stdout != "" && c.args[0] != "inspect" {
			t.Errorf("%q: %d %s%s", c.args, code, stdout, stderr)
		}
	}
	if requests := u.asked(); len(requests) > 0 {
		t.Errorf("the engine was asked: %q", requests)
	}
}

// TestRun runs a container by the digest, gives it the standard input, and ends with its exit code.
func TestRun(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	u.code = 42
	u.holds(u.repository+":signed", "sha256:something else that was tagged here")
	log := filepath.Join(t.TempDir(), "decisions.jsonl")
	stdout, stderr, code := u.call(t, "hsm", "--log", log, "run", "-i", "--name", "web", "-e", "A=1",
		"--platform=linux/amd64", u.repository+":signed", "sh", "-c", "echo")
	pinned := u.repository + "@" + u.signed
	want := []string{"create " + pinned + " web", "pull " + pinned + " linux/amd64", "create " + pinned + " web", "start"}
	if got := u.asked(); code != 42 || stdout != "typed" || !slices.Equal(got, want) {
		t.Errorf("%d %q %s\n%q, want %q", code, stdout, stderr, got, want)
	}
	if text := softhsmtest.Read(t, log); strings.Count(text, "\n") != 1 || !strings.Contains(text, `"verdict":"pass"`) {
		t.Errorf("the log is %s", text)
	}
}

// TestInspect shows who signed, and asks nothing of the engine.
func TestInspect(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	stdout, stderr, code := u.call(t, "hsm", "inspect", u.repository+":signed")
	if code != 0 || !strings.Contains(stdout, "digest       "+u.signed) ||
		!strings.Contains(stdout, "signer       CN=release") {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
	var decision struct {
		Digest, Verdict, Reason string
		Signature               *struct{ Subject string }
	}
	stdout, stderr, code = u.call(t, "hsm", "inspect", "--json", u.repository+":signed")
	if err := json.Unmarshal([]byte(stdout), &decision); err != nil || code != 0 || decision.Verdict != "pass" ||
		decision.Digest != u.signed || !strings.Contains(decision.Signature.Subject, "release") {
		t.Errorf("%d %v %s%s", code, err, stdout, stderr)
	}
	stdout, stderr, code = u.call(t, "hsm", "inspect", "--json", u.repository+":unsigned")
	if err := json.Unmarshal([]byte(stdout), &decision); err != nil || code != 3 || decision.Verdict != "refuse" ||
		decision.Reason != "it has no signature" {
		t.Errorf("%d %v %s%s", code, err, stdout, stderr)
	}
	if requests := u.asked(); len(requests) > 0 {
		t.Errorf("the engine was asked: %q", requests)
	}
}

// TestTags has the engine pull what a tag is by the signed tags of the repository. The registry goes back to an older
// image under the tag, which is signed as well.
func TestTags(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	second := u.push(t, "signed", "the second")
	u.sign(t, second)
	var keys []string
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		keys = append(keys, softhsmtest.NewCAKey(t, u.Plugin, "signing", "EC-256", role))
	}
	online := []string{"--snapshot", keys[2], "--timestamp", keys[3]}
	softhsmtest.Run(t, u.image, slices.Concat([]string{"tag", "init", u.repository, "--to",
		filepath.Join(t.TempDir(), "root.json"), "--root", keys[0], "--targets", keys[1]}, online)...)
	softhsmtest.Run(t, u.image, slices.Concat([]string{"tag", "sign", u.repository + ":signed", "--key", keys[1]},
		online)...)
	softhsmtest.Run(t, u.Plugin, "trust", "export")

	if first := u.push(t, "signed", "hello"); first != u.signed {
		t.Fatalf("the registry has %s", first)
	}
	pinned := u.repository + "@" + second
	want := []string{"pull " + pinned, "tag " + pinned + " " + u.repository + ":signed"}
	_, stderr, code := u.call(t, "hsm", "pull", u.repository+":signed")
	if got := u.asked(); code != 0 || !slices.Equal(got, want) {
		t.Errorf("%d %s %q, want %q", code, stderr, got, want)
	}
	if stdout, stderr, code := u.call(t, "hsm", "inspect", u.repository+":signed"); code != 0 ||
		!strings.Contains(stdout, "tag          signed (role tags, timestamp ") {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
	u.push(t, "other", "hello") // whose digest is signed, and the tag is not
	if _, stderr, code := u.call(t, "hsm", "run", u.repository+":other"); code != 125 ||
		!strings.Contains(stderr, "no valid trust data for "+u.repository+":other: tag other is not signed") {
		t.Errorf("%d %s", code, stderr)
	}
	if got := u.asked(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestResolve prints the digest of an image that passes, and nothing for one that is refused.
func TestResolve(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	pinned := u.repository + "@" + u.signed
	for _, image := range []string{u.repository + ":signed", pinned, "docker://" + u.repository + ":signed"} {
		if stdout := softhsmtest.Run(t, u.image, "resolve", image); stdout != pinned+"\n" {
			t.Errorf("%s: %q", image, stdout)
		}
	}
	stdout, stderr, err := softhsmtest.Try(t, "", u.image, "resolve", u.repository+":unsigned")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || stdout != "" ||
		stderr != "error: no valid trust data for "+u.repository+":unsigned: it has no signature\n" {
		t.Errorf("%v: %q %q", err, stdout, stderr)
	}
}
