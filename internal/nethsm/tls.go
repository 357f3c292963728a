package nethsm

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

// errFingerprint is a certificate that none of the fingerprints is of.
type errFingerprint [32]byte

func (e errFingerprint) Error() string {
	return "its certificate has the fingerprint sha256:" + hex.EncodeToString(e[:]) +
		", which is none of those in fingerprints"
}

// Warnings is where people read what does not stop a command: standard error when nil. The plugin protocol discards
// them, as Notation wants nothing there.
var Warnings io.Writer

var warned sync.Map // by their texts

// warn says something once, to people and in the log.
func warn(text string) {
	if _, told := warned.LoadOrStore(text, true); !told {
		slog.Warn(text)
		var w io.Writer = os.Stderr // which has its place only now
		if Warnings != nil {
			w = Warnings
		}
		fmt.Fprintln(w, "warning: "+text)
	}
}

// examineTrust refuses settings that contradict each other, and warns when they trust anyone.
func examineTrust(n *config.NetHSM) error {
	if !n.Insecure {
		return nil
	}
	if len(n.Fingerprints) > 0 || n.CAFile != "" {
		return failure.New(failure.Invalid,
			"the NetHSM's certificate is to be trusted by fingerprints or ca-file, and whatever it is (insecure)").
			WithHint("take insecure out of the section nethsm and the environment; it would make the other worthless")
	}
	warn(
		"TLS certificates of the NetHSM are NOT verified (insecure): whoever is on the network can read the passphrase and " +
			"answer in its place")
	return nil
}

// tlsConfig says which certificates are trusted.
func tlsConfig(n *config.NetHSM) (*tls.Config, error) {
	if err := examineTrust(n); err != nil {
		return nil, err
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case n.Insecure:
		t.InsecureSkipVerify = true //nolint:gosec // the user has asked for it, and is warned
	case len(n.Fingerprints) > 0:
		t.InsecureSkipVerify = true //nolint:gosec // the fingerprint decides instead
		t.VerifyConnection = func(state tls.ConnectionState) error {
			seen := sha256.Sum256(state.PeerCertificates[0].Raw)
			for _, fingerprint := range n.Fingerprints {
				if seen == fingerprint {
					return nil
				}
			}
			return errFingerprint(seen)
		}
	case n.CAFile != "":
		var err error
		if t.RootCAs, err = roots(n.CAFile); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func roots(path string) (*x509.CertPool, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the NetHSM's CA: %w", err).WithHint("check ca-file under nethsm")
	}
	defer file.Close()
	if path, err = filepath.Abs(path); err != nil {
		return nil, failure.New(failure.Invalid, "can't read the NetHSM's CA: %w", err).WithHint("check ca-file under nethsm")
	}
	if err := ownership.Check(path, os.Getuid()); err != nil { // whoever changes it learns the passphrase
		f := failure.From(err)
		return nil, failure.New(failure.Denied, "others decide what the NetHSM's CA is (ca-file): %w", f).WithHint(f.Hint)
	}
	pem, err := io.ReadAll(io.LimitReader(file, answerLimit))
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the NetHSM's CA: %w", err).WithHint("check ca-file under nethsm")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, failure.New(failure.Invalid, "there is no certificate in %s", path).
			WithHint("name a PEM file with the CA that issued the NetHSM's TLS certificate")
	}
	return pool, nil
}
