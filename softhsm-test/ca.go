package softhsmtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"
)

// CA is a certificate authority with its key in memory, for certificates right and wrong.
type CA struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
}

// NewCA makes an intermediate CA, or a root when parent is nil.
func NewCA(t testing.TB, name string, parent *CA) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := Template(name)
	template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	issuer := parent
	if issuer == nil {
		issuer = &CA{template, key}
	}
	return &CA{issuer.Issue(t, template, &key.PublicKey), key}
}

// Template is a signing certificate that Notation accepts, to be changed by a test.
func Template(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: []string{"Example"},
			Country:  []string{"CH"},
			Province: []string{"Zurich"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
	}
}

// Issue signs a certificate for a public key.
func (ca *CA) Issue(t testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, public, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// IssueCSR signs what a PEM certificate request asks for, as a CA would, and returns PEM.
func (ca *CA) IssueCSR(t testing.TB, csr string) string {
	t.Helper()
	block, _ := pem.Decode([]byte(csr))
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := request.CheckSignature(); err != nil {
		t.Fatal(err)
	}
	template := Template("")
	template.Subject, template.KeyUsage, template.ExtKeyUsage, template.ExtraExtensions = request.Subject, 0, nil,
		request.Extensions
	return PEM(ca.Issue(t, template, request.PublicKey))
}

// PEM returns the CA's certificate.
func (ca *CA) PEM() string { return PEM(ca.Cert) }

// PEM returns certificates as PEM.
func PEM(certs ...*x509.Certificate) string {
	var out []byte
	for _, cert := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return string(out)
}
