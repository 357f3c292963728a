package custody

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/notaryproject/notation-go/dir"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/notation-go/verifier/truststore"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestTrust gives two signers a repository each, and lets them sign in both: one with a self-signed certificate, one
// under a CA. A third has another certificate of that CA. What counts is what the manifest says, for this user and in a
// folder for a cluster.
func TestTrust(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	registry := oci.StartRegistry(t)
	ca := softhsmtest.NewCA(t, "Root", nil)
	newSigner := func(name string, ca *softhsmtest.CA) (uri, pem string) {
		uri = strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", token.Label, "--spec", "EC-256",
			"--label", name))
		subject := "CN=" + name + ",O=Example,C=CH,ST=Zurich"
		pem = filepath.Join(t.TempDir(), name+".pem")
		if ca == nil {
			softhsmtest.Write(t, pem, softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject", subject))
		} else {
			softhsmtest.Write(t, pem, ca.IssueCSR(t, softhsmtest.Run(t, n.Plugin, "cert", "csr", uri, "--subject", subject))+
				ca.PEM())
		}
		softhsmtest.Run(t, n.Plugin, "cert", "import", uri, pem)
		return uri, pem
	}
	alice, alicePEM := newSigner("alice", nil)
	bob, _ := newSigner("bob", ca)
	carol, _ := newSigner("carol", ca)

	images := map[string]string{}
	for name, uri := range map[string]string{"alice": alice, "bob": bob, "carol": carol} {
		for _, repository := range []string{"app", "tools"} {
			reference := registry + "/team/" + repository
			digest, err := oci.PushImage(context.Background(), reference+":"+name, name)
			if err != nil {
				t.Fatal(err)
			}
			images[name+" in "+repository] = reference + "@" + digest.String()
			softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", uri, images[name+" in "+
				repository])
		}
	}
	expect := func(when string, good ...string) {
		t.Helper()
		for what, image := range images {
			_, stderr, err := softhsmtest.Try(t, "", n.Program, "verify", "--insecure-registry", image)
			if verified, wanted := err == nil, slices.Contains(good, what); verified != wanted {
				t.Errorf("%s, %s: verified is %v\n%s", when, what, verified, stderr)
			}
		}
	}
	app, tools := registry+"/team/app", registry+"/team/tools"
	softhsmtest.Run(t, n.Plugin, "trust", "init")
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "alice", "--scope", app, "--cert", alicePEM)
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "bob", "--scope", tools, "--key", bob)
	expect("before the export")
	softhsmtest.Run(t, n.Plugin, "trust", "export")
	expect("two signers", "alice in app", "bob in tools")

	// What others have in the policy stays, and the signers come beside it.
	policyFile := filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation", dir.PathTrustPolicy)
	var policy map[string]any
	data, err := os.ReadFile(policyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &policy); err != nil {
		t.Fatal(err)
	}
	theirs := map[string]any{"name": "theirs", "registryScopes": []any{registry + "/public"},
		"signatureVerification": map[string]any{"level": "skip"}}
	policy["trustPolicies"] = append([]any{theirs}, policy["trustPolicies"].([]any)...)
	if data, err = json.Marshal(policy); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, policyFile, string(data))
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "bob", "--scope", app+"/sub")
	softhsmtest.Run(t, n.Plugin, "trust", "export")
	expect("with another's statement", "alice in app", "bob in tools")
	unsigned, err := oci.PushImage(context.Background(), registry+"/public:v1", "unsigned")
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", registry+"/public@"+unsigned.String())

	// One signer gone: only those signatures fail.
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "remove", "alice")
	expect("before the removal is exported", "alice in app", "bob in tools")
	softhsmtest.Run(t, n.Plugin, "trust", "export")
	expect("without alice", "bob in tools")

	// A folder for a cluster, where everyone under the CA may sign.
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	softhsmtest.Write(t, caFile, ca.PEM())
	manifest, cluster := filepath.Join(t.TempDir(), "cluster.yaml"), t.TempDir()
	softhsmtest.Run(t, n.Plugin, "trust", "init", "--manifest", manifest)
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "team", "--manifest", manifest, "--scope", "*", "--cert",
		caFile)
	softhsmtest.Run(t, n.Plugin, "trust", "export", "--manifest", manifest, "--to", filepath.Join(cluster, "notation"))
	softhsmtest.Setenv(t, "XDG_CONFIG_HOME", cluster)
	expect("a CA for everything", "bob in app", "carol in app", "bob in tools", "carol in tools")
}

