package postgres

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// A migration is the SQL that makes a version of the schema from the one before, and the least version that a program
// has to know to work with the tables afterwards. So replicas of two versions work at once: a migration first adds what
// the new program needs, and a later one, when no old program runs, removes what only that one used.
type migration struct {
	text  string
	least int
}

//go:embed migrations/*.sql
var files embed.FS

// least has the least version of each migration.
var least = []int{1}

// embedded returns the migrations of this program.
func embedded() (all []migration) {
	for i, version := range least {
		text, err := files.ReadFile(fmt.Sprintf("migrations/%d.sql", i+1))
		if err != nil {
			panic(err) // they are in the program
		}
		all = append(all, migration{string(text), version})
	}
	return all
}

// schema is the version of the tables, and the least that a program has to know.
type schema struct{ version, least int }

// check fails with Unsupported for tables that a program that knows a version cannot work with.
func (of schema) check(knows int) error {
	if of.least > knows {
		return failure.New(failure.Unsupported,
			"cannot open the database: its schema of version %d needs a program that knows version %d, and this one knows %d",
			of.version, of.least, knows).WithHint("upgrade this program")
	}
	return nil
}

// migrate brings the tables to the newest version that is known, in one transaction.
func (s *Store) migrate(ctx context.Context, known []migration) error {
	var now schema
	err := s.pool.QueryRow(ctx, "SELECT version, least FROM schema").Scan(&now.version, &now.least)
	if err != nil && codeOf(err) != undefinedTable && !errors.Is(err, pgx.ErrNoRows) {
		return s.explain("open", err)
	}
	if now.version >= len(known) {
		return now.check(len(known))
	}
	for range 3 {
		err = pgx.BeginTxFunc(ctx, s.pool, readCommitted, func(tx pgx.Tx) error { return s.step(ctx, tx, known) })
		// Two replicas that make the first table at once: one of them fails, in spite of IF NOT EXISTS.
		if code := codeOf(err); !slices.Contains([]string{uniqueViolation, duplicateTable}, code) {
			break
		}
	}
	if err != nil {
		return s.explain("migrate", err)
	}
	return nil
}

var readCommitted = pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadWrite}

// step applies the migrations that are missing, while it has the table schema locked.
func (s *Store) step(ctx context.Context, tx pgx.Tx, known []migration) error {
	for _, text := range []string{
		"SET LOCAL statement_timeout = 0",
		`CREATE TABLE IF NOT EXISTS schema (one boolean PRIMARY KEY DEFAULT true CHECK (one), version integer NOT NULL,
			least integer NOT NULL)`,
		"LOCK TABLE schema IN ACCESS EXCLUSIVE MODE",
		"INSERT INTO schema (version, least) VALUES (0, 0) ON CONFLICT DO NOTHING",
	} {
		if _, err := tx.Exec(ctx, text); err != nil {
			return err
		}
	}
	var now schema
	if err := tx.QueryRow(ctx, "SELECT version, least FROM schema").Scan(&now.version, &now.least); err != nil {
		return err
	}
	if now.version >= len(known) {
		return now.check(len(known))
	}
	made := now.version == 0
	if !made { // a turn and a migration that lock tables in another order would wait for each other
		if _, err := tx.Exec(ctx, "SELECT FROM head FOR UPDATE"); err != nil {
			return err
		}
	}
	for ; now.version < len(known); now.version++ {
		next := known[now.version]
		if _, err := tx.Conn().PgConn().Exec(ctx, next.text).ReadAll(); err != nil { // several statements
			return s.explain(fmt.Sprintf("apply migration %d to", now.version+1), err)
		}
		now.least = max(now.least, next.least)
	}
	if err := s.checkOlder(ctx, tx, now); err != nil {
		return err
	}
	if made {
		if err := s.prepare(ctx, tx); err != nil {
			return err
		}
	}
	_, err := tx.Exec(ctx, "UPDATE schema SET version = $1::integer, least = $2::integer", now.version, now.least)
	return err
}

// checkOlder fails with Conflict while a replica is alive that could not work with the tables any more.
func (s *Store) checkOlder(ctx context.Context, tx pgx.Tx, next schema) error {
	var older int
	err := tx.QueryRow(ctx, `SELECT count(*) FROM replicas WHERE knows < $1::integer
		AND seen > clock_timestamp() - make_interval(secs => $2::float8)`, next.least, s.limits.dead.Seconds()).Scan(&older)
	if err != nil {
		return err
	}
	if older > 0 {
		return failure.New(failure.Conflict,
			"cannot migrate the database to version %d: %d replicas of an older version run", next.version, older).
			WithHint("upgrade all replicas to the release before this one first")
	}
	return nil
}

// prepare makes what a new database has besides its tables.
func (s *Store) prepare(ctx context.Context, tx pgx.Tx) error {
	var encoding string
	if err := tx.QueryRow(ctx, "SELECT current_setting('server_encoding')").Scan(&encoding); err != nil {
		return err
	}
	if encoding != "UTF8" {
		return failure.New(failure.Unsupported, "cannot open the database: its encoding is %s", encoding).
			WithHint("create the database with the encoding UTF8")
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	if _, err := tx.Exec(ctx, "INSERT INTO meta VALUES ($1, $2::bytea)", secretName, secret); err != nil {
		return err
	}
	now, err := clock(ctx, tx)
	if err != nil {
		return err
	}
	return extend(ctx, tx, now)
}
