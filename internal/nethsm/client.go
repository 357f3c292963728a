package nethsm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const (
	apiPath = "/api/v1"
	// bytes; NetHSM accepts certificates up to 1 MB, and a list has some hundred bytes for each key
	responseLimit = int64(4 << 20)
	rounds        = 6 // through all instances, before a request fails
	slowFactor    = 10
	dialLimit     = 5 * time.Second
	connections   = 16 // to one instance, as many as sessions with a PKCS#11 token
)

// Content types of the API.
const (
	typeJSON  = "application/json"
	typeBytes = "application/octet-stream"
)

// client sends requests to a cluster. It is safe for concurrent use.
type client struct {
	backend  *Backend
	settings *config.Settings
	http     *http.Client
	working  atomic.Uint32 // the index of the instance to start with: that which responded last
	used     sync.Map      // *credential, closed with the client
	closed   atomic.Bool
}

// request is one request to the API.
type request struct {
	what         string // for messages: "signing with key nethsm:release"
	method, path string // the path below /api/v1
	body         []byte
	sends        string // content type of the body; typeJSON when empty
	accept       string // content type of the response; typeJSON when empty
	as           *credential
	limit        int64 // of the response in bytes; responseLimit when 0
	slow         bool  // gets slowFactor times the timeout: generating an RSA key takes minutes

	// took reports whether the request took effect. It is called when no response came. A request that may be repeated
	// without harm has none.
	took func(context.Context) (bool, error)
	// uncertain is added to the failure when it is unknown whether the request took effect.
	uncertain string
}

// response is the response of an instance.
type response struct {
	status int
	body   []byte
}

// confirmed is returned for a request that took effect, although its response was lost.
var confirmed = &response{status: http.StatusNoContent}

