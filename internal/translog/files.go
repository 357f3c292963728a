package translog

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Files returns a file of a log by its path, as C2SP tlog-tiles names it: CheckpointPath, a tile, or a bundle of
// entries. It fails with NotFound for a file that does not exist.
type Files func(ctx context.Context, path string) ([]byte, error)

// limitOf returns how many bytes a file can have.
func limitOf(path string) int {
	switch {
	case path == CheckpointPath:
		return maxCheckpoint
	case strings.HasPrefix(path, "tile/entries/"):
		return maxBundle
	}
	return tileWidth * tlog.HashSize
}

// readLimited reads a file to its end. It fails when there is more than the file can have.
func readLimited(from io.Reader, path string) ([]byte, error) {
	limit := limitOf(path)
	data, err := io.ReadAll(io.LimitReader(from, int64(limit)+1))
	if err == nil && len(data) > limit {
		err = failure.New(failure.Invalid, "%s has more than %d bytes", path, limit)
	}
	return data, err
}

// Dir returns the files of a log in a folder. Links that lead out of it are not followed.
func Dir(dir string) Files {
	return func(_ context.Context, path string) ([]byte, error) {
		name := filepath.Join(dir, path)
		data, err := readIn(dir, path)
		if err != nil {
			var f *failure.Error
			if errors.As(err, &f) {
				return nil, err
			}
			return nil, failure.New(failure.FileKind(err), "cannot read %s: %w", name, err)
		}
		return data, nil
	}
}

func readIn(dir, path string) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	file, err := root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // opening a named pipe would wait for its writer
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		if err == nil {
			err = failure.New(failure.Invalid, "cannot read %s: it is not a regular file", filepath.Join(dir, path))
		}
		return nil, err
	}
	return readLimited(file, path)
}

var errRedirect = errors.New("it redirects")

const (
	requestTimeout = 30 * time.Second
	attempts       = 4
)

// URL returns the files of a log that is served at a URL, such as https://broker.example.com/v1/log. roots verify the
// server; nil are those of the system. A redirect to another host is an error. A request is tried up to four times.
func URL(base string, roots *x509.CertPool) (Files, error) {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || u.RawQuery != "" ||
		u.Fragment != "" {
		return nil, failure.New(failure.Invalid, "%.200q is not the URL of a log", base).
			WithHint("use a URL such as https://broker.example.com/v1/log")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	transport.MaxResponseHeaderBytes = 64 << 10
	transport.MaxIdleConnsPerHost = inFlight
	client := &http.Client{
		Transport: transport,
		Timeout:   requestTimeout,
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Host != u.Host || r.URL.Scheme != u.Scheme || len(via) > 3 {
				return fmt.Errorf("%w to %s://%s", errRedirect, r.URL.Scheme, r.URL.Host)
			}
			return nil
		},
	}
	return func(ctx context.Context, path string) ([]byte, error) {
		for attempt := 1; ; attempt++ {
			data, retry, err := get(ctx, client, u.JoinPath(path).String(), path)
			if !retry || attempt == attempts || ctx.Err() != nil {
				return data, err
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second << (attempt - 1)):
			}
		}
	}, nil
}

// get fetches a file once, and reports whether another attempt can help.
func get(ctx context.Context, client *http.Client, address, path string) (data []byte, retry bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil) //nolint:gosec // see client.Do
	if err != nil {
		return nil, false, failure.New(failure.Invalid, "cannot fetch %s: %w", address, err)
	}
	response, err := client.Do(request) //nolint:gosec // the operator names the host, and no answer names another
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		return nil, false, failure.New(failure.Unavailable, "cannot fetch %s: %w", address, err).
			WithHint("give the CA of the server's certificate with --ca")
	}
	if err != nil {
		return nil, !errors.Is(err, errRedirect), failure.New(failure.Unavailable, "cannot fetch %s: %w", address, err).
			WithHint("check the URL of the log and the connection")
	}
	defer response.Body.Close()
	switch code := response.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		return nil, false, failure.New(failure.NotFound, "cannot fetch %s: %s", address, response.Status).
			WithHint("check the URL of the log")
	case code >= 500 || code == http.StatusTooManyRequests:
		return nil, true, failure.New(failure.Unavailable, "cannot fetch %s: %s", address, response.Status).
			WithHint("run this again later")
	case code != http.StatusOK:
		return nil, false, failure.New(failure.Invalid, "cannot fetch %s: %s", address, response.Status).
			WithHint("check the URL of the log")
	}
	data, err = readLimited(response.Body, path)
	if err != nil {
		var f *failure.Error
		if errors.As(err, &f) {
			return nil, false, err
		}
		return nil, true, failure.New(failure.Unavailable, "cannot fetch %s: %w", address, err).
			WithHint("check the connection")
	}
	return data, false, nil
}
