package broker

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// jobs is the endpoint of GitHub Actions that gives a job its tokens, and the key that signs them.
type jobs struct {
	private    *ecdsa.PrivateKey
	server     *httptest.Server
	given      atomic.Int64
	repository atomic.Value // claim of the job
}

func startJobs(t *testing.T) *jobs {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	j := &jobs{private: private}
	j.repository.Store("example/app")
	j.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer of-the-job" {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"count": 1, "value": j.token(t, r.URL.Query().Get("audience"))})
	}))
	t.Cleanup(j.server.Close)
	return j
}

// token returns a token with the claims of https://docs.github.com/en/actions/reference/security/oidc.
func (j *jobs) token(t *testing.T, audience string) string {
	repository, now := j.repository.Load().(string), time.Now().Unix()
	claims, err := json.Marshal(map[string]any{
		"iss": "https://token.actions.githubusercontent.com", "aud": audience, "jti": fmt.Sprint(j.given.Add(1)),
		"sub": "repo:" + repository + ":environment:signing", "iat": now, "nbf": now, "exp": now + 300,
		"repository": repository, "repository_id": "74", "repository_owner": "example", "repository_owner_id": "65",
		"ref": "refs/tags/v1", "sha": strings.Repeat("0", 40), "event_name": "push", "run_id": "7", "run_attempt": "1",
		"workflow_ref": repository + "/.github/workflows/release.yml@refs/tags/v1", "environment": "signing",
	})
	if err != nil {
		t.Error(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"ES256","kid":"jobs","typ":"JWT"}`)) + "." + encode(claims)
	hash := crypto.SHA256.New()
	hash.Write([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, j.private, hash.Sum(nil))
	if err != nil {
		t.Error(err)
		return ""
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return text + "." + encode(signature)
}

// keys returns the endpoint's key set (RFC 7517).
func (j *jobs) keys(t *testing.T) string {
	t.Helper()
	public, err := j.private.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"jobs","x":"%s","y":"%s"}]}`,
		encode(public[1:33]), encode(public[33:]))
}

// tlsFiles writes a certificate for 127.0.0.1 with its key, and returns them with their CA.
func tlsFiles(t *testing.T) (certificate, key, ca string) {
	t.Helper()
	dir := t.TempDir()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	issuer, template := softhsmtest.NewCA(t, "TLS", nil), softhsmtest.Template("broker")
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	certificate, key, ca = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	softhsmtest.Write(t, certificate, softhsmtest.PEM(issuer.Issue(t, template, private.Public())))
	softhsmtest.Write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	softhsmtest.Write(t, ca, issuer.PEM())
	return certificate, key, ca
}

// TestGitHubJob signs in a job of GitHub Actions, without a PIN, through the broker of a team: what the policy allows
// to the job's repository, and nothing to another. A time lock is waited for.
func TestGitHubJob(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	_, chain := softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "release")
	softhsmtest.NewKey(t, token, n.Plugin, "EC-256", "log")
	n.Trust(t, chain)
	registry := oci.StartRegistry(t)
	image, err := oci.PushImage(t.Context(), registry+"/team/app:v1", "hello")
	if err != nil {
		t.Fatal(err)
	}
	repository := registry + "/team/app"
	reference := repository + "@" + image.String()

	j, dir := startJobs(t), t.TempDir()
	certificate, key, ca := tlsFiles(t)
	address := softhsmtest.FreeAddresses(t, 1)[0]
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		softhsmtest.Write(t, path, text)
		return path
	}
	const caller = `caller.claims.repository == "example/app" && caller.claims.environment == "signing"`
	policy := write("policy.yaml", `version: 1
keys:
  release:
    key: pkcs11:token=signing;object=release
    formats: [notation]
    use:
    - name: release
      when: `+caller+` && artifact.repository == "`+repository+`" && artifact.annotations == {}
    - name: later
      when: `+caller+` && artifact.annotations == {"build":"7"}
      time-lock: 1s
`)
	config := write("broker.yaml", fmt.Sprintf(`version: 1
public-url: https://%[1]s
rp-id: 127.0.0.1
listen: {https: {address: "%[1]s", certificate: %[2]q, key: %[3]q}}
store: "sqlite:%[4]s/broker.db"
policy: %[5]q
modules: [{token: "pkcs11:token=signing", module-path: %[6]q, pin-source: "file:%[7]s"}]
keys: {release: {certificate-chain: %[8]q}}
log: {key: "pkcs11:token=signing;object=log", origin: broker.example.com/log, checkpoint-file: "%[4]s/checkpoint"}
callers:
  oidc:
  - {issuer: "https://token.actions.githubusercontent.com", audience: "https://%[1]s", type: github, jwks-file: %[9]q}
registries: [{host: %[10]q, plain-http: true, loopback: true}]
`, address, certificate, key, dir, policy, token.Module, write("pin", softhsmtest.PIN), chain,
		write("keys.json", j.keys(t)), registry))
	broker := softhsmtest.Start(t, softhsmtest.Build(t, "hsm-broker"), "serve", "--config", config)
	t.Cleanup(func() { broker.Stop() })
	if !broker.Ready(func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}) {
		t.Fatalf("the broker ended:\n%s", broker.Output.String())
	}

	// The job: no PIN, no module.
	for name, value := range map[string]string{
		"NOTATION_HSM_PIN": "", "NOTATION_HSM_MODULE_PATH": "", "NOTATION_HSM_BROKER": "https://" + address,
		"NOTATION_HSM_BROKER_CA": ca, "NOTATION_HSM_BROKER_TOKEN": "github",
		"ACTIONS_ID_TOKEN_REQUEST_URL":   j.server.URL + "/token?api-version=2.0",
		"ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-job",
		"SSL_CERT_FILE":                  write("github.pem", softhsmtest.PEM(j.server.Certificate())),
	} {
		softhsmtest.Setenv(t, name, value)
	}
	sign := func(arguments ...string) (string, error) {
		stdout, stderr, err := softhsmtest.Try(t, "", n.Program, append([]string{"sign", "--insecure-registry", "--plugin",
			"hsm", "--id", "broker:release", reference}, arguments...)...)
		return stdout + stderr, err
	}
	if out, err := sign(); err == nil || !strings.Contains(out, "no rule of the policy allows it") {
		t.Errorf("without the repository: %v\n%s", err, out)
	}
	if out, err := sign("--plugin-config", "repository="+repository); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, broker.Output.String())
	}
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", reference)
	before := j.given.Load()
	if out, err := sign("--user-metadata", "build=7", "--plugin-config", "approval-wait=1h"); err != nil {
		t.Errorf("with a time lock: %v\n%s", err, out)
	}
	if given := j.given.Load() - before; given < 5 { // three for a signature, one for each wait, one to sign again
		t.Errorf("%d tokens were asked for", given)
	}
	list := softhsmtest.Run(t, n.Plugin, "request", "list", "--state", "signed")
	if strings.Count(list, image.String()) != 2 || !strings.Contains(list, "repo:example/app:environment:signing") {
		t.Errorf("the list is\n%s", list)
	}
	j.repository.Store("example/other")
	if out, err := sign("--plugin-config", "repository="+repository); err == nil ||
		!strings.Contains(out, "no rule of the policy allows it") {
		t.Errorf("a job of another repository: %v\n%s", err, out)
	}
	if strings.Contains(softhsmtest.Run(t, n.Plugin, "request", "list"), image.String()) {
		t.Error("a job of another repository sees the requests")
	}
}
