// Package gate tests, end to end, the verification of images, by hand and before containerd pulls them.
package gate

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/notation-hsm/notation-hsm/internal/gate"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// A gated registry has images that may run and images that may not, each for a reason of its own, and the trust
// directory that says so.
type gated struct {
	*softhsmtest.Notation
	image  string // bin/hsm-image
	token  *softhsmtest.Token
	front  *front
	data   string            // where the registry keeps its blobs
	trust  string            // directory
	signed string            // the repository with images of the signer who is trusted for it
	cases  map[string]string // image -> why it is refused, or "" if it passes
	key    string            // of the signer who is trusted for signed
}

const subjectOf = "CN=%s,O=Example,C=CH,ST=Zurich"

func newGated(t testing.TB) *gated {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	g := &gated{Notation: softhsmtest.NewNotation(t, token), token: token, image: softhsmtest.Build(t, "hsm-image"),
		trust: filepath.Join(t.TempDir(), "trust"), data: t.TempDir()}
	softhsmtest.Setenv(t, "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", g.data)
	g.front = newFront(t, oci.StartRegistry(t))
	g.signed = g.front.address + "/team/app"
	signer := func(name string) (uri, pem string) {
		uri = softhsmtest.NewCAKey(t, g.Plugin, token.Label, "EC-256", name)
		pem = filepath.Join(t.TempDir(), name+".pem")
		softhsmtest.Write(t, pem, softhsmtest.Run(t, g.Plugin, "cert", "self-sign", uri, "--subject", fmt.Sprintf(subjectOf,
			name)))
		softhsmtest.Run(t, g.Plugin, "cert", "import", uri, pem)
		return uri, pem
	}
	release, releasePEM := signer("release")
	alice, alicePEM := signer("alice")
	mallory, _ := signer("mallory")
	g.key = release

	// A CA for two signers, one of them revoked.
	www, address := softhsmtest.Serve(t)
	ca := softhsmtest.Authority{Program: g.Plugin, Name: "team", WWW: www}
	caPEM := ca.Init(t, token.Label, "EC-256", "--days", "90")
	keys := map[string]string{}
	for _, name := range []string{"carol", "dave"} {
		keys[name] = softhsmtest.NewCAKey(t, g.Plugin, token.Label, "EC-256", name)
		softhsmtest.Run(t, g.Plugin, "ca", "issue", "--ca", ca.Name, "--key", keys[name], "--subject",
			fmt.Sprintf(subjectOf, name), "--days", "30", "--cdp", address+"/team.crl")
	}

	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", filepath.Join(t.TempDir(), "trust.yaml"))
	softhsmtest.Run(t, g.Plugin, "trust", "init")
	softhsmtest.Run(t, g.Plugin, "trust", "signer", "add", "release", "--scope", g.signed, "--scope",
		"docker.io/library/hello", "--cert", releasePEM)
	softhsmtest.Run(t, g.Plugin, "trust", "signer", "add", "alice", "--scope", g.front.address+"/team/tools", "--cert",
		alicePEM)
	softhsmtest.Run(t, g.Plugin, "trust", "signer", "add", "team", "--scope", g.front.address+"/team/ca", "--cert", caPEM)
	softhsmtest.Run(t, g.Plugin, "trust", "export", "--to", g.trust)
	softhsmtest.Run(t, g.Plugin, "trust", "export")

	g.cases = map[string]string{}
	var expired time.Time // when the signature that expires has
	for _, c := range []struct {
		image, key, refused string
		arguments           []string
	}{
		{"app:signed", release, "", nil},
		{"app:unsigned", "", "it has no signature", nil},
		{"app:other-signer", mallory,
			"the signature by CN=mallory,O=Example,ST=Zurich,C=CH is refused: the signature's certificate chain does not " +
				"contain any trusted certificate", nil},
		{"app:other-repository", alice,
			"the signature by CN=alice,O=Example,ST=Zurich,C=CH is refused: the signature's certificate chain does not " +
				"contain any trusted certificate", nil},
		{"app:expired", release,
			"the signature by CN=release,O=Example,ST=Zurich,C=CH is refused: digital signature has expired on",
			[]string{"--expiry", "1s"}},
		{"tools:signed", alice, "", nil},
		{"ca:good", keys["carol"], "", nil},
		{"ca:revoked", keys["dave"],
			`is refused: signing certificate with subject "CN=dave,O=Example,ST=Zurich,C=CH" is revoked`, nil},
		{"none:unknown", release, "no statement of the trust policy is for", nil},
	} {
		name := g.front.address + "/team/" + c.image
		sum, err := oci.PushImage(context.Background(), name, c.image)
		if err != nil {
			t.Fatal(err)
		}
		if c.key != "" {
			repository, _, _ := strings.Cut(c.image, ":")
			g.sign(t, c.key, g.front.address+"/team/"+repository+"@"+sum.String(), c.arguments...)
		}
		if c.image == "app:expired" {
			expired = time.Now().Add(time.Second)
		}
		g.cases[name] = c.refused
	}
	index, err := oci.PushIndex(context.Background(), g.signed+":index")
	if err != nil {
		t.Fatal(err)
	}
	g.sign(t, release, g.signed+"@"+index.String())
	g.cases[g.signed+":index"] = ""
	if _, err := oci.Tamper(context.Background(), g.signed+":signed", g.signed+":tampered", "tampered"); err != nil {
		t.Fatal(err)
	}
	g.cases[g.signed+":tampered"] = "it was made for something else"
	softhsmtest.Run(t, g.Plugin, "ca", "revoke", "--ca", ca.Name, "--key", keys["dave"], "--reason", "keyCompromise")
	ca.Publish(t, "1h")
	time.Sleep(time.Until(expired))
	return g
}

