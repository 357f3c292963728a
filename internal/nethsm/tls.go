package nethsm

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/term"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// tlsConfig says which certificates are trusted.
func tlsConfig(n *config.NetHSM) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case n.Insecure:
		WarnInsecure(terminal())
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
		return nil, failure.New(failure.Invalid, "check ca-file under nethsm", "can't read the NetHSM's CA: %w", err)
	}
	defer file.Close()
	pem, err := io.ReadAll(io.LimitReader(file, answerLimit))
	if err != nil {
		return nil, failure.New(failure.Invalid, "check ca-file under nethsm", "can't read the NetHSM's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, failure.New(failure.Invalid, "name a PEM file with the CA that issued the NetHSM's TLS certificate", "there is no certificate in %s", path)
	}
	return pool, nil
}

var insecure sync.Once

// WarnInsecure says that certificates are not looked at: once, in the log and, unless it is nil, to w.
func WarnInsecure(w io.Writer) {
	insecure.Do(func() {
		const warning = "TLS certificates of the NetHSM are NOT verified (insecure): whoever is on the network can read the passphrase and answer in its place"
		slog.Warn(warning)
		if w != nil {
			fmt.Fprintln(w, "warning: "+warning)
		}
	})
}

// terminal is standard error if a person reads it. Notation does not want to find a warning there.
func terminal() io.Writer {
	if term.IsTerminal(int(os.Stderr.Fd())) {
		return os.Stderr
	}
	return nil
}
