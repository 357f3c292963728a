package postgres

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func TestCheckVersion(t *testing.T) {
	t.Parallel()
	const target = " on x86_64-pc-linux-gnu, compiled by gcc (Debian 12.2.0-14+deb12u1) 12.2.0, 64-bit"
	for _, version := range []string{
		"PostgreSQL 15.18 (Debian 15.18-0+deb12u1)" + target,
		"PostgreSQL 16.4" + target,
		"PostgreSQL 18beta1" + target,
		"PostgreSQL 19devel" + target,
		"PostgreSQL 17.5 on x86_64-windows, compiled by msvc-19.43.34808, 64-bit",
		"PostgreSQL 16.2 on aarch64-apple-darwin, compiled by Apple clang version 15.0, 64-bit",
	} {
		if err := checkVersion(version); err != nil {
			t.Errorf("%s: %v", version, err)
		}
	}
	for _, version := range []string{
		"CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu, built 2024/05/15 21:28:29, go1.22.2)",
		"PostgreSQL 11.2-YB-2.14.0.0-b0" + target,
		"PostgreSQL 15.2-YB-2.25.0.0-b489" + target,
		"PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc (GCC) 3.4.2 20041017 (Red Hat 3.4.2-6.fc3), " +
			"Redshift 1.0.63282",
		"PostgreSQL 12.12 (Greenplum Database 7.1.0 build commit:e7c2b1f)" + target,
		"PostgreSQL 9.2.4 (openGauss 5.0.0 build a07d57c3)" + target,
		"PostgreSQL 13.14.0-RisingWave-1.9.0 (fd2e2fc)",
		"PostgreSQL 9.5 on x86_64-unknown-linux-gnu (Materialize v0.80.0)",
		"PostgreSQL 12.3, compiled by Visual C++ build 1914, 64-bit, QuestDB",
		"PostgreSQL 16",
		"",
		"x\nPostgreSQL 15.18" + target,
	} {
		if err := checkVersion(version); !failure.Is(err, failure.Unsupported) {
			t.Errorf("%s: %v", version, err)
		}
	}
}

// fake is a server that speaks as much of the protocol as a connection needs.
type fake struct {
	authentication pgproto3.BackendMessage // the first answer; AuthenticationOk when nil
	version        string
	values         string   // of the second statement, between "|"
	seen           chan any // messages of the client
}

// answering returns a server with the version() of PostgreSQL 15 and these values.
func answering(values string) fake {
	return fake{version: "PostgreSQL 15.18 on x86_64-pc-linux-gnu, compiled by gcc (GCC) 12.2.0, 64-bit", values: values}
}

// start listens until the test ends, and returns the URL of a database.
func (f *fake) start(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	f.seen = make(chan any, 100)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return "postgres://broker@" + listener.Addr().String() + "/signing?sslmode=disable"
}

func (f *fake) serve(conn net.Conn) {
	defer conn.Close()
	backend := pgproto3.NewBackend(conn, conn)
	if _, err := backend.ReceiveStartupMessage(); err != nil {
		return
	}
	if f.authentication != nil {
		backend.Send(f.authentication)
	} else {
		backend.Send(&pgproto3.AuthenticationOk{})
		backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	}
	for backend.Flush() == nil {
		message, err := backend.Receive()
		if err != nil {
			return
		}
		f.seen <- fmt.Sprintf("%T", message)
		query, ok := message.(*pgproto3.Query)
		if !ok {
			return
		}
		row := []string{f.version}
		if !strings.Contains(query.String, "version()") {
			row = strings.Split(f.values, "|")
		}
		fields, values := []pgproto3.FieldDescription{}, [][]byte{}
		for _, value := range row {
			fields = append(fields, pgproto3.FieldDescription{Name: []byte("x"), DataTypeOID: 25, DataTypeSize: -1})
			values = append(values, []byte(value))
		}
		backend.Send(&pgproto3.RowDescription{Fields: fields})
		if f.version != "" {
			backend.Send(&pgproto3.DataRow{Values: values})
		}
		backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
		backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	}
}

// TestRefusedServers verifies that a connection is made to servers that keep what they confirm, and to no others.
func TestRefusedServers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		fake
		kind failure.Kind
		want string
	}{
		"another product": {fake{version: "CockroachDB CCL v24.1.0"}, failure.Unsupported, `supported: "Cockroach`},
		"an old version":  {answering("140012|off|on|on"), failure.Unsupported, "not supported"},
		"no version":      {answering("x|off|on|on"), failure.Unsupported, "not supported"},
		"no row":          {fake{}, failure.Unsupported, "malformed"},
		"too few columns": {answering("150018"), failure.Unsupported, "malformed"},
		"fsync":           {answering("150018|off|off|on"), failure.Invalid, "fsync = off"},
		"asynchronous":    {answering("150018|off|on|off"), failure.Invalid, "synchronous_commit = off"},
		"local only":      {answering("150018|off|on|local"), failure.Invalid, "synchronous_commit = local"},
		"a standby":       {answering("150018|on|on|on"), failure.Unavailable, "no writes"},
		"clear password": {fake{authentication: &pgproto3.AuthenticationCleartextPassword{}}, failure.Unavailable,
			"require_auth"},
		"a weak hash": {fake{authentication: &pgproto3.AuthenticationMD5Password{}}, failure.Unavailable,
			"require_auth"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Connect(t.Context(), test.start(t), "")
			if !failure.Is(err, test.kind) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, not %q", err, test.want)
			}
			if test.authentication != nil && len(test.seen) > 0 {
				t.Errorf("the client answers %v", <-test.seen)
			}
		})
	}
	f := answering("150018|off|on|on")
	pool, err := Connect(t.Context(), f.start(t), "")
	if err != nil {
		t.Fatal(err)
	}
	pool.Close()
}