func (g *gated) sign(t testing.TB, key, image string, arguments ...string) {
	t.Helper()
	softhsmtest.Run(t, g.Program, append([]string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", key, image},
		arguments...)...)
}

// front stands before a registry, and can do something when signatures are asked for.
type front struct {
	address string
	before  atomic.Pointer[func(http.ResponseWriter, *http.Request) bool] // returns whether it has answered
}

func newFront(t testing.TB, registry string) *front {
	f := &front{}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: registry})
		r.Out.Host = r.In.Host
	}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before := f.before.Load(); before != nil && strings.Contains(r.URL.Path, "/referrers/") && (*before)(w, r) {
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	f.address = strings.TrimPrefix(server.URL, "http://")
	return f
}

// when has the front do something when signatures are asked for, until the function that is returned is called.
func (f *front) when(before func(http.ResponseWriter, *http.Request) bool) func() {
	f.before.Store(&before)
	return func() { f.before.Store(nil) }
}

// result is what hsm-image verify --json says of an image.
type result struct {
	Digest, Verdict, Policy, Level, Reason string
	Signature                              *struct {
		Subject, Issuer, Fingerprint string
		SigningTime                  *time.Time
		Timestamp                    *struct{ Verified bool }
	}
	Refused []struct{ Digest, Subject, Reason string }
}

func (g *gated) verify(t testing.TB, arguments ...string) ([]result, error) {
	t.Helper()
	stdout, stderr, err := softhsmtest.Try(t, "", g.image, append([]string{"verify", "--json", "--plain-http"},
		arguments...)...)
	var results []result
	if json.Unmarshal([]byte(stdout), &results) != nil {
		t.Fatalf("verify %v: %v: %s%s", arguments, err, stdout, stderr)
	}
	return results, err
}

