package gate

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const unprivileged = "nobody" // every system has this user

// permitted prints whether an operation was permitted.
func permitted(err error) string {
	switch {
	case err == nil:
		return "yes"
	case errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM):
		return "no"
	}
	return err.Error()
}

// confine confines the process as a verifier, and prints what it can still do. A process cannot leave its sandbox, so
// it runs in a process of its own.
func confine() error {
	base := os.Getenv("GATE_TEST_BASE")
	node := Node{Options: Options{TrustDir: base + "/trust", HostsDir: base + "/hosts", AuthFile: base + "/auth.json"},
		StateDir: base + "/state", Timeout: 3 * time.Second, User: unprivileged}
	name, descriptor := os.Getenv("GATE_TEST_NAME"), os.Getenv("GATE_TEST_DESCRIPTOR")
	if name != "" {
		node.Timeout = time.Minute
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	fault, err := node.Confine(program)
	if err != nil {
		return err
	}
	fmt.Println("fault:", fault)
	fmt.Println("access:", node.CheckAccess())
	_, err = os.ReadFile(base + "/elsewhere")
	fmt.Println("read elsewhere:", permitted(err))
	fmt.Println("write the policy:", permitted(os.WriteFile(base+"/trust/trustpolicy.json", nil, 0o600)))
	fmt.Println("run:", permitted(exec.Command("/bin/true").Run()))
	fmt.Println("root:", os.Geteuid() == 0, os.Getegid() == 0, permitted(syscall.Setuid(0)))
	fmt.Println("home:", os.Getenv("HOME"), os.Getenv("REGISTRY_AUTH_FILE")+os.Getenv("XDG_CONFIG_HOME")+
		os.Getenv("DOCKER_CONFIG"))
	fmt.Println("resolver:", net.DefaultResolver.PreferGo)
	for name, resource := range map[string]int{"cpu": unix.RLIMIT_CPU, "output": unix.RLIMIT_FSIZE,
		"files": unix.RLIMIT_NOFILE} {
		var limit unix.Rlimit
		if err := unix.Getrlimit(resource, &limit); err != nil {
			return err
		}
		fmt.Printf("%s: %d\n", name, limit.Max)
	}
	if name != "" {
		var image ocispec.Descriptor
		if err := json.Unmarshal([]byte(descriptor), &image); err != nil {
			return err
		}
		d := node.Verify(context.Background(), []string{"-name", name, "-digest", image.Digest.String(), "-stdin-media-type",
			ocispec.MediaTypeDescriptor}, strings.NewReader(descriptor))
		fmt.Printf("decision: %s, tag %v: %s\n", d.Verdict, d.Tag, d.Reason)
	}
	return nil
}

// confinable makes a node whose files the unprivileged user can read, below a folder of root's.
func confinable(t *testing.T, auth string) (base string) {
	t.Helper()
	base = t.TempDir()
	if err := os.Chmod(filepath.Dir(base), 0o755); err != nil { //nolint:gosec // other users pass it
		t.Fatal(err)
	}
	trust := trusting(t, "strict")
	put(t, base+"/hosts/registry.example.com/hosts.toml", "server = \"https://registry.example.com\"\n", 0o644)
	put(t, base+"/auth.json", auth, 0o644)
	put(t, base+"/elsewhere", "", 0o644)
	id, err := user.Lookup(unprivileged)
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Run(t, "cp", "-r", trust, base+"/trust")
	softhsmtest.Run(t, "mkdir", "-p", base+"/state/coverage")
	softhsmtest.Run(t, "chmod", "-R", "go+rX", base)
	softhsmtest.Run(t, "chown", "-R", id.Uid+":"+id.Gid, base+"/state")
	return base
}

// runConfined runs confine, and returns what it printed by its label. What it covers counts for the test's coverage.
func runConfined(t *testing.T, base string, env ...string) map[string]string {
	t.Helper()
	counters := base + "/state/coverage"
	out := runPart(t, "confine", append(env, "GATE_TEST_BASE="+base, "GOCOVERDIR="+counters,
		"REGISTRY_AUTH_FILE=/etc/auth.json", "XDG_CONFIG_HOME=/etc", "DOCKER_CONFIG=/etc")...)
	if f := flag.Lookup("test.gocoverdir"); f != nil && f.Value.String() != "" {
		softhsmtest.Run(t, "cp", "-r", counters+"/.", f.Value.String())
	}
	printed := map[string]string{}
	for line := range strings.Lines(string(out)) {
		label, text, _ := strings.Cut(strings.TrimSpace(line), ": ")
		printed[label] = text
	}
	return printed
}

// TestConfine verifies that a verifier can do what a decision needs, and nothing else.
func TestConfine(t *testing.T) {
	softhsmtest.NeedRoot(t)
	want := map[string]string{"fault": "<nil>", "access": "<nil>", "read elsewhere": "no", "write the policy": "no",
		"run": "no", "root": "false false no", "home": noFolder, "resolver": "true", "cpu": "5", "output": "134217728",
		"files": "256"}
	if sandbox.LandlockVersion() == 0 { // TestRestrict of the sandbox fails if CI's kernel has it
		want["read elsewhere"], want["run"] = "yes", "yes"
	}
	got := runConfined(t, confinable(t, "{}"))
	for label, text := range want {
		if got[label] != text {
			t.Errorf("%s: %q, want %q", label, got[label], text)
		}
	}
}

// TestConfineHelpers verifies that programs can be started only if the auth file names a credential helper.
func TestConfineHelpers(t *testing.T) {
	softhsmtest.NeedRoot(t)
	base := confinable(t, `{"credHelpers": {"registry.example.com": "example"}}`)
	put(t, base+"/bin/docker-credential-example", "#!/bin/sh\n", 0o755)
	softhsmtest.Run(t, "chmod", "755", base+"/bin")
	got := runConfined(t, base, "PATH="+base+"/bin:"+os.Getenv("PATH"))
	if got["run"] != "yes" || got["access"] != "<nil>" || got["write the policy"] != "no" {
		t.Errorf("%+v", got)
	}
}

// TestConfineTags verifies that a confined verifier remembers the tag metadata that it saw, from one run to the next.
func TestConfineTags(t *testing.T) {
	softhsmtest.NeedRoot(t)
	a, base := newTagTest(t, 0), confinable(t, "{}")
	a.node()
	softhsmtest.Run(t, "rm", "-r", base+"/trust")
	softhsmtest.Run(t, "cp", "-r", a.trustDir, base+"/trust")
	softhsmtest.Run(t, "chmod", "-R", "go+rX", base+"/trust")
	put(t, base+"/hosts/registry.example.com/hosts.toml", fmt.Sprintf("server = %q\n", "http://"+a.h.Address), 0o644)
	expect := func(image ocispec.Descriptor, decision string) {
		t.Helper()
		descriptor, err := json.Marshal(image)
		if err != nil {
			t.Fatal(err)
		}
		got := runConfined(t, base, "GATE_TEST_NAME=registry.example.com/app:v1", "GATE_TEST_DESCRIPTOR="+string(descriptor))
		if !strings.HasPrefix(got["decision"], decision) || got["fault"] != "<nil>" || got["access"] != "<nil>" {
			t.Errorf("%+v", got)
		}
	}
	expect(a.first, "pass, tag v1 (role tags")
	old := a.published
	a.sign(tuf.Tags, "v1", a.second)
	a.serve(a.h, a.published)
	expect(a.second, "pass, tag v1 (role tags")
	a.serve(a.h, old)
	expect(a.first, "refuse, tag <nil>: cannot verify the tag metadata: it went back to an older version")
}

// TestConfineFault verifies that a verifier whose files others can change reports it, and is still confined.
func TestConfineFault(t *testing.T) {
	softhsmtest.NeedRoot(t)
	base := confinable(t, "{}")
	if err := os.Chmod(base+"/trust/trustpolicy.json", 0o666); err != nil { //nolint:gosec // that is the fault
		t.Fatal(err)
	}
	got := runConfined(t, base)
	if !strings.Contains(got["fault"], "users other than its owner can write to "+base+"/trust/trustpolicy.json") ||
		got["root"] != "false false no" {
		t.Errorf("%+v", got)
	}
}

// TestCheckAccess verifies that the installation tells what the verifier cannot read or write.
func TestCheckAccess(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Node) error
		kind   failure.Kind
		reason string
	}{
		"everything": {func(*Node) error { return nil }, 0, ""},
		"no policy": {func(*Node) error { return os.Remove("trust/trustpolicy.json") }, failure.NotFound,
			"cannot read the trust policy"},
		"no trust directory": {func(n *Node) error { n.TrustDir = "missing"; return nil }, failure.NotFound,
			"the verifier cannot read what it needs"},
		"a broken link": {func(*Node) error { return os.Symlink("missing", "trust/link") }, failure.NotFound,
			"the verifier cannot read what it needs: open trust/link"},
		"a link to a folder": {func(*Node) error { return os.Symlink("/etc", "trust/link") }, 0, ""},
		"a folder for a log": {func(n *Node) error { return os.Mkdir(n.LogFile(), 0o700) }, failure.Unavailable,
			"the verifier cannot write its log"},
	} {
		t.Run(name, func(t *testing.T) {
			node, _ := newNode(t)
			if err := errors.Join(os.MkdirAll("state/cache/crl", 0o700), c.change(&node)); err != nil {
				t.Fatal(err)
			}
			err := node.CheckAccess()
			if (err == nil) != (c.reason == "") || err != nil && (!failure.Is(err, c.kind) ||
				!strings.Contains(err.Error(), c.reason)) {
				t.Errorf("%v, want %q", err, c.reason)
			}
		})
	}
}

// TestVerifierUser verifies that the verifier runs as the user of the settings, or as the current one.
func TestVerifierUser(t *testing.T) {
	if user, err := (Node{}).user(); err != nil || user.ID != os.Geteuid() || user.Group != os.Getegid() {
		t.Errorf("%+v, %v", user, err)
	}
	if _, err := (Node{User: "nobody-has-this-name"}).user(); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
	other := unprivileged
	if os.Geteuid() != 0 {
		other = "root"
	}
	if user, err := (Node{User: other}).user(); os.Geteuid() == 0 && (err != nil || user.ID == 0) ||
		os.Geteuid() != 0 && !failure.Is(err, failure.Denied) {
		t.Errorf("%+v, %v", user, err)
	}
}
