package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// errSilent is returned where notifications do not arrive, such as behind a pooler.
var errSilent = errors.New("the database sends no notifications on this connection")

// Changes calls changed whenever the log may have got longer, until ctx ends. It waits for notifications on a
// connection of its own. While none arrive it looks at the head at intervals.
func (s *Store) Changes(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		again := s.limits.quiet
		if err := s.listen(ctx, changed); errors.Is(err, errSilent) {
			again = silence
		}
		s.look(ctx, again, changed)
	}
}

// silence is how long notifications are not tried again where none arrive.
const silence = time.Minute

// look looks at the head for a while, and calls changed when it has changed.
func (s *Store) look(ctx context.Context, during time.Duration, changed func()) {
	ctx, cancel := context.WithTimeout(ctx, during)
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
		// This finds what was committed before the server listened, and a connection that was cut.
		now, err := s.position(ctx, conn)
		if err != nil {
			return err
		}
		if now != last {
			last = now
			changed()
		}
		for err == nil {
			if _, err = s.notified(ctx, conn); err == nil {
				changed()
			}
		}
		if ctx.Err() != nil || conn.IsClosed() {
			return err
		}
	}
}

// notified waits for a notification and returns its payload. It fails when there is none for a time, after which the
// connection is still of use.
func (s *Store) notified(ctx context.Context, conn *pgx.Conn) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.limits.quiet)
	defer cancel()
	n, err := conn.WaitForNotification(ctx)
	if err != nil {
		return "", err
	}
	return n.Payload, nil
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
		return nil, errSilent
	}
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return nil, err
	}
	probe := rand.Text()
	if _, err := s.pool.Exec(ctx, "SELECT pg_notify($1, $2)", channel, probe); err != nil {
		return nil, err
	}
	for {
		payload, err := s.notified(ctx, conn)
		if err != nil {
			return nil, errSilent
		}
		if payload == probe {
			return conn, nil
		}
	}
}

// closeSoon closes a connection, whether the server answers or not.
func closeSoon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = conn.Close(ctx)
}
