package postgres

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// connected returns a pool, which is closed after the test.
func connected(t *testing.T, url, password string) *pgxpool.Pool {
	t.Helper()
	pool, err := Connect(t.Context(), url, password)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// fails holds that a connection fails, with words in the error.
func fails(t *testing.T, url, password string, kind failure.Kind, words string) {
	t.Helper()
	pool, err := Connect(t.Context(), url, password)
	if err == nil {
		pool.Close()
	}
	if !failure.Is(err, kind) || !strings.Contains(err.Error(), words) || failure.From(err).Hint == "" {
		t.Errorf("%v, not %s with %q and a hint", err, kind, words)
	}
}

// ask returns the one value of a statement.
func ask(t *testing.T, pool *pgxpool.Pool, statement string) (value string) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), statement).Scan(&value); err != nil {
		t.Fatal(err)
	}
	return value
}

// secret writes a file that this user alone reads, and returns its path.
func secret(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	softhsmtest.Write(t, path, text)
	return path
}

func TestConnect(t *testing.T) {
	t.Parallel()
	server := softhsmtest.Postgres(t)
	url := server.Database(t)
	for _, url := range []string{url, server.SocketURL(t, url)} {
		pool := connected(t, url, "")
		if got := ask(t, pool, "SELECT current_user || ' ' || current_setting('application_name')"); got !=
			"broker hsm-broker" {
			t.Errorf("%s: %s", url, got)
		}
	}
	name := url[strings.LastIndexByte(url, '/')+1 : strings.IndexByte(url, '?')]
	fails(t, strings.Replace(url, name, "missing", 1), "", failure.NotFound, "missing")
	fails(t, strings.Replace(url, "broker", "nobody", 1), "", failure.Denied, "nobody")
	fails(t, softhsmtest.Through(t, url, softhsmtest.FreeAddresses(t, 1)[0]), "", failure.Unavailable, "refused")
	fails(t, strings.TrimSuffix(url, "?sslmode=disable"), "", failure.Unavailable, "TLS") // no fallback to plain text
	server.SQL(t, name, "ALTER DATABASE "+name+" SET synchronous_commit = off")
	fails(t, url, "", failure.Invalid, "synchronous_commit = off")
}

// TestConnectEnvironment verifies that neither variables nor files in the home folder change a connection.
func TestConnectEnvironment(t *testing.T) {
	url := softhsmtest.Postgres(t).Database(t)
	home := t.TempDir()
	t.Setenv("HOME", home)
	for name, text := range map[string]string{".pgpass": "*:*:*:*:wrong\n", ".postgresql/root.crt": "wrong",
		".postgresql/postgresql.crt": "wrong", ".postgresql/postgresql.key": "wrong"} {
		softhsmtest.WriteFile(t, filepath.Join(home, name), []byte(text))
	}
	for name, value := range map[string]string{"PGHOST": "db.example.com", "PGPORT": "1", "PGDATABASE": "x", "PGUSER": "x",
		"PGPASSWORD": "x", "PGPASSFILE": "/x", "PGAPPNAME": "x", "PGCONNECT_TIMEOUT": "x", "PGSSLMODE": "x", "PGSSLKEY": "/x",
		"PGSSLCERT": "/x", "PGSSLCERTMODE": "x", "PGSSLSNI": "x", "PGSSLROOTCERT": "/x", "PGSSLPASSWORD": "x",
		"PGSSLNEGOTIATION": "direct", "PGTARGETSESSIONATTRS": "standby", "PGTZ": "x", "PGOPTIONS": "-c fsync=off",
		"PGMINPROTOCOLVERSION": "x", "PGMAXPROTOCOLVERSION": "x", "PGCHANNELBINDING": "require", "PGREQUIREAUTH": "x"} {
		t.Setenv(name, value)
	}
	pool := connected(t, url, "")
	if got := ask(t, pool, "SELECT current_user || ' ' || current_setting('application_name')"); got !=
		"broker hsm-broker" {
		t.Error(got)
	}
	t.Setenv("PGSERVICE", "x")
	fails(t, url, "", failure.Invalid, "PGSERVICE")
}

func TestConnectTLS(t *testing.T) {
	t.Parallel()
	ca, clients := softhsmtest.NewCA(t, "Database CA", nil), softhsmtest.NewCA(t, "Client CA", nil)
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{CA: ca, Clients: clients,
		Settings: []string{"listen_addresses = '127.0.0.1,127.0.0.2'"}})
	plain := server.Database(t)
	root := secret(t, "ca.pem", ca.PEM())
	certificate, key := clients.Client(t, softhsmtest.PostgresRole)
	cert, keyFile := secret(t, "cert.pem", certificate), secret(t, "key.pem", key)
	base := strings.TrimSuffix(plain, "sslmode=disable") + "sslcert=" + cert + "&sslkey=" + keyFile + "&sslrootcert="
	if got := ask(t, connected(t, base+root, ""),
		"SELECT ssl::text || ' ' || client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"); !strings.HasPrefix(got,
		"true ") || !strings.Contains(got, "CN=broker") {
		t.Error(got)
	}
	connected(t, strings.Replace(base+root, "127.0.0.1", "localhost", 1), "")

	other := secret(t, "other.pem", softhsmtest.NewCA(t, "Database CA", nil).PEM())
	fails(t, base+other, "", failure.Denied, "unknown authority")
	fails(t, base+"system", "", failure.Denied, "unknown authority")
	fails(t, strings.Replace(base+root, "127.0.0.1", "127.0.0.2", 1), "", failure.Denied, "127.0.0.2")
	fails(t, plain, "", failure.Denied, "no encryption")
	fails(t, base[:strings.Index(base, "sslcert")]+"sslrootcert="+root, "", failure.Denied, "certificate")
	fails(t, base+"ca.pem", "", failure.Invalid, "no absolute path")
	fails(t, base+secret(t, "empty.pem", ""), "", failure.Invalid, "no certificate")
	if err := os.Chmod(keyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	fails(t, base+root, "", failure.Denied, "mode 0644")
}

