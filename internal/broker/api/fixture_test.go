package api

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi/brokerapitest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const testPolicy = `
version: 1
keys:
  release:
    key: pkcs11:token=test;object=release
    formats: [notation]
    use:
    - name: ci
      when: caller.subject == "ci"
    - name: slow
      when: caller.subject == "slow"
      time-lock: 1h
    - name: people
      when: caller.subject == "people"
      approvals: [{group: managers, quorum: 2}]
    - name: rare
      when: caller.subject == "rare"
      limit: 1 per day
    block:
    - {name: admins, when: caller.subject == "CN=admin"}
    - {name: timed, when: caller.subject == "timed", time-lock: 1h}
    unblock:
    - {name: admins, when: caller.subject == "CN=admin"}
    - {name: timed, when: caller.subject == "timed", time-lock: 1h}
    modify:
    - {name: admins, when: caller.subject == "CN=admin"}
    - {name: timed, when: caller.subject == "timed", time-lock: 1h}
groups:
  managers: [alice, bob, carol]
`

const audience = "https://broker.example.com"

// fixture is a server on TLS and on a Unix socket, of a broker with a key in memory and a store on the disk.
type fixture struct {
	*testing.T
	api         *API
	keys        *testKeys
	store       *failingStore
	issuer      *identitytest.Issuer
	down        *identitytest.Issuer // never answers
	description *brokerapitest.Description
	callers     *softhsmtest.CA // issues callers' certificates
	server      *softhsmtest.CA // issues the server's
	certificate Certificate
	address     string // of TLS
	socket      string
	database    string
	log         *ecdsa.PrivateKey
	people      map[string]*person
	policy      string // in force at the first start
	limits      identity.Limits
	late        atomic.Int64 // nanoseconds that the server's clock is ahead
	stop        func()

	mu   sync.Mutex
	seen map[string]bool // operations with their statuses
}

// testKeys are keys in memory.
type testKeys struct {
	private *ecdsa.PrivateKey
	mu      sync.Mutex
	err     error // of every operation
}

// fail has every operation fail, or none with nil.
func (k *testKeys) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = err
}

func (k *testKeys) failure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// Modules returns two modules of a key, of which the second has failed.
func (*testKeys) Modules() []broker.Module {
	return []broker.Module{{Key: "alone", Number: 1, Alone: true, Copy: held.Copy{Err: errors.New("broken")}},
		{Key: "release", Number: 1}, {Key: "release", Number: 2, Detail: "the module is not available",
			Copy: held.Copy{Err: errors.New("broken")}}}
}

func (k *testKeys) Describe(context.Context, string) (crypto.PublicKey, []*x509.Certificate, error) {
	return k.private.Public(), nil, k.failure()
}

func (k *testKeys) Sign(_ context.Context, _ string, data []byte, _ string) ([]byte, error) {
	hash := sha256.Sum256(data)
	signature, err := ecdsa.SignASN1(rand.Reader, k.private, hash[:])
	return signature, errors.Join(err, k.failure())
}

// failingStore is a store that fails when it is told to, and counts how often it is read.
type failingStore struct {
	store.Store
	reads atomic.Int64 // of requests, documents and entries; tiles are as many as the log is high
	mu    sync.Mutex
	err   error
}

// fail has all that the API reads from the store fail, or nothing with nil.
func (s *failingStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *failingStore) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *failingStore) Request(ctx context.Context, id string) (*store.Request, error) {
	s.reads.Add(1)
	if err := s.failure(); err != nil {
		return nil, err
	}
	return s.Store.Request(ctx, id)
}

func (s *failingStore) Requests(ctx context.Context, q store.Query) (*store.Page, error) {
	s.reads.Add(1)
	if err := s.failure(); err != nil {
		return nil, err
	}
	return s.Store.Requests(ctx, q)
}

func (s *failingStore) Tile(ctx context.Context, level int, index int64) ([]byte, error) {
	if err := s.failure(); err != nil {
		return nil, err
	}
	return s.Store.Tile(ctx, level, index)
}

func (s *failingStore) Document(ctx context.Context, sha256 [32]byte) ([]byte, error) {
	s.reads.Add(1)
	if err := s.failure(); err != nil {
		return nil, err
	}
	return s.Store.Document(ctx, sha256)
}

func (s *failingStore) Entries(ctx context.Context, first, end int64, each func(int64, []byte) error) error {
	s.reads.Add(1)
	return s.Store.Entries(ctx, first, end, each)
}

func generate(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := prepare(t)
	f.start("{}")
	return f
}

