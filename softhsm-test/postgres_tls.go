package softhsmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net"
	"testing"
)

// server returns a certificate for localhost and 127.0.0.1 and its key, as PEM.
func (ca *CA) server(t testing.TB) (certificate, key string) {
	t.Helper()
	template := Template("localhost")
	template.DNSNames, template.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	return ca.issueWithKey(t, template)
}

// Client returns the certificate of a client by name and its key, as PEM.
func (ca *CA) Client(t testing.TB, name string) (certificate, key string) {
	t.Helper()
	template := Template(name)
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return ca.issueWithKey(t, template)
}

func (ca *CA) issueWithKey(t testing.TB, template *x509.Certificate) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return PEM(ca.Issue(t, template, &private.PublicKey)), key
}
