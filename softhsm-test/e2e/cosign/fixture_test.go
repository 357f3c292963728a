// Package cosign tests, end to end, the real cosign with the KMS plugin sigstore-kms-hsm, a registry and SoftHSM.
package cosign

import (
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// user signs with cosign, which finds the plugin in PATH. Settings of the plugin stand in the environment. There is no
// network but the loopback interface: requests for anywhere else go to a proxy that is not there.
type user struct {
	cosign, registry, folder string
	token                    *softhsmtest.Token
	keys                     *softhsmtest.Notation // who makes keys
	offline                  []string              // flags of commands that sign: no services of sigstore are asked
	trusted                  []string              // flags of commands that verify: none is trusted, or asked
}

func newUser(t *testing.T) *user {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	u := &user{cosign: softhsmtest.Build(t, "cosign"), token: token, keys: softhsmtest.NewNotation(t, token),
		registry: oci.StartRegistry(t), folder: t.TempDir()}
	plugin := softhsmtest.Build(t, "sigstore-kms-hsm")
	softhsmtest.Setenv(t, "PATH", filepath.Dir(plugin)+":"+softhsmtest.Getenv(t, "PATH"))
	for _, name := range []string{"DOCKER_CONFIG", "TUF_ROOT"} { // whatever the developer has there
		softhsmtest.Setenv(t, name, t.TempDir())
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		softhsmtest.Setenv(t, name, noProxy(t))
	}
	services, roots := u.file("signing-config.json"), u.file("trusted-root.json")
	softhsmtest.Run(t, u.cosign, "signing-config", "create", "--out", services)
	softhsmtest.Run(t, u.cosign, "trusted-root", "create", "--out", roots)
	u.offline = []string{"--yes", "--signing-config", services, "--trusted-root", roots}
	u.trusted = []string{"--trusted-root", roots, "--insecure-ignore-tlog"}
	return u
}

// file returns the path of a file of the user.
func (u *user) file(name string) string { return filepath.Join(u.folder, name) }

// key makes a key and returns how cosign names it, and a file with the public key as cosign exports it.
func (u *user) key(t *testing.T, spec, label string) (reference, public string) {
	t.Helper()
	uri := strings.TrimSpace(softhsmtest.Run(t, u.keys.Plugin, "key", "generate", "--token", u.token.Label,
		"--spec", spec, "--label", label))
	return "hsm://" + uri, u.export(t, "hsm://"+uri)
}

// export returns a new file with the public key of a reference.
func (u *user) export(t *testing.T, reference string) (public string) {
	t.Helper()
	public = filepath.Join(t.TempDir(), "cosign.pub")
	softhsmtest.Write(t, public, softhsmtest.Run(t, u.cosign, "public-key", "--key", reference))
	return public
}

// noProxy returns the URL of a proxy that is not there.
func noProxy(t *testing.T) string {
	t.Helper()
	return "http://" + softhsmtest.FreeAddresses(t, 1)[0]
}

// image pushes an image of a text.
func (u *user) image(t *testing.T, text string) string {
	t.Helper()
	return pushImage(t, u.registry, text)
}

func pushImage(t *testing.T, registry, text string) string {
	t.Helper()
	repository := registry + "/team/app"
	digest, err := oci.PushImage(t.Context(), repository+":v1", text)
	if err != nil {
		t.Fatal(err)
	}
	return repository + "@" + digest.String()
}

// sign runs a command of cosign that signs, and returns its standard error. args are its name and what is its own.
func (u *user) sign(t *testing.T, key string, args ...string) (stderr string, err error) {
	t.Helper()
	command := append([]string{args[0], "--key", key}, append(u.offline[:len(u.offline):len(u.offline)], args[1:]...)...)
	_, stderr, err = softhsmtest.Try(t, "", u.cosign, command...)
	return stderr, err
}

// signOld is sign for the envelopes of cosign before version 3. Of an image it signs a simple signing document.
func (u *user) signOld(t *testing.T, key string, args ...string) (stderr string, err error) {
	t.Helper()
	command := append([]string{args[0], "--key", key, "--yes", "--use-signing-config=false", "--tlog-upload=false",
		"--new-bundle-format=false"}, args[1:]...)
	_, stderr, err = softhsmtest.Try(t, "", u.cosign, command...)
	return stderr, err
}

// verify is sign for a command that verifies.
func (u *user) verify(t *testing.T, key string, args ...string) (stderr string, err error) {
	t.Helper()
	command := append([]string{args[0], "--key", key}, append(u.trusted[:len(u.trusted):len(u.trusted)], args[1:]...)...)
	_, stderr, err = softhsmtest.Try(t, "", u.cosign, command...)
	return stderr, err
}

// verifies holds that a command that verifies succeeds.
func (u *user) verifies(t *testing.T, key string, args ...string) {
	t.Helper()
	if stderr, err := u.verify(t, key, args...); err != nil {
		t.Errorf("%s with %s: %v\n%s", args, key, err, stderr)
	}
}

// refused holds that a command has failed with the plugin's error, once, with these words and a hint, and that nothing
// else of the plugin reached cosign or the user.
func refused(t *testing.T, stderr string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("it is not refused: %s", stderr)
		return
	}
	_, message, found := strings.Cut(stderr, "error during command execution: ")
	if !found || strings.Count(message, "plugin returned error: ") != 1 || strings.Count(message, ". Hint: ") != 1 {
		t.Errorf("the plugin's error is not shown once, with its hint: %s", stderr)
	}
	for _, word := range words {
		if !strings.Contains(message, word) {
			t.Errorf("the error does not say %q: %s", word, stderr)
		}
	}
	for _, secret := range []string{softhsmtest.PIN, "panic", "goroutine", "errorMessage", "parsing plugin response"} {
		if strings.Contains(stderr, secret) {
			t.Errorf("the output has %q: %s", secret, stderr)
		}
	}
}
