// Package certs reads certificates, puts them in order, and says in plain words what is wrong with them for Notation.
package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const fileLimit = 1 << 20 // bytes; a chain has a few kilobytes

// ReadFile reads the certificates of a PEM file (RFC 7468), in the file's order. Other PEM blocks are passed over.
func ReadFile(path string) ([]*x509.Certificate, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, failure.New(failure.Invalid, "check the path, and that this user can read the file", "can't read the certificates: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, fileLimit+1))
	if err != nil {
		return nil, failure.New(failure.Invalid, "check the file", "can't read the certificates: %w", err)
	}
	if len(data) > fileLimit {
		return nil, failure.New(failure.Invalid, "name a file with the leaf and its issuers alone", "the certificate file %s is larger than %d bytes", path, fileLimit)
	}
	certs, err := Parse(data)
	if err != nil {
		return nil, failure.New(failure.Invalid, "name a PEM file with the leaf certificate and its issuers", "the certificate file %s: %w", path, err)
	}
	return certs, nil
}

// Parse reads the certificates of PEM data. It fails when there are none, or one of them is not a certificate.
func Parse(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			slog.Warn("a PEM block that is no certificate was passed over", "type", block.Type)
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d does not parse: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		if _, err := x509.ParseCertificate(data); err == nil {
			return nil, fmt.Errorf("it is DER, not PEM; convert it with: openssl x509 -inform der")
		}
		return nil, fmt.Errorf("there is no PEM certificate in it")
	}
	return certs, nil
}

// Encode writes a chain as PEM, in its order.
func Encode(chain []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, cert := range chain {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a buffer takes all
	}
	return out.Bytes()
}
