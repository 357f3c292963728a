package replicas

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// fails runs a program that has to fail with words.
func (s *site) fails(words, name string, args ...string) {
	s.t.Helper()
	if stdout, stderr, code := s.run(nil, name, args...); code == 0 || !strings.Contains(stderr, words) {
		s.t.Errorf("%s: exit code %d, want the words %q\n%s%s", strings.Join(args, " "), code, words, stdout, stderr)
	}
}

// TestMigrate moves a broker with an open request and a grant from SQLite to PostgreSQL, where two replicas go on. The
// old database is never used again.
func TestMigrate(t *testing.T) {
	softhsmtest.Parallel(t)
	server := softhsmtest.NewPostgres(t, softhsmtest.PostgresOptions{})
	database := server.Database(t)
	s := startOn(t, 1, server, "", "")
	s.signs(0, branch, s.image("branch"))
	waiting, granted := s.image("waiting"), s.image("granted")
	open, approved := s.create(0, waiting), s.create(0, granted)
	s.approve(0, "alice", open.ID)
	for _, name := range []string{"alice", "bob"} {
		s.approve(0, name, approved.ID)
	}
	first := s.replicas[0]
	old := filepath.Join(first.Dir, "old.yaml")
	softhsmtest.Write(t, old, softhsmtest.Read(t, first.Config()))
	first.UseStore(database)
	migrate := []string{"migrate", "--config", first.Config(), "--from", "sqlite:" + first.Database(), "--to", database}
	s.fails("another process has the database", first.Program, migrate...)
	first.Stop()
	s.fails("is not the database of --to", first.Program, append(migrate[:5:5], "--to", database+"&x=y")...)
	out := softhsmtest.Run(t, first.Program, migrate...)
	for _, words := range []string{"entries of the log", "verified: the log is that of the checkpoint file"} {
		if !strings.Contains(out, words) {
			t.Errorf("%q is missing:\n%s", words, out)
		}
	}
	s.fails("it is not empty", first.Program, migrate...)
	s.fails("was moved to postgres://", first.Program, "serve", "--config", old)
	first.Start()
	second := first.Replica(t, 1, "")
	second.Start()
	s.replicas = append(s.replicas, second)
	s.approve(1, "bob", open.ID)
	s.signs(0, tag, waiting)
	s.signs(1, tag, granted)
	if state := s.state(1, tag, approved.ID); state != brokerapi.Signed {
		t.Errorf("the grant is %s", state)
	}
	s.signs(1, branch, s.image("another"))
	s.sameLog(0, 1)
}

// TestWrongPIN has the wrong PIN that one replica has met stop the other one, until it is cleared at either.
func TestWrongPIN(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 2)
	first, second := s.replicas[0], s.replicas[1]
	first.Stop()
	second.Stop()
	pin := filepath.Join(first.Dir, "pin")
	softhsmtest.Write(t, pin, "0000")
	s.fails("CKR_PIN_INCORRECT", first.Program, "serve", "--config", first.Config())
	softhsmtest.Write(t, pin, softhsmtest.PIN)
	for _, b := range s.replicas { // though it would be right now
		s.fails("is not tried again", b.Program, "serve", "--config", b.Config())
	}
	if out := softhsmtest.Run(t, second.Program, "pin", "clear", "--config", second.Config()); !strings.Contains(out,
		"can be tried again") {
		t.Error(out)
	}
	for i, b := range s.replicas {
		b.Start()
		s.signs(i, branch, s.image(b.URL))
	}
}
