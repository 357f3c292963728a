package feed

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
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

// webhook posts a batch of entries in each request, signed as Standard Webhooks says.
type webhook struct {
	url    string // whose path may be a secret
	host   string
	secret string // path of a file; "" without signatures
	format formatter
	client *http.Client
}

const secretPrefix = "whsec_"

func newWebhook(c Config, f formatter) (*webhook, error) {
	u, err := parseURL(c.Webhook, "https", "http")
	if err != nil {
		return nil, err
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "http" && u.Hostname() != "localhost" && !ip.IsLoopback() {
		return nil, fmt.Errorf("the webhook at %s is not https", u.Host)
	}
	roots, err := readCA(c.CA)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	transport.MaxResponseHeaderBytes = 64 << 10
	w := &webhook{url: c.Webhook, host: u.Host, secret: c.Secret, format: f, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	_, err = w.key()
	return w, err
}

// key returns the secret. It is read for each request, so that it can be replaced.
func (w *webhook) key() ([]byte, error) {
	if w.secret == "" {
		return nil, nil
	}
	data, err := bound.ReadFile(w.secret, 4096)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", w.secret, err)
	}
	encoded, ok := strings.CutPrefix(strings.TrimSpace(string(data)), secretPrefix)
	key, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(key) < 24 || len(key) > 64 {
		return nil, fmt.Errorf("%s does not have %s and 24 to 64 bytes in base64", w.secret, secretPrefix)
	}
	return key, nil
}

// body returns the body of a request and its media type.
func (w *webhook) body(records []record) (body []byte, media string, err error) {
	if w.format.cef {
		for _, r := range records {
			body = append(append(body, w.format.line(r)...), '\n')
		}
		return body, "text/plain; charset=utf-8", nil
	}
	type data struct {
		Log     string            `json:"log"`
		First   int64             `json:"first"` // index of the first entry
		Entries []json.RawMessage `json:"entries"`
	}
	d := data{Log: w.format.log, First: records[0].index}
	for _, r := range records {
		d.Entries = append(d.Entries, json.RawMessage(r.entry))
	}
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false) // entries keep their bytes
	err = encoder.Encode(struct {
		Type      string    `json:"type"`
		Timestamp time.Time `json:"timestamp"` // of the first entry
		Data      data      `json:"data"`
	}{"log.entries", eventOf(records[0].entry).Time, d})
	return buffer.Bytes(), "application/json", err
}

func (w *webhook) send(ctx context.Context, records []record) error {
	key, err := w.key()
	if err != nil {
		return failure.New(failure.Invalid, "cannot sign a request to the webhook: %w", err)
	}
	body, media, err := w.body(records)
	if err != nil {
		return failure.New(failure.Invalid, "cannot encode entries for the webhook: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return failure.New(failure.Invalid, "cannot send to the webhook at %s: %w", w.host, err)
	}
	hash := sha256.Sum256(body)
	id := "msg_" + hex.EncodeToString(hash[:16]) // the same when the same is sent again
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	request.Header.Set("Content-Type", media)
	request.Header.Set("User-Agent", "hsm-broker/"+w.format.version)
	request.Header.Set("webhook-id", id)
	request.Header.Set("webhook-timestamp", timestamp)
	if key != nil {
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", id, timestamp, body)
		request.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	response, err := w.client.Do(request) //nolint:gosec // the config names the host, and redirects are not followed
	if err != nil {
		var withURL *url.Error
		if errors.As(err, &withURL) {
			err = withURL.Err
		}
		return failure.New(failure.Unavailable, "cannot send to the webhook at %s: %w", w.host, err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)) // so that the connection can be used again
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return failure.New(failure.Unavailable, "the webhook at %s answered %s", w.host, response.Status)
	}
	return nil
}