// TestConnectPassword changes the password of the role while a pool is open.
func TestConnectPassword(t *testing.T) {
	t.Parallel()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{Password: "first"})
	url := server.Database(t)
	file := secret(t, "password", "first\nignored\n")
	address := url[strings.IndexByte(url, '@')+1 : strings.LastIndexByte(url, '/')]
	passfile := secret(t, "pgpass", address+":*:broker:first\n")
	pool := connected(t, url, "file:"+file)
	connected(t, url+"&passfile="+passfile, "")

	server.SQL(t, "postgres", "ALTER ROLE broker PASSWORD 'second'")
	softhsmtest.Write(t, file, "second\n")
	pool.Reset() // as the end of a connection's lifetime does
	ask(t, pool, "SELECT current_user::text")

	fails(t, url+"&passfile="+passfile, "", failure.Denied, "password authentication failed")
	fails(t, url, "", failure.Denied, "password authentication failed")
	fails(t, url, "file:"+secret(t, "empty", "\nsecond"), failure.Denied, "empty")
	fails(t, url, "file:"+filepath.Join(t.TempDir(), "missing"), failure.NotFound, "no such file")
	fails(t, url, "second", failure.Invalid, "malformed")
	fails(t, url+"&passfile="+passfile, "file:"+file, failure.Invalid, "two files")
	fails(t, url+"&passfile="+secret(t, "other", "example.com:*:*:*:second\n"), "", failure.Denied, "has no password")
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	fails(t, url, "file:"+file, failure.Denied, "mode 0640")
}

// TestConnectFailover verifies that a pool finds the server that takes writes, whichever of the URL's it is.
func TestConnectFailover(t *testing.T) {
	t.Parallel()
	primary := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	url := primary.Database(t)
	standby := primary.Standby(t)
	hosts := func(first, second *softhsmtest.PostgresServer) string {
		return softhsmtest.Through(t, url, first.Address()+","+second.Address())
	}
	fails(t, softhsmtest.Through(t, url, standby.Address()), "", failure.Unavailable, "no writes")
	pool := connected(t, hosts(standby, primary), "")
	if _, err := pool.Exec(t.Context(), "CREATE TABLE kept (value text)"); err != nil {
		t.Fatal(err)
	}
	primary.Crash(t)
	if _, err := pool.Exec(t.Context(), "INSERT INTO kept VALUES ('lost')"); err == nil {
		t.Error("nobody takes writes, and one succeeds")
	}
	standby.Promote(t)
	for tries := 0; ; tries++ {
		_, err := pool.Exec(t.Context(), "INSERT INTO kept VALUES ('kept')")
		if err == nil {
			break
		}
		if tries == 10*maxConnections {
			t.Fatal(err)
		}
	}
	if got := ask(t, pool, "SELECT string_agg(value, ' ') FROM kept"); got != "kept" {
		t.Error(got)
	}
}

// TestConnectOrder verifies that new connections try the host first that was found last.
func TestConnectOrder(t *testing.T) {
	t.Parallel()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	nobody := softhsmtest.FreeAddresses(t, 1)[0]
	a, err := parseURL(softhsmtest.Through(t, server.Database(t), nobody+","+server.Address()))
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCredentials(a, "")
	if err != nil {
		t.Fatal(err)
	}
	order := func() (ports []uint16) {
		config, err := c.pool()
		if err == nil {
			err = c.set(t.Context(), config.ConnConfig)
		}
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, config.ConnConfig.Port)
		for _, f := range config.ConnConfig.Fallbacks {
			ports = append(ports, f.Port)
		}
		return ports
	}
	before := order()
	config, err := c.pool()
	if err != nil {
		t.Fatal(err)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	ask(t, pool, "SELECT 'it is reached'")
	if after := order(); len(before) != 2 || !slices.Equal(after, []uint16{before[1], before[0]}) {
		t.Errorf("hosts are tried in the order %v, before %v", after, before)
	}
}

// TestDial verifies what notices a cut network, and that without TLS no other machine is dialed.
func TestDial(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c := &credentials{address: &address{plain: true}}
	conn, err := c.dial(t.Context(), "tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		t.Fatalf("%T", conn)
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	options := map[int]int{unix.TCP_USER_TIMEOUT: 4000, unix.TCP_KEEPIDLE: 2, unix.TCP_KEEPINTVL: 1, unix.TCP_KEEPCNT: 2}
	if err := raw.Control(func(fd uintptr) {
		for option, want := range options {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil || got != want {
				t.Errorf("option %d is %d, not %d: %v", option, got, want, err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.dial(t.Context(), "tcp", "192.0.2.1:5432"); !failure.Is(err, failure.Denied) {
		t.Errorf("another machine without TLS: %v", err)
	}
}

// TestConnectPaused verifies that a caller of a server that hangs gets an answer when its context ends.
func TestConnectPaused(t *testing.T) {
	t.Parallel()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	pool := connected(t, server.Database(t), "")
	server.Pause(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := pool.Exec(ctx, "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that hangs: %v", err)
	}
	server.Continue(t)
	ask(t, pool, "SELECT current_user::text")
}
