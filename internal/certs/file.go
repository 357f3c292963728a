// Package certs reads certificates, puts them in order, and says in plain words what is wrong with them for Notation.
package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const fileLimit = 1 << 20 // bytes; a chain has a few kilobytes

// ReadFile reads the certificates of a file in the file's order, in the forms that Parse knows. A failure is of kind
// Invalid; its hint is the command that converts the file, where one does.
func ReadFile(path string) ([]*x509.Certificate, error) {
	data, err := bound.ReadFile(path, fileLimit)
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the certificates: %w", err).
			WithHint("check the path, and that this user can read the file")
	}
	certs, err := Parse(data)
	if err != nil {
		hint := "name a PEM file with the leaf certificate and its issuers"
		if f := failure.From(err); f.Hint != "" {
			hint = strings.ReplaceAll(f.Hint, "FILE", path)
		}
		return nil, failure.New(failure.Invalid, "the certificate file %s: %w", path, err).WithHint(hint)
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
