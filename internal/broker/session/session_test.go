package session

import (
	"context"
	"encoding/base64"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const credential = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// clock is a clock that tests set.
type clock struct{ time atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(c.time.Load(), 0) }
func (c *clock) add(after time.Duration) { c.time.Add(int64(after / time.Second)) }

func newSessions(key string) (*Sessions, *clock) {
	c := &clock{}
	c.time.Store(1_800_000_000)
	return New([]byte(strings.Repeat(key, 32)), nil, c.now), c
}

// TestSession reads what was issued, until it expires.
func TestSession(t *testing.T) {
	t.Parallel()
	s, c := newSessions("a")
	token, expires := s.Issue("alice", credential)
	read, err := s.Read(t.Context(), token)
	if err != nil || read.Person != "alice" || read.Credential != credential || !read.Expires.Equal(expires) ||
		!read.Issued.Equal(c.now()) || expires.Sub(read.Issued) != Life {
		t.Fatalf("%+v, %v", read, err)
	}
	other, _ := s.Issue("alice", credential)
	second, err := s.Read(t.Context(), other)
	if err != nil || other == token || second.CSRF == read.CSRF || strings.Contains(token, read.CSRF) {
		t.Errorf("%+v, %v", second, err)
	}
	for _, step := range []struct {
		after time.Duration
		valid bool
	}{{Life - time.Second, true}, {time.Second, false}, {time.Hour, false}, {-time.Hour - 3*Life, false}} {
		c.add(step.after)
		if _, err := s.Read(t.Context(), token); (err == nil) != step.valid || err != nil && !failure.Is(err,
			failure.Denied) {
			t.Errorf("after %s more: %v", step.after, err)
		}
	}
}

// TestEnd ends one session, and forgets it once it would have expired.
func TestEnd(t *testing.T) {
	t.Parallel()
	s, c := newSessions("a")
	token, _ := s.Issue("alice", credential)
	other, _ := s.Issue("alice", credential)
	ended := s.uses.(*Memory)
	for _, text := range []string{token, token, "a.b"} {
		if err := s.End(t.Context(), text); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Read(t.Context(), token); !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(),
		"was ended") {
		t.Errorf("the session goes on: %v", err)
	}
	if _, err := s.Read(t.Context(), other); err != nil || len(ended.used) != 1 {
		t.Errorf("another session: %v; %d were ended", err, len(ended.used))
	}
	c.add(Life)
	third, _ := s.Issue("alice", credential)
	if err := s.End(t.Context(), third); err != nil {
		t.Error(err)
	}
	if _, err := s.Read(t.Context(), third); err == nil || len(ended.used) != 1 {
		t.Errorf("%v; %d are remembered", err, len(ended.used))
	}
}

// TestForged refuses every token that the key did not make.
func TestForged(t *testing.T) {
	t.Parallel()
	s, _ := newSessions("a")
	other, _ := newSessions("b")
	foreign, _ := other.Issue("alice", credential)
	token, _ := s.Issue("alice", credential)
	read, err := s.Read(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	body, mac, _ := strings.Cut(token, ".")
	plain, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		t.Fatal(err)
	}
	carol := base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(plain), "alice", "carol", 1)))
	forged := []string{"", ".", "..", body, body + ".", "." + mac, token + ".", token + "=", token + "\n", " " + token,
		foreign, carol + "." + mac, body + "." + read.CSRF, body + "." + strings.ToUpper(mac),
		strings.Repeat("a", 1<<20) + "." + mac, body + "." + strings.Repeat("a", 1<<20)}
	for i := range token {
		changed := []byte(token)
		changed[i] ^= 1
		forged = append(forged, string(changed))
	}
	for _, f := range forged {
		if read, err := s.Read(t.Context(), f); !failure.Is(err, failure.Denied) {
			t.Errorf("%.100q is read as %+v, %v", f, read, err)
		}
	}
	long, _ := s.Issue(strings.Repeat("a", maxToken), credential)
	if _, err := s.Read(t.Context(), long); !failure.Is(err, failure.Denied) {
		t.Errorf("a long token: %v", err)
	}
}

