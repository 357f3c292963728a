package chaos

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// caller is a client of all replicas.
type caller struct {
	w           *world
	certificate *tls.Certificate // nil for one who has tokens

	mu      sync.Mutex
	clients map[*replica]*http.Client
}

// anyone returns a caller without a certificate.
func (w *world) anyone() *caller {
	w.once.Do(func() { w.tokens = &caller{w: w, clients: map[*replica]*http.Client{}} })
	return w.tokens
}

// withCertificate returns a caller who is CN=NAME.
func (w *world) withCertificate(name string) *caller {
	w.t.Helper()
	certificate := w.clientCertificate(name)
	return &caller{w: w, certificate: &certificate, clients: map[*replica]*http.Client{}}
}

// unsentError is the failure of a call that has not left: there was no connection.
type unsentError struct{ err error }

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

func (c *caller) client(r *replica) *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clients[r] == nil {
		config := &tls.Config{RootCAs: c.w.roots, ServerName: brokerHost, MinVersion: tls.VersionTLS12}
		if c.certificate != nil {
			config.Certificates = []tls.Certificate{*c.certificate}
		}
		c.clients[r] = &http.Client{Transport: &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 64,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
				defer cancel()
				conn, err := c.w.clients.dial(ctx, network, r.address+":8443")
				if err != nil {
					err = &unsentError{err}
				}
				return conn, err
			}}}
	}
	return c.clients[r]
}

// answer is what came of a call: a status and a body, or an error of the connection.
type answer struct {
	status int
	body   []byte
	err    error
}

// failure returns the failure that an answer is, and nil for a success.
func (a *answer) failure() error {
	if a.err != nil {
		return a.err
	}
	if a.status < 300 {
		return nil
	}
	var p brokerapi.Problem
	if err := json.Unmarshal(a.body, &p); err != nil {
		return fmt.Errorf("status %d: %s", a.status, a.body)
	}
	return p.Failure()
}

// outcome is what a client knows of its call.
type outcome int

const (
	unknown   outcome = iota // it may have had its effect, and may still have it
	succeeded                // the broker says so
	refused                  // it has no effect
	unsent                   // nobody has got it
)

func (o outcome) String() string { return [...]string{"unknown", "succeeded", "refused", "unsent"}[o] }

func (a *answer) outcome() outcome {
	err := a.failure()
	var none *unsentError
	switch {
	case err == nil:
		return succeeded
	case errors.As(err, &none):
		return unsent
	case a.err != nil:
		return unknown
	}
	f := failure.From(err)
	if strings.Contains(f.What, "the caller closed the connection") { // the answer came when nobody waited any more
		return unknown
	}
	switch f.Kind {
	case failure.Denied, failure.Invalid, failure.NotFound, failure.Conflict, failure.Throttled, failure.Unsupported:
		return refused
	}
	return unknown
}

// do calls a replica with a token, or the caller's certificate, and reads a successful answer.
func (c *caller) do(ctx context.Context, r *replica, token, method, path string, body, into any) *answer {
	var sent io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return &answer{err: &unsentError{err}}
		}
		sent = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, r.url()+path, sent)
	if err != nil {
		return &answer{err: &unsentError{err}}
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.client(r).Do(request)
	if err != nil {
		return &answer{err: err}
	}
	defer response.Body.Close()
	a := &answer{status: response.StatusCode}
	if a.body, a.err = io.ReadAll(response.Body); a.err == nil && into != nil && a.status < 300 {
		a.err = json.Unmarshal(a.body, into)
	}
	return a
}
