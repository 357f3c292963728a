package pkcs11

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// connection is a token of a module with a pool of sessions, shared by the stores of the process: the login counts for
// all sessions that a process has on a token (PKCS#11 2.40, section 5.6), and ends with the last.
type connection struct {
	module *Module
	want   config.URI // what the token is found by
	users  int        // guarded by module.mu

	pool     atomic.Pointer[pool] // the sessions since the token was connected last; nil before
	loggedIn atomic.Bool

	// connecting holds a value while somebody connects or logs in, which one does at a time.
	connecting chan struct{}
	failures   int       // how often connecting again has failed in a row; guarded by connecting
	retry      time.Time // when it is tried next; guarded by connecting
	failed     error     // why it failed; guarded by connecting
}

// connect returns the connection to the token in a slot, with one user more.
func (m *Module) connect(slot uint, info tokenInfo, want config.URI) *connection {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.connections {
		if p := c.pool.Load(); p != nil && p.slot == slot && p.info.identity() == info.identity() {
			c.users++
			return c
		}
	}
	c := &connection{module: m, want: reconnectURI(want, info), users: 1, connecting: make(chan struct{}, 1)}
	c.pool.Store(newPool(slot, info, m.starts.Load()))
	m.connections = append(m.connections, c)
	return c
}

// disconnect counts one user less. The last one closes the sessions, which logs out (PKCS#11 2.40, C_CloseSession), so
// no C_Logout is needed.
func (c *connection) disconnect() {
	m := c.module
	m.mu.Lock()
	c.users--
	last := c.users == 0
	for i, other := range m.connections {
		if last && other == c {
			m.connections = append(m.connections[:i:i], m.connections[i+1:]...)
			break
		}
	}
	m.mu.Unlock()
	if last {
		c.pool.Load().close(m)
	}
}

// reconnectURI returns what a token is found by after it was lost: what it was opened by, but for a slot number, which
// a token that comes back may not keep.
func reconnectURI(want config.URI, info tokenInfo) config.URI {
	want.Object, want.ID, want.SlotID = "", nil, nil
	if want.String() == config.Scheme {
		return config.URI{Token: info.label, Serial: info.serial, Manufacturer: info.manufacturer, Model: info.model}
	}
	return want
}

// identity names a token in what the process remembers of it.
func (i tokenInfo) identity() string {
	return fmt.Sprintf("%q %q %q %q", i.label, i.serial, i.manufacturer, i.model)
}

// acquire waits until nobody else connects or logs in, and returns the function that ends the caller's turn.
func (c *connection) acquire(ctx context.Context, limit time.Duration) (release func(), err error) {
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case c.connecting <- struct{}{}:
		return func() { <-c.connecting }, nil
	case <-wait.Done():
		if ctx.Err() != nil {
			return nil, interrupted(ctx, "waiting for another login")
		}
		return nil, failure.New(failure.Timeout, "another login to %s did not end within %s", c.pool.Load().info.name(),
			limit).
			WithHint("check that the HSM can be reached, or set a longer timeout")
	}
}

// How often a lost token is connected again for one operation, the pause before the second attempt, which doubles, and
// the longest pause between the operations that try, after which the next one does.
const (
	reconnectAttempts = 6
	reconnectPause    = 50 * time.Millisecond
	reconnectLimit    = 30 * time.Second
)

// jitter returns a time between half of d and d, so that many who wait do not come back together.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1) //nolint:gosec // no secret
}

// ready connects the token again if it was lost.
func (t *Token) ready(ctx context.Context) error {
	if !t.conn.pool.Load().isLost() {
		return nil
	}
	_, err := call(ctx, t.module, t.settings.Timeout, "opening the token again", t.reconnectLost)
	return err
}

// reconnectLost connects the token again, unless somebody else has while it waited.
func (t *Token) reconnectLost(ctx context.Context) (struct{}, error) {
	release, err := t.conn.acquire(ctx, t.settings.Timeout)
	if err != nil {
		return struct{}{}, err
	}
	defer release()
	if !t.conn.pool.Load().isLost() {
		return struct{}{}, nil
	}
	if t.conn.unused() {
		return struct{}{}, failure.New(failure.Internal, "%s is closed", t.name())
	}
	return struct{}{}, t.reconnect(ctx)
}

