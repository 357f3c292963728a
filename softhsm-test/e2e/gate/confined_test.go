package gate

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/gate"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/containerd"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// share lets every user read a folder that a test has made.
func share(t testing.TB, folder string) {
	t.Helper()
	if err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return os.Chmod(path, 0o755) //nolint:gosec // others are to read it
		}
		return os.Chmod(path, 0o644) //nolint:gosec // the same
	}); err != nil {
		t.Fatal(err)
	}
	for above := filepath.Dir(folder); above != os.TempDir(); above = filepath.Dir(above) {
		if err := os.Chmod(above, 0o711); err != nil { //nolint:gosec // others are to pass it
			t.Fatal(err)
		}
	}
}

// verifierStatus returns what the kernel says of the verifier that runs now.
func verifierStatus(t testing.TB, state string) (threads []map[string]string, limits string) {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		line, err := os.ReadFile(filepath.Join(process, "cmdline")) // it may have ended
		if err == nil && strings.Contains(string(line), "containerd-verifier") && strings.Contains(string(line), state) {
			return softhsmtest.ProcessStatus(t, process)
		}
	}
	return nil, ""
}

// challenge asks for credentials.
func challenge(w http.ResponseWriter) bool {
	w.Header().Set("WWW-Authenticate", `Basic realm="tests"`)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

// TestContainerdGateConfined has a real containerd ask a verifier that runs as an unprivileged user, and looks at it
// from outside while the registry keeps it waiting: it still decides as before, and can do nothing else.
func TestContainerdGateConfined(t *testing.T) {
	softhsmtest.Parallel(t)
	programs := t.TempDir()
	share(t, programs)
	softhsmtest.Setenv(t, "PATH", programs+":"+softhsmtest.Getenv(t, "PATH")) // containerd's, and so the verifier's
	g := newGated(t)
	user, err := sandbox.LookUp(softhsmtest.Unprivileged)
	if err != nil {
		softhsmtest.Missing(t, "the user "+softhsmtest.Unprivileged)
	}
	bin, state, hosts, auth := filepath.Join(t.TempDir(), "bin"), filepath.Join(t.TempDir(), "state"),
		plainHosts(t, g.front.address), filepath.Join(t.TempDir(), "auth.json")
	c := containerd.Start(t, containerd.Options{Verifiers: bin})
	helper := func(name string) {
		softhsmtest.Write(t, auth, fmt.Sprintf(`{"credHelpers": {%q: %q}}`, g.front.address, name))
		for _, folder := range []string{filepath.Dir(auth), filepath.Dir(state), hosts} {
			share(t, folder)
		}
	}
	install := func() (string, error) {
		_, stderr, err := softhsmtest.Try(t, "", g.image, "install-verifier", "--bin-dir", bin, "--trust-dir", g.trust,
			"--state-dir", state, "--hosts-dir", hosts, "--auth-file", auth, "--user", softhsmtest.Unprivileged)
		return stderr, err
	}

	// A user who cannot read what decides cannot decide.
	helper("late")
	if err := os.Chmod(filepath.Dir(g.trust), 0o700); err != nil { //nolint:gosec // a folder
		t.Fatal(err)
	}
	if stderr, err := install(); err == nil ||
		!strings.Contains(stderr, "the verifier cannot run: the verifier cannot read what it needs: ") ||
		!strings.Contains(stderr, "chmod g+r") {
		t.Fatalf("%v %s", err, stderr)
	}
	share(t, g.trust)
	stderr, err := install()
	if err != nil || !strings.Contains(stderr, "the verifier will run as user "+softhsmtest.Unprivileged) {
		t.Fatalf("%v %s", err, stderr)
	}
	if kernel := sandbox.LandlockVersion() > 0; kernel != strings.Contains(stderr, "(Landlock, version ") {
		t.Errorf("install-verifier says %s", stderr)
	}

	// While it waits for the registry, it is nobody, on every thread, and has its limits. A program that appears now does
	// not start.
	signed, marker, asked := g.signed+":signed", filepath.Join(t.TempDir(), "marker"), 0
	restore := g.front.when(func(w http.ResponseWriter, _ *http.Request) bool {
		if asked++; asked == 1 {
			threads, limits := verifierStatus(t, state)
			if len(threads) < 2 {
				t.Errorf("the verifier has %d threads", len(threads))
			}
			id, none := fmt.Sprintf("%[1]d %[1]d %[1]d %[1]d", user.ID), "0000000000000000"
			for _, thread := range threads {
				for field, want := range map[string]string{"Uid": id, "CapPrm": none, "CapEff": none, "CapInh": none,
					"NoNewPrivs": "1"} {
					if thread[field] != want {
						t.Errorf("a thread of the verifier has %s %q", field, thread[field])
					}
				}
				if strings.Contains(" "+thread["Groups"]+" ", " 0 ") {
					t.Errorf("a thread of the verifier has root's group: %s", thread["Groups"])
				}
			}
			softhsmtest.LimitedTo(t, limits, "Max cpu time", 10, 10)
			softhsmtest.LimitedTo(t, limits, "Max data size", 512<<20, 1<<30) // beyond what it has at its start
			softhsmtest.LimitedTo(t, limits, "Max open files", 256, 256)
			softhsmtest.LimitedTo(t, limits, "Max file size", 128<<20, 128<<20)
			late := filepath.Join(programs, "docker-credential-late")
			softhsmtest.Write(t, late, "#!/bin/sh\ntouch "+marker+"\n")
			if err := os.Chmod(late, 0o755); err != nil { //nolint:gosec // it would be run
				t.Error(err)
			}
		}
		return challenge(w)
	})
	share(t, filepath.Dir(marker))
	if err := os.Chmod(filepath.Dir(marker), 0o777); err != nil { //nolint:gosec // it could be written
		t.Fatal(err)
	}
	err = c.Pull(t, signed)
	restore()
	if err == nil || asked == 0 {
		t.Errorf("without credentials: %v, asked %d times", err, asked)
	}
	if sandbox.LandlockVersion() > 0 {
		if err == nil || !strings.Contains(err.Error(), "docker-credential-late: permission denied") {
			t.Errorf("with a program that nobody listed: %v", err)
		}
		if _, err := os.Stat(marker); err == nil {
			t.Error("a program was started that nobody listed")
		}
	}

	// A helper that was there when it started runs, as confined as the verifier.
	secret := filepath.Join(t.TempDir(), "secret")
	softhsmtest.Write(t, secret, "secret")
	open := filepath.Join(t.TempDir(), "open") // to every user, but not named to the verifier
	softhsmtest.Write(t, open, "open")
	share(t, filepath.Dir(open))
	probe := filepath.Join(programs, "docker-credential-probe")
	softhsmtest.Write(t, probe, fmt.Sprintf(`#!/bin/sh
can() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name: yes"; else echo "$name: no"; fi; }
{
	echo "user: $(id -u)"
	can "read the policy" cat %[1]s/trustpolicy.json
	can "write into the trust directory" touch %[1]s/new
	can "change the policy" sh -c 'echo >> %[1]s/trustpolicy.json'
	can "write into the folder of verifiers" touch %[2]s/new
	can "read root's file" cat %[3]s
	can "read another file" cat %[4]s
	can "write elsewhere" touch %[5]s
} > %[6]s/found
echo '{"Username": "robot", "Secret": "secret"}'
`, g.trust, bin, secret, open, marker, state))
	if err := os.Chmod(probe, 0o755); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	helper("probe")
	if stderr, err := install(); err != nil {
		t.Fatalf("%v %s", err, stderr)
	}
	restore = g.front.when(func(w http.ResponseWriter, r *http.Request) bool {
		return r.Header.Get("Authorization") == "" && challenge(w)
	})
	err = c.Pull(t, signed)
	restore()
	if err != nil {
		t.Errorf("with credentials: %v", err)
	}
	want := fmt.Sprintf(
		"user: %d\nread the policy: yes\nwrite into the trust directory: no\nchange the policy: no\nwrite into the folder "+
			"of verifiers: no\n"+
			"read root's file: no\nread another file: no\nwrite elsewhere: no\n", user.ID)
	if sandbox.LandlockVersion() == 0 {
		want = strings.NewReplacer("another file: no", "another file: yes", "elsewhere: no", "elsewhere: yes").Replace(want)
	}
	if found := softhsmtest.Read(t, filepath.Join(state, "found")); found != want {
		t.Errorf("a helper finds\n%s\nwanted\n%s", found, want)
	}

	// Otherwise it decides as ever, and the log is the user's.
	if err := c.PullCRI(t, signed); err != nil {
		t.Error(err)
	}
	for _, image := range []string{g.signed + ":unsigned", g.signed + ":other-signer",
		g.front.address + "/team/ca:revoked"} {
		reason := g.cases[image]
		if err := c.Pull(t, image); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v, wanted %q", image, err, reason)
		}
	}
	log := gate.Node{StateDir: state}.LogFile()
	if d := decisions(t, log); len(d) < 4 || d[1]["verdict"] != gate.Pass {
		t.Errorf("the log says %v", d)
	}

	// What was closed when it was installed is opened: nothing passes until it is closed again.
	policy := filepath.Join(g.trust, "trustpolicy.json")
	for _, path := range []string{policy, g.trust, hosts, auth, probe, programs} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, info.Mode().Perm()|0o022); err != nil {
			t.Fatal(err)
		}
		if err := c.Pull(t, signed); err == nil || !strings.Contains(err.Error(), "can write to "+path) {
			t.Errorf("others can write to %s: %v", path, err)
		}
		if d := decisions(t, log); d[len(d)-1]["verdict"] != gate.Refuse ||
			!strings.Contains(d[len(d)-1]["reason"], "can write to "+path) {
			t.Errorf("the log says %v", d[len(d)-1])
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Pull(t, signed); err != nil {
		t.Error(err)
	}
}

