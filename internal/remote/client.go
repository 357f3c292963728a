package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"time"

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

// connections are those of a Backend, by the address of their broker.
type connections struct {
	mu    sync.Mutex
	known map[string]*connection
}

// A connection is the HTTP client of one broker. Stores share it, whatever their timeout.
type connection struct {
	http *http.Client
	used int // by open stores
}

// to returns a client of the broker that the settings name. The caller closes it.
func (c *connections) to(s *config.Settings) (*client, error) {
	path, err := s.BrokerSocket()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	shared := c.known[path]
	if shared == nil {
		shared = &connection{http: newHTTP(path)}
		if c.known == nil {
			c.known = map[string]*connection{}
		}
		c.known[path] = shared
	}
	shared.used++
	return &client{address: "unix:" + path, timeout: s.Timeout, http: shared.http,
		release: sync.OnceFunc(func() { c.release(shared) })}, nil
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
	address string
	timeout time.Duration // of an answer
	http    *http.Client
	release func()
}

func newHTTP(path string) *http.Client {
	return &http.Client{
		Transport:     newTransport(path),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (c *client) get(ctx context.Context, path string, into any) error {
	return c.call(ctx, http.MethodGet, path, nil, into)
}

// post makes a request for the use of a key, by its name, on some bytes. The same bytes may be sent again over another
// connection, since using the key twice on them is no other outcome: the header Idempotency-Key names key and bytes by
// their SHA-256.
func (c *client) post(ctx context.Context, path, key string, data []byte, message, into any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return failure.New(failure.Internal, "cannot encode a request to the broker: %w", err)
	}
	hash := sha256.New()
	hash.Write([]byte(key + "\x00"))
	hash.Write(data)
	again := http.Header{"Idempotency-Key": {`"` + hex.EncodeToString(hash.Sum(nil)) + `"`}}
	return c.send(ctx, http.MethodPost, path, again, body, into)
}

// call makes a request and reads the answer. It fails with the broker's failure, and with Unavailable or Timeout if
// the broker does not answer.
func (c *client) call(ctx context.Context, method, path string, body []byte, into any) error {
	return c.send(ctx, method, path, http.Header{}, body, into)
}

// send is call with a header.
func (c *client) send(ctx context.Context, method, path string, header http.Header, body []byte, into any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://broker"+path, bytes.NewReader(body))
	if err != nil {
		return failure.New(failure.Invalid, "cannot ask the broker at %s: %w", c.address, err)
	}
	request.Header = header
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.unanswered(ctx, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, int64(answerLimits.Bytes)+1))
	if err != nil {
		return c.unanswered(ctx, err)
	}
	defer clear(data) // it may have the key of a layer
	if err := bound.JSON(data, answerLimits); err != nil {
		return c.invalid(response.Status, err)
	}
	if response.StatusCode/100 == 2 {
		if err := json.Unmarshal(data, into); err != nil {
			return c.invalid(response.Status, err)
		}
		return nil
	}
	return c.problem(response, data)
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
	return p.Failure()
}

// unanswered returns the failure of a request without an answer.
func (c *client) unanswered(ctx context.Context, err error) error {
	var known *failure.Error
	switch {
	case errors.As(err, &known):
		return known
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return failure.New(failure.Timeout, "the broker at %s did not answer within %s", c.address, c.timeout).
			WithHint("look at what the broker is doing, or set timeout to wait longer")
	case errors.Is(ctx.Err(), context.Canceled):
		return failure.New(failure.Internal, "interrupted while waiting for the broker at %s", c.address).
			WithHint("run it again")
	}
	if inner := errors.Unwrap(err); inner != nil { // without the URL, which names no host
		err = inner
	}
	if errors.Is(err, fs.ErrPermission) {
		return failure.New(failure.Denied, "cannot reach the broker at %s: %w", c.address, err).
			WithHint("set NOTATION_HSM_BROKER to the socket of your own agent")
	}
	return failure.New(failure.Unavailable, "cannot reach the broker at %s: %w", c.address, err).
		WithHint("start it with 'hsm-broker agent', or set NOTATION_HSM_BROKER to its socket; to use the module directly, " +
			"name the key by its URI there and unset NOTATION_HSM_BROKER")
}

// invalid returns the failure of an answer that is not of the API.
func (c *client) invalid(what string, err error) error {
	return failure.New(failure.Internal, "the broker at %s sent an invalid answer (%s): %w", c.address, what, err).
		WithHint("check that an hsm-broker of the same version listens there")
}
