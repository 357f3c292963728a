package postgres

import (
	"bytes"
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

var _ store.Logins = (*Store)(nil)

// isInFlight is true of a login whose maker was there a short while ago. A refused one has no time.
const isInFlight = "coalesce(until > clock_timestamp(), false)"

// BeginLogin keeps the record of a login that is about to begin, or returns the one that there is.
func (s *Store) BeginLogin(ctx context.Context, l store.Login) (*store.Login, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var id []byte
	before := store.Login{Token: l.Token}
	// The update changes nothing: it has the row returned that there is.
	err := s.pool.QueryRow(ctx, `INSERT INTO logins (token, login, until, record)
		VALUES ($1::bytea, $2::bytea, clock_timestamp() + make_interval(secs => $3::float8), $4::bytea)
		ON CONFLICT (token) DO UPDATE SET token = excluded.token RETURNING login, record, `+isInFlight,
		l.Token[:], l.ID[:], store.LoginLease.Seconds(), l.Record).Scan(&id, &before.Record, &before.InFlight)
	if err != nil {
		return nil, s.explain("write to", err)
	}
	if copy(before.ID[:], id); bytes.Equal(id, l.ID[:]) && before.InFlight {
		return nil, nil
	}
	return &before, nil
}

// KeepLogin has the others wait for a login in flight for another LoginLease.
func (s *Store) KeepLogin(ctx context.Context, l store.Login) error {
	return s.exec(ctx, `UPDATE logins SET until = clock_timestamp() + make_interval(secs => $3::float8)
		WHERE token = $1::bytea AND login = $2::bytea AND until IS NOT NULL`, l.Token[:], l.ID[:],
		store.LoginLease.Seconds())
}

// EndLogin removes the record of a login that was not refused.
func (s *Store) EndLogin(ctx context.Context, l store.Login) error {
	return s.exec(ctx, "DELETE FROM logins WHERE token = $1::bytea AND login = $2::bytea", l.Token[:], l.ID[:])
}

// RefuseLogin keeps the record of a login after which nobody may log in to the token.
func (s *Store) RefuseLogin(ctx context.Context, l store.Login) error {
	return s.exec(ctx, `INSERT INTO logins (token, login, until, record) VALUES ($1::bytea, $2::bytea, NULL, $3::bytea)
		ON CONFLICT (token) DO UPDATE SET login = excluded.login, until = NULL, record = excluded.record`,
		l.Token[:], l.ID[:], l.Record)
}

// exec executes a statement as a transaction.
func (s *Store) exec(ctx context.Context, text string, args ...any) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if _, err := s.pool.Exec(ctx, text, args...); err != nil {
		return s.explain("write to", err)
	}
	return nil
}

// Logins lists all records.
func (s *Store) Logins(ctx context.Context) ([]store.Login, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	rows, err := s.pool.Query(ctx, "SELECT token, login, record, "+isInFlight+" FROM logins ORDER BY token")
	if err != nil {
		return nil, s.explain("read", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l store.Login, err error) {
		var token, id []byte
		err = row.Scan(&token, &id, &l.Record, &l.InFlight)
		copy(l.Token[:], token)
		copy(l.ID[:], id)
		return l, err
	})
	if err != nil {
		return nil, s.explain("read", err)
	}
	return all, nil
}

// ClearLogin removes the record of a token. It fails with Conflict while the login is in flight.
func (s *Store) ClearLogin(ctx context.Context, token [32]byte) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var inFlight bool
	err := s.pool.QueryRow(ctx, `WITH removed AS (DELETE FROM logins WHERE token = $1::bytea AND NOT `+isInFlight+`)
		SELECT coalesce(bool_or(`+isInFlight+`), false) FROM logins WHERE token = $1::bytea`, token[:]).Scan(&inFlight)
	if err != nil {
		return s.explain("write to", err)
	}
	if inFlight {
		return failure.New(failure.Conflict, "cannot clear the PIN: a replica logs in to the token at this moment").
			WithHint("run it again")
	}
	return nil
}
