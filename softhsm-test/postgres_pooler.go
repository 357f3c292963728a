package softhsmtest

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Pooler returns the address, 127.0.0.1:PORT, of a pgbouncer in transaction mode before a server: each transaction of a
// client may get another connection to the server. It ends with the test.
func Pooler(t testing.TB, s *PostgresServer) string {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		if program = "/usr/sbin/pgbouncer"; !exists(program) { // which only root has in its PATH
			Missing(t, "pgbouncer")
		}
	}
	dir := s.user.temporary(t, "pgb")
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	address := FreeAddresses(t, 1)[0]
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "pgbouncer.ini")
	Write(t, config, fmt.Sprintf(`[databases]
* = host=%s port=%d user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %s
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 10
`, s.Dir, s.Port, PostgresRole, port))
	s.user.own(t, config)
	output, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	cmd := exec.Command(program, config)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = dir, output, output, s.user.attributes()
	running, err := startTied(cmd, syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = running.process.Kill()
		<-running.ended
	})
	await(t, "pgbouncer to start", func() bool {
		select {
		case <-running.ended:
			t.Fatalf("pgbouncer ended: %s", Read(t, output.Name()))
		default:
		}
		connection, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		connection.Close()
		return true
	})
	return address
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Through returns the URL of a database with another address, HOST:PORT, such as a pooler's.
func Through(t testing.TB, database, address string) string {
	t.Helper()
	at, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	at.Host = address
	return at.String()
}

// SocketURL returns the URL of a database of the server over its Unix socket.
func (s *PostgresServer) SocketURL(t testing.TB, database string) string {
	t.Helper()
	at, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	at.Host = ""
	at.RawQuery = url.Values{"host": {s.Dir}, "port": {strconv.Itoa(s.Port)}}.Encode()
	return at.String()
}