// TestVerify holds hsm-image verify against notation verify, image by image: with Notation's own configuration and with
// a trust directory they agree, and ours says who signed or why not.
func TestVerify(t *testing.T) {
	softhsmtest.Parallel(t)
	g := newGated(t)
	var images []string
	for image, refused := range g.cases {
		images = append(images, image)
		_, theirs, notationErr := softhsmtest.Try(t, "", g.Program, "verify", "--insecure-registry", image)
		if (notationErr == nil) != (refused == "") {
			t.Errorf("notation verify %s: %v: %s", image, notationErr, theirs)
		}
		for _, arguments := range [][]string{{image}, {"--trust-dir", g.trust, image}} {
			results, err := g.verify(t, arguments...)
			r := results[0]
			if (err == nil) != (notationErr == nil) || (r.Verdict == gate.Pass) != (err == nil) {
				t.Errorf("verify %v: %v, but notation: %v", arguments, err, notationErr)
			}
			if !strings.Contains(r.Reason, refused) || refused == "" && r.Reason != "" {
				t.Errorf("verify %v: the reason is %q, not %q", arguments, r.Reason, refused)
			}
			if refused == "" && (r.Signature == nil || r.Signature.Subject == "" || len(r.Signature.Fingerprint) != 64 ||
				r.Signature.SigningTime == nil || r.Policy == "") {
				t.Errorf("verify %v does not say who signed: %+v", arguments, r)
			}
		}
	}
	results, err := g.verify(t, images...)
	if err == nil || len(results) != len(images) {
		t.Errorf("all at once: %v, %d results", err, len(results))
	}
	for i, r := range results {
		if (r.Verdict == gate.Pass) != (g.cases[images[i]] == "") {
			t.Errorf("all at once, %s: %+v", images[i], r)
		}
	}

	// Who can push can hang more signatures on an image. They make no difference but are told.
	forged, err := oci.PushImage(context.Background(), g.signed+":two", "two signatures")
	if err != nil {
		t.Fatal(err)
	}
	mallory := "pkcs11:token=signing;object=mallory"
	g.sign(t, mallory, g.signed+"@"+forged.String())
	if results, err = g.verify(t, g.signed+":two"); err == nil || len(results[0].Refused) != 1 {
		t.Errorf("one bad signature: %v %+v", err, results)
	}
	g.sign(t, mallory, g.signed+"@"+forged.String())
	results, _ = g.verify(t, g.signed+":two")
	if !strings.HasPrefix(results[0].Reason, "none of 2 signatures is valid: ") {
		t.Errorf("two bad signatures: %+v", results)
	}
	g.sign(t, g.key, g.signed+"@"+forged.String())
	if results, err = g.verify(t, g.signed+":two"); err != nil || results[0].Digest != forged.String() ||
		!strings.Contains(results[0].Signature.Subject, "release") {
		t.Errorf("a good signature beside bad ones: %v %+v", err, results)
	}

	// The plain text says the same.
	text := softhsmtest.Run(t, g.image, "verify", "--plain-http", g.signed+":signed")
	for _, words := range []string{g.signed + ":signed: pass", "signer       CN=release", "fingerprint  sha256:",
		"policy       notation-hsm:" + g.signed + " (strict)"} {
		if !strings.Contains(text, words) {
			t.Errorf("%q is not in\n%s", words, text)
		}
	}

	// Notation's list of registries that speak plain HTTP counts, and so does a proxy, as for notation.
	config := filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation", "config.json")
	softhsmtest.Write(t, config, fmt.Sprintf(`{"insecureRegistries": [%q]}`, g.front.address))
	softhsmtest.Run(t, g.Program, "verify", g.signed+":signed")
	softhsmtest.Run(t, g.image, "verify", g.signed+":signed")
	if err := os.Remove(config); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Run(t, g.Plugin, "trust", "signer", "add", "release", "--scope", "registry.invalid/team/app")
	softhsmtest.Run(t, g.Plugin, "trust", "export")
	softhsmtest.Setenv(t, "HTTP_PROXY", "http://"+g.front.address)
	softhsmtest.Run(t, g.Program, "verify", "--insecure-registry", "registry.invalid/team/app:signed")
	softhsmtest.Run(t, g.image, "verify", "--plain-http", "registry.invalid/team/app:signed")
	softhsmtest.Setenv(t, "HTTP_PROXY", "")

	// Over TLS, or where nobody is, or where nobody answers, there is no image.
	if _, stderr, err := softhsmtest.Try(t, "", g.image, "verify", g.signed+":signed"); err == nil ||
		!strings.Contains(stderr, "1 of 1 images did not pass") {
		t.Errorf("plain HTTP was spoken without asking: %v %s", err, stderr)
	}
	defer g.front.when(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })()
	if results, err := g.verify(t, "--timeout", "300ms", g.signed+":signed"); err == nil ||
		!strings.Contains(results[0].Reason, "within 300ms") {
		t.Errorf("a registry that does not answer: %v %+v", err, results)
	}
}

