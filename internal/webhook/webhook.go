// Package webhook posts messages to a receiver over HTTP, signed as Standard Webhooks says.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Receiver is where messages are posted.
type Receiver struct {
	url    string // whose path may be a secret
	host   string
	secret string // path of a file; "" without signatures
	client *http.Client
}

const secretPrefix = "whsec_"

// New returns the receiver at an https URL, or http on loopback. secret is the file of the secret that signs messages,
// or ""; ca is a PEM file of certificate authorities, or "" for the system's. It fails when one of them cannot be used.
func New(address, secret, ca string) (*Receiver, error) {
	u, err := ParseURL(address, "https", "http")
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "http" && u.Hostname() != "localhost" && !ip.IsLoopback() {
		return nil, fmt.Errorf("the webhook at %s is not https", u.Host)
	}
	roots, err := ReadCA(ca)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	transport.MaxResponseHeaderBytes = 64 << 10
	r := &Receiver{url: address, host: u.Host, secret: secret, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	_, err = r.key()
	return r, err
}

// ParseURL parses a URL of one of the schemes, with a host, and without a user and a fragment. Its error does not have
// the URL, whose path may be a secret.
func ParseURL(text string, schemes ...string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err == nil {
		for _, scheme := range schemes {
			if u.Scheme == scheme && u.Hostname() != "" && u.User == nil && u.Fragment == "" {
				return u, nil
			}
		}
	}
	return nil, fmt.Errorf("it is not a URL with a host and one of the schemes %v", schemes)
}

// ReadCA returns the certificate authorities of a PEM file; nil are those of the system.
func ReadCA(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	data, err := bound.ReadFile(path, 1<<20)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s has no certificate", path)
	}
	return roots, nil
}

// key returns the secret. It is read for each message, so that it can be replaced.
func (r *Receiver) key() ([]byte, error) {
	if r.secret == "" {
		return nil, nil
	}
	data, err := bound.ReadFile(r.secret, 4096)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", r.secret, err)
	}
	encoded, ok := strings.CutPrefix(strings.TrimSpace(string(data)), secretPrefix)
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, fmt.Errorf("%s does not have %s and 24 to 64 bytes in base64", r.secret, secretPrefix)
	}
	return key, nil
}

// Message is what is posted.
type Message struct {
	ID    string // header webhook-id: the same when the same is sent again
	Media string // type of Body
	Agent string // header User-Agent
	Body  []byte
}

// StatusError is in the chain of the failure of Send when the receiver answered with a status that confirms nothing.
type StatusError struct {
	Code       int
	RetryAfter time.Duration // that the receiver asks for; 0 for none

	text string
}

// Error returns the status.
func (e *StatusError) Error() string { return e.text }

// Send posts a message. It fails with Unavailable unless the receiver answers with a status from 200 to 299. Redirects
// are not followed.
func (r *Receiver) Send(ctx context.Context, m Message) error {
	key, err := r.key()
	if err != nil {
		return failure.New(failure.Invalid, "cannot sign a request to the webhook: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(m.Body))
	if err != nil {
		return failure.New(failure.Invalid, "cannot send to the webhook at %s: %w", r.host, withoutURL(err))
	}
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	request.Header.Set("Content-Type", m.Media)
	request.Header.Set("User-Agent", m.Agent)
	request.Header.Set("webhook-id", m.ID)
	request.Header.Set("webhook-timestamp", timestamp)
	if key != nil {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", m.ID, timestamp, m.Body)
		request.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	response, err := r.client.Do(request) //nolint:gosec // the config names the host, and redirects are not followed
	if err != nil {
		return failure.New(failure.Unavailable, "cannot send to the webhook at %s: %w", r.host, withoutURL(err))
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)) // so that the connection can be used again
	if response.StatusCode < 200 || response.StatusCode > 299 {
		seconds, _ := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 16)
		return failure.New(failure.Unavailable, "the webhook at %s answered %w", r.host, &StatusError{
			Code: response.StatusCode, RetryAfter: time.Duration(seconds) * time.Second,
			text: fmt.Sprintf("%.100q", response.Status)})
	}
	return nil
}

// withoutURL returns the cause of an error, without the URL that it names.
func withoutURL(err error) error {
	var withURL *url.Error
	if errors.As(err, &withURL) {
		return withURL.Err
	}
	return err
}
