// Package nethsmtest is a NetHSM in memory, for tests: its REST API over TLS on a loopback port.
//
// Start starts an unprovisioned NetHSM, and Provision gives it an administrator and an operator. Its keys are those of
// Go's crypto packages, so their signatures verify. Instances of one cluster share keys and users (Instance); an
// instance can stop and restart at the same address (Stop, Restart); faults change its responses (Inject). Every
// request and response is checked against the description of the API in api.yaml (contract.go), and a violation fails
// the test.
package nethsmtest

import (
	"context"
	"crypto/rsa"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// base is the path of version 1 of the API.
const base = "/api/v1"

// Server is one instance: a listener with a certificate, a lock state, device settings and faults of its own. It shares
// users and keys with the other instances of its cluster.
type Server struct {
	URL     string // https://127.0.0.1:PORT/api/v1
	Address string // 127.0.0.1:PORT

	t         testing.TB
	state     *state
	contract  *contract
	rateLimit time.Duration
	member    *member

	mu       sync.Mutex      // guards what follows; never held while state.mu is waited for
	http     *http.Server    // nil while stopped
	stopped  chan struct{}   // closed by Stop, so that hanging requests end
	serving  *sync.WaitGroup // requests under way since the last start
	requests []*Request
	started  time.Time
	faults   []*Fault
	invalid  int // nesting of AllowInvalid

	device // guarded by state.mu
}

// Request is an entry of the log of an instance.
type Request struct {
	Method string
	Path   string // below /api/v1, with its query
	User   string // of the credentials sent, right or wrong; empty without
	Role   Role   // of the user once authenticated; empty before
	Status int    // sent to the client; 0 while served, and when a fault cut the connection
}

type options struct {
	rateLimit time.Duration
	rsaKeys   []*rsa.PrivateKey
}

// Option changes how Start makes the server.
type Option func(*options)

// RateLimit sets for how long logins of a user fail with 429 after a wrong passphrase. The default is one second, as on
// a real NetHSM.
func RateLimit(d time.Duration) Option { return func(o *options) { o.rateLimit = d } }

// RSAKeys gives keys that requests to generate an RSA key of their length take, because generating one takes seconds.
func RSAKeys(keys ...*rsa.PrivateKey) Option {
	return func(o *options) { o.rsaKeys = append(o.rsaKeys, keys...) }
}

// Start starts an unprovisioned NetHSM, and stops it at the end of the test.
func Start(t testing.TB, opts ...Option) *Server {
	t.Helper()
	o := options{rateLimit: time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	st := newState()
	st.rsaKeys = o.rsaKeys
	return start(t, st, o.rateLimit)
}

// Instance starts another instance of the same cluster. It shares users, namespaces, keys and their certificates, and
// has an address, a TLS certificate, a state, a log and faults of its own.
func (s *Server) Instance() *Server {
	s.t.Helper()
	return start(s.t, s.state, s.rateLimit)
}

func start(t testing.TB, st *state, rateLimit time.Duration) *Server {
	t.Helper()
	s := &Server{t: t, state: st, rateLimit: rateLimit, contract: loadContract(t), device: newDevice(t),
		started: time.Now()}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Address = listener.Addr().String()
	s.URL = "https://" + s.Address + base
	st.mu.Lock()
	s.member = st.addMember("https://" + s.Address)
	st.mu.Unlock()
	s.serve(listener)
	t.Cleanup(s.Stop)
	return s
}

func (s *Server) serve(listener net.Listener) {
	server := &http.Server{
		Handler:           http.HandlerFunc(s.serveHTTP),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // refused certificates are what tests want to see at the client's end
	}
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true) // as the real one, which has no HTTP/2
	s.mu.Lock()
	s.http, s.stopped, s.serving = server, make(chan struct{}), new(sync.WaitGroup)
	s.mu.Unlock()
	config := &tls.Config{MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			s.state.mu.Lock()
			defer s.state.mu.Unlock()
			certificate := s.tls
			return &certificate, nil
		}}
	go func() { _ = server.Serve(tls.NewListener(listener, config)) }()
}

// Stop closes the listener and all connections. It does nothing if the instance is stopped.
func (s *Server) Stop() { s.stop((*http.Server).Close) }

func (s *Server) stop(how func(*http.Server) error) {
	s.mu.Lock()
	server, serving := s.http, s.serving
	s.http = nil
	if server != nil {
		close(s.stopped)
	}
	s.mu.Unlock()
	if server == nil {
		return
	}
	_ = how(server)
	serving.Wait()
}

// Restart listens again at the same address, with the state it had.
func (s *Server) Restart() {
	s.t.Helper()
	var err error
	for range 500 {
		var listener net.Listener
		if listener, err = new(net.ListenConfig).Listen(context.Background(), "tcp", s.Address); err == nil {
			s.serve(listener)
			return
		}
		time.Sleep(10 * time.Millisecond) // another process may have the port for a moment
	}
	s.t.Fatalf("restart at %s: %v", s.Address, err)
}

// Requests returns a copy of the log of this instance since its start or the last ResetRequests.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Request, 0, len(s.requests))
	for _, r := range s.requests {
		all = append(all, *r)
	}
	return all
}

// ResetRequests empties the log.
func (s *Server) ResetRequests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = nil
}

// AllowInvalid runs a function whose requests violate the description on purpose: they are not checked against it;
// their responses are.
func (s *Server) AllowInvalid(f func()) {
	s.mu.Lock()
	s.invalid++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.invalid--
		s.mu.Unlock()
	}()
	f()
}

// Client returns an HTTP client that trusts this instance's certificate and keeps no connection between requests.
func (s *Server) Client() *http.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: s.pool()}
	return &http.Client{Timeout: 10 * time.Minute, // a slow machine makes a long RSA key
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: config}}
}
