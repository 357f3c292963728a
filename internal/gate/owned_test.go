package gate

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// newOwned makes a node with every file that its settings can name, each below a folder of its own.
func newOwned(t *testing.T) (node Node, folder string) {
	t.Helper()
	node, folder = newNode(t)
	at := func(name string) string { return filepath.Join(folder, "above-"+name, name) }
	for _, name := range []string{"bin", "trust", "hosts", "state", "auth", "program", "ca", "helper"} {
		if err := os.MkdirAll(at(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	node.TrustDir, node.StateDir, node.HostsDir, node.AuthFile = at("trust"), at("state"), at("hosts"),
		filepath.Join(at("auth"), "auth.json")
	registry := filepath.Join(node.HostsDir, "registry.example.com")
	if err := errors.Join(os.MkdirAll(registry, 0o700),
		os.Rename("trust/trustpolicy.json", filepath.Join(node.TrustDir, "trustpolicy.json")),
		os.WriteFile(filepath.Join(registry, "hosts.toml"),
			[]byte("[host.\"https://mirror.example.com\"]\nclient = [[\""+filepath.Join(at("ca"), "client.pem")+"\", \"\"]]\n"),
			0o600),
		os.WriteFile(filepath.Join(at("ca"), "client.pem"), nil, 0o600),
		os.WriteFile(filepath.Join(at("helper"), "docker-credential-example"), nil, 0o700), //nolint:gosec // it is a program
		os.WriteFile(node.AuthFile, []byte(`{"credHelpers": {"registry.example.com": "example"}}`), 0o600),
		os.WriteFile(filepath.Join(at("program"), "hsm-image"), nil, 0o700), //nolint:gosec // so is this
	); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", at("helper")+":"+os.Getenv("PATH"))
	return node, folder
}

// TestInstallRefusesFiles verifies that the installation, and the verifier later, fail with the name of each file or
// folder that decides and that others can change.
func TestInstallRefusesFiles(t *testing.T) {
	const bin = "above-bin/bin" // the verifier does not know where it was started from
	for _, path := range []string{
		bin, bin + "/another", "above-bin",
		"above-program/program/hsm-image", "above-program/program", "above-program",
		"above-trust/trust", "above-trust/trust/trustpolicy.json", "above-trust",
		"above-hosts/hosts", "above-hosts/hosts/registry.example.com/hosts.toml", "above-hosts",
		"above-auth/auth/auth.json", "above-auth/auth", "above-auth",
		"above-state/state", "above-state/state/decisions.jsonl", "above-state",
		"above-state/state/tags", "above-state/state/tags/0123/timestamp.json",
		"above-ca/ca/client.pem", "above-ca",
		"above-helper/helper/docker-credential-example", "above-helper",
	} {
		for how, change := range map[string]func(string) error{
			"others write": func(path string) error { return os.Chmod(path, 0o777) }, //nolint:gosec // that is what is refused
			"group writes": func(path string) error { return os.Chmod(path, 0o770) }, //nolint:gosec // and that
			"all, sticky":  func(path string) error { return os.Chmod(path, 0o777|os.ModeSticky) },
			"owned":        func(path string) error { return os.Chown(path, 4242, -1) },
		} {
			t.Run(path+" "+how, func(t *testing.T) {
				if how == "owned" {
					softhsmtest.NeedRoot(t)
				}
				node, folder := newOwned(t)
				program := filepath.Join(folder, "above-program/program/hsm-image")
				if err := errors.Join(os.WriteFile(bin+"/another", nil, 0o600), os.WriteFile(node.LogFile(), nil, 0o600),
					os.MkdirAll(filepath.Join(node.tagsDir(), "0123"), 0o700),
					os.WriteFile(filepath.Join(node.tagsDir(), "0123", "timestamp.json"), nil, 0o600)); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(node.CheckFiles(program, os.Geteuid()), change(path)); err != nil {
					t.Fatal(err)
				}
				above := strings.Count(path, "/") == 0 || path == "above-program/program" || path == "above-auth/auth"
				if how == "all, sticky" && above && path != "above-state" {
					if err := node.CheckFiles(program, os.Geteuid()); err != nil { // others cannot replace files in it
						t.Error(err)
					}
					return
				}
				done, err := node.Install(bin, program)
				if !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), filepath.Join(folder, path)) {
					t.Errorf("%+v, %v", done, err)
				}
				if _, err := os.Stat(filepath.Join(bin, verifierName)); err == nil {
					t.Error("the verifier was written")
				}
				if err := node.CheckFiles(program, os.Geteuid()); !strings.HasPrefix(path, "above-bin") &&
					(!failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), filepath.Join(folder, path))) {
					t.Errorf("the verifier finds %v", err)
				}
			})
		}
	}
}

