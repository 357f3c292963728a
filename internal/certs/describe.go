package certs

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// KeyFingerprint returns the SHA-256 of the SubjectPublicKeyInfo of a public key, in hex, as
// 'openssl pkey -pubin -outform der | sha256sum' prints it.
func KeyFingerprint(public crypto.PublicKey) (string, error) {
	der, err := encodeKey(public)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// encodeKey returns the SubjectPublicKeyInfo of a public key, in DER.
func encodeKey(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot encode the public key: %w", err).
			WithHint("use an RSA or elliptic curve key")
	}
	return der, nil
}

// Fingerprint returns the SHA-256 of a certificate, in hex.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// keyIdentifier returns the leftmost 160 bits of the SHA-256 of a public key (RFC 7093, section 2, method 1).
func keyIdentifier(public crypto.PublicKey) ([]byte, error) {
	der, err := encodeKey(public)
	if err != nil {
		return nil, err
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &info); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(info.Key.Bytes)
	return sum[:20], nil
}

// Describe returns every field of a certificate, or of a template for one, as rows of name and value.
func Describe(cert *x509.Certificate, issuer string) [][]string {
	day := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
	rows := [][]string{{"Subject:", cert.Subject.String()}, {"Issuer:", issuer}}
	if cert.SerialNumber != nil {
		rows = append(rows, []string{"Serial:", Serial(cert)})
	}
	rows = append(rows, []string{"Not before:", day(cert.NotBefore)}, []string{"Not after:", day(cert.NotAfter)})
	constraints := "critical, not a CA"
	if cert.IsCA {
		constraints = "critical, CA"
		if limit, limited := pathLength(cert); limited {
			constraints += fmt.Sprintf(", path length %d", limit)
		}
	}
	rows = append(rows, []string{"Basic constraints:", constraints},
		[]string{"Key usage:", "critical, " + usages(cert.KeyUsage)})
	add := func(name string, values []string) {
		if len(values) > 0 {
			rows = append(rows, []string{name, strings.Join(values, ", ")})
		}
	}
	for _, usage := range cert.ExtKeyUsage {
		if usage == x509.ExtKeyUsageCodeSigning {
			add("Extended key usage:", []string{"codeSigning"})
		}
	}
	add("Permitted names:", names(cert.PermittedDNSDomains, cert.PermittedEmailAddresses, cert.PermittedURIDomains,
		cert.PermittedIPRanges))
	add("Excluded names:", names(cert.ExcludedDNSDomains, cert.ExcludedEmailAddresses, cert.ExcludedURIDomains,
		cert.ExcludedIPRanges))
	add("CRL:", cert.CRLDistributionPoints)
	add("OCSP:", cert.OCSPServer)
	return rows
}

// Serial returns the serial number of a certificate as an even number of hex digits, as in file names and lists.
func Serial(cert *x509.Certificate) string { return hex.EncodeToString(cert.SerialNumber.Bytes()) }

// usages returns the names of the key usages that this package sets.
func usages(u x509.KeyUsage) string {
	var names []string
	for _, usage := range []struct {
		bit  x509.KeyUsage
		name string
	}{{x509.KeyUsageDigitalSignature, "digitalSignature"}, {x509.KeyUsageCertSign, "keyCertSign"},
		{x509.KeyUsageCRLSign, "cRLSign"}} {
		if u&usage.bit != 0 {
			names = append(names, usage.name)
		}
	}
	return strings.Join(names, ", ")
}

// names returns name constraints as Terms have them.
func names(dns, email, uri []string, ip []*net.IPNet) []string {
	var all []string
	add := func(kind string, values []string) {
		for _, value := range values {
			all = append(all, kind+":"+value)
		}
	}
	add("dns", dns)
	add("email", email)
	add("uri", uri)
	for _, network := range ip {
		all = append(all, "ip:"+network.String())
	}
	return all
}