// TestContainerdGateSkip lets an image pass unverified only if the operator allows it explicitly, whatever the policy
// becomes.
func TestContainerdGateSkip(t *testing.T) {
	softhsmtest.Parallel(t)
	registry, trust := oci.StartRegistry(t), t.TempDir()
	bin, state := filepath.Join(t.TempDir(), "bin"), filepath.Join(t.TempDir(), "state")
	const strict = `"signatureVerification": {"level": "strict"}, "trustStores": ["ca:all"], "trustedIdentities": ["*"]`
	policy := func(verification string) {
		softhsmtest.Write(t, filepath.Join(trust, "trustpolicy.json"),
			fmt.Sprintf(`{"version": "1.0", "trustPolicies": [{"name": "pause", "registryScopes": ["%s/pause"], %s}]}`,
				registry,
				verification))
	}
	const skip = `"signatureVerification": {"level": "skip"}`
	image := registry + "/pause:1"
	if _, err := oci.PushImage(t.Context(), image, "pause"); err != nil {
		t.Fatal(err)
	}
	c := containerd.Start(t, containerd.Options{Verifiers: bin})
	install := func(arguments ...string) (string, error) {
		_, stderr, err := softhsmtest.Try(t, "", softhsmtest.Build(t, "hsm-image"),
			append([]string{"install-verifier", "--bin-dir", bin, "--trust-dir", trust, "--state-dir", state},
				arguments...)...)
		return stderr, err
	}
	policy(skip)
	if stderr, err := install(); err == nil || !strings.Contains(stderr, `skips verification in its statements "pause"`) {
		t.Errorf("%v %s", err, stderr)
	}
	policy(strict)
	if stderr, err := install(); err != nil {
		t.Fatalf("%v %s", err, stderr)
	}
	policy(skip) // after it was installed
	log := gate.Node{StateDir: state}.LogFile()
	if err := c.Pull(t, image); err == nil ||
		!strings.Contains(err.Error(),
			`statement "pause" of the trust policy skips verification, and install-verifier was not told to --allow-skip`) {
		t.Errorf("%v", err)
	}
	stderr, err := install("--allow-skip")
	if err != nil || !strings.Contains(stderr, `warning: statement "pause" of the trust policy skips verification`) {
		t.Fatalf("%v %s", err, stderr)
	}
	if err := c.Pull(t, image); err != nil {
		t.Error(err)
	}
	d := decisions(t, log)
	if len(d) != 2 || d[0]["verdict"] != gate.Refuse || d[1]["verdict"] != gate.Pass || d[1]["policy"] != "pause" ||
		d[1]["reason"] != `not verified: statement "pause" of the trust policy skips verification` {
		t.Errorf("the log says %v", d)
	}
}

