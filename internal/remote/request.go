package remote

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// longPoll is how long a broker holds an answer at most: less than proxies wait for one.
const longPoll = brokerapi.MaxWait / 2 * time.Second

// Limits of what a broker says of a request, in bytes.
const (
	idLimit  = 128
	urlLimit = 2 << 10
)

// NameOf returns the name by which a broker is asked for a key. It fails with Invalid for a token.
func NameOf(u config.URI) (string, error) {
	if name := nameOf(u); name != "" {
		return name, nil
	}
	return "", failure.New(failure.Invalid, "no key of the broker is named").WithHint("name it like broker:release")
}

// CreateRequest asks a broker of a team for a request. Tries of one call create one request.
func (b *Backend) CreateRequest(ctx context.Context, s *config.Settings, n brokerapi.NewRequest) (brokerapi.Request,
	error) {
	body, err := json.Marshal(n)
	if err != nil {
		return brokerapi.Request{}, failure.New(failure.Internal, "cannot encode a request to the broker: %w", err)
	}
	again := make([]byte, 32)
	_, _ = rand.Read(again) // does not fail
	return b.request(ctx, s, call{method: http.MethodPost, path: brokerapi.RequestsPath, body: body,
		idempotency: hex.EncodeToString(again)}, "")
}

// Request returns a request, once it is settled or after a time, which is at most longPoll.
func (b *Backend) Request(ctx context.Context, s *config.Settings, id string, wait time.Duration) (brokerapi.Request,
	error) {
	return b.request(ctx, s, getRequest(id, wait), id)
}

func getRequest(id string, wait time.Duration) call {
	wait = min(wait, longPoll).Truncate(time.Second)
	r := call{method: http.MethodGet, path: brokerapi.RequestPath(id), wait: wait}
	if wait > 0 {
		r.path += "?wait=" + strconv.Itoa(int(wait.Seconds()))
	}
	return r
}

// CancelRequest cancels a request.
func (b *Backend) CancelRequest(ctx context.Context, s *config.Settings, id string) (brokerapi.Request, error) {
	return b.request(ctx, s, call{method: http.MethodPost, path: brokerapi.CancelPath(id)}, id)
}

// request makes a call whose answer is a request: that of an ID, if one is given.
func (b *Backend) request(ctx context.Context, s *config.Settings, do call, id string) (r brokerapi.Request,
	err error) {
	c, err := b.connections.to(s)
	if err != nil {
		return r, err
	}
	defer c.release()
	do.into = &r
	if err := c.do(ctx, do); err != nil {
		return r, err
	}
	return c.checked(r, id)
}

// ListRequests returns a page of requests, newest first. query has the parameters state, key, before and limit.
func (b *Backend) ListRequests(ctx context.Context, s *config.Settings, query url.Values) (all brokerapi.Requests,
	err error) {
	c, err := b.connections.to(s)
	if err != nil {
		return all, err
	}
	defer c.release()
	path := brokerapi.RequestsPath
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	if err := c.get(ctx, path, &all); err != nil {
		return all, err
	}
	for i, r := range all.Requests {
		if all.Requests[i], err = c.checked(r, ""); err != nil {
			return all, err
		}
	}
	return all, nil
}

// checked returns a request as it can be shown. It fails with Internal for a request with another ID than id, if one is
// given, or without what people need to know.
func (c *client) checked(r brokerapi.Request, id string) (brokerapi.Request, error) {
	other := func(r rune) bool {
		return (r|0x20 < 'a' || 'z' < r|0x20) && (r < '0' || '9' < r) && !strings.ContainsRune("-._", r)
	}
	known := false
	for _, state := range brokerapi.States {
		known = known || r.State == state
	}
	switch {
	case r.ID == "" || len(r.ID) > idLimit || strings.ContainsFunc(r.ID, other) || strings.Trim(r.ID, ".") == "":
		return r, c.invalid("request", errors.New("its ID is no ID"))
	case id != "" && r.ID != id:
		return r, c.invalid("request", errors.New("it is another request"))
	case !known:
		return r, c.invalid("request", fmt.Errorf("unknown state %.50q", r.State))
	}
	if !isPage(r.URL) {
		r.URL = ""
	}
	r.Reason, r.Rule, r.Policy = plain(r.Reason), plain(r.Rule), plain(r.Policy)
	return r, nil
}

// isPage reports whether an address can be shown to people: https, and without what a terminal could interpret.
func isPage(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Scheme == "https" && u.Host != "" && u.User == nil && len(address) <= urlLimit &&
		!strings.ContainsFunc(address, func(r rune) bool { return r <= ' ' || '~' < r || strings.ContainsRune("<>\"`\\", r) })
}

// Place returns what people find a request by: its URL, or else its ID.
func Place(r brokerapi.Request) string {
	if r.URL != "" {
		return r.URL
	}
	return "request " + r.ID
}

// Outcome returns nil for a request that is signed or can be, and a failure for each other state.
func Outcome(r brokerapi.Request) error {
	why := ""
	if r.Reason != "" {
		why = ": " + r.Reason
	}
	fail := func(kind failure.Kind, what, hint string) error {
		return failure.New(kind, "%s %s%s", Place(r), what, why).WithHint(hint)
	}
	const another = "create another request"
	switch r.State {
	case brokerapi.Approved, brokerapi.Signed:
		return nil
	case brokerapi.Pending, brokerapi.Signing:
		return fail(failure.Unavailable, "is "+string(r.State), "wait for it with 'notation-hsm request wait "+r.ID+"'")
	case brokerapi.Rejected:
		return fail(failure.Denied, "was rejected", "ask who rejected it; then create another request")
	case brokerapi.Cancelled:
		return fail(failure.Denied, "was cancelled", another)
	case brokerapi.Expired:
		return fail(failure.Unavailable, "has expired", another)
	}
	return fail(failure.Unavailable, "ended without a signature ("+string(r.State)+")", another)
}

// WaitRequest waits until a request is settled. It returns the request as it is after the limit, if it is not.
func (b *Backend) WaitRequest(ctx context.Context, s *config.Settings, id string,
	limit time.Duration) (brokerapi.Request, error) {
	c, err := b.connections.to(s)
	if err != nil {
		return brokerapi.Request{}, err
	}
	defer c.release()
	return c.waitFor(ctx, id, limit)
}

// waitFor polls a request until it is settled, or the limit has passed. A broker that has answered before may be gone
// for a while, as when it is updated.
func (c *client) waitFor(ctx context.Context, id string, limit time.Duration) (r brokerapi.Request, err error) {
	end, answered := time.Now().Add(limit), false
	for {
		began := time.Now()
		get := getRequest(id, max(time.Until(end), time.Second))
		r = brokerapi.Request{}
		get.into = &r
		err := c.do(ctx, get)
		if err == nil {
			r, err = c.checked(r, id)
		}
		passes := answered && (failure.Is(err, failure.Unavailable) || failure.Is(err, failure.Throttled) ||
			failure.Is(err, failure.Timeout))
		if err != nil && !passes || err == nil && r.State.Settled() || !time.Now().Before(end) {
			return r, err
		}
		answered = answered || err == nil
		// A broker that does not wait is not asked without a pause.
		if time.Since(began) < time.Second {
			if err := c.pause(ctx, time.Second); err != nil {
				return r, err
			}
		}
	}
}