// TestCheckFilesOwner verifies that the verifier's user may own the state directory, and nothing else.
func TestCheckFilesOwner(t *testing.T) {
	softhsmtest.NeedRoot(t)
	node, folder := newOwned(t)
	program := filepath.Join(folder, "above-program/program/hsm-image")
	if err := os.Chown(node.StateDir, 4242, -1); err != nil {
		t.Fatal(err)
	}
	if err := node.CheckFiles(program, 4242); err != nil {
		t.Error(err)
	}
	if err := os.Chown(node.TrustDir, 4242, -1); err != nil {
		t.Fatal(err)
	}
	if err := node.CheckFiles(program, 4242); !failure.Is(err, failure.Denied) {
		t.Errorf("the verifier's user owns the trust directory: %v", err)
	}
}

const skipping = `{"version": "1.0", "trustPolicies": [
	{"name": "system", "registryScopes": ["registry.example.com/pause"], "signatureVerification": {"level": "skip"}},
	{"name": "all", "registryScopes": ["*"], "signatureVerification": {"level": "strict"},
		"trustStores": ["ca:all"], "trustedIdentities": ["*"]}]}`

// TestInstallSkip verifies that a trust policy that skips verification is refused unless AllowSkip is set.
func TestInstallSkip(t *testing.T) {
	node, _ := newNode(t)
	if err := os.WriteFile("trust/trustpolicy.json", []byte(skipping), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Install("bin", "/bin/true"); !failure.Is(err, failure.Denied) ||
		!strings.Contains(err.Error(), `skips verification in its statements "system"`) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat("bin/" + verifierName); err == nil {
		t.Error("the verifier was written")
	}
	node.AllowSkip = true
	done, err := node.Install("bin", "/bin/true")
	if err != nil || len(done.Skip) != 1 || done.Skip[0] != `"system"` {
		t.Fatalf("%+v, %v", done, err)
	}
	if script, err := os.ReadFile(done.Path); err != nil || !strings.Contains(string(script), " '--allow-skip' ") {
		t.Errorf("%s %v", script, err)
	}
}

// TestInstallAnySigner verifies that the installation tells the statements that accept any signer.
func TestInstallAnySigner(t *testing.T) {
	for verification, want := range map[string]int{
		`{"level": "strict"}`:     0,
		`{"level": "permissive"}`: 0,
		`{"level": "audit"}`:      1,
		`{"level": "strict", "override": {"authenticity": "log"}}`:                          1,
		`{"level": "audit", "override": {"authenticity": "enforce", "revocation": "skip"}}`: 0,
	} {
		node, _ := newNode(t)
		if err := os.WriteFile("trust/trustpolicy.json",
			[]byte(strings.Replace(skipping, `{"level": "strict"}`, verification, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		node.AllowSkip = true
		if done, err := node.Install("bin", "/bin/true"); err != nil || len(done.AnySigner) != want {
			t.Errorf("%s: %+v, %v", verification, done, err)
		}
	}
}

// TestNodeSkip verifies that an image that passes without verification is refused and logged unless AllowSkip is set.
func TestNodeSkip(t *testing.T) {
	node, _ := newNode(t)
	if err := errors.Join(os.Mkdir("state", 0o700),
		os.WriteFile("trust/trustpolicy.json", []byte(skipping), 0o600)); err != nil {
		t.Fatal(err)
	}
	sum := digest.FromString("image").String()
	args := []string{"-name", "registry.example.com/pause:1", "-digest", sum, "-stdin-media-type",
		ocispec.MediaTypeDescriptor}
	r := node.Verify(t.Context(), args, strings.NewReader(`{"mediaType":"`+ocispec.MediaTypeImageManifest+`","digest":"`+
		sum+`","size":7}`))
	want := `statement "system" of the trust policy skips verification, and install-verifier was not told to --allow-skip`
	if r.Passed() || r.Reason != want {
		t.Errorf("%+v", r)
	}
	if list := readLog(t, node.LogFile()); len(list) != 1 || list[0].Verdict != Refuse || list[0].Reason != want ||
		list[0].Policy != "system" {
		t.Errorf("the log says %+v", list)
	}
	node.AllowSkip = true
	if r := node.explain(Decision{Verdict: Pass, Policy: "system"}); !r.Passed() ||
		r.Reason != `not verified: statement "system" of the trust policy skips verification` {
		t.Errorf("%+v", r)
	}
}

// TestRefuse verifies that a refusal without verification is logged.
func TestRefuse(t *testing.T) {
	node, _ := newNode(t)
	if err := os.Mkdir("state", 0o700); err != nil {
		t.Fatal(err)
	}
	sum := digest.FromString("image").String()
	r := node.Refuse(t.Context(), []string{"-name", "registry.example.com/app:1", "-digest", sum},
		errors.New("others can change it"))
	if r.Passed() || r.Reason != "others can change it" || r.Digest != sum || r.Reference != "registry.example.com/app:1" {
		t.Errorf("%+v", r)
	}
	if list := readLog(t, node.LogFile()); len(list) != 1 || list[0].Reason != r.Reason || list[0].Digest != sum {
		t.Errorf("the log says %+v", list)
	}
}

// TestHostFiles verifies that the files that hosts.toml names are found in all of its forms, and missing ones left out.
func TestHostFiles(t *testing.T) {
	folder := t.TempDir()
	registry := filepath.Join(folder, "hosts", "registry.example.com")
	if err := os.MkdirAll(registry, 0o700); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		want = append(want, filepath.Join(folder, name))
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := strings.ReplaceAll(`ca = "DIR/a"
client = ["DIR/b"]
[host."https://one.example.com"]
ca = ["../../c", "DIR/missing"]
client = [["DIR/d", "DIR/e"], ["DIR/f", ""]]
[host."https://two.example.com"]
ca = 7
`, "DIR", folder)
	if err := os.WriteFile(filepath.Join(registry, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := hostFiles(filepath.Join(folder, "hosts"))
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%q, wanted %q", got, want)
	}
	for _, text := range []string{"not toml", "host = 7", `[host]` + "\n" + `"https://example.com" = 7`} {
		if err := os.WriteFile(filepath.Join(registry, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := hostFiles(filepath.Join(folder, "hosts")); len(got) > 0 {
			t.Errorf("%q names %q", text, got)
		}
	}
}

// TestChownState verifies that a state directory of root's becomes the verifier user's, that one of the user's stays as
// it is, and that one with other files is refused.
func TestChownState(t *testing.T) {
	softhsmtest.NeedRoot(t)
	folder := t.TempDir()
	file := filepath.Join(folder, "decisions.jsonl")
	node, user := Node{StateDir: folder, Options: Options{CacheDir: filepath.Join(folder, "cache")}},
		sandbox.User{ID: 4242, Group: 4242}
	owner := func(path string) uint32 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Uid
	}
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Mkdir(node.CacheDir, 0o700), os.Mkdir(node.tagsDir(), 0o700),
		node.chownState(user)); err != nil {
		t.Fatal(err)
	}
	if owner(folder) != 4242 || owner(file) != 4242 || owner(node.CacheDir) != 4242 || owner(node.tagsDir()) != 4242 {
		t.Errorf("%d %d %d", owner(folder), owner(file), owner(node.CacheDir))
	}
	// Someone who owns the folder could have put a link to root's file there.
	if err := errors.Join(os.Chown(file, 0, 0), node.chownState(user)); err != nil {
		t.Fatal(err)
	}
	if owner(file) != 0 {
		t.Error("root's file in a folder of the user's was given away")
	}
	// A folder that has anything else in it was not meant, such as /var/log.
	syslog := filepath.Join(folder, "syslog")
	if err := errors.Join(os.Chown(folder, 0, 0), os.WriteFile(syslog, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := node.chownState(user); err == nil || !strings.Contains(err.Error(), "syslog in it is not the verifier's") {
		t.Error(err)
	}
	if owner(folder) != 0 || owner(file) != 0 || owner(syslog) != 0 {
		t.Errorf("%d %d %d", owner(folder), owner(file), owner(syslog))
	}
}
