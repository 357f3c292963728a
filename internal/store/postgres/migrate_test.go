package postgres

import (
	"bytes"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// failsWith fails the test unless an error is of a kind and has a text.
func failsWith(t *testing.T, err error, kind failure.Kind, text string) {
	t.Helper()
	if !failure.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("%v instead of %s with %q", err, kind, text)
	}
}

// TestOpenAtOnce opens an empty database several times at once: its tables are made once.
func TestOpenAtOnce(t *testing.T) {
	t.Parallel()
	url := softhsmtest.Postgres(t).Database(t)
	opened := make(chan *Store)
	for range 6 {
		go func() {
			s, err := Open(t.Context(), pool(t, url))
			if err != nil {
				t.Error(err)
			}
			opened <- s
		}()
	}
	var secret []byte
	for range 6 {
		s := <-opened
		if s == nil {
			continue
		}
		defer s.Close()
		got, err := s.Secret(t.Context())
		if err != nil || len(got) != 32 || secret != nil && !bytes.Equal(got, secret) {
			t.Errorf("secret %x, %v, instead of %x", got, err, secret)
		}
		secret = got
	}
}

// TestMigrate has programs of two versions use a database at once, as long as the older one can.
func TestMigrate(t *testing.T) {
	t.Parallel()
	url := softhsmtest.Postgres(t).Database(t)
	newest := len(embedded())
	expand := append(embedded(), migration{"CREATE TABLE later (x integer); INSERT INTO later VALUES (1);", newest})
	contract := append(expand, migration{"DROP TABLE later;", newest + 1})
	broken := append(expand, migration{"DROP TABLE later; SELECT * FROM none;", newest})

	old := open(t, url)
	number, err := old.Join(t.Context(), store.Replica{})
	if err != nil {
		t.Fatal(err)
	}
	next, err := openWith(t.Context(), pool(t, url), expand, defaults)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	open(t, url) // the old program starts again
	if turn, err := old.Turn(t.Context(), number, 0); err != nil {
		t.Error(err)
	} else if err := turn.Commit(t.Context(), &store.Batch{Entries: [][]byte{{1}}}); err != nil {
		t.Error(err)
	}
	p := pool(t, url)
	defer p.Close()
	_, err = openWith(t.Context(), p, broken, defaults)
	failsWith(t, err, failure.Internal, "apply migration 3 to")
	_, err = openWith(t.Context(), p, contract, defaults)
	failsWith(t, err, failure.Conflict, "1 replicas of an older version run")
	if n := 0; next.pool.QueryRow(t.Context(), "SELECT x FROM later").Scan(&n) != nil || n != 1 {
		t.Error("a migration that has failed has changed something")
	}
	age(t, next, number)
	last, err := openWith(t.Context(), p, contract, defaults)
	if err != nil {
		t.Fatal(err)
	}
	_, err = old.Join(t.Context(), store.Replica{})
	failsWith(t, err, failure.Unsupported, "knows more than version 1")
	other := pool(t, url)
	defer other.Close()
	_, err = Open(t.Context(), other)
	failsWith(t, err, failure.Unsupported, "needs a program that knows version 2, and this one knows 1")
	if n, err := last.Size(t.Context()); err != nil || n != 1 {
		t.Errorf("%d entries, %v", n, err)
	}
}

// TestEncoding refuses a database that cannot keep every text.
func TestEncoding(t *testing.T) {
	t.Parallel()
	server := softhsmtest.Postgres(t)
	server.SQL(t, "postgres", "CREATE DATABASE latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0 OWNER "+
		softhsmtest.PostgresRole)
	url := server.Database(t)
	p := pool(t, url[:strings.LastIndexByte(url, '/')]+"/latin1?sslmode=disable")
	defer p.Close()
	_, err := Open(t.Context(), p)
	failsWith(t, err, failure.Unsupported, "encoding is LATIN1")
}
