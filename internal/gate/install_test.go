package gate

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// newNode makes a node with relative paths, in a new working directory with a policy in the folder trust.
func newNode(t *testing.T) (node Node, folder string) {
	t.Helper()
	folder, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(folder)
	const policy = `{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
		"signatureVerification": {"level": "strict"},
		"trustStores": ["ca:all"], "trustedIdentities": ["*"]}]}`
	if err := errors.Join(os.Mkdir("trust", 0o700), os.Mkdir("bin", 0o700),
		os.WriteFile("trust/trustpolicy.json", []byte(policy), 0o600)); err != nil {
		t.Fatal(err)
	}
	return Node{Options: Options{TrustDir: "trust"}, StateDir: "state", Timeout: DefaultTimeout}, folder
}

// TestInstall verifies that all paths are absolute, that containerd runs every verifier, and that others are told.
func TestInstall(t *testing.T) {
	node, folder := newNode(t)
	program := filepath.Join(folder, `a\nb`)
	if err := errors.Join(os.WriteFile("bin/another", nil, 0o600),
		os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700)); err != nil {
		t.Fatal(err)
	}
	done, err := node.Install("bin", program)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(folder, "bin", verifierName); done.Path != want {
		t.Errorf("the verifier is %s, not %s", done.Path, want)
	}
	if want := filepath.Join(folder, "state", "decisions.jsonl"); done.Log != want {
		t.Errorf("the log is %s, not %s", done.Log, want)
	}
	for _, want := range []string{"bin_dir = \"" + folder + "/bin\"\n", "max_verifiers = -1\n",
		"per_verifier_timeout = \"10s\"\n"} {
		if !strings.Contains(done.Config, want) {
			t.Errorf("%q is not in\n%s", want, done.Config)
		}
	}
	if !slices.Equal(done.Others, []string{"another"}) {
		t.Errorf("other verifiers are %v", done.Others)
	}
	// sh, which may be dash, says the name as it is.
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", done.Path).Output()
	if err == nil || string(out) != program+" is gone: no image can be verified\n" {
		t.Errorf("without the program: %v %q", err, out)
	}
}

// TestInstallTimeout verifies that a timeout that is too short is refused.
func TestInstallTimeout(t *testing.T) {
	for timeout, want := range map[time.Duration]string{0: "the timeout is 0s", -3 * time.Second: "the timeout is -3s",
		999 * time.Millisecond: "the timeout is 999ms"} {
		node, _ := newNode(t)
		node.Timeout = timeout
		if done, err := node.Install("bin", "/bin/true"); !failure.Is(err, failure.Invalid) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%+v, %v", done, err)
		}
		if _, err := os.Stat("bin/" + verifierName); err == nil {
			t.Error("the verifier was written")
		}
	}
}

// TestNodeDigest verifies that every decision has the digest that containerd gave, whatever failed.
func TestNodeDigest(t *testing.T) {
	sum := digest.FromString("image").String()
	for name, c := range map[string]struct {
		change func(*Node) error
		sum    string
		want   string
		reason string
	}{
		"no policy": {func(*Node) error { return os.Remove("trust/trustpolicy.json") }, sum, sum,
			"cannot read the trust policy"},
		"no time": {func(n *Node) error { n.Timeout = 0; return nil }, sum, sum, "within 0s"},
		"no hosts": {func(n *Node) error {
			n.HostsDir = "hosts"
			return os.MkdirAll("hosts/registry.example.com/hosts.toml", 0o700)
		}, sum, sum, "cannot read the registry hosts"},
		"no log": {func(n *Node) error { n.StateDir = "trust/trustpolicy.json"; return nil }, sum, sum,
			"cannot write the decision log"},
		"no descriptor": {func(*Node) error { return nil }, sum, sum, "cannot read the descriptor: it is not JSON"},
		"no digest":     {func(*Node) error { return nil }, "sha256:1", "", "is not a digest"},
	} {
		t.Run(name, func(t *testing.T) {
			node, _ := newNode(t)
			// With its cache, which a job that is out of time would make while the test tidies up.
			if err := errors.Join(os.MkdirAll("state/cache/crl", 0o700), c.change(&node)); err != nil {
				t.Fatal(err)
			}
			stdin := `{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + sum + `","size":7}`
			if name == "no descriptor" {
				stdin = ""
			}
			r := node.Verify(context.Background(),
				[]string{"-name", "registry.example.com/app:1", "-digest", c.sum, "-stdin-media-type", ocispec.MediaTypeDescriptor},
				strings.NewReader(stdin))
			if r.Passed() || r.Digest != c.want || !strings.Contains(r.Reason, c.reason) {
				t.Errorf("%+v", r)
			}
			if name != "no log" {
				if list := readLog(t, node.LogFile()); len(list) != 1 || list[0].Digest != c.want {
					t.Errorf("the log says %+v", list)
				}
			}
		})
	}
}
