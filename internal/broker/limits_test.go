package broker

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// TestLimitOfGrants signs no more with grants than the limit of their rule, however many there are.
func TestLimitOfGrants(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.policy = strings.Replace(f.policy, "1000 per hour", "2 per hour", 1)
	f.start()
	for n := byte(1); n <= 4; n++ {
		if _, err := f.Create(t.Context(), caller("ci"), newTarget(n)); err != nil {
			t.Fatal(err)
		}
	}
	f.signs("ci", 1)
	f.signs("ci", 2)
	for n := 3; n <= 4; n++ {
		_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(n))
		failsWith(t, err, failure.Throttled, "limit of 2 per hour")
		if wait := failure.From(err).RetryAfter; wait != time.Hour+time.Second {
			t.Errorf("it is to be tried again in %s", wait)
		}
	}
	f.clock.pass(1e9, 0)
	f.signs("ci", 1) // of the same use
}

// TestOpenGrants uses grants of a caller that can have no more of them.
func TestOpenGrants(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.limits = identity.Limits{Open: 2}
	f.start()
	for n := byte(1); n <= 2; n++ {
		if _, err := f.Create(t.Context(), caller("ci"), newTarget(n)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := f.Create(t.Context(), caller("ci"), newTarget(3))
	failsWith(t, err, failure.Throttled, "2 open requests")
	f.signs("ci", 1)
}

// TestWaitingAtOnce tells callers of a request that waits also when it is made by the same transaction.
func TestWaitingAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	w, err := f.read(t.Context(), caller("slow"), "release", f.image(1))
	if err != nil {
		t.Fatal(err)
	}
	var first, second string
	err = f.do(context.Background(), func(d *decision) error {
		for _, id := range []*string{&first, &second} {
			_, _, body, err := d.allow(w)
			if err != nil {
				return err
			}
			*id = body.ID
		}
		return nil
	})
	if err != nil || first != second {
		t.Errorf("%q, %q, %v", first, second, err)
	}
}

// TestExpire ends requests that nobody used in time, and counts them off.
func TestExpire(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.limits = identity.Limits{Open: 1}
	f.start()
	for _, who := range []string{"ci", "people", "slow"} {
		r, err := f.Create(t.Context(), caller(who), newTarget(1))
		if err != nil {
			t.Fatal(err)
		}
		f.expire()
		if now, err := f.Request(t.Context(), caller(who), r.ID); err != nil || now.State == brokerapi.Expired {
			t.Errorf("%+v, %v", now, err)
		}
		f.later(26 * time.Hour)
		f.expire()
		var left *request
		err = f.do(t.Context(), func(d *decision) error { left = d.Requests[r.ID]; return nil })
		if now, failed := f.Request(t.Context(), caller(who), r.ID); failed != nil || err != nil || left != nil ||
			now.State != brokerapi.Expired || !strings.HasSuffix(now.Reason, "in time") {
			t.Errorf("%+v, %+v, %v, %v", left, now, err, failed)
		}
		if _, err := f.Create(t.Context(), caller(who), newTarget(2)); err != nil {
			t.Errorf("it is counted still: %v", err)
		}
	}
	if got := f.events(); !slices.Contains(got, ended) {
		t.Errorf("%q", got)
	}
}

// TestDigest makes no request for what is no digest.
func TestDigest(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	for _, text := range []string{"", "foo", "sha256:\x00", "\xff", "sha256:" + strings.Repeat("0", 63)} {
		n := newTarget(1)
		n.Artifact.Digest = text
		_, err := f.Create(t.Context(), caller("ci"), n)
		failsWith(t, err, failure.Invalid, "digest")
	}
	if got := f.events(); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
