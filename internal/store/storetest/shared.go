package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Shared is an engine that several replicas use at once.
type Shared struct {
	// Open opens the same store each time, several times at once. A turn may take as long as turn.
	Open func(t *testing.T, turn time.Duration) store.Shared
	// Age has it that a replica has last called Beat before DeadAfter.
	Age func(t *testing.T, number int64)
}

// RunShared tests an engine that several replicas use.
func RunShared(t *testing.T, engine Shared) {
	t.Helper()
	for _, one := range []struct {
		name string
		test func(*sharing)
	}{
		{"members", members}, {"leader", leader}, {"turns", turns}, {"one at a time", oneAtATime}, {"heads", heads},
		{"since", since},
		{"dead", deadReplicas}, {"waiting", waiting}, {"paused", paused}, {"changes", changes},
	} {
		if !t.Run(one.name, func(t *testing.T) {
			s := &sharing{contract: &contract{T: t, Store: engine.Open(t, store.MaxTurn)}, engine: engine}
			s.one = s.Store.(store.Shared)
			s.two = engine.Open(t, store.MaxTurn)
			one.test(s)
		}) {
			return // the others find what it has left
		}
	}
}

// sharing is a store under test that is open twice.
type sharing struct {
	*contract
	engine   Shared
	one, two store.Shared
}

// join adds a replica that leaves after the test.
func (s *sharing) join(to store.Shared) int64 {
	s.Helper()
	number, err := to.Join(s.Context(), store.Replica{Name: "broker-1\x00\xff", Version: "v1"})
	s.must(err)
	s.Cleanup(func() {
		if err := to.Leave(context.Background(), number); err != nil {
			s.Error(err)
		}
	})
	return number
}

// head returns the head.
func (s *sharing) head() *store.Head {
	s.Helper()
	h, err := s.one.Head(s.Context())
	s.must(err)
	return h
}

// turn returns the turn of a replica.
func (s *sharing) turn(of store.Shared, number int64) store.Turn {
	s.Helper()
	t, err := of.Turn(s.Context(), number, 0)
	s.must(err)
	s.Cleanup(t.End)
	return t
}

// add commits a batch in a turn of a replica.
func (s *sharing) add(of store.Shared, number int64, b store.Batch) {
	s.Helper()
	t := s.turn(of, number)
	b.First = t.Head().Size
	s.must(t.Commit(s.Context(), &b))
}

// since tests that a turn has the entries that its replica does not know.
func since(s *sharing) {
	number := s.join(s.one)
	all := [][]byte{[]byte("a"), []byte("b"), []byte("c")}
	s.add(s.one, number, store.Batch{Entries: all})
	size := s.head().Size
	for known, want := range map[int64][][]byte{size - 3: all, size - 1: all[2:], size: nil, size + 1: nil} {
		t, err := s.two.Turn(s.Context(), number, known)
		s.must(err)
		if got := t.Head().Since; !slices.EqualFunc(got, want, bytes.Equal) {
			s.Errorf("%q instead of %q since %d of %d", got, want, known, size)
		}
		t.End()
	}
	s.add(s.one, number, store.Batch{Entries: slices.Repeat(all, store.MaxSince)})
	t, err := s.two.Turn(s.Context(), number, size)
	s.must(err)
	if got := t.Head().Since; len(got) != store.MaxSince {
		s.Errorf("%d entries of %d", len(got), 3*store.MaxSince)
	}
	t.End()
}

// members tests which replicas are alive.
func members(s *sharing) {
	a, b := s.join(s.one), s.join(s.two)
	if a >= b {
		s.Errorf("replica %d joins after %d", b, a)
	}
	if h := s.head(); !slices.Equal(h.Replicas, []int64{a, b}) {
		s.Errorf("replicas %v instead of %d and %d", h.Replicas, a, b)
	}
	s.must(s.two.Leave(s.Context(), b))
	c := s.join(s.two)
	if c <= b {
		s.Errorf("replica %d joins after %d", c, b)
	}
	t := s.turn(s.one, a)
	defer t.End()
	if h := t.Head(); !slices.Equal(h.Replicas, []int64{a, c}) {
		s.Errorf("replicas %v instead of %d and %d", h.Replicas, a, c)
	}
	_, err := s.two.Beat(s.Context(), b, true)
	s.dead(err)
}

// dead ends the test unless an error says that a replica is dead.
func (s *sharing) dead(err error) {
	s.Helper()
	s.fails(err, failure.Unavailable)
	if !errors.Is(err, store.ErrDead) {
		s.Fatalf("%v instead of ErrDead", err)
	}
}

