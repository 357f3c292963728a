package postgres

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// oldestServer is the oldest server_version_num that is supported.
const oldestServer = 150000

var (
	// genuine is what version() of PostgreSQL returns. Others that speak its protocol put their names at the end, into the
	// version, or between the parentheses, where packagers write their versions.
	genuine = regexp.MustCompile(`^PostgreSQL [0-9]+(\.[0-9]+|devel|beta[0-9]+|rc[0-9]+)( \([^()]*\))? on [^ ,]+, ` +
		`compiled by [^,]+(, [^,]+)?, (32|64)-bit$`)
	// derived are the names of those that put them between the parentheses, or where the compiler's is.
	derived = regexp.MustCompile(`(?i)greenplum|cloudberry|gauss|polardb|yugabyte|-yb-|cockroach|redshift|materialize|` +
		`risingwave|crate|questdb|h2`)
)

// settings are those of a server whose refused values lose what it has confirmed. full_page_writes = off is none of
// them: it is safe on file systems that copy on write, for which it is meant.
var settings = []struct {
	name    string
	refused []string
	hint    string
}{
	{"fsync", []string{"off"}, "set fsync = on in postgresql.conf"},
	{"synchronous_commit", []string{"off", "local"}, "set synchronous_commit = on for the server, the database and the " +
		"role"},
}

// checkServer refuses a server that has just been connected to, unless it is PostgreSQL of a supported version, makes
// durable what it confirms, and takes writes. It sends no statement with parameters, so any pooler takes them.
func checkServer(ctx context.Context, conn *pgconn.PgConn) error {
	version, err := query(ctx, conn, "SELECT version()", 1)
	if err != nil {
		return err
	}
	if err := checkVersion(version[0]); err != nil {
		return err
	}
	names := []string{"current_setting('server_version_num')", "current_setting('transaction_read_only')"}
	for _, s := range settings {
		names = append(names, "current_setting('"+s.name+"')")
	}
	values, err := query(ctx, conn, "SELECT "+strings.Join(names, ", "), len(names))
	if err != nil {
		return err
	}
	if number, err := strconv.Atoi(values[0]); err != nil || number < oldestServer {
		return unsupported(version[0])
	}
	for i, s := range settings {
		for _, refused := range s.refused {
			if values[i+2] == refused {
				return failure.New(failure.Invalid, "the database server has %s = %s", s.name, refused).WithHint(s.hint)
			}
		}
	}
	if values[1] != "off" {
		return failure.New(failure.Unavailable, "the database server takes no writes").
			WithHint("name the primary server in the URL of the database, or all servers")
	}
	return nil
}

// checkVersion refuses what is not PostgreSQL by its version().
func checkVersion(version string) error {
	if !genuine.MatchString(version) || derived.MatchString(version) {
		return unsupported(version)
	}
	return nil
}

func unsupported(version string) error {
	const most = 80
	return failure.New(failure.Unsupported, "the database server is not supported: %.*q", most, version).
		WithHint(fmt.Sprintf("use PostgreSQL %d or newer: others do not lock and notify as it does", oldestServer/10000))
}

// query returns the values of the one row of a statement.
func query(ctx context.Context, conn *pgconn.PgConn, statement string, columns int) ([]string, error) {
	results, err := conn.Exec(ctx, statement).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != columns {
		return nil, failure.New(failure.Unsupported, "the database server is not supported: a malformed result").
			WithHint("use PostgreSQL 15 or newer")
	}
	values := make([]string, columns)
	for i, value := range results[0].Rows[0] {
		values[i] = string(value)
	}
	return values, nil
}
