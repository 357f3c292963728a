package broker

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// fails runs a command that has to fail with an exit code, and returns what it wrote to standard error.
func fails(t *testing.T, code int, program string, args ...string) string {
	t.Helper()
	stdout, stderr, err := softhsmtest.Try(t, "", program, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("%s ended with %v, not with exit code %d\n%s%s", strings.Join(args, " "), err, code, stdout, stderr)
	}
	return stderr
}

const subject = "CN=release,O=Example,C=CH,ST=Zurich"

// says verifies that a text has another in it.
func says(t *testing.T, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%q is not in\n%s", part, text)
	}
}

// TestReachKey uses a key by its name at the agent and by its URI, in every command that uses a key and changes
// nothing. What the commands say of it is what they say when they log in by themselves.
func TestReachKey(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	n.Trust(t, pem)
	public := softhsmtest.Run(t, n.Plugin, "cert", "export", "--public", uri)
	chain := softhsmtest.Run(t, n.Plugin, "cert", "export", uri)
	softhsmtest.StartAgent(t, token).Use(t)

	for _, id := range []string{uri, "broker:release"} {
		if got := softhsmtest.Run(t, n.Plugin, "cert", "export", "--public", id); got != public {
			t.Errorf("the public key of %s is\n%s, not\n%s", id, got, public)
		}
		if got := softhsmtest.Run(t, n.Plugin, "cert", "export", id); got != chain {
			t.Errorf("the chain of %s is\n%s, not\n%s", id, got, chain)
		}
		var shown struct {
			URI, Label  string
			Sign        *bool
			Usable      bool
			Formats     []string
			Certificate *struct{ Subject string }
		}
		if err := json.Unmarshal([]byte(softhsmtest.Run(t, n.Plugin, "key", "show", "--json", id)), &shown); err != nil {
			t.Fatal(err)
		}
		if shown.URI != uri || shown.Label != "release" || !shown.Usable || shown.Sign == nil || !*shown.Sign ||
			shown.Certificate == nil || len(shown.Formats) != 1 || shown.Formats[0] != "notation" {
			t.Errorf("key show %s shows %+v", id, shown)
		}
		report := softhsmtest.Run(t, n.Plugin, "doctor", id)
		for _, line := range []string{"broker", "formats", "trust policy", "test signature"} {
			says(t, report, line)
		}
		says(t, fails(t, 3, n.Plugin, "cert", "csr", id, "--subject", subject), "does not accept the format x509")
	}

	list := softhsmtest.Run(t, n.Plugin, "key", "list")
	says(t, list, uri)
	says(t, list, "can sign")
	if got := softhsmtest.Run(t, n.Plugin, "key", "list", "--token", token.Label); got != list {
		t.Errorf("by the token's label, the list is\n%s", got)
	}
	says(t, fails(t, 4, n.Plugin, "key", "list", "--token", "other"), "does not hold the token")
	says(t, fails(t, 4, n.Plugin, "key", "show", "pkcs11:token=other;object=release"), "does not hold the key")
	fails(t, 4, n.Plugin, "key", "show", "broker:none")
	says(t, softhsmtest.Run(t, n.Plugin, "doctor"), "with 1 key(s)")
	manifest := filepath.Join(t.TempDir(), "trust.yaml")
	softhsmtest.Run(t, n.Plugin, "trust", "init", "--manifest", manifest)
	for i, id := range []string{uri, "broker:release"} {
		softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "signer"+strings.Repeat("x", i), "--manifest", manifest,
			"--scope", "registry.example.com/app"+strings.Repeat("x", i), "--key", id)
	}
}