// leader tests that one replica leads, of those that are able and alive.
func leader(s *sharing) {
	a, b, c := s.join(s.one), s.join(s.two), s.join(s.one)
	want := func(number int64, able, want bool) {
		s.Helper()
		leads, err := s.one.Beat(s.Context(), number, able)
		s.must(err)
		if leads != want {
			s.Errorf("replica %d of %d, %d, %d, able %t, leads: %t", number, a, b, c, able, leads)
		}
	}
	want(a, false, false)
	want(b, true, true)
	want(c, true, false)
	want(a, true, true)
	want(b, true, false)
	want(a, false, false)
	want(b, true, true)
	want(c, true, false)
	s.engine.Age(s.T, b)
	want(c, true, true)
	want(a, true, true)
	want(c, true, false)
	s.must(s.one.Leave(s.Context(), a))
	want(c, true, true)
}

// turns tests what ends a turn.
func turns(s *sharing) {
	a, b := s.join(s.one), s.join(s.two)
	first := s.size()
	t := s.turn(s.one, a)
	if t.Head().Size != first {
		s.Errorf("%d entries instead of %d", t.Head().Size, first)
	}
	s.must(t.Commit(s.Context(), &store.Batch{First: first, Entries: [][]byte{{1}}}))
	if err := t.Commit(s.Context(), &store.Batch{First: first + 1, Entries: [][]byte{{2}}}); err == nil {
		s.Error("a turn that has ended has committed")
	}
	t.End()
	t = s.turn(s.two, b)
	s.fails(t.Commit(s.Context(), &store.Batch{First: first, Entries: [][]byte{{3}}}), failure.Conflict)
	t = s.turn(s.one, a)
	s.fails(t.Commit(s.Context(), &store.Batch{First: first + 1, Entries: [][]byte{{3}},
		Notices: []store.Notice{{ID: "large", Body: make([]byte, store.MaxNotice+1)}}}), failure.Invalid)
	t = s.turn(s.two, b)
	t.End()
	t.End()
	cancelled, cancel := context.WithCancel(s.Context())
	cancel()
	t = s.turn(s.one, a)
	if err := t.Commit(cancelled, &store.Batch{First: first + 1, Entries: [][]byte{{4}}}); err == nil ||
		errors.Is(err, store.ErrUnknown) {
		s.Errorf("a cancelled commit: %v", err)
	}
	t = s.turn(s.two, b)
	if t.Head().Size != first+1 {
		s.Errorf("%d entries instead of %d", t.Head().Size, first+1)
	}
	t.End()
}

