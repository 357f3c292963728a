package agent

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// What callers can use of an agent at once. There are more connections than requests in flight, so one that is not in
// use can always be closed for a new one.
const (
	maxConnections   = 512
	maxRequests      = 384
	maxRequestsOfOne = 256 // over the connections of one process
	maxLarge         = 8   // requests with bodies of more than smallBody bytes
	smallBody        = 64 << 10
	maxHeaders       = 16 << 10 // bytes of the path and the headers
)

// How long a caller can take.
const (
	readTime  = 20 * time.Second // to send a request
	writeTime = 20 * time.Second // to read the answer
	idleTime  = 5 * time.Minute  // between requests
)

// limits counts what callers use.
type limits struct {
	mu       sync.Mutex
	open     map[net.Conn]*connection
	requests map[int32]int // in flight, by process
	flying   int           // requests in flight
	large    int           // requests with large bodies
}

// connection is that of one caller.
type connection struct {
	peer  peer
	busy  bool      // a request is in flight
	since time.Time // when it was accepted, or became idle
}

type connectionKey struct{}

// connectionOf returns the connection of a request; an empty one if it was not admitted, as in tests of the handler.
func connectionOf(ctx context.Context) *connection {
	if c, ok := ctx.Value(connectionKey{}).(*connection); ok {
		return c
	}
	return &connection{}
}

// admit adds a connection, and returns a context with it. With too many, it closes the one that has waited longest, of
// those of the process with the most: so a process that opens many does not keep others away.
func (l *limits) admit(ctx context.Context, conn net.Conn) context.Context {
	c := &connection{peer: peerOf(conn), since: time.Now()}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) >= maxConnections {
		l.evict()
	}
	if l.open == nil {
		l.open = map[net.Conn]*connection{}
	}
	l.open[conn] = c
	return context.WithValue(ctx, connectionKey{}, c)
}

// evict closes a connection that has no request in flight. The caller holds the lock.
func (l *limits) evict() {
	of := map[int32]int{}
	for _, c := range l.open {
		of[c.peer.pid]++
	}
	var found net.Conn
	for conn, c := range l.open {
		if c.busy {
			continue
		}
		best := l.open[found]
		if best == nil || of[c.peer.pid] > of[best.peer.pid] ||
			of[c.peer.pid] == of[best.peer.pid] && c.since.Before(best.since) {
			found = conn
		}
	}
	if found != nil {
		delete(l.open, found)
		found.Close()
	}
}

// track follows the state of a connection.
func (l *limits) track(conn net.Conn, state http.ConnState) {
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

// reserve counts a request with a large body, or one of unknown size, until release. It fails with Throttled when there
// are too many: they would take too much memory.
func (l *limits) reserve(size int64) (release func(), err error) {
	if 0 <= size && size <= smallBody {
		return func() {}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.large >= maxLarge {
		return nil, tooMany("requests of more than 64 KiB")
	}
	l.large++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.large--
	}, nil
}

// begin counts a request whose body was read, until end. It fails with Throttled when there are too many.
func (l *limits) begin(c *connection) (end func(), err error) {
	pid := c.peer.pid
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flying >= maxRequests {
		return nil, tooMany("requests")
	}
	if l.requests[pid] >= maxRequestsOfOne {
		return nil, tooMany("requests of this process")
	}
	if l.requests == nil {
		l.requests = map[int32]int{}
	}
	l.flying++
	l.requests[pid]++
	c.busy = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.flying--
		if l.requests[pid]--; l.requests[pid] == 0 {
			delete(l.requests, pid)
		}
		c.busy = false
	}, nil
}

// tooMany returns the failure of a request beyond a limit.
func tooMany(what string) error {
	return failure.New(failure.Throttled, "the broker has too many %s at once", what).WithHint("try again in a second")
}
