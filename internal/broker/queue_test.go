package broker

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// hold returns a function that lets some signatures pass. Until it is called, the module makes none.
func (f *fixture) hold() (pass func(n int)) {
	f.t.Helper()
	passing, end := make(chan bool), make(chan struct{})
	f.keys.before = func() error {
		select {
		case <-passing:
		case <-end:
		}
		return nil
	}
	f.t.Cleanup(func() { close(end) })
	return func(n int) {
		for range n {
			passing <- true
		}
	}
}

// waitFor waits until a condition holds.
func waitFor(is func() bool) {
	for !is() {
		time.Sleep(time.Millisecond)
	}
}

func (f *fixture) count(kind string) (n int) {
	for _, e := range f.events() {
		if e == kind {
			n++
		}
	}
	return n
}

// TestSaturated has a caller want more signatures than a module makes. As many have an intent as there are sessions;
// others wait, and those beyond a limit are refused. Whoever wants few is served soon, and all else goes on.
func TestSaturated(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.policy = strings.Replace(f.policy, `caller.subject == "ci"`, `caller.subject.startsWith("ci")`, 1)
	f.start()
	pass := f.hold()
	var group sync.WaitGroup
	const hogs = 200
	refused := make(chan error, hogs)
	for i := range hogs {
		group.Go(func() {
			if _, err := f.Sign(t.Context(), caller("ci"), "release", f.image(i)); err != nil {
				refused <- err
			}
		})
	}
	waitFor(func() bool { return f.count(intended) == tokenSessions && len(refused) == hogs-tokenSessions-128 })
	for range hogs - tokenSessions - 128 {
		err := <-refused
		failsWith(t, err, failure.Throttled, "128 uses of the caller wait")
		if failure.From(err).RetryAfter != time.Second {
			t.Errorf("%+v", failure.From(err))
		}
	}
	made, err := f.Create(t.Context(), caller("pipeline"), newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	if now := f.approves(made.ID, "alice"); len(now.Approvals) != 1 {
		t.Errorf("%+v", now)
	}
	page, err := f.Requests(t.Context(), caller("pipeline"), Query{Limit: 1})
	if err != nil || len(page.Requests) != 1 {
		t.Errorf("%+v, %v", page, err)
	}
	if _, err := f.Cancel(t.Context(), caller("pipeline"), made.ID); err != nil {
		t.Error(err)
	}
	flying := f.flying.now.Load()
	ended := make(chan error)
	go func() {
		_, err := f.Sign(t.Context(), caller("ci-other"), "release", f.image(hogs))
		ended <- err
	}()
	waitFor(func() bool { return f.flying.now.Load() > flying })
	if n := f.count(intended); n != tokenSessions {
		t.Errorf("%d intents wait for the module", n)
	}
	// Those that have places when it gets one can be before it, and those that get theirs while its intent is written.
	passed := 0
	for done := false; !done; passed++ {
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
			done = true
		default:
			pass(1)
		}
	}
	if passed > 2*maxPlaces {
		t.Errorf("%d signatures of another caller were made before", passed)
	}
	pass(tokenSessions + 128 + 1 - passed + 1)
	group.Wait()
	if f.count(signed) != tokenSessions+128+1 || len(refused) > 0 {
		t.Errorf("%d were signed, and %d refused", f.count(signed), len(refused))
	}
}

// TestStopped refuses what waits for a module when the broker stops, and makes what has an intent.
func TestStopped(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	pass := f.hold()
	results := make(chan error, tokenSessions+1)
	for i := range tokenSessions + 1 {
		go func() {
			_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(i))
			results <- err
		}()
	}
	waitFor(func() bool { return f.count(intended) == tokenSessions && f.flying.now.Load() == tokenSessions+1 })
	stopped := make(chan struct{})
	go func() { f.stop(); close(stopped) }()
	failsWith(t, <-results, failure.Unavailable, "stopping")
	pass(tokenSessions)
	for range tokenSessions {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	<-stopped
}

// TestPlaces has as many signatures under way as keep the sessions busy.
func TestPlaces(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	for _, c := range []struct {
		tokens          int
		decided, signed time.Duration
		places          int
	}{
		{1, 0, 0, 16}, {1, 5 * ms, 0, 16}, {1, 5 * ms, 50 * ms, 17}, {1, 5 * ms, 5 * ms, 32}, {1, 5 * ms, ms / 10, 64},
		{2, 5 * ms, 50 * ms, 35}, {8, 5 * ms, 50 * ms, 64},
	} {
		if got := (&modules{c.decided, c.signed}).places(c.tokens); got != c.places {
			t.Errorf("%+v: %d", c, got)
		}
	}
}

// TestTokensOf names what keys share with others.
func TestTokensOf(t *testing.T) {
	t.Parallel()
	for uris, tokens := range map[string]string{
		"pkcs11:token=b;object=release pkcs11:token=a;object=release": "pkcs11:token=a pkcs11:token=b",
		"pkcs11:token=a;object=x pkcs11:token=a;object=y;id=%01":      "pkcs11:token=a",
		"nethsm:one nethsm:two": "nethsm:",
	} {
		if got := tokensOf(strings.Fields(uris)); !slices.Equal(got, strings.Fields(tokens)) {
			t.Errorf("%s: %q", uris, got)
		}
	}
}
