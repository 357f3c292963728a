package remote

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// A fake is a broker with one key, whose answers a test can change by path.
type fake struct {
	private *ecdsa.PrivateKey
	key     brokerapi.Key
	socket  string
	server  *httptest.Server
	ca      string // PEM file that trusts an https fake

	mu       sync.Mutex
	answers  map[string]http.HandlerFunc // by path
	requests []*http.Request
	signed   []brokerapi.SignatureRequest
	states   map[http.ConnState]int
}

// newFake returns a fake at a socket.
func newFake(t *testing.T) *fake {
	t.Helper()
	f := describeFake(t)
	f.socket = filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	f.server.Listener.Close()
	f.server.Listener = listener
	f.server.Start()
	return f
}

// newTLSFake returns a fake of a team's broker. change, if it is not nil, changes its certificate for localhost.
func newTLSFake(t *testing.T, change func(*x509.Certificate)) *fake {
	t.Helper()
	f := describeFake(t)
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore:   time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	if change != nil {
		change(cert)
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, f.private.Public(), f.private)
	if err != nil {
		t.Fatal(err)
	}
	f.ca = filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(f.ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	f.server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: f.private}},
		MinVersion: tls.VersionTLS13}
	f.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.server.StartTLS()
	return f
}

// describeFake returns a fake that does not listen yet.
func describeFake(t *testing.T) *fake {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{private: private, answers: map[string]http.HandlerFunc{},
		states: map[http.ConnState]int{}}
	f.key = brokerapi.Key{Name: "release", URI: "pkcs11:token=signing;object=release", Token: "pkcs11:token=signing",
		Label: "release", Public: public, Formats: []payload.Format{payload.Notation}}
	f.answers[brokerapi.KeysPath] = func(w http.ResponseWriter, _ *http.Request) {
		answer(w, brokerapi.Keys{Token: f.key.Token, Keys: []brokerapi.Key{f.key}})
	}
	f.answers[brokerapi.KeyPath("release")] = func(w http.ResponseWriter, _ *http.Request) { answer(w, f.key) }
	f.answers[brokerapi.SignaturesPath("release")] = f.sign
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.states[s]++
	}
	t.Cleanup(f.server.Close)
	return f
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, r)
	do := f.answers[r.URL.Path]
	f.mu.Unlock()
	if do == nil {
		http.NotFound(w, r)
		return
	}
	do(w, r)
}

// sign signs what it gets.
func (f *fake) sign(w http.ResponseWriter, r *http.Request) {
	var request brokerapi.SignatureRequest
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	f.signed = append(f.signed, request)
	f.mu.Unlock()
	hash := crypto.SHA256.New()
	hash.Write(request.Payload)
	signature, err := ecdsa.SignASN1(rand.Reader, f.private, hash.Sum(nil))
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, brokerapi.Signature{Signature: signature, Algorithm: request.Algorithm})
}

func answer(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

// count returns how often connections had a state.
func (f *fake) count(s http.ConnState) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.states[s]
}

// sent returns the requests with a method.
func (f *fake) sent(method string) (all []*http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if r.Method == method {
			all = append(all, r)
		}
	}
	return all
}

// settings name the fake's key.
func (f *fake) settings() *config.Settings {
	if f.ca != "" {
		return &config.Settings{Broker: f.server.URL, Key: config.URI{Broker: true, Object: "release"}, Timeout: time.Hour,
			Credentials: &config.Credentials{CA: f.ca}}
	}
	return &config.Settings{Broker: "unix:" + f.socket, Key: config.URI{Broker: true, Object: "release"},
		Timeout: time.Hour}
}

// open opens the fake's key.
func (f *fake) open(t *testing.T, b *Backend) (keystore.Store, keystore.Key) {
	t.Helper()
	store, err := b.Open(t.Context(), f.settings())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	k, err := store.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return store, k
}
