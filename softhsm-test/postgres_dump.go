package softhsmtest

import (
	"path/filepath"
	"strconv"
	"testing"
)

// Dump writes a database into a file with pg_dump, as its owner, and returns the path.
func (s *PostgresServer) Dump(t testing.TB, database string) string {
	t.Helper()
	path := filepath.Join(s.Dir, database+".dump")
	s.run(t, "pg_dump", append(s.owner(), "--format=custom", "--file="+path, database)...)
	return path
}

// Restore replaces a database by that of a file of Dump, with pg_restore, as its owner.
func (s *PostgresServer) Restore(t testing.TB, database, path string) {
	t.Helper()
	s.SQL(t, "postgres", "DROP DATABASE "+database)
	s.SQL(t, "postgres", "CREATE DATABASE "+database+" OWNER "+PostgresRole)
	s.run(t, "pg_restore", append(s.owner(), "--exit-on-error", "--single-transaction", "--dbname="+database, path)...)
}

// owner returns the arguments by which PostgreSQL's programs connect as the owner of databases.
func (s *PostgresServer) owner() []string {
	return []string{"--host=" + s.Dir, "--port=" + strconv.Itoa(s.Port), "--username=" + PostgresRole}
}