// TestTrustKilled kills 'trust signer add' and 'trust export' at each write. No signer that was there is lost, Notation
// can read the policy and all its stores at any moment, and the same command again ends as if nothing had been.
func TestTrustKilled(t *testing.T) {
	softhsmtest.Parallel(t)
	plugin, folder := softhsmtest.Build(t, "notation-hsm"), t.TempDir()
	softhsmtest.Setenv(t, "XDG_CONFIG_HOME", filepath.Join(folder, "config"))
	manifest, to := filepath.Join(folder, "config", "notation-hsm", "trust.yaml"), filepath.Join(folder, "cluster")
	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", manifest)
	certificate := func(name string) string {
		path := filepath.Join(folder, name+".pem")
		softhsmtest.Write(t, path, softhsmtest.NewCA(t, name, nil).PEM())
		return path
	}
	a, b, c := certificate("a"), certificate("b"), certificate("c")
	add := func(name, pem string) []string {
		return []string{"trust", "signer", "add", name, "--scope", "registry.example.com/" + name, "--cert", pem}
	}
	list := func() string { t.Helper(); return softhsmtest.Run(t, plugin, "trust", "signer", "list") }
	fresh := func() {
		t.Helper()
		for _, path := range []string{filepath.Dir(manifest), to} {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		softhsmtest.Run(t, plugin, "trust", "init")
		softhsmtest.Run(t, plugin, add("a", a)...)
		softhsmtest.Run(t, plugin, add("b", b)...)
	}
	fresh()
	before := list()
	softhsmtest.Run(t, plugin, add("c", c)...)
	after := list()
	kills := killAtEach(t, "", fresh, func(at string) {
		if now := list(); now != before && now != after {
			t.Errorf("killed at %s, the signers are\n%s", at, now)
		}
		softhsmtest.Run(t, plugin, add("c", c)...)
		if now := list(); now != after {
			t.Errorf("killed at %s and run again, the signers are\n%s", at, now)
		}
	}, plugin, add("c", c)...)
	t.Logf("trust signer add: %d kills", kills)

	// The export brings a signer, takes one away, and gives one another certificate.
	export := []string{"trust", "export", "--to", to}
	changed := func() {
		t.Helper()
		fresh()
		softhsmtest.Run(t, plugin, export...)
		softhsmtest.Run(t, plugin, "trust", "signer", "remove", "a")
		softhsmtest.Run(t, plugin, "trust", "signer", "remove", "b")
		softhsmtest.Run(t, plugin, add("b", c)...)
		softhsmtest.Run(t, plugin, add("c", c)...)
	}
	fresh()
	softhsmtest.Run(t, plugin, export...)
	old := policyAndStores(t, to)
	changed()
	softhsmtest.Run(t, plugin, export...)
	done, files := policyAndStores(t, to), names(t, to)
	kills = killAtEach(t, "", changed, func(at string) {
		if now := policyAndStores(t, to); now != old && now != done {
			t.Errorf("killed at %s, Notation trusts\n%s", at, now)
		}
		softhsmtest.Run(t, plugin, export...)
		if now := policyAndStores(t, to); now != done {
			t.Errorf("killed at %s and run again, Notation trusts\n%s", at, now)
		}
		if now := names(t, to); !slices.Equal(now, files) {
			t.Errorf("killed at %s and run again, the files are %v", at, now)
		}
	}, plugin, export...)
	t.Logf("trust export: %d kills", kills)
}

// policyAndStores reads a trust policy and the stores it names, with Notation's own code, and returns all that it
// trusts.
func policyAndStores(t testing.TB, to string) string {
	t.Helper()
	var policy trustpolicy.Document
	data, err := os.ReadFile(filepath.Join(to, dir.PathTrustPolicy))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &policy); err != nil {
		t.Fatal(err)
	}
	if err := policy.Validate(); err != nil {
		t.Error(err)
	}
	text := string(data)
	for _, statement := range policy.TrustPolicies {
		for _, store := range statement.TrustStores {
			list, err := truststore.NewX509TrustStore(dir.NewSysFS(to)).GetCertificates(context.Background(),
				truststore.TypeCA, strings.TrimPrefix(store, "ca:"))
			if err != nil {
				t.Errorf("%s: %v", store, err)
			}
			text += softhsmtest.PEM(list...)
		}
	}
	return text
}

// names lists the files of a folder, but the temporary ones of a killed write, which nobody reads.
func names(t testing.TB, folder string) []string {
	t.Helper()
	var list []string
	if err := filepath.WalkDir(folder, func(path string, _ os.DirEntry, err error) error {
		if !strings.HasPrefix(filepath.Base(path), ".trustpolicy.json") {
			list = append(list, path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestTrustAtOnce has fifty signers added at the same time, with exports between them.
func TestTrustAtOnce(t *testing.T) {
	softhsmtest.Parallel(t)
	plugin, folder := softhsmtest.Build(t, "notation-hsm"), t.TempDir()
	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", filepath.Join(folder, "trust.yaml"))
	pem := filepath.Join(folder, "ca.pem")
	softhsmtest.Write(t, pem, softhsmtest.NewCA(t, "Root", nil).PEM())
	softhsmtest.Run(t, plugin, "trust", "init")
	softhsmtest.Run(t, plugin, "trust", "signer", "add", "first", "--scope", "registry.example.com/app", "--cert", pem)
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			if _, stderr, err := softhsmtest.Try(t, "", plugin, "trust", "signer", "add", fmt.Sprintf("signer-%02d", i),
				"--scope",
				"registry.example.com/app", "--cert", pem); err != nil {
				t.Errorf("%v: %s", err, stderr)
			}
			if i%10 == 0 {
				if _, stderr, err := softhsmtest.Try(t, "", plugin, "trust", "export", "--to", filepath.Join(folder,
					"cluster")); err != nil {
					t.Errorf("%v: %s", err, stderr)
				}
			}
		})
	}
	group.Wait()
	if lines := strings.Count(softhsmtest.Run(t, plugin, "trust", "signer", "list"), "\n"); lines != 52 {
		t.Errorf("there are %d lines, not a heading and 51 signers", lines)
	}
	policyAndStores(t, filepath.Join(folder, "cluster"))
}
