package session

import (
	"fmt"
	"testing"
	"time"
)

// TestAttempts counts attempts of each place, and gives them back in time.
func TestAttempts(t *testing.T) {
	t.Parallel()
	_, c := newSessions("a")
	a := NewAttempts(3, time.Minute, c.now)
	for _, step := range []struct {
		from  string
		after time.Duration
		want  int // attempts of ten that are allowed
	}{
		{"192.0.2.1:1", 0, 3}, {"192.0.2.1:2", 0, 0}, {"[::ffff:192.0.2.1]:1", 0, 0}, {"192.0.2.2:1", 0, 3},
		{"192.0.2.1:1", 20 * time.Second, 1}, {"192.0.2.1:1", time.Hour, 3}, {"192.0.2.1:1", -2 * time.Hour, 0},
		{"[2001:db8::1]:1", 0, 3}, {"[2001:db8::ffff:1]:1", 0, 0}, {"[2001:db8:0:1::1]:1", 0, 3},
		{"[fe80::1%a]:1", 0, 3}, {"[fe80::1%b]:1", 0, 0}, {"@", 0, 3}, {"", 0, 0}, {"192.0.2.1", 0, 0},
	} {
		c.add(step.after)
		allowed := 0
		for range 10 {
			if a.Allow(step.from) {
				allowed++
			}
		}
		if allowed != step.want {
			t.Errorf("%s after %s: %d attempts, want %d", step.from, step.after, allowed, step.want)
		}
	}
}

// TestPlaces remembers a bounded number of places, and forgets those that may try as often as new ones.
func TestPlaces(t *testing.T) {
	t.Parallel()
	_, c := newSessions("a")
	a := NewAttempts(3, time.Minute, c.now)
	allowed := 0
	for i := range maxPlaces + 1000 {
		if a.Allow(fmt.Sprintf("10.0.%d.%d:1", i/256, i%256)) {
			allowed++
		}
	}
	if allowed != maxPlaces+3 || len(a.places) != maxPlaces+1 {
		t.Errorf("%d places may try, %d are remembered", allowed, len(a.places))
	}
	c.add(time.Minute)
	if !a.Allow("192.0.2.1:1") || len(a.places) != 1 {
		t.Errorf("%d places are remembered", len(a.places))
	}
}
