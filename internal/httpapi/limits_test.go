package httpapi

import (
	"net"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestLimits counts requests in flight, of all and of each caller, and large ones.
func TestLimits(t *testing.T) {
	t.Parallel()
	l := NewLimits("process")
	var ends []func()
	begin := func(caller string) error {
		end, err := l.Begin(t.Context(), caller)
		if err == nil {
			ends = append(ends, end)
		}
		return err
	}
	for range MaxRequestsOfOne {
		if err := begin("1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := begin("1"); !failure.Is(err, failure.Throttled) {
		t.Errorf("one process: %v", err)
	}
	for range MaxRequests - MaxRequestsOfOne {
		if err := begin("2"); err != nil {
			t.Fatal(err)
		}
	}
	if err := begin("3"); !failure.Is(err, failure.Throttled) {
		t.Errorf("all: %v", err)
	}
	for range MaxLarge {
		release, err := l.Reserve(-1)
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, release)
	}
	if _, err := l.Reserve(smallBody + 1); !failure.Is(err, failure.Throttled) {
		t.Errorf("large: %v", err)
	}
	if _, err := l.Reserve(smallBody); err != nil {
		t.Error(err)
	}
	for _, end := range ends {
		end()
	}
	if l.inFlight != 0 || l.large != 0 || len(l.requests) != 0 {
		t.Errorf("%d, %d, %v", l.inFlight, l.large, l.requests)
	}
}

// TestEvict closes the connection that has waited longest, of those from whom there are most, and none with a request
// in flight.
func TestEvict(t *testing.T) {
	t.Parallel()
	l := NewLimits("process")
	now := time.Now()
	add := func(from string, age time.Duration, busy bool) net.Conn {
		conn, other := net.Pipe()
		t.Cleanup(func() { conn.Close(); other.Close() })
		l.open[conn] = &connection{from: from, since: now.Add(-age), busy: busy}
		return conn
	}
	oldest := add("1", time.Hour, false)
	first := add("2", time.Minute, false)
	second := add("2", time.Second, false)
	busy := add("2", time.Hour, true)
	for _, want := range []net.Conn{first, second, oldest} {
		l.evict()
		if l.open[want] != nil {
			t.Errorf("%d are left, and among them the one to close", len(l.open))
		}
	}
	if l.evict(); l.open[busy] == nil || len(l.open) != 1 {
		t.Errorf("%d are left", len(l.open))
	}
}
