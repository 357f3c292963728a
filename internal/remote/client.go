package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// answerLimits bound an answer: the keys of a token with their chains.
var answerLimits = bound.Limits{Bytes: 16 << 20, Depth: 16, Elements: 1 << 20}

const (
	headerLimit = 64 << 10 // bytes of the header of an answer
	detailLimit = 8 << 10  // bytes of the message of a failure
)

// Tries of one call over the network.
const (
	attempts   = 5
	firstPause = 100 * time.Millisecond // doubled for each further one
)

// signingWindow is how old the signing time of a payload may be for a broker.
const signingWindow = 5 * time.Minute

// connections are those of a Backend, by their broker.
type connections struct {
	mu       sync.Mutex
	known    map[endpoint]*connection
	github   *http.Client      // nil until a token is needed
	sessions map[string]string // bearer tokens of sessions, by the address of their broker
}

// An endpoint is a broker, and the files that authenticate it and this process.
type endpoint struct{ address, ca, certificate, key string }

// A connection is the HTTP client of one broker. Stores share it, whatever their timeout.
type connection struct {
	http *http.Client
	used int // by open stores
}

// to returns a client of the broker that the settings name. The caller closes it.
func (c *connections) to(s *config.Settings) (*client, error) {
	to := &client{timeout: s.Timeout, attempts: attempts, base: "http://broker", repository: s.Repository,
		approvalWait: s.ApprovalWait, window: signingWindow}
	var where endpoint
	var transport func() (*http.Transport, error)
	if s.Credentials != nil {
		to.address, to.base = s.Broker, s.Broker
		to.credentials, to.trace = s.Credentials, traceparent()
		where = endpoint{s.Broker, s.Credentials.CA, s.Credentials.Certificate, s.Credentials.Key}
		transport = func() (*http.Transport, error) { return newTLSTransport(s.Credentials) }
	} else {
		path, err := s.BrokerSocket()
		if err != nil {
			return nil, err
		}
		to.address = "unix:" + path
		where = endpoint{address: to.address}
		transport = func() (*http.Transport, error) { return newTransport(path), nil }
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	shared := c.known[where]
	if shared == nil {
		made, err := transport()
		if err != nil {
			return nil, err
		}
		shared = &connection{http: newHTTP(made)}
		if c.known == nil {
			c.known = map[endpoint]*connection{}
		}
		c.known[where] = shared
	}
	if c.github == nil && to.credentials != nil && to.credentials.Token.GitHub {
		c.github = newGitHub()
	}
	shared.used++
	to.session = c.sessions[s.Broker]
	to.http, to.github, to.release = shared.http, c.github, sync.OnceFunc(func() { c.release(shared) })
	return to, nil
}

// release closes the idle connections of a broker that no store uses any more: a process that gives up rights after it
// has used a key must not keep the key within reach.
func (c *connections) release(shared *connection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if shared.used--; shared.used == 0 {
		shared.http.CloseIdleConnections()
	}
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.known {
		one.http.CloseIdleConnections()
	}
}

// client speaks to one broker for one store.
type client struct {
	address      string
	base         string              // of URLs
	credentials  *config.Credentials // of an https broker, else nil
	session      string              // bearer token that is used instead of one that credentials name; "" for none
	trace        string              // header traceparent; "" for none
	timeout      time.Duration       // of an answer, with all tries
	attempts     int                 // tries of one call
	approvalWait time.Duration
	window       time.Duration // how old a payload may be when it is posted
	repository   string
	http, github *http.Client
	release      func()
}

func newHTTP(t *http.Transport) *http.Client {
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// A call is one request of the API and where its answer goes.
type call struct {
	method, path string
	body         []byte             // JSON; nil for none
	idempotency  string             // names the call, so that it may be made again after a lost connection; "" for a GET
	wait         time.Duration      // how long the broker may hold the answer
	into         any                // for the answer
	accepted     *brokerapi.Request // for the answer with status 202, if there may be one
}

func (c *client) get(ctx context.Context, path string, into any) error {
	return c.do(ctx, call{method: http.MethodGet, path: path, into: into})
}

// use returns a call for the use of a key, by its name, on some bytes. The same bytes may be sent again over another
// connection, since using the key twice on them is no other outcome: the header Idempotency-Key names key and bytes by
// their SHA-256.
func use(path, key string, data []byte, message, into any) (call, error) {
	body, err := json.Marshal(message)
	if err != nil {
		return call{}, failure.New(failure.Internal, "cannot encode a request to the broker: %w", err)
	}
	hash := sha256.New()
	hash.Write([]byte(key + "\x00"))
	hash.Write(data)
	return call{method: http.MethodPost, path: path, body: body, idempotency: hex.EncodeToString(hash.Sum(nil)),
		into: into}, nil
}

// errAgain marks a failure after which the call can be made again.
type errAgain struct {
	error
	after time.Duration // as the broker asks for it; 0: nothing was said
}

// do makes a call and reads the answer. It fails with the broker's failure, and with Unavailable or Timeout if the
// broker does not answer. It tries again when the broker has too much to do, and over the network also after a lost
// connection, and when the broker is not available.
func (c *client) do(ctx context.Context, r call) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+r.wait)
	defer cancel()
	for attempt := 1; ; attempt++ {
		err := c.once(ctx, r)
		var again *errAgain
		if !errors.As(err, &again) {
			return err
		}
		if attempt >= c.attempts || c.pause(ctx, max(spread(again.after), backoff(attempt))) != nil {
			return again.error
		}
	}
}

