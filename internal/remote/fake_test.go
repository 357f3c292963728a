package remote

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
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

	mu       sync.Mutex
	answers  map[string]http.HandlerFunc // by path
	requests []*http.Request
	states   map[http.ConnState]int
}

func newFake(t *testing.T) *fake {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{private: private, socket: filepath.Join(t.TempDir(), "s"), answers: map[string]http.HandlerFunc{},
		states: map[http.ConnState]int{}}
	f.key = brokerapi.Key{Name: "release", URI: "pkcs11:token=signing;object=release", Token: "pkcs11:token=signing",
		Label: "release", Public: public, Formats: []payload.Format{payload.Notation}}
	f.answers[brokerapi.KeysPath] = func(w http.ResponseWriter, _ *http.Request) {
		answer(w, brokerapi.Keys{Token: f.key.Token, Keys: []brokerapi.Key{f.key}})
	}
	f.answers[brokerapi.KeyPath("release")] = func(w http.ResponseWriter, _ *http.Request) { answer(w, f.key) }
	f.answers[brokerapi.SignaturesPath("release")] = f.sign
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.server.Listener.Close()
	f.server.Listener = listener
	f.server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.states[s]++
	}
	f.server.Start()
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

// settings name the fake's key.
func (f *fake) settings() *config.Settings {
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
