package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// errPooled is returned for a connection that a pooler shares between transactions: notifications get lost there.
var errPooled = errors.New("a pooler is before the database")

// Changes calls changed whenever the log may have got longer, until ctx ends. It waits for notifications on a connection
// of its own. Where none arrive it looks at the head at intervals.
func (s *Store) Changes(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		_ = s.listen(ctx, changed) // whatever the reason: until it works again, the head is looked at
		s.look(ctx, changed)
	}
}

// retry is how long the head is looked at until notifications are tried again.
const retry = 10 * time.Second

// look calls changed when the head has changed, for a while.
func (s *Store) look(ctx context.Context, changed func()) {
	ctx, cancel := context.WithTimeout(ctx, retry)
	defer cancel()
	for last := (position{}); ; {
		if now, err := s.position(ctx, s.pool); err == nil && now != last {
			last = now
			changed()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.limits.poll):
		}
	}
}

// position is what of the head changes with what others wait for.
type position struct{ size, version int64 }

type querier interface {
	QueryRow(ctx context.Context, query string, args ...any) pgx.Row
}

func (s *Store) position(ctx context.Context, from querier) (p position, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	err = from.QueryRow(ctx, "SELECT size, version FROM head").Scan(&p.size, &p.version)
	return p, err
}

// listen calls changed for each notification, until the connection fails.
func (s *Store) listen(ctx context.Context, changed func()) error {
	conn, err := s.subscribe(ctx)
	if err != nil {
		return err
	}
	defer closeSoon(conn)
	for last := (position{}); ; {
		// What was committed before the server listened is found here, and what it has not notified of.
		now, err := s.position(ctx, conn)
		if err != nil {
			return err
		}
		if now != last {
			last = now
			changed()
		}
		for err == nil {
			if err = wait(ctx, conn, s.limits.quiet); err == nil {
				changed()
			}
		}
		if ctx.Err() != nil || conn.IsClosed() {
			return err
		}
	}
}

// wait waits for a notification. It fails when there is none for a time, after which the connection is still of use.
func wait(ctx context.Context, conn *pgx.Conn, for_ time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, for_)
	defer cancel()
	_, err := conn.WaitForNotification(ctx)
	return err
}

// subscribe returns a connection on which notifications arrive, outside the pool. It verifies with one of its own that
// they do.
func (s *Store) subscribe(ctx context.Context) (_ *pgx.Conn, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	pooled, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	conn := pooled.Hijack()
	defer func() {
		if err != nil {
			closeSoon(conn)
		}
	}()
	var process uint32
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&process); err != nil {
		return nil, err
	}
	if process != conn.PgConn().PID() { // LISTEN would have effect on a connection that others use as well
		return nil, errPooled
	}
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return nil, err
	}
	probe := rand.Text()
	if _, err := s.pool.Exec(ctx, "SELECT pg_notify($1, $2)", channel, probe); err != nil {
		return nil, err
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return nil, err
		}
		if n.Payload == probe {
			return conn, nil
		}
	}
}

func closeSoon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = conn.Close(ctx)
}
