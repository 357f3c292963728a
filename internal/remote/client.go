package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// answerLimits bound an answer: the keys of a token with their chains.
var answerLimits = bound.Limits{Bytes: 16 << 20, Depth: 16, Elements: 1 << 20}

// clients are those of a Backend, by the address of their broker.
type clients struct {
	mu    sync.Mutex
	known map[string]*client
}

func (c *clients) of(s *config.Settings) *client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.known[s.Broker]; found != nil {
		return found
	}
	made := newClient(s)
	if c.known == nil {
		c.known = map[string]*client{}
	}
	c.known[s.Broker] = made
	return made
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.known {
		one.http.CloseIdleConnections()
	}
}

// client speaks to one broker.
type client struct {
	address string
	http    *http.Client
	timeout time.Duration // of an answer
}

func newClient(s *config.Settings) *client {
	path := s.BrokerSocket()
	return &client{
		address: s.Broker, timeout: s.Timeout,
		http: &http.Client{
			Transport: &http.Transport{
				DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
				MaxIdleConnsPerHost: 64, DisableCompression: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// dial connects to a socket that a process of this user or of root listens to. Another user's broker would learn what
// is signed, and decide what it is signed with.
func dial(ctx context.Context, path string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		conn.Close()
		return nil, err
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) //nolint:gosec // a descriptor fits
	})
	if err = errors.Join(err, failed); err == nil && peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		err = failure.New(failure.Denied, "cannot use the broker at %s: another user (uid %d) runs it", path, peer.Uid).
			WithHint("set NOTATION_HSM_BROKER to the socket of your own agent")
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (c *client) get(ctx context.Context, path string, into any) error {
	return c.call(ctx, http.MethodGet, path, nil, into)
}

func (c *client) post(ctx context.Context, path string, message, into any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return failure.New(failure.Internal, "cannot encode a request to the broker: %w", err)
	}
	return c.call(ctx, http.MethodPost, path, body, into)
}

// call makes a request and reads the answer. It fails with the broker's failure, and with Unavailable or Timeout if
// the broker does not answer.
func (c *client) call(ctx context.Context, method, path string, body []byte, into any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://broker"+path, bytes.NewReader(body))
	if err != nil {
		return failure.New(failure.Invalid, "cannot ask the broker at %s: %w", c.address, err)
	}
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
	if err := bound.JSON(data, answerLimits); err != nil {
		return c.nonsense(response.Status, err)
	}
	if response.StatusCode/100 == 2 {
		if err := json.Unmarshal(data, into); err != nil {
			return c.nonsense(response.Status, err)
		}
		return nil
	}
	var problem brokerapi.Problem
	if err := json.Unmarshal(data, &problem); err != nil || problem.Detail == "" ||
		!strings.HasPrefix(response.Header.Get("Content-Type"), brokerapi.ProblemType) {
		return c.nonsense(response.Status, errors.Join(errors.New("no problem details"), err))
	}
	return problem.Failure()
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
	return failure.New(failure.Unavailable, "cannot reach the broker at %s: %w", c.address, errors.Unwrap(err)).
		WithHint("start it with 'hsm-broker agent', or set NOTATION_HSM_BROKER to its socket; to use the module directly, " +
			"unset NOTATION_HSM_BROKER")
}

// nonsense returns the failure of an answer that is not of the API.
func (c *client) nonsense(status string, err error) error {
	return failure.New(failure.Internal, "the broker at %s sent an invalid answer (%s): %w", c.address, status, err).
		WithHint("check that an hsm-broker of the same version listens there")
}