// TestReachCertificate has keys sign certificates and requests through an agent that accepts the format x509 alone, and
// no images.
func TestReachCertificate(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uris := map[string]string{}
	for _, spec := range []string{"RSA-2048", "EC-384"} {
		uris[spec], _ = softhsmtest.NewKey(t, token, n.Plugin, spec, spec)
	}
	softhsmtest.StartAgent(t, token, "--formats", "x509").Use(t)
	for spec, uri := range uris {
		for _, id := range []string{uri, "broker:" + spec} {
			block, _ := pem.Decode([]byte(softhsmtest.Run(t, n.Plugin, "cert", "csr", id, "--subject", subject)))
			request, err := x509.ParseCertificateRequest(block.Bytes)
			if err == nil {
				err = request.CheckSignature()
			}
			if err != nil {
				t.Errorf("the request of %s: %v", id, err)
			}
			block, _ = pem.Decode([]byte(softhsmtest.Run(t, n.Plugin, "cert", "self-sign", id, "--subject", subject)))
			cert, err := x509.ParseCertificate(block.Bytes)
			if err == nil {
				err = cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
			}
			if err != nil {
				t.Errorf("the certificate of %s: %v", id, err)
			}
		}
	}
	says(t, softhsmtest.Run(t, n.Plugin, "key", "show", "broker:EC-384"), "cannot sign: its broker does not sign")
	report, _, err := softhsmtest.Try(t, "", n.Plugin, "doctor", "broker:EC-384")
	if err == nil {
		t.Error("the doctor finds nothing")
	}
	says(t, report, "its broker does not sign Notation's payloads")
}

// TestReachPlaces names the broker in every place that may: the config file at its top and in a key's entry, plugin
// config as install writes it, and by default the user's runtime directory, where the socket is a link here.
func TestReachPlaces(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	n.Trust(t, pem)
	agent := softhsmtest.StartAgent(t, token)
	agent.Use(t)
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER", "")
	softhsmtest.Setenv(t, "XDG_RUNTIME_DIR", "")
	address := "unix:" + agent.Socket
	registry := oci.StartRegistry(t)
	sign := func(args ...string) {
		t.Helper()
		digest, err := oci.PushImage(t.Context(), registry+"/app:v1", strings.Join(args, " "))
		if err != nil {
			t.Fatal(err)
		}
		image := registry + "/app@" + digest.String()
		softhsmtest.Run(t, n.Program, append(append([]string{"sign", "--insecure-registry"}, args...), image)...)
		softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)
	}
	says(t, fails(t, 4, n.Plugin, "key", "show", "broker:release"), "XDG_RUNTIME_DIR")

	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "installed", "--key", "broker:release", "--broker", address)
	sign("--key", "installed")
	sign("--plugin", "hsm", "--id", uri, "--plugin-config", "broker="+address)
	says(t, softhsmtest.Run(t, n.Plugin, "doctor"), `signing key "installed"`)

	for _, text := range []string{"broker: " + address + "\nkeys:\n  alias:\n    uri: " + uri + "\n",
		"keys:\n  alias:\n    uri: broker:release\n    broker: " + address + "\n"} {
		softhsmtest.WriteFile(t, softhsmtest.ConfigFile(t), []byte(text))
		sign("--plugin", "hsm", "--id", "alias")
		if err := os.Remove(softhsmtest.ConfigFile(t)); err != nil {
			t.Fatal(err)
		}
	}

	runtime := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(runtime, "notation-hsm"), 0o700),
		os.Symlink(agent.Socket, filepath.Join(runtime, "notation-hsm", "broker.sock"))); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Setenv(t, "XDG_RUNTIME_DIR", runtime)
	sign("--plugin", "hsm", "--id", "broker:release")
	says(t, softhsmtest.Run(t, n.Plugin, "key", "list", "--token", "broker:"), uri)
	says(t, softhsmtest.Refused(t, n.Plugin, "describe-key", `{"contractVersion": "1.0", "keyId": "broker:release",
		"pluginConfig": {"brokr": "`+address+`"}}`).Message, "did you mean broker?")
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKRE", address)
	says(t, fails(t, 1, n.Plugin, "key", "show", "broker:release"), "did you mean NOTATION_HSM_BROKER?")
}

