package certs

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// publicKeyLimit is how much of a public key's file is read, in bytes. Such files have less than 2,000 bytes.
const publicKeyLimit = 1 << 16

// ReadPublicKey returns the public key in a file, in PEM or DER (SubjectPublicKeyInfo, or PKCS #1 for RSA). It refuses
// a private key.
func ReadPublicKey(path string) (crypto.PublicKey, error) {
	unreadable := func(err error) error {
		kind := failure.Invalid
		if errors.Is(err, fs.ErrNotExist) {
			kind = failure.NotFound
		}
		return failure.New(kind, "cannot read the public key: %w", err).
			WithHint("check the path, and that this user can read the file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, publicKeyLimit))
	if err != nil {
		return nil, unreadable(err)
	}
	der := data
	if block, _ := pem.Decode(data); block != nil {
		der = block.Bytes
		if strings.Contains(block.Type, "PRIVATE") {
			return nil, failure.New(failure.Invalid, "%s has a private key", path).
				WithHint("name a file with the public key; make private keys in a module, where they are never in a file")
		}
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		if _, err := x509.ParseCertificate(der); err == nil {
			return nil, failure.New(failure.Invalid, "%s has a certificate, not a public key", path).
				WithHint("name a file with the public key: notation-hsm cert export --public KEY, or openssl x509 -in " + path +
					" -noout -pubkey")
		}
		if rsaKey, err := x509.ParsePKCS1PublicKey(der); err == nil {
			return rsaKey, nil
		}
		return nil, failure.New(failure.Invalid, "%s has no public key: %w", path, err).
			WithHint("make it with 'notation-hsm cert export --public KEY'")
	}
	return public, nil
}