// backoff returns the pause after a try: up to half of it at random, so that many clients do not come back at once.
func backoff(attempt int) time.Duration {
	pause := firstPause << (attempt - 1)
	return pause/2 + rand.N(pause/2) //nolint:gosec // it is no secret
}

// spread returns the time that a broker asks for, and up to a quarter more at random.
func spread(after time.Duration) time.Duration {
	return after + rand.N(after/4+1) //nolint:gosec // as above
}

// pause waits. It fails at once if ctx ends before.
func (c *client) pause(ctx context.Context, d time.Duration) error {
	if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
		return context.DeadlineExceeded
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// once makes one try of a call.
func (c *client) once(ctx context.Context, r call) error {
	request, err := http.NewRequestWithContext(ctx, r.method, c.base+r.path, bytes.NewReader(r.body))
	if err != nil {
		return failure.New(failure.Invalid, "cannot ask the broker at %s: %w", c.address, err)
	}
	if r.body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	if r.idempotency != "" {
		request.Header.Set("Idempotency-Key", `"`+r.idempotency+`"`)
	}
	token := c.session
	if c.credentials != nil {
		request.Header.Set("Traceparent", c.trace)
		request.GetBody = nil // only do tries again, with another token
		if token == "" {
			if token, err = c.readToken(ctx); err != nil {
				return err
			}
		}
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.unanswered(ctx, r, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, int64(answerLimits.Bytes)+1))
	if err != nil {
		return c.unanswered(ctx, r, err)
	}
	defer clear(data) // it may have the key of a layer
	if token != "" && bytes.Contains(data, []byte(token)) {
		return c.invalid(response.Status, errors.New("it repeats the token"))
	}
	return c.read(r, response, data)
}

// read reads an answer.
func (c *client) read(r call, response *http.Response, data []byte) error {
	if response.StatusCode/100 != 2 && c.credentials != nil && response.StatusCode >= http.StatusBadGateway &&
		!strings.HasPrefix(response.Header.Get("Content-Type"), brokerapi.ProblemType) { // of a proxy before the broker
		return c.again(response, failure.New(failure.Unavailable, "the broker at %s does not answer: HTTP status %d",
			c.address, response.StatusCode).WithHint("run it again later"))
	}
	if err := bound.JSON(data, answerLimits); err != nil {
		return c.invalid(response.Status, err)
	}
	into := r.into
	switch {
	case response.StatusCode == http.StatusAccepted && r.accepted != nil:
		into = r.accepted
	case response.StatusCode/100 != 2:
		return c.problem(response, data)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return c.invalid(response.Status, err)
	}
	return nil
}

// problem returns the failure that a broker answered.
func (c *client) problem(response *http.Response, data []byte) error {
	var p brokerapi.Problem
	if !strings.HasPrefix(response.Header.Get("Content-Type"), brokerapi.ProblemType) {
		return c.invalid(response.Status, errors.New("no problem details"))
	}
	if err := json.Unmarshal(data, &p); err != nil {
		return c.invalid(response.Status, err)
	}
	if p.Detail == "" || len(p.Detail)+len(p.Hint)+len(p.CKR) > detailLimit {
		return c.invalid(response.Status, errors.New("its detail is empty or too long"))
	}
	p.Detail, p.Hint, p.CKR = plain(p.Detail), plain(p.Hint), plain(p.CKR)
	f, status := p.Failure(), response.StatusCode
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable && c.credentials != nil {
		return c.again(response, f)
	}
	return f
}

// again marks a failure after which the call can be made again. Its cause has nothing to do with what was asked, so
// that a call without an idempotency key can be made again as well.
func (c *client) again(response *http.Response, f *failure.Error) error {
	seconds, err := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 16)
	if err != nil {
		seconds = 0 // also for a date
	}
	return &errAgain{f, time.Duration(seconds) * time.Second}
}