// TestReachDirect changes keys with the variable set: commands that do so log in by themselves, and refuse a key that
// is named as a broker's.
func TestReachDirect(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, pem := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER", "unix:"+filepath.Join(t.TempDir(), "nobody")) // nobody listens
	subject := []string{"--subject", "CN=Root,O=Example,C=CH,ST=Zurich", "--days", "30"}
	for _, args := range [][]string{
		{"key", "delete", "--yes", "broker:release"},
		{"key", "backup", "broker:release", "--to", filepath.Join(t.TempDir(), "backup")},
		{"cert", "import", "broker:release", pem},
		append([]string{"ca", "init", "root", "--key", "broker:release"}, subject...),
		{"key", "generate", "--token", "broker:", "--label", "other"},
	} {
		says(t, fails(t, 1, n.Plugin, args...), "cannot change broker:")
	}
	other := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", token.Label, "--label", "other"))
	softhsmtest.Run(t, n.Plugin, "cert", "import", uri, pem)
	says(t, softhsmtest.Run(t, n.Plugin, "token", "list"), "signing")
	softhsmtest.Run(t, n.Plugin, append([]string{"ca", "init", "root", "--key", other}, subject...)...)

	// Notation's list counts, whichever way it names the key.
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "named", "--key", "broker:release")
	says(t, fails(t, 3, n.Plugin, "key", "delete", "--yes", uri), "Notation signs with it, as named")
	says(t, fails(t, 1, n.Plugin, "key", "rotate", "--yes", "named"), "registered as broker:release")
	softhsmtest.Run(t, n.Program, "key", "delete", "named")
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "named", "--key", uri, "--broker", "unix:/run/broker.sock")
	softhsmtest.Run(t, n.Plugin, "key", "rotate", "--yes", "named")
	list := filepath.Join(softhsmtest.Getenv(t, "XDG_CONFIG_HOME"), "notation", "signingkeys.json")
	if keys := softhsmtest.Read(t, list); strings.Count(keys, "unix:/run/broker.sock") != 2 {
		t.Errorf("the rotated key has lost its broker:\n%s", keys)
	}
	softhsmtest.Run(t, n.Program, "key", "delete", "named", "named-old-1")
	// The broker of an alias goes to the entry of the new key, which has no alias.
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER", "")
	softhsmtest.WriteFile(t, softhsmtest.ConfigFile(t), []byte("keys:\n  alias:\n    uri: "+uri+
		"\n    broker: unix:/run/alias.sock\n"))
	softhsmtest.Run(t, n.Plugin, "install", "--key-name", "aliased", "--key", "alias")
	softhsmtest.Run(t, n.Plugin, "key", "rotate", "--yes", "aliased")
	if keys := softhsmtest.Read(t, list); strings.Count(keys, "unix:/run/alias.sock") != 1 {
		t.Errorf("the rotated key has lost the broker of its alias:\n%s", keys)
	}
	softhsmtest.Run(t, n.Program, "key", "delete", "aliased", "aliased-old-1")
	softhsmtest.Run(t, n.Plugin, "key", "delete", "--yes", uri)
}

