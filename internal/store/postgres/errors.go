package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Codes of PostgreSQL, as its manual lists them.
const (
	uniqueViolation     = "23505"
	readOnlyTransaction = "25006"
	idleInTransaction   = "25P03"
	invalidPassword     = "28P01"
	invalidRole         = "28000"
	noPrivilege         = "42501"
	undefinedTable      = "42P01"
	duplicateTable      = "42P07"
	diskFull            = "53100"
	tooManyConnections  = "53300"
	lockNotAvailable    = "55P03"
	adminShutdown       = "57P01"
	crashShutdown       = "57P02"
	cannotConnectNow    = "57P03"
	noDatabase          = "3D000"
	dataCorrupted       = "XX001"
	indexCorrupted      = "XX002"
	invalidCharacter    = "22021"
)

// codeOf returns the code of an error of the server, or "".
func codeOf(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// explain returns the failure of an operation on the database. Its text has neither the address nor the password.
func (s *Store) explain(operation string, err error) error {
	var known *failure.Error
	if errors.As(err, &known) {
		return err
	}
	kind, hint := failure.Unavailable, "check that the database runs and is reached"
	cause := err
	var e *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case errors.As(err, &e):
		kind, hint = kindOf(e.Code)
		cause = &serverError{e}
		if e.Code == readOnlyTransaction { // another server has become the primary
			s.pool.Reset()
		}
	case errors.Is(err, context.Canceled):
		hint = ""
	case errors.As(err, &connect): // its text has the address and the role
		cause = errors.New("no connection")
	}
	return failure.New(kind, "cannot %s the database: %w", operation, cause).WithHint(hint)
}

// serverError has the text of an error of the server without the values of rows, which its detail may have.
type serverError struct{ *pgconn.PgError }

func (e *serverError) Error() string { return fmt.Sprintf("%s (SQLSTATE %s)", e.Message, e.Code) }

func (e *serverError) Unwrap() error { return e.PgError }

func kindOf(code string) (failure.Kind, string) {
	switch code {
	case diskFull:
		return failure.Unavailable, "make room on the disk of the database"
	case tooManyConnections:
		return failure.Unavailable, "raise max_connections of the server, or put a pooler before it"
	case lockNotAvailable:
		return failure.Unavailable, "end the transaction that holds the lock: see pg_stat_activity"
	case adminShutdown, crashShutdown, cannotConnectNow:
		return failure.Unavailable, "wait until the database runs again"
	case readOnlyTransaction:
		return failure.Unavailable, "let the URL of the database lead to the primary server"
	case idleInTransaction:
		return failure.Unavailable, "give the broker's machine more capacity"
	case invalidPassword, invalidRole:
		return failure.Denied, "check the role and the password of the database"
	case noPrivilege:
		return failure.Denied, "let the role of the broker own the tables of its database"
	case noDatabase:
		return failure.NotFound, "create the database"
	case dataCorrupted, indexCorrupted:
		return failure.Internal, "restore the database from a backup"
	case invalidCharacter:
		return failure.Invalid, "create the database with the encoding UTF8"
	case undefinedTable:
		return failure.Internal, "check that nobody changes the tables of the broker, and its search_path"
	}
	switch code[:min(2, len(code))] {
	case "08", "53", "57", "58", "55", "40", "25":
		return failure.Unavailable, "see the log of the database server"
	}
	return failure.Internal, "see the log of the database server"
}

// notFound returns the failure of what the database does not have.
func notFound(format string, args ...any) error {
	return failure.New(failure.NotFound, "the database has no %s", fmt.Sprintf(format, args...))
}
