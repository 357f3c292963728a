package fair

import "time"

// The times after which a use that was refused is tried again.
const (
	soonest = time.Second
	latest  = 30 * time.Second
)

// pace is how fast a module serves uses while others wait.
type pace struct {
	each time.Duration // between two uses that end, on average
	last time.Time     // when one ended and others waited; zero if none waited
}

// left takes note of a use that ends.
func (p *pace) left(now time.Time, othersWait bool) {
	switch took := now.Sub(p.last); {
	case !othersWait:
		p.last = time.Time{}
		return
	case p.last.IsZero():
	case p.each == 0:
		p.each = took
	default:
		p.each += (took - p.each) / 8
	}
	p.last = now
}

// estimate returns how long it takes until those that wait are served: not less than nobody has been served for.
func (p *pace) estimate(now time.Time, waiting int) time.Duration {
	wait := time.Duration(waiting) * p.each
	if !p.last.IsZero() {
		wait = max(wait, now.Sub(p.last))
	}
	return min(max(wait, soonest), latest)
}
