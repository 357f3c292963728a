package httpapi

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// What callers can use of a server at once. There are more connections than requests in flight, so one that is not in
// use can always be closed for a new one.
const (
	MaxConnections   = 512
	MaxRequests      = 384
	MaxRequestsOfOne = 256 // over the connections of one caller
	MaxLarge         = 8   // requests with bodies of more than smallBody bytes
	smallBody        = 64 << 10
)

// Limits counts what callers use. A caller is whatever the server makes of it: a process, an address, an identity.
type Limits struct {
	who string // what a caller is called in failures

	mu       sync.Mutex
	open     map[net.Conn]*connection
	requests map[string]int // in flight, by caller
	inFlight int            // requests
	large    int            // requests with large bodies
}

// NewLimits returns the limits of a server. who is what a caller is called in failures: "process".
func NewLimits(who string) *Limits {
	return &Limits{who: who, open: map[net.Conn]*connection{}, requests: map[string]int{}}
}

// Use is what callers use.
type Use struct {
	Connections, Requests, Large int
}

// Use returns what callers use at this moment.
func (l *Limits) Use() Use {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Use{Connections: len(l.open), Requests: l.inFlight, Large: l.large}
}

// connection is that of one caller.
type connection struct {
	from  string    // who made it
	busy  bool      // a request is in flight
	since time.Time // when it was accepted, or became idle
}

type connectionKey struct{}

// Admit adds a connection, and returns a context for its requests. With too many, it closes the one that has waited
// longest, of those from whom there are most: so one who opens many does not keep others away.
func (l *Limits) Admit(ctx context.Context, conn net.Conn, from string) context.Context {
	c := &connection{from: from, since: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= MaxConnections {
		l.evict()
	}
	l.open[conn] = c
	return context.WithValue(ctx, connectionKey{}, c)
}

// evict closes a connection that has no request in flight. The caller holds the lock.
func (l *Limits) evict() {
	of := map[string]int{}
	for _, c := range l.open {
		of[c.from]++
	}
	var found net.Conn
	for conn, c := range l.open {
		if c.busy {
			continue
		}
		best := l.open[found]
		if best == nil || of[c.from] > of[best.from] ||
			of[c.from] == of[best.from] && c.since.Before(best.since) {
			found = conn
		}
	}
	if found != nil {
		delete(l.open, found)
		found.Close()
	}
}

// Track follows the state of a connection, as http.Server.ConnState does.
func (l *Limits) Track(conn net.Conn, state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch c := l.open[conn]; {
	case c == nil:
	case state == http.StateIdle:
		c.since = time.Now()
	case state == http.StateClosed:
		delete(l.open, conn)
	}
}

// Reserve counts a request with a large body, or one of unknown size, until release. It fails with Throttled when there
// are too many: they would take too much memory.
func (l *Limits) Reserve(size int64) (release func(), err error) {
	if 0 <= size && size <= smallBody {
		return func() {}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.large >= MaxLarge {
		return nil, tooMany("requests of more than 64 KiB")
	}
	l.large++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.large--
	}, nil
}

// Begin counts a request of a caller whose body was read, until end. It fails with Throttled when there are too many.
func (l *Limits) Begin(ctx context.Context, caller string) (end func(), err error) {
	c, ok := ctx.Value(connectionKey{}).(*connection)
	if !ok { // it came by no connection, as in tests of a handler
		c = &connection{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inFlight >= MaxRequests {
		return nil, tooMany("requests")
	}
	if l.requests[caller] >= MaxRequestsOfOne {
		return nil, tooMany("requests of this " + l.who)
	}
	l.inFlight++
	l.requests[caller]++
	c.busy = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.inFlight--
		if l.requests[caller]--; l.requests[caller] == 0 {
			delete(l.requests, caller)
		}
		c.busy = false
	}, nil
}

// tooMany returns the failure of a request beyond a limit.
func tooMany(what string) error {
	return failure.New(failure.Throttled, "the broker has too many %s at once", what).WithHint("try again in a second")
}