// prepare returns a fixture that is not started.
func prepare(t *testing.T) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fixture{T: t, keys: &testKeys{private: generate(t)}, issuer: identitytest.New(t), down: identitytest.New(t),
		description: brokerapitest.LoadTeam(t), seen: map[string]bool{}, socket: filepath.Join(dir, "socket"),
		callers: softhsmtest.NewCA(t, "callers", nil), server: softhsmtest.NewCA(t, "server", nil)}
	f.down.Down(true)
	f.certificate = Certificate{Chain: filepath.Join(dir, "tls.pem"), Key: filepath.Join(dir, "tls.key"),
		ClientCA: filepath.Join(dir, "callers.pem")}
	softhsmtest.Write(t, f.certificate.ClientCA, f.callers.PEM())
	f.writeCertificate()
	f.people = map[string]*person{"alice": newPerson(t, approval.Key), "bob": newPerson(t, approval.SSH)}
	f.database, f.log = filepath.Join(dir, "broker.db"), generate(t)
	f.policy, f.limits = testPolicy, identity.Limits{Open: 1000, Requests: identity.Rate{Count: 1000, Per: time.Minute}}
	return f
}

// start starts a broker with a config, and serves it until stop.
func (f *fixture) start(config string) {
	f.Helper()
	opened, err := sqlite.Open(f.Context(), f.database)
	if err != nil {
		f.Fatal(err)
	}
	f.store = &failingStore{Store: opened}
	b, err := broker.Open(f.Context(), broker.Options{
		Store: f.store, Policy: []byte(f.policy), Config: []byte(config), Keys: f.keys, PublicURL: audience,
		First: f.first(), Limits: f.limits,
		Check: func(_ context.Context, name, _, mediaType string, size int64) (*repository.Claims, error) {
			if name == "registry.example.com/slow" {
				return nil, failure.New(failure.Timeout, "the registry did not answer").WithHint("try again")
			}
			return &repository.Claims{MediaType: mediaType, ManifestSize: size}, nil
		},
		Log: broker.Log{Origin: "broker.example.com/log", Public: f.log.Public(),
			File: filepath.Join(filepath.Dir(f.database), "checkpoint"), MaxUnpublished: time.Hour, MaxUnpublishedEntries: 20000,
			Sign: func(_ context.Context, c translog.Checkpoint) ([]byte, error) { return c.Sign(f.log) }},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.serve(b)
}

// serve serves a broker until stop.
func (f *fixture) serve(b *broker.Broker) {
	f.Helper()
	all := make([]identity.Administrator, 1)
	all[0].MTLS = "CN=admin"
	callers, err := identity.New(identity.Config{
		OIDC: []identity.Issuer{{Issuer: f.issuer.URL, Audience: identity.Strings{audience}, Type: "other",
			CA: f.issuer.CA, OneUse: new(bool), RequestsPerToken: 1000},
			{Issuer: f.down.URL, Audience: identity.Strings{audience}, Type: "other", CA: f.down.CA}},
		MTLS: &identity.MTLS{}, Unix: &identity.Unix{Users: []string{fmt.Sprint(os.Geteuid())}},
	}, all)
	if err != nil {
		f.Fatal(err)
	}
	f.api = New(Options{Broker: b, Identity: callers, Keys: f.keys, Modules: f.keys.Modules, PublicURL: audience,
		Version: "1.2.3", Size: 4096,
		now: func() time.Time { return time.Now().Add(time.Duration(f.late.Load())) }})
	secure, err := ListenTLS(f.Context(), "127.0.0.1:0", f.certificate)
	if err != nil {
		f.Fatal(err)
	}
	f.address = secure.Addr().String()
	local, err := ListenUnix(f.Context(), f.socket)
	if err != nil {
		f.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for _, listener := range []net.Listener{secure, local} {
		group.Go(func() {
			if err := f.api.Serve(ctx, listener); err != nil {
				f.Error(err)
			}
		})
	}
	f.stop = sync.OnceFunc(func() {
		stop()
		group.Wait()
		callers.Close()
		if err := errors.Join(b.Close(), f.store.Close()); err != nil {
			f.Error(err)
		}
	})
	f.Cleanup(f.stop)
}

// writeCertificate writes a new certificate of the server with its key.
func (f *fixture) writeCertificate() *x509.Certificate {
	f.Helper()
	template := softhsmtest.Template("127.0.0.1")
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	pair := issue(f.T, f.server, template)
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		f.Fatal(err)
	}
	softhsmtest.Write(f.T, f.certificate.Chain, softhsmtest.PEM(pair.Leaf))
	softhsmtest.Write(f.T, f.certificate.Key, pemKey(der))
	return pair.Leaf
}

// issue returns a certificate for a new key.
func issue(t testing.TB, ca *softhsmtest.CA, template *x509.Certificate) tls.Certificate {
	t.Helper()
	private := generate(t)
	leaf := ca.Issue(t, template, private.Public())
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: private, Leaf: leaf}
}

// client is who makes requests.
type client struct {
	*fixture
	http *http.Client
	auth string // the header Authorization
	base string
}

// open returns a client, with or without certificates.
func (f *fixture) open(certificates ...tls.Certificate) *client {
	roots := x509.NewCertPool()
	roots.AddCert(f.server.Cert)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certificates,
		MinVersion: tls.VersionTLS12}}
	f.Cleanup(transport.CloseIdleConnections)
	return &client{fixture: f, http: &http.Client{Transport: transport}, base: "https://" + f.address}
}