// TestOnce lets each thing be used once until its time is over, and nothing while the memory is full.
func TestOnce(t *testing.T) {
	t.Parallel()
	_, c := newSessions("a")
	m := NewMemory(3, c.now)
	until := c.now().Add(2 * time.Minute)
	for _, step := range []struct {
		id    byte
		after time.Duration
		want  bool
	}{{1, 0, true}, {1, 0, false}, {2, 0, true}, {3, 0, true}, {4, 0, false}, {1, time.Minute, false}, {4, 0, false},
		{1, time.Minute, false}} { // the last one is over: the memory would forget it at once
		c.add(step.after)
		if first, err := m.Once(t.Context(), [32]byte{step.id}, until); err != nil || first != step.want {
			t.Errorf("%d after %s more: %t, %v", step.id, step.after, first, err)
		}
	}
	until = c.now().Add(time.Minute)
	if first, err := m.Once(t.Context(), [32]byte{4}, until); err != nil || !first || len(m.used) != 1 {
		t.Errorf("%t, %v; %d are remembered, and none is valid", first, err, len(m.used)-1)
	}
	for id, want := range map[byte]bool{4: true, 5: false} {
		if used, err := m.Used(t.Context(), [32]byte{id}); err != nil || used != want {
			t.Errorf("%d was used: %t, %v", id, used, err)
		}
	}
}

// TestOnceTogether lets one of many at once use a thing.
func TestOnceTogether(t *testing.T) {
	t.Parallel()
	_, c := newSessions("a")
	m := NewMemory(100, c.now)
	var group sync.WaitGroup
	var first atomic.Int32
	for range 50 {
		group.Go(func() {
			if ok, err := m.Once(t.Context(), [32]byte{1}, c.now().Add(time.Minute)); err == nil && ok {
				first.Add(1)
			}
		})
	}
	if group.Wait(); first.Load() != 1 {
		t.Errorf("%d were the first", first.Load())
	}
}

// failing is a store that is not reached.
type failing struct{}

var errAway = failure.New(failure.Unavailable, "the store is not reached")

func (failing) Once(context.Context, [32]byte, time.Time) (bool, error) { return true, errAway }
func (failing) Used(context.Context, [32]byte) (bool, error)            { return false, errAway }

// TestShared has the sessions of one replica count at another, until they are ended at either.
func TestShared(t *testing.T) {
	t.Parallel()
	first, c := newSessions("a")
	key := []byte(strings.Repeat("a", 32))
	second, alone := New(key, first.uses, c.now), New(key, failing{}, c.now)
	token, _ := first.Issue("alice", credential)
	if read, err := second.Read(t.Context(), token); err != nil || read.Person != "alice" {
		t.Errorf("at the other replica: %+v, %v", read, err)
	}
	if _, err := alone.Read(t.Context(), token); !failure.Is(err, failure.Unavailable) {
		t.Errorf("while nobody knows whether it was ended: %v", err)
	}
	if err := alone.End(t.Context(), token); !failure.Is(err, failure.Unavailable) {
		t.Errorf("ended, and nobody knows: %v", err)
	}
	if err := second.End(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(t.Context(), token); !failure.Is(err, failure.Denied) {
		t.Errorf("it was ended at the other replica: %v", err)
	}
}

// TestEndFull does not say that a session was ended while the memory is full.
func TestEndFull(t *testing.T) {
	t.Parallel()
	_, c := newSessions("a")
	s := New([]byte(strings.Repeat("a", 32)), NewMemory(1, c.now), c.now)
	for _, kind := range []failure.Kind{0, failure.Throttled} {
		token, _ := s.Issue("alice", credential)
		if err := s.End(t.Context(), token); kind == 0 && err != nil || kind != 0 && !failure.Is(err, kind) {
			t.Error(err)
		}
	}
}
