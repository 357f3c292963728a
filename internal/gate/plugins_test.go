package gate

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go/verifier"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// trusting writes a trust directory that trusts the certificates of the forgers for all repositories, at a verification
// level.
func trusting(t testing.TB, level string, forgers ...*oci.Forger) (folder string) {
	t.Helper()
	folder = t.TempDir()
	statement := trustpolicy.TrustPolicy{Name: "all", RegistryScopes: []string{"*"}, TrustStores: []string{"ca:store"},
		TrustedIdentities: []string{"*"}}
	statement.SignatureVerification.VerificationLevel = level
	policy, err := json.Marshal(trustpolicy.Document{Version: "1.0", TrustPolicies: []trustpolicy.TrustPolicy{statement}})
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(folder, "trustpolicy.json"), string(policy), 0o600)
	if len(forgers) == 0 { // Notation needs some certificate
		forgers = append(forgers, newForger(t))
	}
	for i, f := range forgers {
		put(t, filepath.Join(folder, "truststore", "x509", "ca", "store", fmt.Sprint(i)+".pem"), string(f.PEM()), 0o600)
	}
	return folder
}

func newForger(t testing.TB) *oci.Forger {
	t.Helper()
	f, err := oci.NewForger("mallory", "")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func put(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func openGate(t testing.TB, options Options) *Gate {
	t.Helper()
	options.CacheDir, options.PlainHTTP = t.TempDir(), true
	g, err := Open(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

// TestPluginOfASignature verifies that a plugin that only a signature names is not run, at any level.
func TestPluginOfASignature(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	mark := program + ".ran"
	script := fmt.Sprintf("#!/bin/sh\ntouch %s\n", mark)
	put(t, program, script, 0o700)
	mallory, other := newForger(t), newForger(t)
	for _, level := range []string{"strict", "permissive", "audit"} {
		folder := trusting(t, level, other)
		put(t, filepath.Join(folder, "plugins", "evil", "notation-evil"), script, 0o700)
		g := openGate(t, Options{TrustDir: folder})
		r := oci.NewHostile(t)
		for _, name := range append(oci.Climbing(program), "evil") {
			for _, mediaType := range []string{jws.MediaTypeEnvelope, cose.MediaTypeEnvelope} {
				image := r.PushImage(name)
				r.Sign(t, mallory, mediaType, image, map[string]string{verifier.HeaderVerificationPlugin: name})
				result := g.Verify(t.Context(), []string{r.Name(image)}, "", time.Minute)[0]
				if result.Passed() || !strings.Contains(result.Reason, "it names the verification plugin") {
					t.Errorf("%s, %s, %q: %+v", level, mediaType, name, result)
				}
				if _, err := os.Stat(mark); err == nil {
					t.Fatalf("%s, %s, %q: it ran", level, mediaType, name)
				}
			}
		}
	}
}

// TestListedPlugin verifies that a listed plugin is run, and no other installed one.
func TestListedPlugin(t *testing.T) {
	alice := newForger(t)
	folder := trusting(t, "strict", alice)
	for _, name := range []string{"good", "other"} {
		put(t, filepath.Join(folder, "plugins", name, "notation-"+name), fmt.Sprintf(`#!/bin/sh
echo "$1" >> %s/%s.ran
case $1 in
get-plugin-metadata) echo '{"name":"%[2]s","description":"d","version":"1.0.0","url":"https://example.com",
	"supportedContractVersions":["1.0"],"capabilities":["SIGNATURE_VERIFIER.TRUSTED_IDENTITY"]}';;
*) echo '{"verificationResults":{"SIGNATURE_VERIFIER.TRUSTED_IDENTITY":{"success":true}},"processedAttributes":[]}';;
esac
`, folder, name), 0o700)
	}
	g := openGate(t, Options{TrustDir: folder, VerificationPlugins: []string{"good"}})
	r := oci.NewHostile(t)
	for name, want := range map[string]string{"good": "",
		"other": `names the verification plugin "other", which --verification-plugin does not list`} {
		image := r.PushImage(name)
		r.Sign(t, alice, jws.MediaTypeEnvelope, image, map[string]string{verifier.HeaderVerificationPlugin: name})
		result := g.Verify(t.Context(), []string{r.Name(image)}, "", time.Minute)[0]
		if result.Passed() != (want == "") || !strings.Contains(result.Reason, want) {
			t.Errorf("%s: %+v", name, result)
		}
		if ran, err := os.ReadFile(filepath.Join(folder, name+".ran")); (err == nil) != (want == "") || want == "" &&
			string(ran) != "get-plugin-metadata\nverify-signature\n" {
			t.Errorf("%s ran: %q, %v", name, ran, err)
		}
	}
}

// TestListedNames verifies that only names of installed plugins can be listed.
func TestListedNames(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	put(t, program, "", 0o700)
	folder := trusting(t, "strict")
	for _, name := range slices.Concat(oci.Climbing(program), []string{"", ".", "..", "missing"}) {
		if g, err := Open(Options{TrustDir: folder, CacheDir: t.TempDir(), VerificationPlugins: []string{name}}); err == nil {
			g.Close()
			t.Errorf("%q was taken", name)
		}
	}
}

// TestTrustDirectoryRunsNothing verifies that a credential helper that a trust directory names is not run, and that its
// insecure registries do not count.
func TestTrustDirectoryRunsNothing(t *testing.T) {
	t.Chdir(t.TempDir())
	put(t, filepath.Join("docker-credential-x", "y"), "#!/bin/sh\ntouch started\n", 0o700)
	a := newAttack(t)
	trust := trusting(t, "strict", a.alice)
	put(t, filepath.Join(trust, "config.json"),
		fmt.Sprintf(`{"credsStore": "x/y", "insecureRegistries": [%q]}`, a.Address), 0o600)
	a.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="tests"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	for plain, reason := range map[bool]string{true: "basic credential not found",
		false: "plain HTTP is not allowed"} {
		g, err := Open(Options{TrustDir: trust, CacheDir: t.TempDir(), PlainHTTP: plain})
		if err != nil {
			t.Fatal(err)
		}
		if r := g.Verify(t.Context(), []string{a.Name(a.image)}, "", time.Minute)[0]; r.Passed() ||
			!strings.Contains(r.Reason, reason) {
			t.Errorf("%+v", r)
		}
		g.Close()
	}
	if _, err := os.Stat("started"); err == nil {
		t.Error("the program was started")
	}
}
