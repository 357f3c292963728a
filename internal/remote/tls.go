package remote

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/harden"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

// pemLimit is the length of the longest PEM file that is read, in bytes.
const pemLimit = 1 << 20

// newTLSTransport returns a transport to an https broker. It fails for files that cannot be read or used.
//
// HTTPS_PROXY is respected, since the runners of many companies reach nothing else: a proxy learns the name of the
// broker and no more. HTTP/2 is not used: it has more that a hostile server could do.
func newTLSTransport(c *config.Credentials) (*http.Transport, error) {
	if err := harden.Memory(); err != nil { // tokens and the private key are read next
		slog.Warn("other processes of this user can read the memory", "error", err)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.CA != "" {
		if err := ownership.Check(c.CA, os.Getuid()); err != nil {
			return nil, cannotUse(config.BrokerCA, c.CA, err)
		}
		data, err := bound.ReadFile(c.CA, pemLimit)
		if err != nil {
			return nil, cannotUse(config.BrokerCA, c.CA, err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(data) {
			return nil, cannotUse(config.BrokerCA, c.CA, errors.New("it has no certificate"))
		}
	}
	if c.Certificate != "" {
		pair, err := readPair(c.Certificate, c.Key)
		if err != nil {
			return nil, err
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: t, TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 64, MaxResponseHeaderBytes: headerLimit, DisableCompression: true,
	}, nil
}

// readPair reads the client's certificate and its private key. Others must not be able to read the key.
func readPair(certificate, key string) (tls.Certificate, error) {
	chain, err := bound.ReadFile(certificate, pemLimit)
	if err != nil {
		return tls.Certificate{}, cannotUse(config.BrokerCert, certificate, err)
	}
	info, err := os.Stat(key)
	if err != nil {
		return tls.Certificate{}, cannotUse(config.BrokerKey, key, err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return tls.Certificate{}, failure.New(failure.Denied, "cannot use %s %s: others can read it", config.BrokerKey, key).
			WithHint("run: chmod 600 " + key + "; for a Kubernetes secret set defaultMode: 0400")
	}
	private, err := bound.ReadFile(key, pemLimit)
	if err != nil {
		return tls.Certificate{}, cannotUse(config.BrokerKey, key, err)
	}
	defer clear(private)
	pair, err := tls.X509KeyPair(chain, private)
	if err != nil {
		return tls.Certificate{}, failure.New(failure.Invalid, "cannot use %s %s with %s %s: %w", config.BrokerCert,
			certificate, config.BrokerKey, key, err).
			WithHint("name PEM files of a certificate and of its own private key")
	}
	return pair, nil
}

// cannotUse returns the failure of a file that a setting names.
func cannotUse(setting, path string, err error) error {
	f := failure.From(err)
	if f.Hint == "" {
		f = failure.New(failure.FileKind(err), "%w", err).WithHint("check " + setting)
	}
	return failure.New(f.Kind, "cannot use %s %s: %w", setting, path, err).WithHint(f.Hint)
}
