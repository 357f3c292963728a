package broker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
)

// shared is a store that brokers of one process share: a database, and what replicas know of one another. Tests of
// postgres show that it does the same.
type shared struct {
	store.Store
	now  func() time.Time
	turn chan struct{} // whoever has the turn has taken it

	mu      sync.Mutex
	head    store.Head
	last    int64 // number
	able    map[int64]bool
	changed map[int]func()
	failing func(number int64) error // before a turn
}

func newShared(s store.Store, now func() time.Time) *shared {
	return &shared{Store: s, now: now, turn: make(chan struct{}, 1), able: map[int64]bool{}, changed: map[int]func(){}}
}

func (s *shared) Join(context.Context, store.Replica) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	s.able[s.last] = true
	s.head.Replicas = append(slices.Clone(s.head.Replicas), s.last)
	return s.last, nil
}

func (s *shared) Beat(_ context.Context, number int64, able bool) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.head.Replicas, number) {
		return false, store.ErrDead
	}
	s.able[number] = able
	for _, first := range s.head.Replicas {
		if s.able[first] {
			return first == number, nil
		}
	}
	return false, nil
}

func (s *shared) Leave(_ context.Context, number int64) error {
	s.die(number)
	return nil
}

// die has the others take a replica for dead.
func (s *shared) die(number int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.head.Replicas = slices.DeleteFunc(slices.Clone(s.head.Replicas), func(n int64) bool { return n == number })
}

func (s *shared) Head(ctx context.Context) (*store.Head, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size, err := s.Size(ctx)
	if err != nil {
		return nil, err
	}
	head := s.head
	head.Size, head.Now = size, s.now()
	return &head, nil
}

func (s *shared) Turn(ctx context.Context, number, known int64) (store.Turn, error) {
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	head, err := s.Head(ctx)
	if err == nil {
		err = s.Entries(ctx, known, min(head.Size, known+sharedSince), func(_ int64, entry []byte) error {
			head.Since = append(head.Since, entry)
			return nil
		})
	}
	if err == nil && s.failing != nil {
		err = s.failing(number)
	}
	if err == nil && !slices.Contains(head.Replicas, number) {
		err = store.ErrDead
	}
	if err != nil {
		<-s.turn
		return nil, err
	}
	return &sharedTurn{store: s, head: head}, nil
}

// sharedSince is how many entries a turn has. The others are read, as after MaxSince.
const sharedSince = 3

// Changes is late when many call it at once, as the real one is.
func (s *shared) Changes(ctx context.Context, changed func()) {
	s.mu.Lock()
	id := len(s.changed)
	s.changed[id] = changed
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.changed[id] = func() {}
	s.mu.Unlock()
}

// Commit commits without a turn, as a broker does that begins a log.
func (s *shared) Commit(ctx context.Context, b *store.Batch) error {
	s.turn <- struct{}{}
	t := &sharedTurn{store: s}
	return t.Commit(ctx, b)
}

type sharedTurn struct {
	store *shared
	head  *store.Head
	once  sync.Once
}

func (t *sharedTurn) Head() *store.Head { return t.head }

func (t *sharedTurn) End() { t.once.Do(func() { <-t.store.turn }) }

func (t *sharedTurn) Commit(ctx context.Context, b *store.Batch) error {
	defer t.End()
	s := t.store
	s.mu.Lock() // who reads the head sees the size and the seal of one moment
	err := s.Store.Commit(ctx, b)
	if size, again := s.Size(ctx); err != nil && (again != nil || !errors.Is(err, store.ErrUnknown) ||
		len(b.Entries) == 0 || size != b.First+int64(len(b.Entries))) {
		s.mu.Unlock()
		return err
	}
	if b.Seal != nil {
		s.head.Seal = b.Seal
	}
	if b.Checkpoint != nil || len(b.Meta) > 0 {
		s.head.Version++
	}
	all := make([]func(), 0, len(s.changed))
	for _, changed := range s.changed {
		all = append(all, changed)
	}
	s.mu.Unlock()
	for _, changed := range all {
		changed()
	}
	return err
}

// newReplicas starts replicas that share a store.
func newReplicas(t testing.TB, count int) ([]*fixture, *shared) {
	t.Helper()
	first := newFixture(t)
	s, err := sqlite.Open(t.Context(), first.database())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	all := newShared(&faulty{Store: s}, first.clock.now)
	replicas := []*fixture{first}
	for range count - 1 {
		other := newFixture(t)
		other.clock, other.log, other.keys.private = first.clock, first.log, first.keys.private
		replicas = append(replicas, other)
	}
	for _, f := range replicas {
		f.startReplica(all)
	}
	return replicas, all
}

// sharedKey is the key of replicas.
var sharedKey = make([]byte, 32)

// startReplica starts a replica. Its store stays open when it ends.
func (f *fixture) startReplica(s *shared) {
	f.t.Helper()
	f.store = s
	o := f.options(s)
	o.Replica = &Replica{Store: s, Key: sharedKey, Name: "test"}
	var err error
	if f.Broker, err = Open(f.t.Context(), o); err != nil {
		f.t.Fatal(err)
	}
	b := f.Broker
	f.t.Cleanup(func() {
		if f.Broker == b {
			_ = b.Close()
			f.Broker = nil
		}
	})
}

func (s *shared) Members(context.Context) (all []store.Member, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, number := range s.head.Replicas {
		all = append(all, store.Member{Number: number, Able: s.able[number]})
	}
	return all, nil
}

func (*shared) Standby(context.Context) (store.Standby, error) { return store.StandbyThere, nil }
