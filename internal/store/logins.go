package store

import (
	"context"
	"time"
)

// Logins keeps, for all replicas of a broker, which token somebody logs in to, and which one must not be logged in to
// any more. Each method is one transaction. No PIN is in it, nor anything that one could be guessed by.
type Logins interface {
	// BeginLogin keeps the record of a login that is about to begin, which the others wait for until LoginLease has
	// passed since then or since KeepLogin. If there is a record of the same token already, it changes nothing and
	// returns that one.
	BeginLogin(ctx context.Context, l Login) (before *Login, err error)
	// KeepLogin has the others wait for a login in flight for another LoginLease.
	KeepLogin(ctx context.Context, l Login) error
	// EndLogin removes the record of a login that was not refused.
	EndLogin(ctx context.Context, l Login) error
	// RefuseLogin keeps the record of a login after which nobody may log in to the token, in the place of any other.
	RefuseLogin(ctx context.Context, l Login) error
	// Logins lists all records.
	Logins(ctx context.Context) ([]Login, error)
	// ClearLogin removes the record of a token, if there is one. It fails with Conflict while the login is in flight.
	ClearLogin(ctx context.Context, token [32]byte) error
}

// Login is the record of a login.
type Login struct {
	Token    [32]byte // its name
	ID       [16]byte // of the login; random
	Record   []byte   // JSON
	InFlight bool     // it has not ended, and the one who makes it was there a short while ago
}

// LoginLease is how long others wait for a login in flight from whose maker they hear nothing.
const LoginLease = 10 * time.Second
