// Package nethsm is the backend for Nitrokey's NetHSM: its REST API, as Nitrokey describes it in OpenAPI, in plain Go.
// No module and no C code is needed for a key of the reference nethsm:KEYID.
//
// client.go sends requests to the instances of one cluster, in turn and within a time; tls.go and credential.go say who
// is who; words.go says what went wrong; store.go and key.go are the keystore's store and key on top; setup.go and
// manage.go serve the commands around it.
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
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const (
	apiPath = "/api/v1"
	// bytes; NetHSM takes certificates up to 1 MB, and a list has some hundred bytes for each key
	answerLimit = int64(4 << 20)
	rounds      = 6 // through all instances, before giving up
	firstPause  = 100 * time.Millisecond
	dialLimit   = 5 * time.Second
	connections = 16 // to one instance, as many as sessions with a PKCS#11 token
)

// Content types of the API.
const (
	typeJSON  = "application/json"
	typeBytes = "application/octet-stream"
)

// client sends requests to a cluster. It may be used from many goroutines.
type client struct {
	settings *config.Settings
	http     *http.Client
	working  atomic.Uint32 // the instance that answered last
	used     sync.Map      // *credential, to be closed with the client
}

// request is one thing that is asked of the NetHSM.
type request struct {
	what         string // "signing with key nethsm:release", as in "X failed"
	method, path string // the path below /api/v1
	body         []byte
	sends        string // content type of the body; typeJSON when empty
	accept       string // of the answer; typeJSON when empty
	as           *credential
	limit        int64 // of the answer in bytes; answerLimit when 0
	slow         bool  // finding primes takes minutes

	// done finds out whether the request had its effect, when no answer came; nil for one that may simply be repeated.
	done func() (bool, error)
	// unsure says what to do when even that could not be found out.
	unsure string
}

// answer is what an instance said.
type answer struct {
	status int
	body   []byte
}

// settled is the answer to a request whose effect was found, without an answer.
var settled = &answer{status: http.StatusNoContent}

