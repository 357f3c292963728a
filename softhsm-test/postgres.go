package softhsmtest

import (
	"cmp"
	"crypto/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// oldestPostgres is the oldest major version of PostgreSQL that the product supports. The tests prefer it.
const oldestPostgres = 15

// PostgresRole owns the databases of tests. It is no superuser.
const PostgresRole = "broker"

// PostgresOptions are what a server of its own can be given.
type PostgresOptions struct {
	// CA has the server take TLS connections, with a certificate for localhost and 127.0.0.1.
	CA *CA
	// Clients is the CA of the certificates that clients then need, which name their role. It needs CA.
	Clients *CA
	// Password of PostgresRole, which the server then demands over TCP, by SCRAM.
	Password string
	// Settings are lines of postgresql.conf.
	Settings []string
}

// PostgresServer is a PostgreSQL server with data that lasts as long as a test. It listens on 127.0.0.1 and on a Unix
// socket. Over TCP it asks for what the options say, over the socket for nothing.
type PostgresServer struct {
	Dir  string // with the socket, the data and the output
	Port int

	bin     string
	user    *ownUser
	running *postmaster // nil when it was stopped
}

var sharedPostgres struct {
	sync.Mutex
	server *PostgresServer
}

// Postgres returns a server that all tests of a package share: no test may stop or configure it. It ends with the
// process.
func Postgres(t testing.TB) *PostgresServer {
	t.Helper()
	needPostgres(t)
	sharedPostgres.Lock()
	defer sharedPostgres.Unlock()
	if sharedPostgres.server == nil {
		sharedPostgres.server = newPostgres(t, PostgresOptions{})
	}
	return sharedPostgres.server
}

// NewPostgres returns a server of the test's own, which ends with the test.
func NewPostgres(t testing.TB, options PostgresOptions) *PostgresServer {
	t.Helper()
	needPostgres(t)
	s := newPostgres(t, options)
	t.Cleanup(s.remove)
	return s
}

// needPostgres skips the test with -short, since a server takes a second to set up, and where PostgreSQL is missing.
func needPostgres(t testing.TB) {
	t.Helper()
	if testing.Testing() && testing.Short() {
		t.Skip("-short leaves out what needs PostgreSQL")
	}
	if PostgresPrograms() == "" {
		Missing(t, "PostgreSQL "+strconv.Itoa(oldestPostgres))
	}
}

// PostgresPrograms returns the folder of the programs of the oldest PostgreSQL that the product supports, of those that
// are installed, or "".
func PostgresPrograms() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres") // Debian has one folder for each major version
	slices.SortFunc(found, func(a, b string) int { return cmp.Compare(postgresMajor(a), postgresMajor(b)) })
	if path, err := exec.LookPath("postgres"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil {
			found = append(found, path)
		}
	}
	for _, path := range found {
		if postgresMajor(path) >= oldestPostgres {
			return filepath.Dir(path)
		}
	}
	return ""
}

// postgresMajor returns the major version of a server by its path or, if that has none, by its output. 0 is unknown.
func postgresMajor(path string) int {
	if major, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path)))); err == nil {
		return major
	}
	output, _ := exec.Command(path, "--version").Output() // postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
	_, version, _ := strings.Cut(string(output), "(PostgreSQL) ")
	major, _, _ := strings.Cut(version, ".")
	number, _ := strconv.Atoi(strings.TrimSpace(major))
	return number
}

// newPostgres makes a server and starts it. Its folder is removed when the process ends.
func newPostgres(t testing.TB, options PostgresOptions) *PostgresServer {
	t.Helper()
	s := &PostgresServer{bin: PostgresPrograms(), user: postgresUser(t)}
	s.Dir = s.user.temporary(t, "pg")
	removeAtExit(t, s.user, s.Dir)
	s.run(t, "initdb", "--no-sync", "--encoding=UTF8", "--locale=C", "--username=postgres", "--auth=trust",
		"--pgdata="+s.data())
	s.configure(t, options)
	s.Start(t)
	password := "NULL"
	if options.Password != "" {
		password = "'" + options.Password + "'"
	}
	s.SQL(t, "postgres", "CREATE ROLE "+PostgresRole+" LOGIN PASSWORD "+password)
	return s
}