// TestReachStopped has the variable name an agent that does not run any more. There is no fallback to a login of one's
// own, though the module and the PIN are set: every command is refused as unavailable, and no module is loaded.
func TestReachStopped(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	uri, _ := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	agent := softhsmtest.StartAgent(t, token)
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER", "unix:"+agent.Socket)
	softhsmtest.Run(t, n.Plugin, "key", "show", uri) // through the agent
	agent.Stop()
	log := filepath.Join(t.TempDir(), "log")
	softhsmtest.Setenv(t, "NOTATION_HSM_LOG", log)
	image := softhsmtest.Build(t, "hsm-image")
	dir := t.TempDir()
	oci.WriteImage(t, filepath.Join(dir, "source"), "app", 1000, "linux/amd64")
	for _, id := range []string{uri, "broker:release"} {
		for _, args := range [][]string{
			{n.Plugin, "key", "show", id}, {n.Plugin, "cert", "export", id}, {n.Plugin, "cert", "export", "--public", id},
			{n.Plugin, "cert", "self-sign", id, "--subject", subject},
			{n.Plugin, "key", "list"},
			{image, "encrypt", "oci:" + dir + "/source:app", "oci:" + dir + "/encrypted:app", "--recipient", id},
		} {
			says(t, fails(t, 5, args[0], args[1:]...), "hsm-broker agent") // the hint
		}
		report, _, err := softhsmtest.Try(t, "", n.Plugin, "doctor", id)
		if err == nil {
			t.Error("the doctor finds nothing")
		}
		says(t, report, "cannot reach the broker")
		said := softhsmtest.Refused(t, n.Plugin, "describe-key", `{"contractVersion": "1.0", "keyId": "`+id+`"}`)
		says(t, said.Message, "cannot reach the broker")
	}
	if text := softhsmtest.Read(t, log); strings.Contains(text, "module started") {
		t.Errorf("a module was loaded:\n%s", text)
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER", "")
	softhsmtest.Run(t, n.Plugin, "key", "show", uri) // the login of one's own would have worked
	says(t, softhsmtest.Read(t, log), "module started")
}

// TestReachImage encrypts images to keys at the agent and opens them through it, with hsm-image and with the key
// provider, without a PIN.
func TestReachImage(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "node")
	u := oci.NewUser(t, token, "EC-256", "RSA-2048")
	softhsmtest.Setenv(t, "OCICRYPT_OAEP_HASHALG", "sha1")
	agent := softhsmtest.StartAgent(t, token, "--formats", "layer-key")
	agent.Use(t)
	ec, rsa := u.Keys["EC-256"], u.Keys["RSA-2048"]
	named := func(label string) oci.Key { return oci.Key{URI: "broker:" + label} }
	u.RoundTrips(t, []oci.RoundTrip{
		{Name: "by name", Program: "hsm-image", Recipients: []string{"broker:EC-256", "broker:RSA-2048"},
			Keys: []oci.Key{named("EC-256"), named("RSA-2048"), ec, rsa}, Provider: true},
		{Name: "by URI", Program: "hsm-image", Recipients: []string{ec.URI, rsa.URI},
			Keys: []oci.Key{named("EC-256"), named("RSA-2048"), ec, rsa}, Provider: true},
		{Name: "key provider", Program: "skopeo", Recipients: []string{"provider:hsm:broker:RSA-2048"},
			Keys: []oci.Key{named("RSA-2048"), rsa}, Provider: true},
		{Name: "jwe", Program: "skopeo", Recipients: []string{"jwe:" + rsa.Public, "jwe:" + ec.Public},
			Keys: []oci.Key{named("EC-256"), rsa}},
	})

	dir := t.TempDir()
	oci.WriteImage(t, filepath.Join(dir, "source"), "app", 1000, "linux/amd64")
	at := func(name string) string { return "oci:" + filepath.Join(dir, name) + ":app" }
	softhsmtest.Run(t, u.HSMImage, "encrypt", at("source"), at("encrypted"), "--recipient", "broker:EC-256")
	softhsmtest.Run(t, u.HSMImage, "recipients", "add", at("encrypted"), "--recipient", rsa.URI, "--key", "broker:EC-256")
	softhsmtest.Run(t, u.HSMImage, "decrypt", at("encrypted"), at("plain")) // with all keys of the agent
	says(t, softhsmtest.Run(t, u.HSMImage, "recipients", "list", at("encrypted"), "--recipient", "broker:RSA-2048"),
		"broker:RSA-2048")
	for _, scheme := range []string{"pkcs7:" + rsa.Certificate, "pkcs11:" + rsa.Public} {
		softhsmtest.Run(t, u.Skopeo, "--encryption-key", scheme, at("source"), at(scheme[:5]))
		says(t, fails(t, 1, u.HSMImage, "decrypt", at(scheme[:5]), at("none"), "--key", "broker:RSA-2048"),
			"a broker does not open wrapped keys of the scheme")
	}

	softhsmtest.StartAgent(t, token).Use(t) // which signs alone
	says(t, fails(t, 3, u.HSMImage, "decrypt", at("encrypted"), at("none"), "--key", "broker:EC-256"), "layer-key")
	_, stderr, err := u.Try(t, "encrypt", at("source"), at("again"), "--recipient", "broker:EC-256")
	if err != nil {
		t.Error(err)
	}
	says(t, stderr, "its broker does not tell what the key may do")
}