// plain replaces characters that a terminal could interpret, except line ends.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// unanswered returns the failure of a request without an answer.
func (c *client) unanswered(ctx context.Context, r call, err error) error {
	var known *failure.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return failure.New(failure.Timeout, "the broker at %s did not answer within %s", c.address, c.timeout+r.wait).
			WithHint("look at what the broker is doing, or set timeout to wait longer")
	case errors.Is(ctx.Err(), context.Canceled):
		return failure.New(failure.Internal, "interrupted while waiting for the broker at %s", c.address).
			WithHint("run it again")
	}
	err = withoutURL(err)
	if c.credentials != nil {
		return c.unreached(r, err)
	}
	if errors.Is(err, fs.ErrPermission) {
		return failure.New(failure.Denied, "cannot reach the broker at %s: %w", c.address, err).
			WithHint("set NOTATION_HSM_BROKER to the socket of your own agent")
	}
	return failure.New(failure.Unavailable, "cannot reach the broker at %s: %w", c.address, err).
		WithHint("start it with 'hsm-broker agent', or set NOTATION_HSM_BROKER to its socket; to use the module directly, " +
			"name the key by its URI there and unset NOTATION_HSM_BROKER")
}

// unreached returns the failure of a call that an https broker did not answer.
func (c *client) unreached(r call, err error) error {
	var unverified *tls.CertificateVerificationError
	var alert *net.OpError
	switch {
	case errors.As(err, &unverified):
		return failure.New(failure.Denied, "cannot verify the TLS certificate of the broker at %s: %w", c.address,
			unverified.Err).
			WithHint("set broker-ca to the CA of the broker's certificate, and broker to a name that is in the certificate")
	case errors.As(err, &alert) && alert.Op == "remote error":
		return failure.New(failure.Denied, "the broker at %s refused the TLS connection: %w", c.address, alert.Err).
			WithHint("check broker-certificate and broker-key")
	case errors.Is(err, http.ErrSchemeMismatch):
		return failure.New(failure.Unavailable, "the broker at %s does not speak TLS", c.address).
			WithHint("check the port in broker")
	}
	f := failure.New(failure.Unavailable, "cannot reach the broker at %s: %w", c.address, err).
		WithHint("check broker and, if this network needs a proxy, HTTPS_PROXY; the broker may be down")
	if r.method == http.MethodGet || r.idempotency != "" {
		return &errAgain{f, 0}
	}
	return f
}

// invalid returns the failure of an answer that is not of the API.
func (c *client) invalid(what string, err error) error {
	return failure.New(failure.Internal, "the broker at %s sent an invalid answer (%s): %s", c.address, plain(what),
		plain(err.Error())).
		WithHint("check that an hsm-broker of the same version listens there")
}
