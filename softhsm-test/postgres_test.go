package softhsmtest

import (
	"strings"
	"testing"
)

// TestPostgres verifies that a server keeps what it has committed when it crashes and that a standby has it.
func TestPostgres(t *testing.T) {
	s := NewPostgres(t, PostgresOptions{})
	standby := s.Standby(t)
	s.SQL(t, "postgres", "CREATE TABLE kept AS SELECT 42 AS answer")
	s.Crash(t)
	s.Start(t)
	if got := s.SQL(t, "postgres", "SELECT answer FROM kept"); got != "42" {
		t.Errorf("after a crash: %q", got)
	}
	s.Stop(t)
	standby.Promote(t)
	standby.SQL(t, "postgres", "INSERT INTO kept VALUES (43)")
	if got := standby.SQL(t, "postgres", "SELECT sum(answer) FROM kept"); got != "85" {
		t.Errorf("on the standby: %q", got)
	}
}

// TestPostgresPause verifies that a server that is paused answers nothing until it goes on.
func TestPostgresPause(t *testing.T) {
	s := NewPostgres(t, PostgresOptions{})
	s.Pause(t)
	answers := make(chan string, 1)
	go func() {
		output, _ := s.command("psql", s.psql("postgres", "SELECT 42")...).CombinedOutput()
		answers <- strings.TrimSpace(string(output))
	}()
	select {
	case answer := <-answers:
		t.Errorf("a paused server answers %q", answer)
	default:
	}
	s.Continue(t)
	if answer := <-answers; answer != "42" {
		t.Errorf("the server answers %q", answer)
	}
}

// TestPooler verifies that a database is reached through the pooler.
func TestPooler(t *testing.T) {
	s := Postgres(t)
	pooler := Pooler(t, s)
	url := Through(t, s.Database(t), pooler)
	if got := s.run(t, "psql", "-X", "-A", "-t", "-c", "SELECT current_user", url); got != PostgresRole {
		t.Errorf("through the pooler: %q", got)
	}
}
