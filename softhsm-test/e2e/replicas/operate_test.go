package replicas

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestReplaceKey gives replicas another key, as the page says: a start with it fails until the seal is removed.
func TestReplaceKey(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 2)
	s.signs(0, branch, s.image("old key"))
	s.sameLog(0, 1)
	for _, b := range s.replicas {
		b.Stop()
	}
	softhsmtest.Write(t, filepath.Join(s.replicas[0].Dir, "replicas.key"), strings.Repeat("ab", 32))
	if output, ok := s.replicas[0].TryStart(); ok || !strings.Contains(output, "of no replica that has this key") {
		t.Fatalf("a replica with another key starts: %v\n%s", ok, output)
	}
	s.server.SQL(t, s.database(), "UPDATE head SET seal = NULL")
	for i, b := range s.replicas {
		b.Start()
		s.signs(i, branch, s.image("new key at "+b.URL))
	}
	s.sameLog(0, 1)
}

// TestTLS has replicas use TLS and a password in a file, which is replaced while they run.
func TestTLS(t *testing.T) {
	softhsmtest.Parallel(t)
	ca, dir := softhsmtest.NewCA(t, "database", nil), t.TempDir()
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{CA: ca, Password: "first"})
	root, password := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "password")
	softhsmtest.Write(t, root, ca.PEM())
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(password+".new", []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(password+".new", password); err != nil {
			t.Fatal(err)
		}
	}
	write("first")
	url := strings.Replace(server.Database(t), "sslmode=disable", "sslmode=verify-full&sslrootcert="+root, 1)
	s := startOn(t, 2, server, url, "store-password: file:"+password)
	s.signs(1, branch, s.image("first password"))
	server.SQL(t, "postgres", "ALTER ROLE "+softhsmtest.PostgresRole+" PASSWORD 'second'")
	write("second")
	server.Restart(t) // all connections are made anew
	await(t, "the replicas to be ready", func() bool { return s.readiness(0).Ready && s.readiness(1).Ready })
	s.signs(0, branch, s.image("second password"))
	for _, b := range s.replicas {
		if strings.Contains(b.Output.String(), "first") || strings.Contains(b.Output.String(), "second password") {
			t.Errorf("the log has a password:\n%s", b.Output.String())
		}
	}
}

// TestBackup refuses to back up a database of PostgreSQL, and restores one that pg_dump has written: a replica signs
// nothing, since its checkpoint file is newer, until a new epoch begins.
func TestBackup(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 1)
	s.signs(0, branch, s.image("before the dump"))
	b := s.replicas[0]
	for _, args := range [][]string{{"backup", filepath.Join(s.dir, "backup")}, {"restore", filepath.Join(s.dir,
		"backup")}} {
		_, stderr, code := s.run(nil, b.Program, append(args, "--config", b.Config())...)
		if code == 0 || !strings.Contains(stderr, "pg_dump") {
			t.Errorf("%s: exit code %d\n%s", args[0], code, stderr)
		}
	}
	dump := s.server.Dump(t, s.database())
	s.signs(0, branch, s.image("after the dump"))
	b.Stop()
	s.server.Restore(t, s.database(), dump)
	b.Start()
	if detail, ready := s.detail(0, "signing"); ready || !strings.Contains(detail, "older") {
		t.Errorf("with an older database: ready %v, %q", ready, detail)
	}
	if output, signed := s.sign(0, branch, s.image("older")); signed {
		t.Errorf("it signs with an older database:\n%s", output)
	}
}

// TestCanceledWait has an administrator cancel a commit's wait for a standby that hangs: its signature is not released
// before the standby has all of it.
func TestCanceledWait(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 2)
	s.signs(0, branch, s.image("before"))
	standby := s.server.Standby(t)
	standby.Pause(t)
	const waiting = " FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
	image := s.image("during")
	done := make(chan bool)
	go func() {
		_, signed := s.sign(0, branch, image)
		done <- signed
	}()
	canceled := 0
	for ended := false; !ended; {
		select {
		case signed := <-done:
			if signed {
				t.Error("a signature was released that the standby does not know")
			}
			ended = true
		case <-time.After(100 * time.Millisecond):
			if canceled < 3 && s.server.SQL(t, "postgres", "SELECT pg_cancel_backend(pid)"+waiting) != "" {
				canceled++
			}
		}
	}
	if canceled == 0 {
		t.Error("no commit has waited for the standby")
	}
	standby.Continue(t)
	await(t, "the replica to sign again", func() bool {
		_, signed := s.sign(0, branch, image)
		return signed
	})
	s.signs(1, branch, s.image("after"))
	s.sameLog(0, 1)
}
