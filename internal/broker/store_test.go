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
