package session

import (
	"net/netip"
	"sync"
	"time"
)

// Attempts bound how often somebody tries to sign in, by where they come from: a bound of the work that they cause, as
// nothing can be guessed. Each replica counts for itself. It is safe for concurrent use.
type Attempts struct {
	count int
	per   time.Duration
	now   func() time.Time

	mu     sync.Mutex
	places map[string]place
	swept  time.Time
}

// place is what is left for one place of origin.
type place struct {
	tries float64 // left
	since time.Time
}

// maxPlaces is the number of places that are told apart at once. Further ones share one.
const maxPlaces = 4096

// NewAttempts returns Attempts that let each place try count times at once, and as often again per period.
func NewAttempts(count int, per time.Duration, now func() time.Time) *Attempts {
	return &Attempts{count: count, per: per, now: now, places: map[string]place{}}
}

// Allow counts an attempt from an address, as http.Request.RemoteAddr has it, and reports whether it may be made. The
// addresses of one network of IPv6 (a /64) are one place, and so are all that are none of IP.
func (a *Attempts) Allow(address string) bool {
	name := origin(address)
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if passed := now.Sub(a.swept); passed >= a.per || passed < 0 {
		for old, p := range a.places {
			if a.refill(p, now).tries >= float64(a.count) {
				delete(a.places, old)
			}
		}
		a.swept = now
	}
	p, known := a.places[name]
	if !known && len(a.places) >= maxPlaces {
		name = "others"
		p, known = a.places[name]
	}
	if !known {
		p = place{tries: float64(a.count), since: now}
	}
	p = a.refill(p, now)
	allowed := p.tries >= 1
	if allowed {
		p.tries--
	}
	a.places[name] = p
	return allowed
}

// refill returns a place with what it has got back since.
func (a *Attempts) refill(p place, now time.Time) place {
	if passed := now.Sub(p.since); passed > 0 {
		p.tries = min(p.tries+float64(a.count)*float64(passed)/float64(a.per), float64(a.count))
	}
	p.since = now
	return p
}

// origin returns the place that an address is in.
func origin(address string) string {
	parsed, err := netip.ParseAddrPort(address)
	if err != nil {
		return "local"
	}
	ip := parsed.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	network, _ := ip.Prefix(64) // it has 128 bits
	return network.String()
}
