// Package notaryv1 runs Notary v1 (Docker Content Trust) for tests: its own server, signer and client, as pinned in
// tools/notary. Everything is on loopback addresses and in the test's own folders, and ends with the test.
package notaryv1

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// Server is a Notary server with a signer that holds its timestamp keys, and its snapshot keys where a client rotates
// them to the server. Both keep what they have in memory.
type Server struct {
	URL    string // https://127.0.0.1:PORT
	CA     string // PEM file that the server's certificate verifies under
	Client *http.Client

	service *softhsmtest.Service
}

// Start starts a signer and a server that sign with ECDSA keys.
func Start(t testing.TB) *Server {
	t.Helper()
	dir := t.TempDir()
	ca := softhsmtest.NewCA(t, "Notary CA", nil)
	caFile := filepath.Join(dir, "ca.pem")
	softhsmtest.Write(t, caFile, ca.PEM())
	for _, name := range []string{"server", "signer"} {
		writeCertificate(t, ca, dir, name)
	}
	addresses := softhsmtest.FreeAddresses(t, 2)
	server, signer := addresses[0], addresses[1]

	signerConfig := filepath.Join(dir, "signer.json")
	softhsmtest.WriteJSON(t, signerConfig, map[string]any{
		"server": map[string]string{"grpc_addr": signer, "tls_cert_file": "./signer.pem", "tls_key_file": "./signer.key",
			"client_ca_file": "./ca.pem"},
		"storage": map[string]string{"backend": "memory"}, "logging": map[string]string{"level": "error"},
	})
	startUntil(t, signer, "notary-signer", signerConfig)

	_, port, err := net.SplitHostPort(signer)
	if err != nil {
		t.Fatal(err)
	}
	serverConfig := filepath.Join(dir, "server.json")
	softhsmtest.WriteJSON(t, serverConfig, map[string]any{
		"server": map[string]string{"http_addr": server, "tls_cert_file": "./server.pem", "tls_key_file": "./server.key"},
		"trust_service": map[string]string{"type": "remote", "hostname": "127.0.0.1", "port": port,
			"tls_ca_file": "./ca.pem", "key_algorithm": "ecdsa", "tls_client_cert": "./server.pem",
			"tls_client_key": "./server.key"},
		"storage": map[string]string{"backend": "memory"}, "logging": map[string]string{"level": "error"},
	})
	service := startUntil(t, server, "notary-server", serverConfig)

	roots := x509.NewCertPool()
	roots.AddCert(ca.Cert)
	return &Server{URL: "https://" + server, CA: caFile, service: service,
		Client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}}
}

// Stop ends the server, as a service that was switched off.
func (s *Server) Stop() { s.service.Stop() }

// startUntil starts a program of Notary, and returns when it accepts connections on an address.
func startUntil(t testing.TB, address, name, config string) *softhsmtest.Service {
	t.Helper()
	service := softhsmtest.Start(t, softhsmtest.Build(t, name), "-config", config)
	if !service.Ready(func() bool {
		connection, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		connection.Close()
		return true
	}) {
		t.Fatalf("%s ended: %s", name, service.Stop())
	}
	return service
}

// writeCertificate writes NAME.pem and NAME.key, for TLS servers and clients on the loopback address.
func writeCertificate(t testing.TB, ca *softhsmtest.CA, dir, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := softhsmtest.Template(name)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	template.NotAfter = time.Now().Add(24 * time.Hour)
	softhsmtest.Write(t, filepath.Join(dir, name+".pem"), softhsmtest.PEM(ca.Issue(t, template, &key.PublicKey)))
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(dir, name+".key"), file, 0o600); err != nil {
		t.Fatal(err)
	}
}