func (b *Backend) newClient(s *config.Settings) (*client, error) {
	t, err := b.tlsConfig(s.NetHSM)
	if err != nil {
		return nil, err
	}
	c := &client{backend: b, settings: s}
	dialer := &net.Dialer{Timeout: min(dialLimit, c.share(s.Timeout))}
	c.http = &http.Client{
		Transport: &http.Transport{
			// no Proxy: a passphrase goes to the HSM alone
			DialContext: dialer.DialContext, TLSClientConfig: t,
			MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections, IdleConnTimeout: time.Minute,
			DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		},
		// a redirect is a response like any other: the passphrase is not sent to another address
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// share returns the part of a time limit that one instance gets, so that each can be tried.
func (c *client) share(limit time.Duration) time.Duration {
	return limit / time.Duration(len(c.settings.NetHSM.Instances))
}

// exchange is one request with the result of trying the instances.
type exchange struct {
	*client
	request
	share     time.Duration    // for one instance
	failed    []*instanceError // of the last round
	maybeDone bool             // a request that was sent got no response, so it may have taken effect
}

// do sends a request to the instances, one after the other, until one responds. It starts with the one that responded
// last. It passes over an instance that is unreachable, not operational, or responds with 5xx or 429. After a round
// through all instances it pauses and tries again, if an instance may recover and the timeout allows it. It returns any
// other response, whatever its status.
func (c *client) do(ctx context.Context, r request) (*response, error) {
	if r.as != nil {
		if err := c.readPassphrase(ctx, r.as); err != nil {
			return nil, err
		}
	}
	limit := c.settings.Timeout
	if r.slow {
		limit *= slowFactor
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	e := &exchange{client: c, request: r, share: c.share(limit)}
	for round, pause := 1, c.backend.firstPause; ; round, pause = round+1, 2*pause {
		if a, err := e.tryAll(ctx, limited); a != nil || err != nil {
			return a, err
		}
		if ctx.Err() != nil {
			return nil, e.annotate(interrupted(ctx, r.what))
		}
		if round == rounds || !anyMayRecover(e.failed) {
			return nil, e.annotate(allFailed(r.what, e.failed))
		}
		select {
		case <-time.After(pause):
		case <-limited.Done():
			return nil, e.annotate(allFailed(r.what, e.failed))
		}
	}
}

// tryAll tries each instance once, within the limited context. ctx is that of the caller. It returns neither response
// nor error if no instance responded.
func (e *exchange) tryAll(ctx, limited context.Context) (*response, error) {
	urls := e.settings.NetHSM.Instances
	start := int(e.working.Load())
	e.failed = nil
	for i := range urls {
		at := (start + i) % len(urls)
		a, failed := e.try(limited, e.share, urls[at], e.request)
		if failed == nil {
			return e.accept(ctx, a, at)
		}
		if failed.final {
			return nil, failed.err
		}
		slog.Warn("a NetHSM instance failed", "instance", urls[at], "what", e.what, "error", failed.err)
		e.failed = append(e.failed, failed)
		if !failed.sent || e.took == nil {
			continue
		}
		e.maybeDone = true
		if ctx.Err() != nil {
			return nil, e.annotate(interrupted(ctx, e.what))
		}
		e.working.Store(uint32((at + 1) % len(urls))) //nolint:gosec // there are few
		if done, err := e.took(ctx); err != nil {
			return nil, e.annotate(err)
		} else if done {
			return confirmed, nil
		}
	}
	return nil, nil
}

// accept returns the response of an instance. An error may be the consequence of an earlier try that took effect.
func (e *exchange) accept(ctx context.Context, a *response, at int) (*response, error) {
	if e.maybeDone && a.status >= 400 {
		if done, err := e.took(ctx); err != nil {
			return nil, e.annotate(err)
		} else if done {
			return confirmed, nil
		}
	}
	for _, failed := range e.failed {
		e.backend.warnUnauthenticated(failed)
	}
	e.working.Store(uint32(at)) //nolint:gosec // there are few
	return a, nil
}

// annotate adds to a failure that the request may have taken effect, if it may.
func (e *exchange) annotate(err error) error {
	if !e.maybeDone {
		return err
	}
	f := *failure.From(err)
	f.What += "; " + e.uncertain
	return &f
}

// try sends a request to one instance within the time.
func (c *client) try(ctx context.Context, share time.Duration, instance string, r request) (*response, *instanceError) {
	ctx, cancel := c.backend.withTimeout(ctx, share)
	defer cancel()
	var a *response
	var sent bool
	send := func(secret []byte) (status int, err error) {
		a, sent, err = c.send(ctx, instance, r, secret)
		if err != nil {
			return 0, err
		}
		return a.status, nil
	}
	var err error
	if r.as == nil {
		_, err = send(nil)
	} else {
		err = r.as.use(ctx, send)
	}
	var known *failure.Error
	switch {
	case errors.As(err, &known):
		return nil, &instanceError{err: known, final: true}
	case err != nil:
		failed := unreachable(instance, err)
		failed.sent = sent
		return nil, failed
	case a.status >= 500, a.status == http.StatusTooManyRequests:
		return nil, busy(instance, a)
	case a.status == http.StatusPreconditionFailed:
		if state := c.stateOf(ctx, instance); state != Operational {
			return nil, notOperational(instance, state)
		}
	}
	return a, nil
}

// send sends one HTTP request. sent reports whether its header was written.
func (c *client) send(ctx context.Context, instance string, r request, secret []byte) (a *response, sent bool,
	err error) {
	var written atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { written.Store(true) }})
	q, err := http.NewRequestWithContext(ctx, r.method, instance+apiPath+r.path, bytes.NewReader(r.body))
	if err != nil {
		return nil, false, err
	}
	q.Header.Set("Accept", cmp.Or(r.accept, typeJSON))
	if r.body != nil {
		q.Header.Set("Content-Type", cmp.Or(r.sends, typeJSON))
	}
	if r.as != nil {
		q.SetBasicAuth(r.as.user, string(secret))
	}
	began := time.Now()
	answer, err := c.http.Do(q)
	if err != nil {
		return nil, written.Load(), err
	}
	defer answer.Body.Close()
	limit := cmp.Or(r.limit, responseLimit)
	body, err := io.ReadAll(io.LimitReader(answer.Body, limit+1))
	slog.Debug("NetHSM", "instance", instance, "what", r.what, "method", r.method, "status", answer.StatusCode, "took",
		time.Since(began), "error", err)
	if err != nil {
		return nil, true, err
	}
	if int64(len(body)) > limit {
		return nil, true, failure.New(failure.Internal, "%s failed: the response of %s exceeds %d bytes", r.what, instance,
			limit).
			WithHint("check that the URL is that of a NetHSM")
	}
	return &response{answer.StatusCode, body}, true, nil
}

// close closes the connections, whose buffers may hold a passphrase, and clears the passphrases.
func (c *client) close() {
	c.closed.Store(true)
	for as := range c.used.Range {
		as := as.(*credential)
		as.close(errClosed(as))
	}
	c.http.CloseIdleConnections()
}

func errClosed(as *credential) error {
	return failure.New(failure.Internal, "the store of user %s is closed", as.user)
}