// configure writes the settings and the rules of access.
func (s *PostgresServer) configure(t testing.TB, options PostgresOptions) {
	t.Helper()
	s.Port = freePort(t)
	settings := append([]string{
		"listen_addresses = '127.0.0.1'", "unix_socket_directories = '" + s.Dir + "'", "max_connections = 200",
		"timezone = 'UTC'", "log_line_prefix = '%m [%p] %u@%d '",
	}, options.Settings...)
	method := "trust"
	if options.Password != "" {
		method = "scram-sha-256"
	}
	rule := "host all all 127.0.0.1/32 " + method
	if options.CA != nil {
		rule = "hostssl all all 127.0.0.1/32 " + method
		settings = append(settings, "ssl = on", "ssl_cert_file = 'server.crt'", "ssl_key_file = 'server.key'")
		certificate, key := options.CA.server(t)
		s.write(t, "server.crt", certificate)
		s.write(t, "server.key", key)
	}
	if options.Clients != nil {
		rule += " clientcert=verify-full"
		if options.Password == "" {
			rule = "hostssl all all 127.0.0.1/32 cert"
		}
		settings = append(settings, "ssl_ca_file = 'clients.crt'")
		s.write(t, "clients.crt", options.Clients.PEM())
	}
	s.write(t, "pg_hba.conf", "local all all trust\nlocal replication all trust\n"+rule+"\n")
	s.write(t, "postgresql.auto.conf", strings.Join(settings, "\n")+"\n")
}

// data returns the folder with the data.
func (s *PostgresServer) data() string { return filepath.Join(s.Dir, "data") }

// write writes a file among the data, for the server alone.
func (s *PostgresServer) write(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(s.data(), name)
	Write(t, path, text)
	s.user.own(t, path)
}

// run runs one of PostgreSQL's programs as the user of the server, and returns its output.
func (s *PostgresServer) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	output, err := s.command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, output)
	}
	return strings.TrimSpace(string(output))
}

// command prepares one of PostgreSQL's programs.
func (s *PostgresServer) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"} // no variable PG* of the developer's
	cmd.Dir = s.Dir
	cmd.SysProcAttr = s.user.attributes()
	return cmd
}

// SQL runs statements in a database as a superuser, and returns the rows of their results, columns between "|".
func (s *PostgresServer) SQL(t testing.TB, database, statements string) string {
	t.Helper()
	return s.run(t, "psql", s.psql(database, statements)...)
}

// psql returns the arguments for psql to run statements.
func (s *PostgresServer) psql(database, statements string) []string {
	return []string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", s.Dir, "-p", strconv.Itoa(s.Port),
		"-U", "postgres", "-d", database, "-c", statements}
}

// Database makes an empty database, which is dropped after the test, and returns its URL over TCP, without TLS.
func (s *PostgresServer) Database(t testing.TB) string {
	t.Helper()
	name := "test_" + strings.ToLower(rand.Text()[:12])
	s.SQL(t, "postgres", "CREATE DATABASE "+name+" OWNER "+PostgresRole)
	if s == sharedPostgres.server {
		t.Cleanup(func() { s.SQL(t, "postgres", "DROP DATABASE "+name+" WITH (FORCE)") })
	}
	return "postgres://" + PostgresRole + "@" + s.Address() + "/" + name + "?sslmode=disable"
}

// Address returns 127.0.0.1:PORT.
func (s *PostgresServer) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// freePort returns a port of loopback that nobody listened on a moment ago.
func freePort(t testing.TB) int {
	t.Helper()
	_, port, err := net.SplitHostPort(FreeAddresses(t, 1)[0])
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// await waits until a condition holds, for two minutes at most.
func await(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited two minutes for %s", what)
		}
	}
}
