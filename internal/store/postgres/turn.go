package postgres

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// turn is a transaction that has the row of the head locked. It implements store.Turn.
type turn struct {
	s     *Store
	conn  *pgxpool.Conn // nil when the turn has ended
	head  store.Head
	began time.Time // of the time until which the server waits for Commit
}

// Turn waits for the turn of a replica.
func (s *Store) Turn(ctx context.Context, number, known int64) (store.Turn, error) {
	t, err := s.begin(ctx, known)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(t.head.Replicas, number) {
		t.End()
		return nil, dead(number)
	}
	return t, nil
}

// Commit makes a batch durable, all of it or nothing, in a turn of no replica.
func (s *Store) Commit(ctx context.Context, b *store.Batch) error {
	t, err := s.begin(ctx, math.MaxInt64)
	if err != nil {
		return err
	}
	return t.Commit(ctx, b)
}

func dead(number int64) error {
	return failure.New(failure.Unavailable, "replica %d cannot use the database: %w", number, store.ErrDead).
		WithHint("check that the replica reaches the database, and that its machine is not overloaded")
}

// begin begins a transaction, locks the head and reads the entries since a size, in one round trip.
func (s *Store) begin(ctx context.Context, known int64) (*turn, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, s.explain("reach", err)
	}
	t := &turn{s: s, conn: conn}
	var b pgx.Batch
	b.Queue("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
	// A server that confirms what is not durable yet is told to confirm it later.
	b.Queue(`SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
		set_config('idle_in_transaction_session_timeout', $3, true), set_config('synchronous_commit',
			CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'
			ELSE current_setting('synchronous_commit') END, true)`,
		milliseconds(s.limits.lock), milliseconds(s.limits.call), milliseconds(s.limits.turn))
	b.Queue("SELECT size, seal, version FROM head FOR UPDATE")
	// The clock of these is read while the head is locked.
	b.Queue("DELETE FROM replicas WHERE seen <= clock_timestamp() - make_interval(secs => $1::float8)",
		s.limits.dead.Seconds())
	b.Queue("SELECT clock_timestamp(), array(SELECT number FROM replicas ORDER BY number)")
	b.Queue("SELECT entry FROM entries WHERE idx >= $1::bigint ORDER BY idx LIMIT $2::integer", known, store.MaxSince)
	if err := t.readHead(conn.SendBatch(ctx, &b)); err != nil {
		t.End()
		return nil, s.explain("write to", err)
	}
	t.began = time.Now()
	return t, nil
}

func (t *turn) readHead(r pgx.BatchResults) error {
	defer r.Close()
	for range 2 {
		if _, err := r.Exec(); err != nil {
			return err
		}
	}
	if err := r.QueryRow().Scan(&t.head.Size, &t.head.Seal, &t.head.Version); err != nil {
		return err
	}
	if _, err := r.Exec(); err != nil {
		return err
	}
	if err := r.QueryRow().Scan(&t.head.Now, &t.head.Replicas); err != nil {
		return err
	}
	rows, err := r.Query()
	if err != nil {
		return err
	}
	if t.head.Since, err = pgx.CollectRows(rows, pgx.RowTo[[]byte]); err != nil {
		return err
	}
	return r.Close()
}

// Head returns where the log ends.
func (t *turn) Head() *store.Head { return &t.head }

// Commit makes a batch durable, all of it or nothing, and ends the turn, in one round trip.
func (t *turn) Commit(ctx context.Context, b *store.Batch) error {
	defer t.End()
	if t.conn == nil {
		return failure.New(failure.Conflict, "cannot write to the database: the turn has ended")
	}
	if b.First != t.head.Size {
		return failure.New(failure.Conflict, "the log has %d entries, not %d", t.head.Size, b.First).
			WithHint("is another broker writing to the database?")
	}
	conn := t.conn.Conn()
	w := &writer{types: conn.TypeMap()}
	if err := w.fill(b); err != nil {
		return err
	}
	w.queue("COMMIT")
	if w.err != nil {
		return t.s.explain("write to", w.err)
	}
	if waited := time.Since(t.began); waited > t.s.limits.turn { // the server has ended the transaction
		return failure.New(failure.Unavailable, "cannot write to the database: the turn took %s, more than %s",
			waited.Round(time.Millisecond), t.s.limits.turn).WithHint("give the broker's machine more capacity")
	}
	ctx, cancel := t.s.bounded(ctx)
	defer cancel()
	takeWarning(conn.PgConn())
	if err := committed(conn.PgConn().ExecBatch(ctx, &w.batch), w.count); err != nil {
		return t.s.explain("write to", err)
	}
	if takeWarning(conn.PgConn()) {
		return t.s.explain("write to", errors.Join(store.ErrUnknown, errors.New("COMMIT was answered with a warning")))
	}
	return nil
}

// committed reads the results of statements, of which the last is COMMIT. Its error has ErrUnknown in its chain if
// COMMIT may have been done.
func committed(r *pgconn.MultiResultReader, statements int) error {
	for read := 1; r.NextResult(); read++ {
		tag, err := r.ResultReader().Close()
		if read < statements || err != nil {
			continue // Close returns the error as well
		}
		_ = r.Close() // it is durable, whatever happens to the connection
		if tag.String() != "COMMIT" {
			return failure.New(failure.Internal, "cannot write to the database: COMMIT was answered by %s", tag.String())
		}
		return nil
	}
	err := r.Close()
	if err == nil {
		err = errors.New("COMMIT was not answered")
	}
	if !undone(err) {
		err = errors.Join(store.ErrUnknown, err)
	}
	return err
}

// undone returns whether statements that end with COMMIT have certainly had no effect: they were not sent, or the
// server has refused one of them. A server that ends the session may have done COMMIT before, but not if it ends the
// session because nothing was sent.
func undone(err error) bool {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return pgconn.SafeToRetry(err)
	}
	return e.SeverityUnlocalized == "ERROR" || e.Code == idleInTransaction
}

// patience is how long the end of a turn waits for the server. A connection that does not answer is closed.
const patience = time.Second

// End ends a turn without a batch. After Commit it does nothing.
func (t *turn) End() {
	conn := t.conn
	if conn == nil {
		return
	}
	t.conn = nil
	defer conn.Release() // which closes a connection with an open transaction
	if conn.Conn().PgConn().TxStatus() == 'I' || conn.Conn().IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, _ = conn.Exec(ctx, "ROLLBACK")
}