// TestVerifyTimestamp tells when a timestamp was verified.
func TestVerifyTimestamp(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	registry, tsa := oci.StartRegistry(t), softhsmtest.StartTSA(t)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "RSA-2048", "release")
	softhsmtest.TrustWithTSA(t, n, pem, tsa.Root)
	sum, err := oci.PushImage(context.Background(), registry+"/app:v1", "v1")
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", uri, "--timestamp-url",
		tsa.URL, "--timestamp-root-cert", tsa.Root, registry+"/app@"+sum.String())
	g := &gated{Notation: n, image: softhsmtest.Build(t, "hsm-image")}
	results, err := g.verify(t, registry+"/app:v1")
	if err != nil || results[0].Signature.Timestamp == nil || !results[0].Signature.Timestamp.Verified {
		t.Errorf("%v %+v", err, results)
	}
	n.Trust(t, pem)
	results, err = g.verify(t, registry+"/app:v1")
	if err != nil || results[0].Signature.Timestamp == nil || results[0].Signature.Timestamp.Verified {
		t.Errorf("with a policy that trusts no authority for time: %v %+v", err, results)
	}
}

// TestVerifyCredentials verifies in a registry that wants a password, which is found where Docker, Podman and Notation
// keep it.
func TestVerifyCredentials(t *testing.T) {
	softhsmtest.Parallel(t)
	g := newGated(t)
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	passwords := filepath.Join(t.TempDir(), "htpasswd")
	softhsmtest.Write(t, passwords, "robot:"+string(hash)+"\n")
	softhsmtest.Setenv(t, "REGISTRY_AUTH", "htpasswd")
	softhsmtest.Setenv(t, "REGISTRY_AUTH_HTPASSWD_REALM", "images")
	softhsmtest.Setenv(t, "REGISTRY_AUTH_HTPASSWD_PATH", passwords)
	registry := oci.StartRegistry(t) // with the images that are there already
	softhsmtest.Run(t, g.Plugin, "trust", "signer", "add", "release", "--scope", registry+"/team/app")
	softhsmtest.Run(t, g.Plugin, "trust", "export")
	image := registry + "/team/app:signed"

	home := t.TempDir()
	for name, value := range map[string]string{"HOME": home, "DOCKER_CONFIG": "", "REGISTRY_AUTH_FILE": "",
		"XDG_RUNTIME_DIR": "", "PATH": home + ":" + softhsmtest.Getenv(t, "PATH")} {
		softhsmtest.Setenv(t, name, value)
	}
	auths := fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, registry,
		base64.StdEncoding.EncodeToString([]byte("robot:secret")))
	put := func(path, text string) func(testing.TB) {
		return func(t testing.TB) {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			softhsmtest.Write(t, path, text)
			t.Cleanup(func() { os.Remove(path) })
		}
	}
	// A node has a file of its own.
	sum, bin, state := g.digest(t, g.signed+":signed"), filepath.Join(t.TempDir(), "bin"), t.TempDir()
	softhsmtest.Run(t, g.Plugin, "trust", "export", "--to", g.trust)
	own := filepath.Join(t.TempDir(), "auth.json")
	softhsmtest.Write(t, own, auths)
	install := []string{"install-verifier", "--bin-dir", bin, "--trust-dir", g.trust, "--state-dir", state, "--hosts-dir",
		plainHosts(t, registry)}
	for _, c := range []struct {
		arguments []string
		answer    string
	}{{nil, "basic credential not found"}, {[]string{"--auth-file", own}, "signed by CN=release"}} {
		softhsmtest.Run(t, g.image, append(install, c.arguments...)...)
		if stdout, _ := g.askVerifier(t, filepath.Join(bin, "hsm-image-verifier"), image, sum); !strings.Contains(stdout,
			c.answer) {
			t.Errorf("a verifier with %v: %q, not %q", c.arguments, stdout, c.answer)
		}
	}
	helper := filepath.Join(home, "docker-credential-tests")
	for _, c := range []struct {
		name    string
		prepare func(testing.TB)
		refused string
	}{
		{"none", func(testing.TB) {}, "basic credential not found"},
		{"docker", put(filepath.Join(home, ".docker", "config.json"), auths), ""},
		{"DOCKER_CONFIG", func(t testing.TB) {
			put(filepath.Join(home, "other", "config.json"), auths)(t)
			softhsmtest.Setenv(t, "DOCKER_CONFIG", filepath.Join(home, "other"))
		}, ""},
		{"podman", put(filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "containers", "auth.json"), auths), ""},
		{"podman, for a repository", put(filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "containers", "auth.json"),
			strings.Replace(auths, registry, registry+"/team/app", 1)), ""},
		{"REGISTRY_AUTH_FILE", func(t testing.TB) {
			put(filepath.Join(home, "auth.json"), auths)(t)
			softhsmtest.Setenv(t, "REGISTRY_AUTH_FILE", filepath.Join(home, "auth.json"))
		}, ""},
		{"notation", put(filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation", "config.json"), auths), ""},
		{"a wrong password", put(filepath.Join(home, ".docker", "config.json"),
			strings.ReplaceAll(auths, "c2VjcmV0", "d3Jvbmch")), "401"},
		{"a helper", func(t testing.TB) {
			put(filepath.Join(home, ".docker", "config.json"), fmt.Sprintf(`{"credHelpers": {%q: "tests"}}`, registry))(t)
			put(helper, "#!/bin/sh\necho '{\"Username\": \"robot\", \"Secret\": \"secret\"}'\n")(t)
		}, ""},
		{"a helper that hangs", func(t testing.TB) {
			put(filepath.Join(home, ".docker", "config.json"), fmt.Sprintf(`{"credHelpers": {%q: "tests"}}`, registry))(t)
			put(helper, "#!/bin/sh\nexec sleep 2\n")(t)
		}, "within 1s"},
		{"a helper that is not there", put(filepath.Join(home, ".docker", "config.json"),
			fmt.Sprintf(`{"credHelpers": {%q: "gone"}}`, registry)), "docker-credential-gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.prepare(t)
			_ = os.Chmod(helper, 0o700)
			timeout := softhsmtest.Patience
			if c.refused == "within 1s" {
				timeout = "1s"
			}
			results, err := g.verify(t, "--timeout", timeout, image)
			if (err == nil) != (c.refused == "") || !strings.Contains(results[0].Reason, c.refused) {
				t.Errorf("%v: %q, not %q", err, results[0].Reason, c.refused)
			}
			if strings.Contains(fmt.Sprint(results), "secret") {
				t.Errorf("the password is told: %+v", results)
			}
		})
	}
}

