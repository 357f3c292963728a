package softhsmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
)

// TeamBroker is a running 'hsm-broker serve', with an issuer of tokens, and a CA for callers' certificates.
type TeamBroker struct {
	*Service
	Program  string
	Dir      string // with config.yaml, policy.yaml, the store and the certificates
	URL      string // that it listens on
	Public   string // URL in the config, by which callers reach it: that of a load balancer, or URL
	CA       string // PEM file
	Socket   string
	Issuer   *identitytest.Issuer
	Callers  *CA // issues callers' certificates
	LogKey   string
	t        testing.TB
	token    *Token
	settings TeamOptions
	replica  int    // its number; 0 is the first, or the only one
	suffix   string // of its own files
}

// TeamOptions are what tests choose of a broker.
type TeamOptions struct {
	Policy string // ISSUER in it becomes the URL of the issuer
	// Store is the URL of a database of PostgreSQL that replicas share; by default, the broker has one of SQLite.
	Store string
	// Public is public-url of the config; by default, the URL that the broker listens on.
	Public string
	// Registries is the section registries of the config, in YAML.
	Registries string
	// Config is appended to the config.
	Config string
	// Limits is callers.limits of the config, in YAML.
	Limits string
	// Type is that of the issuer; github by default.
	Type string
	// Listen and Log are appended to these sections of the config: "metrics: ADDRESS", "feeds: [...]".
	Listen, Log string
	// Program replaces hsm-broker.
	Program string
	// Module replaces the token's module, such as by the shim.
	Module string
	// Modules are appended to the modules of the config, in YAML.
	Modules string
	// LogKey is log.key of the config, in YAML; a new key on the token by default.
	LogKey string
	// Host is the host of the URL and the RP ID; 127.0.0.1 by default. Browsers register passkeys for localhost alone.
	Host string
	// Timeout is that of the module; one that no machine is too slow for by default.
	Timeout string
}

// StartTeam makes a broker for a token and starts it. The policy names keys as pkcs11:token=LABEL;object=NAME.
func StartTeam(t testing.TB, token *Token, o TeamOptions) *TeamBroker {
	t.Helper()
	dir, err := os.MkdirTemp("", "team") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if o.Program == "" {
		o.Program = Build(t, "hsm-broker")
	}
	b := &TeamBroker{Program: o.Program, Dir: dir, Socket: filepath.Join(dir, "socket"),
		Issuer: identitytest.New(t), Callers: NewCA(t, "callers", nil), t: t, token: token, settings: o}
	if o.LogKey == "" {
		b.LogKey = strings.TrimSpace(Run(t, Build(t, "notation-hsm"), "key", "generate", "--token", token.Label, "--spec",
			"EC-256", "--label", "log"))
		b.settings.LogKey = fmt.Sprintf("%q", b.LogKey)
	}
	server := NewCA(t, "server", nil)
	b.CA = b.file("ca.pem", server.PEM())
	template := Template("broker")
	template.IPAddresses, template.DNSNames = []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	chain, key := pair(t, server, template)
	b.file("tls.pem", chain)
	b.file("tls.key", key)
	b.file("callers.pem", b.Callers.PEM())
	b.file("pin", PIN)
	b.WritePolicy(o.Policy)
	if b.settings.Host == "" {
		b.settings.Host = "127.0.0.1"
	}
	_, port, _ := net.SplitHostPort(freeAddress(t))
	b.URL = "https://" + net.JoinHostPort(b.settings.Host, port)
	if b.Public = o.Public; o.Public == "" {
		b.Public = b.URL
	}
	if o.Store != "" {
		b.UseStore(o.Store)
	}
	b.writeConfig()
	b.Start()
	return b
}

