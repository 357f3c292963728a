package chaos

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const (
	countReplicas = 3
	countModules  = 4
)

// world is all that a run is made of.
type world struct {
	t     *testing.T
	dir   string // with all files of the run, and the folder logs
	began time.Time

	net      *network
	clients  *host
	postgres *postgres
	modules  []*module
	replicas []*replica

	issuer  *identitytest.Issuer
	callers *softhsmtest.CA // issues clients' certificates
	roots   *x509.CertPool  // of the replicas' certificate
	people  []*person
	keys    map[string]*ecdsa.PrivateKey // by label; every module has them
	program string                       // hsm-broker
	once    sync.Once
	tokens  *caller // those who have tokens
	history *history
}

// newWorld makes and starts all parts.
func newWorld(t *testing.T, o settings) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "chaos")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the files of the run, with what each process has printed in logs: %s", dir)
			return
		}
		os.RemoveAll(dir)
	})
	w := &world{t: t, dir: dir, began: time.Now(), history: &history{}, keys: map[string]*ecdsa.PrivateKey{}}
	w.must(os.Chmod(dir, 0o755)) //nolint:gosec // the database's user works below it
	w.must(os.Mkdir(filepath.Join(dir, "logs"), 0o700))
	w.net = newNetwork(t)
	w.program = w.build(o.mistake)
	w.clients = w.net.add("clients")
	databases := [2]*host{w.net.add("database-1"), w.net.add("database-2")}
	w.postgres = w.startPostgres(databases)
	w.issuer = identitytest.New(t)
	w.startModules()
	w.startReplicas()
	return w
}

// now returns the time since the run began, by the monotonic clock.
func (w *world) now() time.Duration { return time.Since(w.began) }

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// patience bounds each wait for a condition. No machine is so slow that it decides.
const patience = 3 * time.Minute

// until waits for a condition, and fails the test when it does not come.
func (w *world) until(what string, condition func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !condition(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("it never happens that %s", what)
		}
	}
}

// compile compiles a C file of testdata into a library, and returns its path.
func (w *world) compile(source, library string, args ...string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, library)
	args = append(args, "-shared", "-fPIC", "-o", path,
		filepath.Join(softhsmtest.Root(), "softhsm-test", "chaos", "testdata", source), "-ldl")
	softhsmtest.Run(w.t, softhsmtest.Program(w.t, "cc"), args...)
	w.must(os.Chmod(path, 0o755)) //nolint:gosec // the database's user loads it
	return path
}

// pair returns a certificate for a new key, and the key, in PEM.
func (w *world) pair(ca *softhsmtest.CA, template *x509.Certificate) (chain, key string) {
	w.t.Helper()
	private := w.newKey()
	return softhsmtest.PEM(ca.Issue(w.t, template, private.Public())), w.keyPEM(private)
}

func (w *world) newKey() *ecdsa.PrivateKey {
	w.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	return private
}

func (w *world) keyPEM(key crypto.PrivateKey) string {
	w.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	w.must(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// clientCertificate returns a certificate by which a caller is CN=NAME.
func (w *world) clientCertificate(name string) tls.Certificate {
	w.t.Helper()
	template := softhsmtest.Template(name)
	template.Subject.Organization, template.Subject.Country, template.Subject.Province = nil, nil, nil
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	certificate, err := tls.X509KeyPair(bytesOf(w.pair(w.callers, template)))
	w.must(err)
	return certificate
}

func bytesOf(a, b string) ([]byte, []byte) { return []byte(a), []byte(b) }

// file writes a file of the run, and returns its path.
func (w *world) file(name, text string) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	w.must(os.MkdirAll(filepath.Dir(path), 0o755)) //nolint:gosec // the database's user works below the folder
	w.must(os.WriteFile(path, []byte(text), 0o600))
	return path
}
