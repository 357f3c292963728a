package identity

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// How long keys of an issuer are used. What an issuer says of caching is ignored.
const (
	refreshAge    = 15 * time.Minute // fetched again in the background from this age on
	maxAge        = 24 * time.Hour   // not used from this age on
	fetchInterval = 10 * time.Second // between two attempts, whatever tokens come
	fetchTimeout  = 10 * time.Second // of one attempt
)

// errNoAnswer is why there are no keys when no attempt has failed.
var errNoAnswer = errors.New("it has not answered yet")

// keyCache has the keys of one issuer.
type keyCache struct {
	issuer string
	fetch  func(context.Context) (*keySet, error)
	now    func() time.Time
	ctx    context.Context // ends fetches when the cache is closed
	close  context.CancelFunc

	mu      sync.Mutex
	set     *keySet   // nil before the first success
	fetched time.Time // when set was fetched
	tried   time.Time // when the last attempt began
	failed  error     // why the last attempt failed
	running chan struct{}
}

func newKeyCache(settings Issuer, now func() time.Time) (*keyCache, error) {
	c := &keyCache{issuer: settings.Issuer, now: now}
	var err error
	if c.fetch, err = newFetch(settings); err != nil {
		return nil, err
	}
	c.ctx, c.close = context.WithCancel(context.Background())
	return c, nil
}

// get returns the key with an id. An id that is not known has the keys fetched again, at most once per fetchInterval.
// It fails with Denied when the issuer has no such key, and with Unavailable when the issuer cannot be asked.
func (c *keyCache) get(ctx context.Context, id string, algorithm jose.SignatureAlgorithm) (any, error) {
	for waited := false; ; waited = true {
		c.mu.Lock()
		set, age, failed := c.usableSet(), c.now().Sub(c.fetched), c.failed
		if set != nil {
			key, found, err := set.find(id, algorithm)
			if found {
				if age >= refreshAge {
					c.start()
				}
				c.mu.Unlock()
				if err != nil {
					return nil, c.denied(err)
				}
				return key, nil
			}
		}
		running := c.running
		if !waited {
			running = c.start()
		}
		c.mu.Unlock()
		switch {
		case running != nil && !waited:
			select {
			case <-running:
			case <-ctx.Done():
				return nil, c.unavailable(ctx.Err())
			}
		case failed != nil || set == nil:
			return nil, c.unavailable(failed)
		default:
			return nil, c.denied(errors.New("its issuer has no key of its key id (kid)"))
		}
	}
}

// usableSet returns the keys unless they are too old. The caller holds mu.
func (c *keyCache) usableSet() *keySet {
	if c.set == nil || c.now().Sub(c.fetched) >= maxAge {
		return nil
	}
	return c.set
}

// start begins a fetch unless one is running or the last one began less than fetchInterval ago. It returns a channel
// that is closed when the fetch that is running ends; nil if none is. The caller holds mu.
func (c *keyCache) start() chan struct{} {
	now := c.now()
	// A clock that was set back must not stop fetches until it has caught up.
	if c.running != nil || !c.tried.IsZero() && now.Sub(c.tried) < fetchInterval && !now.Before(c.tried) {
		return c.running
	}
	c.tried = now
	done := make(chan struct{})
	c.running = done
	go func() {
		ctx, cancel := context.WithTimeout(c.ctx, fetchTimeout)
		defer cancel()
		set, err := c.fetch(ctx)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.failed = err; err == nil {
			c.set, c.fetched = set, now
		}
		c.running = nil
		close(done)
	}()
	return done
}

// state returns the state of the keys. Without usable keys it fetches them, as get does.
func (c *keyCache) state(ctx context.Context) IssuerState {
	c.mu.Lock()
	var running chan struct{}
	if c.usableSet() == nil || c.now().Sub(c.fetched) >= refreshAge {
		running = c.start()
	}
	wait := running != nil && c.usableSet() == nil
	c.mu.Unlock()
	if wait {
		select {
		case <-running:
		case <-ctx.Done():
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	state := IssuerState{Usable: c.usableSet() != nil, Fetched: c.fetched, Err: c.failed}
	if c.set != nil {
		state.Keys = len(c.set.keys)
	}
	if !state.Usable && state.Err == nil {
		state.Err = errNoAnswer
	}
	return state
}

func (c *keyCache) denied(err error) error {
	return failure.New(failure.Denied, "cannot accept a token of %s: %w", c.issuer, err).
		WithHint("request a new token")
}

func (c *keyCache) unavailable(err error) error {
	if err == nil {
		err = errNoAnswer
	}
	return failure.New(failure.Unavailable, "cannot fetch the keys of issuer %s: %w", c.issuer, err).
		WithHint("check that the broker reaches the issuer, then try again")
}