// askVerifier has an installed verifier judge an image whose manifest is in the registry's storage.
func (g *gated) askVerifier(t testing.TB, program, image, sum string) (stdout string, err error) {
	t.Helper()
	manifest := softhsmtest.Read(t, filepath.Join(g.data, "docker/registry/v2/blobs/sha256", sum[:2], sum, "data"))
	descriptor := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%d}`,
		sum, len(manifest))
	stdout, _, err = softhsmtest.Try(t, descriptor, program, "-name", image, "-digest", "sha256:"+sum,
		"-stdin-media-type", "application/vnd.oci.descriptor.v1+json")
	return stdout, err
}

// TestThousandVerifications leaves no file open and no memory behind. It runs alone, since it counts those of the
// process.
func TestThousandVerifications(t *testing.T) {
	g := newGated(t)
	ours, err := gate.Open(gate.Options{TrustDir: g.trust, CacheDir: t.TempDir(), PlainHTTP: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	images := make([]string, 50)
	for i := range images {
		images[i] = g.signed + ":signed"
		if i%5 == 0 {
			images[i] = g.signed + ":other-signer"
		}
	}
	round := func() {
		for i, r := range ours.Verify(context.Background(), images, "", time.Hour) {
			if r.Passed() != (i%5 != 0) {
				t.Fatalf("%+v", r)
			}
		}
	}
	measure := func() (files int, bytes uint64) {
		ours.Close() // connections that wait to be used again
		runtime.GC()
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open), stats.HeapAlloc
	}
	round() // what is made once
	files, bytes := measure()
	for range 20 {
		round()
	}
	// The server that stands before the registry is in this process as well: a few connections may be about to end.
	filesAfter, bytesAfter := measure()
	t.Logf("open files: %d, then %d; heap: %d KiB, then %d KiB", files, filesAfter, bytes>>10, bytesAfter>>10)
	if filesAfter > files+10 {
		t.Errorf("%d files were open, and after 1000 verifications %d", files, filesAfter)
	}
	if bytesAfter > bytes+2<<20 {
		t.Errorf("%d bytes were in use, and after 1000 verifications %d", bytes, bytesAfter)
	}
}