// TestVerifierConfinedTLS has a confined verifier reach a registry with a certificate that hosts.toml names and that is
// elsewhere, and tells at once if the verifier's user cannot read a key that is named there.
func TestVerifierConfinedTLS(t *testing.T) {
	softhsmtest.Parallel(t)
	if os.Geteuid() != 0 {
		softhsmtest.Missing(t, "root, as which containerd runs,")
	}
	registry := oci.StartRegistry(t)
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: registry})
	}}
	server := httptest.NewTLSServer(proxy)
	defer server.Close()
	address, certificates := strings.TrimPrefix(server.URL, "https://"), t.TempDir()
	ca, key := filepath.Join(certificates, "ca.pem"), filepath.Join(certificates, "key.pem")
	softhsmtest.Write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	share(t, certificates)
	softhsmtest.Write(t, key, "a key")

	trust, hosts, bin, state := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "bin"),
		filepath.Join(t.TempDir(), "state")
	softhsmtest.Write(t, filepath.Join(trust, "trustpolicy.json"),
		`{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
		"signatureVerification": {"level": "strict"}, "trustStores": ["ca:all"], "trustedIdentities": ["*"]}]}`)
	configure := func(more string) {
		file := filepath.Join(hosts, address, "hosts.toml")
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		softhsmtest.Write(t, file, fmt.Sprintf("server = %q\nca = [%q]\n%s", server.URL, ca, more))
		for _, folder := range []string{trust, hosts, filepath.Dir(state)} {
			share(t, folder)
		}
	}
	install := func() (string, error) {
		_, stderr, err := softhsmtest.Try(t, "", softhsmtest.Build(t, "hsm-image"), "install-verifier", "--bin-dir", bin,
			"--trust-dir", trust, "--state-dir", state, "--hosts-dir", hosts, "--user", softhsmtest.Unprivileged)
		return stderr, err
	}
	configure(fmt.Sprintf("client = [[%q, %q]]\n", ca, key))
	if stderr, err := install(); err == nil || !strings.Contains(stderr, key+": permission denied") {
		t.Errorf("%v %s", err, stderr)
	}
	configure("")
	if stderr, err := install(); err != nil {
		t.Fatalf("%v %s", err, stderr)
	}
	sum, err := oci.PushImage(t.Context(), registry+"/app:1", "app")
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr, err := softhsmtest.Try(t, fmt.Sprintf(
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":7}`, sum),
		filepath.Join(bin, "hsm-image-verifier"),
		"-name", address+"/app:1", "-digest", sum.String(), "-stdin-media-type", "application/vnd.oci.descriptor.v1+json")
	if err == nil || !strings.Contains(stdout, "it has no signature") {
		t.Errorf("%v %s%s", err, stdout, stderr)
	}
}