// token returns a client with a token of a subject.
func (f *fixture) token(subject string) *client {
	c := f.open()
	c.auth = "Bearer " + f.issuer.Mint(f.T, map[string]any{"sub": subject, "aud": audience})
	return c
}

// admin returns a client with the certificate of an administrator.
func (f *fixture) admin() *client { return f.open(f.clientCertificate(f.callers, "admin")) }

func (f *fixture) clientCertificate(ca *softhsmtest.CA, name string) tls.Certificate {
	template := softhsmtest.Template(name)
	template.Subject = pkix.Name{CommonName: name}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return issue(f.T, ca, template)
}

// unix returns a client on the Unix socket.
func (f *fixture) unix() *client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", f.socket)
	}}
	f.Cleanup(transport.CloseIdleConnections)
	return &client{fixture: f, http: &http.Client{Transport: transport}, base: "http://broker"}
}

// request is one of the API.
type request struct {
	method, path, body string
	header             http.Header
	chunked            bool
}

func get(path string) request { return request{method: http.MethodGet, path: path} }

// post returns a request with a message as its body, or with none for nil.
func post(path string, body any) request {
	r := request{method: http.MethodPost, path: path, header: http.Header{}}
	if body != nil {
		data, _ := json.Marshal(body)
		r.body = string(data)
		r.header.Set("Content-Type", "application/json")
	}
	return r
}

// do sends a request, and fails the test unless the description has the answer.
func (c *client) do(r request) brokerapitest.Answer {
	c.Helper()
	var body io.Reader
	switch {
	case r.chunked:
		body = io.MultiReader(strings.NewReader(r.body)) // of which net/http does not know the length
	case r.body != "":
		body = strings.NewReader(r.body)
	}
	sent, err := http.NewRequestWithContext(c.Context(), r.method, c.base+r.path, body)
	if err != nil {
		c.Fatal(err)
	}
	for name, values := range r.header {
		sent.Header[name] = values
	}
	if c.auth != "" {
		sent.Header.Set("Authorization", c.auth)
	}
	got, err := c.http.Do(sent)
	if err != nil {
		c.Fatal(err)
	}
	defer got.Body.Close()
	answer := brokerapitest.Answer{Status: got.StatusCode, Header: got.Header}
	if answer.Body, err = io.ReadAll(got.Body); err != nil {
		c.Fatal(err)
	}
	if len(got.Header.Get(requestID)) != 26 {
		c.Errorf("%s %s: the request has no name: %v", r.method, r.path, got.Header)
	}
	operation, err := c.description.Check(sent, answer)
	if err != nil {
		c.Errorf("%s %s: %v\n%s", r.method, r.path, err, answer.Body)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[fmt.Sprintf("%s %d", operation, answer.Status)] = true
	return answer
}

// want sends a request to which the answer has this status.
func (c *client) want(status int, r request) brokerapitest.Answer {
	c.Helper()
	answer := c.do(r)
	if answer.Status != status {
		c.Errorf("%s %s: status %d, want %d: %s", r.method, r.path, answer.Status, status, answer.Body)
	}
	return answer
}

// read decodes the body of an answer.
func read[T any](t testing.TB, a brokerapitest.Answer) (into T) {
	t.Helper()
	if err := json.Unmarshal(a.Body, &into); err != nil {
		t.Fatalf("%v: %s", err, a.Body)
	}
	return into
}

// sign returns a request for a signature for an image of this number.
func sign(number int) request {
	return post(brokerapi.SignaturesPath("release"), brokerapi.SignatureRequest{
		Payload: softhsmtest.SigningInput("ES256", number), Algorithm: "ECDSA-SHA-256"})
}

// wish returns a request for an image of this number, to be signed later.
func wish(number int) request { return post(brokerapi.RequestsPath, newRequest(number)) }

func newRequest(number int) brokerapi.NewRequest {
	return brokerapi.NewRequest{Key: "release", Artifact: brokerapi.Target{Format: "notation", Size: 525,
		MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: fmt.Sprintf("sha256:%064x", number)}}
}

func pemKey(der []byte) string {
	return "-----BEGIN PRIVATE KEY-----\n" + base64.StdEncoding.EncodeToString(der) + "\n-----END PRIVATE KEY-----\n"
}