func newClient(s *config.Settings) (*client, error) {
	t, err := tlsConfig(s.NetHSM)
	if err != nil {
		return nil, err
	}
	c := &client{settings: s}
	dialer := &net.Dialer{Timeout: min(dialLimit, c.share(s.Timeout))}
	c.http = &http.Client{
		Transport: &http.Transport{
			// and no proxy: none has to know of a passphrase that goes to an HSM
			DialContext: dialer.DialContext, TLSClientConfig: t,
			MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections, IdleConnTimeout: time.Minute,
			DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		},
		// the passphrase goes nowhere else
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// share is the time that one instance has, so that all can be tried.
func (c *client) share(limit time.Duration) time.Duration {
	return limit / time.Duration(len(c.settings.NetHSM.Instances))
}

// do sends a request to the instances in turn, from the one that worked last, until one answers. An instance that is
// not reached, or answers 5xx or 429, or is not operational, is passed over; when all are, it tries again after a
// pause, as long as waiting can help and the timeout allows. Any other answer is returned, whatever its status.
func (c *client) do(ctx context.Context, r request) (*answer, error) {
	if err := r.ready(ctx, c); err != nil {
		return nil, err
	}
	limit := c.settings.Timeout
	if r.slow {
		limit *= 10
	}
	caller := ctx
	ctx, cancel := context.WithTimeout(caller, limit)
	defer cancel()
	urls := c.settings.NetHSM.Instances
	start := int(c.working.Load())
	unsure := false // an earlier try may have had its effect
	pause := firstPause
	for round := 1; ; round++ {
		var failed []*trouble
		for i := range urls {
			at := (start + i) % len(urls)
			a, t := c.try(ctx, c.share(limit), urls[at], r)
			if t == nil {
				if unsure && a.status >= 400 {
					if done, err := r.done(); err != nil || done {
						return settled, r.perhaps(err)
					}
				}
				for _, t := range failed {
					t.warn()
				}
				c.working.Store(uint32(at)) //nolint:gosec // there are few
				return a, nil
			}
			if t.final {
				return nil, t.err
			}
			slog.Warn("a NetHSM instance failed", "instance", urls[at], "what", r.what, "error", t.err)
			failed = append(failed, t)
			if t.sent && r.done != nil {
				unsure = true
				if caller.Err() != nil {
					break
				}
				c.working.Store(uint32((at + 1) % len(urls))) //nolint:gosec // there are few; this one is slow to tell
				if done, err := r.done(); err != nil || done {
					return settled, r.perhaps(err)
				}
			}
		}
		giveUp := func(err error) (*answer, error) {
			if unsure {
				err = r.perhaps(err)
			}
			return nil, err
		}
		if caller.Err() != nil {
			return giveUp(deadline.Interrupted(r.what))
		}
		if round == rounds || !worthWaiting(failed) {
			return giveUp(noneCould(r.what, failed))
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return giveUp(noneCould(r.what, failed))
		}
	}
}

// perhaps adds to why a request failed that it may have had its effect all the same.
func (r request) perhaps(err error) error {
	if err == nil {
		return nil
	}
	f := *failure.From(err)
	f.What += "; " + r.unsure
	return &f
}

// ready has the passphrase fetched, which may take a person longer than a request may take.
func (r request) ready(ctx context.Context, c *client) error {
	if r.as == nil {
		return nil
	}
	return c.ready(ctx, r.as)
}

// ready fetches the passphrase of a user, until close.
func (c *client) ready(ctx context.Context, as *credential) error {
	c.used.Store(as, true)
	return as.ready(ctx, c.settings.Timeout)
}

// try sends a request to one instance.
func (c *client) try(ctx context.Context, share time.Duration, instance string, r request) (*answer, *trouble) {
	ctx, cancel := context.WithTimeout(ctx, share)
	defer cancel()
	var a *answer
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
		err = r.as.use(send)
	}
	var known *failure.Error
	switch {
	case errors.As(err, &known):
		return nil, &trouble{err: known, final: true}
	case err != nil:
		t := unreachable(instance, err)
		t.sent = sent
		return nil, t
	case a.status >= 500:
		return nil, &trouble{instance: instance, sent: true, waiting: true, err: failure.New(failure.Internal,
			"%s answers %d (%s)%s", instance, a.status,
			http.StatusText(a.status), said(a)).
			WithHint("look at its log; 'notation-hsm nethsm status' shows the instances")}
	case a.status == http.StatusTooManyRequests: // so no passphrase was looked at
		return nil, &trouble{instance: instance, waiting: true, err: failure.New(failure.Throttled,
			"%s takes no more logins for now (429)", instance).
			WithHint("wrong passphrases slow it down: find out who sends them, wait a little, and try again")}
	case a.status == http.StatusPreconditionFailed:
		if state := c.stateOf(ctx, instance); state != Operational {
			return nil, notOperational(instance, state)
		}
	}
	return a, nil
}

// send is one HTTP request. sent reports whether it went out.
func (c *client) send(ctx context.Context, instance string, r request, secret []byte) (a *answer, sent bool,
	err error) {
	var out atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { out.Store(true) }})
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
	response, err := c.http.Do(q)
	if err != nil {
		return nil, out.Load(), err
	}
	defer response.Body.Close()
	limit := cmp.Or(r.limit, answerLimit)
	body, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	slog.Debug("NetHSM", "instance", instance, "what", r.what, "method", r.method, "status", response.StatusCode, "took",
		time.Since(began), "error", err)
	if err != nil {
		return nil, true, err
	}
	if int64(len(body)) > limit {
		return nil, true, failure.New(failure.Internal,
			"%s failed: %s answers with more than %d bytes", r.what, instance, limit).
			WithHint("check that the URL is a NetHSM's")
	}
	return &answer{response.StatusCode, body}, true, nil
}

// close drops the connections, in whose buffers a passphrase may be left, and clears the passphrases.
func (c *client) close() {
	c.http.CloseIdleConnections()
	for as := range c.used.Range {
		as.(*credential).close()
	}
}
