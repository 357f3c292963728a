package web

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// How often one address, or one person, may begin or finish something with an authenticator.
const (
	burst     = 30          // at once
	refill    = time.Second // until there is one more
	maxRates  = 10000       // addresses and people that are remembered
	everybody = ""          // shares one bucket when there are more
)

// rates count what addresses and people have begun: a bucket of tokens for each.
type rates struct {
	now func() time.Time

	mu      sync.Mutex
	buckets map[string]bucket
}

type bucket struct {
	left int
	at   time.Time // of the last refill
}

func newRates(now func() time.Time) *rates { return &rates{now: now, buckets: map[string]bucket{}} }

// take fails with Throttled when one has begun too much.
func (r *rates) take(who string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	b, known := r.buckets[who]
	if !known && len(r.buckets) >= maxRates {
		for name, old := range r.buckets {
			if now.Sub(old.at) >= burst*refill {
				delete(r.buckets, name)
			}
		}
		if len(r.buckets) >= maxRates {
			who = everybody
			b, known = r.buckets[who]
		}
	}
	if !known {
		b = bucket{left: burst, at: now}
	}
	if gained := int(now.Sub(b.at) / refill); gained > 0 {
		b.left, b.at = min(burst, b.left+gained), now
	} else if now.Before(b.at) { // the clock was set back
		b.at = now
	}
	if b.left == 0 {
		r.buckets[who] = b
		return failure.New(failure.Throttled, "there were too many attempts from here").WithHint("try again in a minute")
	}
	b.left--
	r.buckets[who] = b
	return nil
}

// addressOf returns from where a request comes: an IPv4 address, or the first 64 bits of an IPv6 address, which one
// network has all of.
func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "unix"
	}
	address, err := netip.ParseAddr(host)
	if err != nil {
		return "unix"
	}
	address = address.Unmap().WithZone("")
	if address.Is4() {
		return address.String()
	}
	prefix, _ := address.Prefix(64)
	return prefix.String()
}
