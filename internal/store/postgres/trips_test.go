package postgres

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// network counts round trips of connections, and cuts them.
type network struct {
	trips    atomic.Int64
	noAnswer atomic.Bool // what is written arrives, and nothing comes back
}

// link is a connection of a network.
type link struct {
	net.Conn
	*network
	asked atomic.Bool // something was written since an answer was read
}

var errCut = errors.New("the cable is cut")

func (l *link) Write(data []byte) (int, error) {
	l.asked.Store(true)
	return l.Conn.Write(data)
}

func (l *link) Read(data []byte) (int, error) {
	n, err := l.Conn.Read(data)
	if n > 0 && l.asked.CompareAndSwap(true, false) {
		l.trips.Add(1)
	}
	if l.noAnswer.Load() {
		_ = l.Close()
		return 0, errCut
	}
	return n, err
}

// openOn opens a database over a network.
func openOn(t testing.TB, url string) (*Store, *network) {
	t.Helper()
	config := pool(t, url).Config()
	n := &network{}
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, kind, address string) (net.Conn, error) {
		conn, err := dial(ctx, kind, address)
		if err != nil {
			return nil, err
		}
		return &link{Conn: conn, network: n}, nil
	}
	p, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, n
}

// full returns a batch that writes to every table.
func full(first int64) *store.Batch {
	return &store.Batch{First: first, Entries: [][]byte{{1}, {2}}, Tiles: []store.Tile{{Hashes: make([]byte, 64)}},
		Checkpoint: []byte("c"), Snapshot: &store.Snapshot{Size: first, Data: []byte{1}}, Meta: map[string][]byte{"m": {1}},
		Requests: []store.Request{{ID: "a", Body: []byte("{}")}}, Documents: [][]byte{{1}}, Erased: [][32]byte{{1}},
		RequestDocuments: []store.RequestDocument{{Request: "a", Data: []byte{2}}}, Seal: []byte("s"),
		Notices: []store.Notice{{ID: "n"}}}
}

// TestRoundTrips counts how often a call waits for the server: between replicas and the database are milliseconds, and
// nobody else has a turn meanwhile.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	s, n := openOn(t, softhsmtest.Postgres(t).Database(t))
	number, err := s.Join(t.Context(), store.Replica{})
	if err != nil {
		t.Fatal(err)
	}
	var turn store.Turn
	for _, one := range []struct {
		name string
		want int64
		call func() error
	}{
		{"turn", 1, func() (err error) { turn, err = s.Turn(t.Context(), number, 0); return err }},
		{"commit of a turn", 1, func() error { return turn.Commit(t.Context(), full(0)) }},
		{"commit", 2, func() error { return s.Commit(t.Context(), full(2)) }},
		{"beat", 1, func() error { _, err := s.Beat(t.Context(), number, true); return err }},
		{"head", 1, func() error { _, err := s.Head(t.Context()); return err }},
		{"entries", 1, func() error { return s.Entries(t.Context(), 0, 4, func(int64, []byte) error { return nil }) }},
		{"requests", 1, func() error { _, err := s.Requests(t.Context(), store.Query{Limit: 9}); return err }},
		{"notice", 1, func() error { return s.Noticed(t.Context(), "n", turn.Head().Now) }},
	} {
		before := n.trips.Load()
		if err := one.call(); err != nil {
			t.Fatalf("%s: %v", one.name, err)
		}
		if got := n.trips.Load() - before; got != one.want {
			t.Errorf("%s: %d round trips instead of %d", one.name, got, one.want)
		}
	}
}

// TestUnknown fails with ErrUnknown when COMMIT was sent and not answered, and not when the server has refused the
// batch.
func TestUnknown(t *testing.T) {
	t.Parallel()
	server := softhsmtest.Postgres(t)
	url := server.Database(t)
	s, n := openOn(t, url)
	number, err := s.Join(t.Context(), store.Replica{})
	if err != nil {
		t.Fatal(err)
	}
	for name, one := range map[string]struct {
		prepare func(context.CancelFunc)
		batch   func(first int64) *store.Batch
		unknown bool
	}{
		"no answer": {func(context.CancelFunc) { n.noAnswer.Store(true) }, full, true},
		"refused":   {func(context.CancelFunc) {}, refused, false},
		"not sent":  {func(cancel context.CancelFunc) { cancel() }, full, false},
	} {
		turn, err := s.Turn(t.Context(), number, 0)
		if err != nil {
			t.Fatal(err)
		}
		first := turn.Head().Size
		ctx, cancel := context.WithCancel(t.Context())
		one.prepare(cancel)
		err = turn.Commit(ctx, one.batch(first))
		cancel()
		n.noAnswer.Store(false)
		if err == nil || errors.Is(err, store.ErrUnknown) != one.unknown {
			t.Errorf("%s: %v", name, err)
		}
		turn, err = s.Turn(t.Context(), number, 0)
		if err != nil {
			t.Fatal(err)
		}
		if size := turn.Head().Size; !one.unknown && size != first || one.unknown && size != first+2 {
			t.Errorf("%s: %d entries after %d", name, size, first)
		}
		turn.End()
	}
}

// refused returns a batch that the server refuses.
func refused(first int64) *store.Batch {
	b := full(first)
	b.Entries = append(b.Entries, nil) // NULL
	return b
}

// TestThrownOut has the server end a turn before its replica knows: it then knows that nothing was written.
func TestThrownOut(t *testing.T) {
	t.Parallel()
	l := defaults
	l.turn = 100 * time.Millisecond
	s := open(t, softhsmtest.Postgres(t).Database(t), l)
	slow, err := s.begin(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.End()
	if err := s.Commit(t.Context(), full(0)); err != nil { // it waits until the server has ended slow
		t.Fatal(err)
	}
	slow.began = time.Now() // as on a machine whose clock stands still while it is paused
	err = slow.Commit(t.Context(), full(0))
	failsWith(t, err, failure.Unavailable, "cannot write to the database")
	if errors.Is(err, store.ErrUnknown) {
		t.Errorf("nobody knows what is known: %v", err)
	}
}