// oneAtATime tests that each turn begins where the one before has ended, and sees all its entries.
func oneAtATime(s *sharing) {
	first := s.size()
	const each = 10
	var group sync.WaitGroup
	stores := []store.Shared{s.one, s.two, s.one, s.two}
	for _, of := range stores {
		number := s.join(of)
		group.Go(func() {
			for i := range each {
				t, err := of.Turn(s.Context(), number, 0)
				if err != nil {
					s.Error(err)
					return
				}
				size := t.Head().Size
				if i%5 == 4 {
					t.End()
					continue
				}
				seen := first
				err = of.Entries(s.Context(), first, size+1, func(index int64, entry []byte) error {
					if string(entry) != fmt.Sprint(index) {
						return fmt.Errorf("entry %d is %q", index, entry)
					}
					seen++
					return nil
				})
				if err == nil && seen != size {
					err = fmt.Errorf("%d entries are seen, of %d", seen, size)
				}
				if err == nil {
					err = t.Commit(s.Context(), &store.Batch{First: size, Entries: [][]byte{fmt.Append(nil, size)},
						Seal: fmt.Append(nil, size+1)})
				}
				if err != nil {
					t.End()
					s.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	h := s.head()
	if want := first + int64(len(stores)*each*4/5); h.Size != want || string(h.Seal) != fmt.Sprint(want) {
		s.Errorf("%d entries, sealed as %s, instead of %d", h.Size, h.Seal, want)
	}
}

// heads tests what a head says.
func heads(s *sharing) {
	a := s.join(s.one)
	before := s.head()
	version := func(changes bool, b store.Batch) *store.Head {
		s.Helper()
		was := s.head().Version
		s.add(s.one, a, b)
		h := s.head()
		if changes == (h.Version == was) {
			s.Errorf("version %d after %d", h.Version, was)
		}
		return h
	}
	h := version(false, store.Batch{Entries: [][]byte{{1}, {2}}, Seal: []byte("seal")})
	if h.Size != before.Size+2 || string(h.Seal) != "seal" || h.Now.Before(before.Now) {
		s.Errorf("%+v after %+v", h, before)
	}
	version(false, store.Batch{Requests: []store.Request{{ID: "head", Body: []byte{}}}})
	version(true, store.Batch{Checkpoint: []byte("checkpoint")})
	version(true, store.Batch{Meta: map[string][]byte{"head": {1}}})
	s.must(s.Commit(s.Context(), &store.Batch{First: h.Size, Entries: [][]byte{{3}}}))
	if h := s.head(); h.Size != before.Size+3 || string(h.Seal) != "seal" {
		s.Errorf("%+v after %+v", h, before)
	}
	t := s.turn(s.two, a)
	defer t.End()
	if got, want := t.Head(), s.head(); got.Size != want.Size || !bytes.Equal(got.Seal, want.Seal) ||
		got.Version != want.Version || got.Now.After(want.Now) || got.Now.Before(before.Now) {
		s.Errorf("the turn has %+v instead of %+v", got, want)
	}
}

// deadReplicas tests that a replica that is taken for dead stays so.
func deadReplicas(s *sharing) {
	a, b, c := s.join(s.one), s.join(s.two), s.join(s.two)
	s.engine.Age(s.T, a)
	_, err := s.one.Turn(s.Context(), a, 0)
	s.dead(err)
	_, err = s.one.Beat(s.Context(), a, true)
	s.dead(err)
	s.engine.Age(s.T, b)
	if h := s.head(); !slices.Equal(h.Replicas, []int64{c}) {
		s.Errorf("replicas %v instead of %d", h.Replicas, c)
	}
	t := s.turn(s.two, c)
	if h := t.Head(); !slices.Equal(h.Replicas, []int64{c}) {
		s.Errorf("replicas %v instead of %d", h.Replicas, c)
	}
	s.must(t.Commit(s.Context(), &store.Batch{First: t.Head().Size, Entries: [][]byte{[]byte("a and b are lost")}}))
	_, err = s.two.Turn(s.Context(), b, 0)
	s.dead(err)
	_, err = s.two.Beat(s.Context(), b, true)
	s.dead(err)
	s.add(s.one, s.join(s.one), store.Batch{Entries: [][]byte{{1}}})
}

// waiting tests that who waits for the turn of another can be cancelled, and waits for Commit as well.
func waiting(s *sharing) {
	a, b := s.join(s.one), s.join(s.two)
	t := s.turn(s.one, a)
	first := t.Head().Size
	ctx, cancel := context.WithCancel(s.Context())
	failed := make(chan error)
	go func() {
		_, err := s.two.Turn(ctx, b, 0)
		failed <- err
	}()
	committed := make(chan error)
	go func() {
		committed <- s.two.Commit(s.Context(), &store.Batch{First: first + 1, Entries: [][]byte{{2}}})
	}()
	cancel()
	if err := <-failed; err == nil {
		s.Error("a turn began during another one")
	}
	s.must(t.Commit(s.Context(), &store.Batch{First: first, Entries: [][]byte{{1}}}))
	s.must(<-committed)
	if h := s.head(); h.Size != first+2 {
		s.Errorf("%d entries instead of %d", h.Size, first+2)
	}
}

// paused tests that a turn of a replica that does nothing ends, and that it then writes nothing.
func paused(s *sharing) {
	brief := s.engine.Open(s.T, 100*time.Millisecond)
	a, b := s.join(brief), s.join(s.two)
	slow := s.turn(brief, a)
	first := slow.Head().Size
	s.add(s.two, b, store.Batch{Entries: [][]byte{[]byte("of another one")}}) // which waits until slow has ended
	err := slow.Commit(s.Context(), &store.Batch{First: first, Entries: [][]byte{[]byte("late")},
		Requests: []store.Request{{ID: "late", Body: []byte{}}}})
	s.fails(err, failure.Unavailable)
	if errors.Is(err, store.ErrUnknown) {
		s.Errorf("nobody knows what is known: %v", err)
	}
	_, err = s.Request(s.Context(), "late")
	s.fails(err, failure.NotFound)
	if got := s.entries(first, first+9); len(got) != 1 || string(got[0]) != "of another one" {
		s.Errorf("entries %q", got)
	}
	s.add(s.two, b, store.Batch{Entries: [][]byte{{1}}})
}

// changes tests that each batch of another replica wakes who waits for it.
func changes(s *sharing) {
	number := s.join(s.one)
	ctx, cancel := context.WithCancel(s.Context())
	woken, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		s.two.Changes(ctx, func() {
			select {
			case woken <- struct{}{}:
			default:
			}
		})
	}()
	seen, err := s.two.Head(ctx)
	s.must(err)
	for i := range 5 {
		b := store.Batch{Entries: [][]byte{{1}}}
		if i == 3 {
			b = store.Batch{Meta: map[string][]byte{"changes": {1}}}
		}
		s.add(s.one, number, b)
		for want := s.head(); seen.Size != want.Size || seen.Version != want.Version; {
			<-woken // until the time limit of the tests
			seen, err = s.two.Head(ctx)
			s.must(err)
		}
	}
	cancel()
	<-ended
}
