// Package certs reads certificates from files, orders them to chains, checks chains against Notation's rules, and makes
// certificates, certificate requests and revocation lists with the key of a module.
//
// Chains are searched by signature and not by name alone, within bounds, since files and tokens may hold any
// certificates. notation-core-go decides whether Notation accepts a chain; this package says which rule is broken and
// what to do.
package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const fileLimit = 1 << 20 // bytes; a chain has some kilobytes

// ReadFile reads the certificates of a file, in their order, in the formats of Parse. It fails with the kind of
// failure.FileKind if the file cannot be read, and with Invalid if its content cannot. For a file in another format,
// the hint is the command that converts it.
func ReadFile(path string) ([]*x509.Certificate, error) {
	data, err := bound.ReadFile(path, fileLimit)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the certificates: %w", err).
			WithHint("check the path, and that this user can read the file")
	}
	certs, err := Parse(data)
	if err != nil {
		hint := "name a PEM file with the leaf certificate and its issuers"
		if f := failure.From(err); f.Hint != "" {
			hint = strings.ReplaceAll(f.Hint, "FILE", path)
		}
		return nil, failure.New(failure.Invalid, "cannot read the certificates in %s: %w", path, err).WithHint(hint)
	}
	return certs, nil
}

// Encode returns a chain as PEM.
func Encode(chain []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, cert := range chain {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a bytes.Buffer does not fail
	}
	return out.Bytes()
}
