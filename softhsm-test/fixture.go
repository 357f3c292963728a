// Package softhsmtest makes the real parts that tests run against: the programs of this repository and the tools that
// it pins, tokens of SoftHSM and of other modules, a module that fails on demand, and a user of the notation command.
// Everything lives in the test's own temporary folder and ends with the test.
package softhsmtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// PIN and SOPIN are those of every token made here.
const (
	PIN   = "4321"
	SOPIN = "87654321"
)

// Missing says that a real part is not installed. On CI that is a failure, elsewhere and with -short the test is
// skipped; both say what to do.
func Missing(t testing.TB, what string) {
	t.Helper()
	if required() {
		t.Fatalf("%s is missing: run 'make test', which installs it", what)
	}
	t.Skipf("%s is missing: run 'make test', which installs it", what)
}

// required reports whether a test fails instead of being skipped where it lacks something: on CI, except with -short,
// as 'make check' runs the tests.
func required() bool { return os.Getenv("CI") != "" && !testing.Short() }

// NeedRoot is for tests that give files to other users, or become one. On CI a test without root fails, elsewhere and
// with -short it is skipped.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if required() {
		t.Fatal("only root can act for other users: run the tests as root")
	}
	t.Skip("only root can act for other users: run the tests as root")
}

// Program returns the path of an installed program.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, name)
	}
	return path
}