// pair returns a certificate for a new key, and the key, in PEM.
func pair(t testing.TB, ca *CA, template *x509.Certificate) (chain, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return PEM(ca.Issue(t, template, private.Public())),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// freeAddress returns a port of loopback that is free at this moment. The broker cannot choose one: its URL is in its
// config.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // for a moment
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// file writes a file of the broker, and returns its path.
func (b *TeamBroker) file(name, text string) string {
	b.t.Helper()
	path := filepath.Join(b.Dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// WritePolicy writes the policy that the broker is started with.
func (b *TeamBroker) WritePolicy(text string) string {
	b.t.Helper()
	return b.file("policy.yaml", strings.ReplaceAll(text, "ISSUER", b.Issuer.URL))
}

// Config returns the path of the config file.
func (b *TeamBroker) Config() string { return filepath.Join(b.Dir, "config"+b.suffix+".yaml") }

func (b *TeamBroker) writeConfig() {
	module, kind, timeout := b.token.Module, "github", Patience
	if b.settings.Timeout != "" {
		timeout = b.settings.Timeout
	}
	if b.settings.Module != "" {
		module = b.settings.Module
	}
	if b.settings.Type != "" {
		kind = b.settings.Type
	}
	store := "store: sqlite:" + b.Database()
	if b.settings.Store != "" {
		store = fmt.Sprintf("store: %s\nreplicas: {key: %s/replicas.key, name: broker-%d}", b.settings.Store, b.Dir,
			b.replica+1)
	}
	b.file("config"+b.suffix+".yaml", fmt.Sprintf(`version: 1
public-url: %[1]s
rp-id: %[18]s
listen:
  https:
    address: %[2]s
    certificate: %[3]s/tls.pem
    key: %[3]s/tls.key
    client-ca: %[3]s/callers.pem
  unix: {path: %[4]s}
  %[16]s
%[19]s
policy: %[3]s/policy.yaml
modules:
- {token: "pkcs11:token=%[5]s", module-path: %[6]s, pin-source: "file:%[3]s/pin", timeout: %[7]s}
%[21]s
log: {key: %[8]s, origin: broker.example.com/log, checkpoint-file: %[20]s, %[17]s}
callers:
  oidc:
  - {issuer: %[9]s, audience: %[1]s, type: %[10]s, ca: %[11]s}
  mtls: {}
  unix: {users: ["%[12]d"]}
  limits: {%[15]s}
administrators: [{unix: "%[12]d"}]
%[13]s
%[14]s
`, b.Public, b.Address(), b.Dir, b.Socket, b.token.Label, module, timeout, b.settings.LogKey,
		b.Issuer.URL, kind, b.Issuer.CA, os.Geteuid(), b.settings.Registries, b.settings.Config, b.settings.Limits,
		b.settings.Listen, b.settings.Log, b.settings.Host, store, b.Checkpoint(), b.settings.Modules))
}

// Start starts the broker, and waits until it is ready.
func (b *TeamBroker) Start() {
	b.t.Helper()
	if output, ok := b.TryStart(); !ok {
		b.t.Fatalf("the broker ended:\n%s", output)
	}
}

// TryStart starts the broker, and waits until it is ready or has ended. If it has, it returns what it printed and
// false.
func (b *TeamBroker) TryStart() (output string, ok bool) {
	b.t.Helper()
	for range 10 {
		b.Service = Start(b.t, b.Program, "serve", "--config", b.Config())
		if b.Ready(func() bool {
			conn, err := net.Dial("unix", b.Socket)
			if err == nil {
				conn.Close()
			}
			return err == nil
		}) {
			return "", true
		}
		if output = b.Output.String(); !strings.Contains(output, "address already in use") {
			break // otherwise, a connection elsewhere has had the port for its own end
		}
	}
	return output, false
}

// Use has the programs that the test starts use keys through the broker with a token, without a module or a PIN.
func (b *TeamBroker) Use(t testing.TB, token string) {
	t.Helper()
	Setenv(t, "NOTATION_HSM_BROKER", b.URL)
	Setenv(t, "NOTATION_HSM_BROKER_CA", b.CA)
	for _, name := range []string{"PIN", "PIN_SOURCE", "MODULE_PATH", "BROKER_CERTIFICATE", "BROKER_KEY"} {
		Setenv(t, "NOTATION_HSM_"+name, "")
	}
	path := filepath.Join(t.TempDir(), "token")
	Write(t, path, token)
	Setenv(t, "NOTATION_HSM_BROKER_TOKEN", "file:"+path)
}

// UseCertificate has the programs that the test starts use keys through the broker with a client certificate.
func (b *TeamBroker) UseCertificate(t testing.TB, name string) {
	t.Helper()
	b.Use(t, "")
	chain, key := b.ClientCertificate(t, name)
	Setenv(t, "NOTATION_HSM_BROKER_TOKEN", "")
	Setenv(t, "NOTATION_HSM_BROKER_CERTIFICATE", chain)
	Setenv(t, "NOTATION_HSM_BROKER_KEY", key)
}

// ClientCertificate returns files with a certificate for a caller whose subject is CN=NAME, and its key.
func (b *TeamBroker) ClientCertificate(t testing.TB, name string) (chain, key string) {
	t.Helper()
	template := Template(name)
	template.Subject = pkix.Name{CommonName: name}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	certificate, private := pair(t, b.Callers, template)
	dir := t.TempDir()
	Write(t, filepath.Join(dir, "client.pem"), certificate)
	if err := os.WriteFile(filepath.Join(dir, "client.key"), []byte(private), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key")
}

// Client returns an HTTP client that trusts the broker.
func (b *TeamBroker) Client() *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(Read(b.t, b.CA)))
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, // for tests
		MaxIdleConnsPerHost: 256}, Timeout: time.Hour}
}

// Ask makes a request of the API with a token, and returns the status and the body of the answer.
func (b *TeamBroker) Ask(client *http.Client, token, method, path, body string) (int, string, error) {
	r, err := http.NewRequest(method, b.URL+path, strings.NewReader(body)) //nolint:noctx // the client has a timeout
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	response, err := client.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return response.StatusCode, string(data), err
}
