package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// Serve serves callers on a listener until ctx ends, and then lets requests in flight finish for a short while.
func (a *API) Serve(ctx context.Context, listener net.Listener) error {
	return httpapi.Serve(ctx, listener, a.Handler(), a.limits, func(ctx context.Context, conn net.Conn) context.Context {
		from := "unix"
		if host, _, err := net.SplitHostPort(conn.RemoteAddr().String()); err == nil {
			from = host
		}
		return a.limits.Admit(identity.ConnContext(ctx, conn), conn, from)
	})
}

// Certificate names the files of a server's certificate, in PEM.
type Certificate struct {
	Chain, Key string // leaf first
	ClientCA   string // issuers of callers' certificates; "" for none
}

// ListenTLS listens for TLS. The server's certificate is read again when it changes; one that cannot be used leaves the
// old one. The CA of callers is not: a change of it is proposed, as one of the config.
func ListenTLS(ctx context.Context, address string, c Certificate) (net.Listener, error) {
	files := &files{Certificate: c}
	if err := files.readClientCA(); err != nil {
		return nil, err
	}
	if err := files.read(); err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, failure.New(failure.Unavailable, "cannot listen on %s: %w", address, err).
			WithHint("set listen.https.address to a free address")
	}
	return tls.NewListener(listener, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: files.forClient}), nil
}

// files are the files of a certificate as they were read last.
type files struct {
	Certificate

	mu      sync.Mutex
	config  *tls.Config
	callers *x509.CertPool // nil for none
	stamps  string         // of the files that config was made of
	checked time.Time
}

// fresh is how long files are used before a look whether they have changed.
const fresh = time.Second

// forClient returns the configuration for a new connection.
func (f *files) forClient(*tls.ClientHelloInfo) (*tls.Config, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.checked) >= fresh {
		f.checked = time.Now()
		if now := f.stamp(); now != f.stamps {
			if err := f.load(now); err != nil {
				slog.Error("the new certificate cannot be used, and the old one stays", "error", err)
				f.stamps = now // until it changes again
			}
		}
	}
	return f.config, nil
}

func (f *files) readClientCA() error {
	if f.ClientCA == "" {
		return nil
	}
	data, err := os.ReadFile(f.ClientCA)
	if err == nil {
		f.callers = x509.NewCertPool()
		if !f.callers.AppendCertsFromPEM(data) {
			err = errors.New("it has no certificate in PEM")
		}
	}
	if err != nil {
		return failure.New(failure.Invalid, "cannot read the CA of callers' certificates %s: %w", f.ClientCA, err).
			WithHint("set listen.https.client-ca to a PEM file")
	}
	return nil
}

func (f *files) read() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.load(f.stamp())
}

// stamp returns what differs when one of the files has changed.
func (f *files) stamp() (stamps string) {
	for _, path := range []string{f.Chain, f.Key} {
		if info, err := os.Stat(path); err == nil {
			stamps += fmt.Sprintln(path, info.ModTime(), info.Size())
		}
	}
	return stamps
}

// load makes the configuration of the files. The caller holds the lock.
func (f *files) load(stamps string) error {
	pair, err := tls.LoadX509KeyPair(f.Chain, f.Key)
	if err != nil {
		return failure.New(failure.Invalid, "cannot read the server's certificate %s with the key %s: %w", f.Chain, f.Key,
			err).WithHint("set listen.https.certificate and key to PEM files that belong together")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair},
		NextProtos: []string{"http/1.1"}}
	if f.callers != nil {
		config.ClientCAs, config.ClientAuth = f.callers, tls.VerifyClientCertIfGiven
	}
	f.config, f.stamps = config, stamps
	return nil
}

// ListenUnix listens on a Unix socket that everyone on the machine can reach: who may call is in the config. A socket
// that nobody listens to is replaced.
func ListenUnix(ctx context.Context, path string) (net.Listener, error) {
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
		conn.Close()
		return nil, failure.New(failure.Conflict, "cannot listen on %s: another process does", path).
			WithHint("stop the broker that runs there")
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		_ = os.Remove(path)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err == nil {
		err = os.Chmod(path, 0o666) //nolint:gosec // see above
	}
	if err != nil {
		return nil, failure.New(failure.Unavailable, "cannot listen on %s: %w", path, err).
			WithHint("set listen.unix.path to a path in a folder that the broker may write to")
	}
	return listener, nil
}