// library returns the first file that a pattern matches. With -short it skips the test: a module takes time to set up.
func library(t testing.TB, patterns ...string) string {
	t.Helper()
	if testing.Testing() && testing.Short() { // the benches use it too
		t.Skip("-short leaves out what needs a PKCS#11 module: run 'make test'")
	}
	for _, pattern := range patterns {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	Missing(t, filepath.Base(patterns[0]))
	return ""
}

// Module returns the SoftHSM library.
func Module(t testing.TB) string {
	return library(t, "/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so",
		"/usr/lib64/softhsm/libsofthsm2.so", "/opt/homebrew/lib/softhsm/libsofthsm2.so")
}

// Spy returns OpenSC's pkcs11-spy.so, which logs every call to the module that PKCS11SPY names.
func Spy(t testing.TB) string {
	return library(t, "/usr/lib/*/pkcs11-spy.so", "/usr/lib/*/pkcs11/pkcs11-spy.so", "/usr/lib64/pkcs11-spy.so")
}

// Token is a SoftHSM token in a folder of its own.
type Token struct {
	Dir      string // holds the configuration and the token
	Module   string
	Label    string
	InitArgs string // what the module wants in pReserved of C_Initialize, for one that wants parameters
}

// NewToken makes a token. SoftHSM finds it through SOFTHSM2_CONF, which is set for the test (so such tests don't run in
// parallel).
func NewToken(t testing.TB, label string) *Token {
	t.Helper()
	token := &Token{Dir: t.TempDir(), Module: Module(t), Label: label}
	if err := WriteSoftHSMConfig(token.Dir); err != nil {
		t.Fatal(err)
	}
	Setenv(t, "SOFTHSM2_CONF", filepath.Join(token.Dir, "softhsm2.conf"))
	token.Init(t, label)
	return token
}

// WriteSoftHSMConfig writes softhsm2.conf into a folder, for tokens below it.
func WriteSoftHSMConfig(dir string) error {
	tokens := filepath.Join(dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return err
	}
	conf := fmt.Sprintf("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens)
	return os.WriteFile(filepath.Join(dir, "softhsm2.conf"), []byte(conf), 0o600)
}

// Init makes one more token in the same folder.
func (token *Token) Init(t testing.TB, label string) {
	t.Helper()
	Run(t, Program(t, "softhsm2-util"), "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SOPIN)
}

// Run runs a command and returns its standard output; a failure ends the test with all output of the command.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	stdout, stderr, err := Try(t, "", name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(name), strings.Join(args, " "), err, stdout, stderr)
	}
	return stdout
}

// Try runs a command with a standard input. It has no time limit: one that hangs is found by the -timeout of 'go test'.
func Try(t testing.TB, stdin, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := Command(t, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// Root is the repository.
var Root = sync.OnceValue(func() string {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/notation-hsm/notation-hsm").Output()
	if err != nil {
		panic(fmt.Sprintf("go list: %v", err))
	}
	return strings.TrimSpace(string(out))
})

var built sync.Map // program -> func() error

// Build builds a program of the repository into its bin folder and returns the path. The tools are those pinned in
// tools/go.mod.
func Build(t testing.TB, name string) string {
	t.Helper()
	pkg, dir, out := "./cmd/"+name, Root(), filepath.Join(Root(), "bin", name)
	switch name {
	case "notation":
		pkg, dir, out = "github.com/notaryproject/notation/cmd/notation", filepath.Join(Root(), "tools"),
			filepath.Join(Root(), "bin", "tools", name)
	case "registry":
		pkg, dir, out = "github.com/distribution/distribution/v3/cmd/registry", filepath.Join(Root(), "tools"),
			filepath.Join(Root(), "bin", "tools", name)
	case "containerd", "ctr":
		pkg, dir, out = "github.com/containerd/containerd/v2/cmd/"+name, filepath.Join(Root(), "tools", "containerd"),
			filepath.Join(Root(), "bin", "tools", name)
	case "cosign":
		pkg, dir, out = "github.com/sigstore/cosign/v3/cmd/cosign", filepath.Join(Root(), "tools", "cosign"),
			filepath.Join(Root(), "bin", "tools", name)
	case "notary", "notary-server", "notary-signer":
		dir, out = filepath.Join(Root(), "tools", "notary"), filepath.Join(Root(), "bin", "tools", name)
	case "docker": // the command line alone
		pkg, dir, out = "github.com/docker/cli/cmd/docker", filepath.Join(Root(), "tools", "docker"),
			filepath.Join(Root(), "bin", "tools", name)
	case "skopeo": // which copies images with the library that skopeo is made of
		pkg, out = "./softhsm-test/skopeo", filepath.Join(Root(), "bin", "tools", name)
	case "image", "issuer": // of the demonstrations
		pkg, out = "./softhsm-test/"+name, filepath.Join(Root(), "bin", "tools", name)
	case "cri":
		pkg, dir, out = "./cri", filepath.Join(Root(), "tools", "containerd"), filepath.Join(Root(), "bin", "tools", name)
	case "zlint":
		pkg, dir, out = "github.com/zmap/zlint/v3/cmd/zlint", filepath.Join(Root(), "tools", "zlint"),
			filepath.Join(Root(), "bin", "tools", name)
	case "omniwitness": // cosigns checkpoints of logs
		pkg, dir, out = "github.com/transparency-dev/witness/cmd/omniwitness", filepath.Join(Root(), "tools", "witness"),
			filepath.Join(Root(), "bin", "tools", name)
	}
	build, _ := built.LoadOrStore(name, sync.OnceValue(func() error {
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return err
		}
		// The tests of several packages run at once and may want the same program.
		lock, err := os.OpenFile(filepath.Join(Root(), "bin", ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer lock.Close()
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			return err
		}
		flags := []string{"-tags", Tags}
		if strings.HasPrefix(pkg, "./cmd/") {
			flags = append(flags, Hardened...)
		}
		cmd := Go(dir, slices.Concat([]string{"build"}, flags, []string{"-o", out, pkg})...)
		if strings.HasPrefix(name, "notary") { // three programs, with a fix that its command explains
			cmd = Go(dir, "run", "./build", filepath.Dir(out))
		}
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", name, err, output)
		}
		return nil
	}))
	if err := build.(func() error)(); err != nil {
		t.Fatal(err)
	}
	return out
}

// Tags are the build tags that hsm-image needs, as in the Makefile.
const Tags = "containers_image_openpgp"

// Hardened are the flags with which the programs are built, as in the Makefile.
var Hardened = []string{"-buildmode=pie", "-ldflags", `-s -w "-extldflags=-Wl,-z,relro,-z,now"`}