// TestVerifierOfUser has a user who is not root install the verifier of a containerd of their own: their files are
// trusted then, but not when root starts the same verifier.
func TestVerifierOfUser(t *testing.T) {
	softhsmtest.Parallel(t)
	if os.Geteuid() != 0 {
		softhsmtest.Missing(t, "root, to be another user,")
	}
	user, err := sandbox.LookUp(softhsmtest.Unprivileged)
	if err != nil {
		softhsmtest.Missing(t, "the user "+softhsmtest.Unprivileged)
	}
	folder := t.TempDir()
	program := filepath.Join(folder, "hsm-image") // the repository may be closed to others
	softhsmtest.Run(t, "cp", softhsmtest.Build(t, "hsm-image"), program)
	if err := os.Mkdir(filepath.Join(folder, "trust"), 0o700); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, filepath.Join(folder, "trust", "trustpolicy.json"),
		`{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
		"signatureVerification": {"level": "strict"}, "trustStores": ["ca:all"], "trustedIdentities": ["*"]}]}`)
	share(t, folder)
	own := filepath.Join(folder, "own")
	if err := errors.Join(os.Chmod(program, 0o755), os.Mkdir(own, 0o700), os.Chown(own, user.ID,
		user.Group)); err != nil { //nolint:gosec // it is run
		t.Fatal(err)
	}
	sum := "sha256:" + strings.Repeat("0", 64)
	request := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":7}`, sum)
	run := func(as *syscall.Credential, name string, arguments ...string) string {
		cmd := softhsmtest.Command(t, name, arguments...)
		cmd.SysProcAttr, cmd.Stdin, cmd.Dir = &syscall.SysProcAttr{Credential: as}, strings.NewReader(request), "/"
		said, _ := cmd.CombinedOutput() // the verifier refuses
		return string(said)
	}
	as := &syscall.Credential{Uid: uint32(user.ID), Gid: uint32(user.Group)} //nolint:gosec // they are positive
	install := []string{"install-verifier", "--bin-dir", filepath.Join(own, "bin"), "--trust-dir",
		filepath.Join(folder, "trust"), "--state-dir", filepath.Join(own, "state")}
	if said := run(as, program, install...); !strings.Contains(said, "wrote "+filepath.Join(own, "bin")) {
		t.Fatal(said)
	}
	if said := run(as, program, append(install, "--user", "root")...); !strings.Contains(said,
		"cannot become user root") {
		t.Error(said)
	}
	ask := []string{"-name", "127.0.0.1:1/app:1", "-digest", sum, "-stdin-media-type",
		"application/vnd.oci.descriptor.v1+json"}
	verifier := filepath.Join(own, "bin", "hsm-image-verifier")
	if said := run(as, verifier, ask...); !strings.Contains(said, "connection refused") {
		t.Errorf("as its user: %s", said)
	}
	if said := run(nil, verifier, ask...); !strings.Contains(said, fmt.Sprintf("user %d owns %s", user.ID, own)) {
		t.Errorf("as root: %s", said)
	}
}
