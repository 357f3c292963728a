package nethsm

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

// checkTrust fails with Invalid when the settings both verify certificates and do not. It warns when they do not.
func (b *Backend) checkTrust(n *config.NetHSM) error {
	if !n.Insecure {
		return nil
	}
	if len(n.Fingerprints) > 0 || n.CAFile != "" {
		return failure.New(failure.Invalid, "insecure is set together with fingerprints or ca-file of the NetHSM").
			WithHint("remove insecure from the section nethsm and from the environment")
	}
	b.warn("TLS certificates of the NetHSM are NOT verified (insecure): whoever is on the network can read the " +
		"passphrase and respond in its place")
	return nil
}

// tlsConfig returns a TLS configuration that accepts the certificates that the settings trust: those of the
// fingerprints, or those of the CA file, or else those of the system's CAs.
func (b *Backend) tlsConfig(n *config.NetHSM) (*tls.Config, error) {
	if err := b.checkTrust(n); err != nil {
		return nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case n.Insecure:
		t.InsecureSkipVerify = true //nolint:gosec // the user has asked for it, and was warned
	case len(n.Fingerprints) > 0:
		t.InsecureSkipVerify = true //nolint:gosec // VerifyConnection compares the fingerprint instead
		t.VerifyConnection = func(state tls.ConnectionState) error {
			seen := sha256.Sum256(state.PeerCertificates[0].Raw)
			if !slices.Contains(n.Fingerprints, seen) {
				return errFingerprint(seen)
			}
			return nil
		}
	case n.CAFile != "":
		var err error
		if t.RootCAs, err = readCAs(n.CAFile); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// errFingerprint is the SHA-256 of a certificate that is in no fingerprint of the settings.
type errFingerprint [32]byte

// Error returns the fingerprint in hex.
func (e errFingerprint) Error() string {
	return "its fingerprint sha256:" + hex.EncodeToString(e[:]) + " is not in fingerprints"
}

// readCAs reads a PEM file of CA certificates. It fails with Denied when another user can change the file: whoever can
// learns the passphrase.
func readCAs(path string) (*x509.CertPool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, cannotRead(path, err)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, cannotRead(path, err)
	}
	defer file.Close()
	if err := ownership.Check(path, os.Getuid()); err != nil {
		f := failure.From(err)
		return nil, failure.New(failure.Denied, "cannot trust %s (ca-file): %w", path, f).WithHint(f.Hint)
	}
	pem, err := io.ReadAll(io.LimitReader(file, responseLimit))
	if err != nil {
		return nil, cannotRead(path, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, failure.New(failure.Invalid, "%s has no certificate", path).
			WithHint("name a PEM file with the CA that issued the NetHSM's TLS certificate")
	}
	return pool, nil
}

func cannotRead(path string, err error) error {
	return failure.New(failure.FileKind(err), "cannot read %s: %w", path, innermost(err)).
		WithHint("check ca-file under nethsm")
}
