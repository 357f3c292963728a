package broker

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
)

// faulty is a store whose commits a test has fail.
type faulty struct {
	store.Store
	next atomic.Pointer[func(commit func() error) error] // instead of the next commit
	down atomic.Bool                                     // all fail
}

func (f *faulty) Commit(ctx context.Context, b *store.Batch) error {
	if f.down.Load() {
		return errors.Join(store.ErrUnknown, failure.New(failure.Unavailable, "the disk is gone"))
	}
	commit := func() error { return f.Store.Commit(ctx, b) }
	if do := f.next.Load(); do != nil && len(b.Entries) > 0 {
		f.next.Store(nil)
		return (*do)(commit)
	}
	return commit()
}

// newFaulty starts a broker with a store whose commits can fail.
func newFaulty(t *testing.T) (*fixture, *faulty) {
	t.Helper()
	f := newFixture(t)
	s, err := sqlite.Open(t.Context(), f.database())
	if err != nil {
		t.Fatal(err)
	}
	broken := &faulty{Store: s}
	f.store = broken
	if f.Broker, err = Open(t.Context(), f.options(broken)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.stop)
	return f, broken
}

// TestStoreGone releases no signature whose outcome is not durable, answers meanwhile, and logs it as lost once the
// store is back.
func TestStoreGone(t *testing.T) {
	t.Parallel()
	f, broken := newFaulty(t)
	f.keys.before = func() error { broken.down.Store(true); return nil }
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1))
	failsWith(t, err, failure.Unavailable, "the disk is gone")
	f.keys.before = nil
	_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(2))
	failsWith(t, err, failure.Unavailable, "the disk is gone")
	broken.down.Store(false)
	for !slices.Contains(f.events(), lost) {
		time.Sleep(10 * time.Millisecond)
	}
	f.signs("ci", 1)
	if f.keys.uses.Load() != 2 {
		t.Errorf("%d uses", f.keys.uses.Load())
	}
}

// TestCommitFails signs nothing for an intent that is not durable, and goes on afterwards. What nobody knows is read
// from the store.
func TestCommitFails(t *testing.T) {
	t.Parallel()
	f, broken := newFaulty(t)
	var err error
	full := func(func() error) error { return failure.New(failure.Unavailable, "the disk is full") }
	broken.next.Store(&full)
	_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(1))
	failsWith(t, err, failure.Unavailable, "the disk is full")
	if f.keys.uses.Load() != 0 {
		t.Error("the key was used without a durable intent")
	}
	f.signs("ci", 1)
	written := func(commit func() error) error { return errors.Join(store.ErrUnknown, commit()) }
	broken.next.Store(&written)
	f.signs("ci", 2)
	gone := func(func() error) error { return store.ErrUnknown }
	broken.next.Store(&gone)
	if _, err := f.Sign(t.Context(), caller("ci"), "release", f.image(3)); !errors.Is(err, store.ErrUnknown) {
		t.Error(err)
	}
	if f.keys.uses.Load() != 2 || len(f.events()) != 5 {
		t.Errorf("%d uses, %q", f.keys.uses.Load(), f.events())
	}
}

// TestCommitFailsUnpublished forgets nothing that no checkpoint covers yet when a transaction fails.
func TestCommitFailsUnpublished(t *testing.T) {
	t.Parallel()
	f, broken := newFaulty(t)
	f.publishAll()
	f.noLog.Store(true)
	r, err := f.Create(t.Context(), caller("ci"), newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	changed := append([]byte(testPolicy), '\n')
	applied := make(chan error)
	go func() {
		_, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy, Policy: changed})
		applied <- err
	}()
	for f.durable.Load() < 3 {
		time.Sleep(time.Millisecond)
	}
	for _, fails := range []func(commit func() error) error{
		func(func() error) error { return failure.New(failure.Unavailable, "the disk is full") },
		func(func() error) error { return store.ErrUnknown },
	} {
		broken.next.Store(&fails)
		if _, err := f.Create(t.Context(), caller("ci"), newTarget(2)); err == nil {
			t.Fatal("it is durable")
		}
	}
	written := func(commit func() error) error { return errors.Join(store.ErrUnknown, commit()) }
	broken.next.Store(&written)
	other, err := f.Create(t.Context(), caller("ci"), newTarget(3))
	if err != nil {
		t.Fatal(err)
	}
	f.noLog.Store(false)
	if err := <-applied; err != nil || f.Policy().SHA256 != hashOf(changed) {
		t.Errorf("the policy is not in force: %v", err)
	}
	for n, id := range map[int]string{1: r.ID, 3: other.ID} {
		if s := f.signs("ci", n); s.Request != id {
			t.Errorf("request %s was not used", id)
		}
	}
}

// TestCommitLate does not let a request permit anything that was durable after all when its caller was told that it was
// not.
func TestCommitLate(t *testing.T) {
	t.Parallel()
	f, broken := newFaulty(t)
	late := func(commit func() error) error {
		err := commit()
		broken.down.Store(true)
		return errors.Join(store.ErrUnknown, err)
	}
	broken.next.Store(&late)
	if _, err := f.Create(t.Context(), caller("ci"), newTarget(1)); err == nil {
		t.Fatal("it was told to be durable")
	}
	broken.down.Store(false)
	f.signs("ci", 2)
	f.publishAll()
	f.stop()
	f.restarts(func() {
		if n := len(f.state.Requests); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}
