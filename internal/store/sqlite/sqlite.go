// Package sqlite keeps a broker's data in one SQLite database. One process at a time has it open.
package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	sqlite "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

// Store is an open database. It implements store.Store.
type Store struct {
	path  string
	lock  *os.File
	write *sql.DB // one connection: the caller of Commit has batches already
	read  *sql.DB
	put   statements
	moved bool // to another engine
}

// Open opens a database, and makes it if there is none. It fails with Conflict if another process has it open, and with
// Denied if others can write to it. A database of an older version is migrated, after a backup beside it.
func Open(ctx context.Context, path string) (*Store, error) {
	return openWith(ctx, path, embedded(), false)
}

// openWith opens a database. toMove also opens one that was moved.
func openWith(ctx context.Context, path string, migrations []migration, toMove bool) (_ *Store, err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot make the folder of the database: %w", err).
			WithHint("set store to a path in a folder that the broker may write to")
	}
	if err := ownership.Check(dir, os.Geteuid()); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(path); err == nil {
		if err := ownership.Check(path, os.Geteuid()); err != nil {
			return nil, err
		}
	}
	s := &Store{path: path}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if s.lock, err = lock(path); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // SQLite would let all read it
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot open the database: %w", err).
			WithHint("let the broker read and write it")
	}
	file.Close()
	if s.write, err = database(path, "synchronous(FULL)", "journal_mode(WAL)"); err != nil {
		return nil, s.explain("open", err)
	}
	s.write.SetMaxOpenConns(1)
	if err := s.migrate(ctx, migrations); err != nil {
		return nil, err
	}
	if s.moved && !toMove {
		return nil, s.refuseMoved(ctx)
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	if _, err := s.write.ExecContext(ctx, "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO NOTHING", secretName,
		secret); err != nil {
		return nil, s.explain("open", err)
	}
	if s.read, err = database(path, "query_only(1)"); err != nil {
		return nil, s.explain("open", err)
	}
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	if s.put, err = prepare(ctx, s.write); err != nil {
		return nil, s.explain("open", err)
	}
	return s, nil
}

// readers is the largest number of calls that read at once.
const readers = 16

// database opens a database with pragmas.
func database(path string, pragmas ...string) (*sql.DB, error) {
	values := url.Values{"_pragma": append(pragmas, "busy_timeout(10000)", "trusted_schema(0)", "cell_size_check(1)")}
	values.Set("_txlock", "immediate")
	return sql.Open("sqlite", (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: values.Encode()}).String())
}

// lock takes the lock of a database, which ends with the process.
func lock(path string) (*os.File, error) {
	file, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot lock the database: %w", err).
			WithHint("let the broker write to the folder of the database")
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		file.Close()
		return nil, failure.New(failure.Conflict, "another process has the database %s open", path).
			WithHint("stop the other broker; several brokers cannot share a SQLite database")
	}
	return file, nil
}

// Close closes the database.
func (s *Store) Close() error {
	var failed []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			failed = append(failed, db.Close())
		}
	}
	if s.lock != nil {
		// A child that was just forked has the file open, too, until it runs its program.
		failed = append(failed, unix.Flock(int(s.lock.Fd()), unix.LOCK_UN), s.lock.Close())
	}
	return errors.Join(failed...)
}

// explain returns the failure of an operation on the database.
func (s *Store) explain(operation string, err error) error {
	var known *failure.Error
	if errors.As(err, &known) {
		return err
	}
	kind, hint := failure.Unavailable, "see the broker's log, and the disk of the database"
	var e *sqlite.Error
	if errors.As(err, &e) {
		switch e.Code() & 0xff {
		case lib.SQLITE_FULL:
			hint = "make room on the disk of the database"
		case lib.SQLITE_BUSY, lib.SQLITE_LOCKED:
			hint = "end the other program that has the database locked"
		case lib.SQLITE_READONLY, lib.SQLITE_CANTOPEN, lib.SQLITE_PERM:
			hint = "let the broker write to the database and its folder"
		case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
			kind, hint = failure.Internal, "restore the database from a backup"
		}
	}
	return failure.New(kind, "cannot %s the database %s: %w", operation, s.path, err).WithHint(hint)
}

// notFound returns the failure of what the database does not have.
func notFound(format string, args ...any) error {
	return failure.New(failure.NotFound, "the database has no %s", fmt.Sprintf(format, args...))
}