// unused reports whether all stores that used the connection are closed.
func (c *connection) unused() bool {
	c.module.mu.Lock()
	defer c.module.mu.Unlock()
	return c.users == 0
}

// reconnect opens the lost token again, in a few attempts with growing pauses. While one operation after the other
// fails to, those in between fail at once.
func (t *Token) reconnect(ctx context.Context) error {
	c := t.conn
	if time.Now().Before(c.retry) {
		return c.failed
	}
	var err error
	pause := reconnectPause
	for attempt := range reconnectAttempts {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return interrupted(ctx, "opening the token again")
			case <-time.After(jitter(pause)):
			}
			pause *= 2
		}
		if err = t.reconnectOnce(ctx); err == nil {
			c.failures, c.failed, c.retry = 0, nil, time.Time{}
			slog.Info("connected again", "token", t.name(), "attempts", attempt+1)
			return nil
		}
		slog.Debug("cannot open the token again", "token", t.name(), "error", err)
		if ctx.Err() != nil {
			return err
		}
		if !t.lossOf(err) && !failure.Is(err, failure.NotFound) && !failure.Is(err, failure.Unavailable) {
			break
		}
	}
	c.failures++
	c.failed = err
	c.retry = time.Now().Add(jitter(min(time.Second<<min(c.failures, 10), reconnectLimit)))
	return err
}

// reconnectOnce finds the token, opens a session, and logs in if it was logged in. The sessions from before are closed
// when the new one is open, so that a login that still holds stays.
func (t *Token) reconnectOnce(ctx context.Context) error {
	c, m, limit := t.conn, t.module, t.settings.Timeout
	old := c.pool.Load()
	if err := old.drain(ctx, limit); err != nil {
		return err
	}
	slot, info, err := t.look(ctx, c.want) // in whatever slot it is now
	if err != nil {
		return err
	}
	p := newPool(slot, info, m.starts.Load())
	p.flags = old.flags
	session, err := step(ctx, m, limit, "opening a session", func() (sessionHandle, error) {
		session, err := p.open(m)
		if is(err, pkcs11.CKR_SESSION_COUNT) { // the lost ones may still count
			_ = old.closeIdle(m, 0)
			session, err = p.open(m)
		}
		if err != nil {
			return 0, m.failed(err, "cannot open a session on %s", p.info.name())
		}
		return session, nil
	})
	if err != nil {
		return err
	}
	restarted := func() bool { return p.of != m.starts.Load() } // and another session may have the number
	if c.loggedIn.Load() && !restarted() {
		err = t.loginAgain(ctx, p.info, session)
	}
	if restarted() {
		return t.failed(pkcs11.Error(pkcs11.CKR_SESSION_CLOSED), "the session on %s was lost", p.info.name())
	}
	_, _ = step(ctx, m, limit, "closing lost sessions", func() (struct{}, error) {
		if err != nil {
			_ = m.calls.closeSession(session)
		} else {
			_ = old.closeIdle(m, session)
		}
		return struct{}{}, nil
	})
	if err != nil {
		return err
	}
	p.add(session)
	c.pool.Store(p)
	if c.unused() { // the last store was closed meanwhile, with the sessions from before
		p.close(m)
	}
	return nil
}

// loginAgain logs in through a new session, unless the login still holds. The PIN is read again from its source; one
// that a person typed cannot be.
func (t *Token) loginAgain(ctx context.Context, info tokenInfo, session sessionHandle) error {
	m, limit := t.module, t.settings.Timeout
	holds, err := step(ctx, m, limit, "asking for the login", func() (bool, error) { return m.calls.loggedIn(session) })
	if err != nil {
		return m.failed(err, "cannot read the state of the session on %s", info.name())
	}
	if holds && !info.isNetHSM() {
		return nil
	}
	source := t.settings.PINSource
	if t.settings.PIN == "" && (source == pin.Prompt || source == pin.None || source == "") {
		return failure.New(failure.Denied,
			"the login to %s was lost, and its PIN is typed by a person, who is not asked again",
			info.name()).WithHint("run the command again; or set pin-source to env:NAME, file:/path or exec:command")
	}
	return t.loginUser(ctx, info, session)
}
