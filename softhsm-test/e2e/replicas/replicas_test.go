package replicas

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const (
	branch = "refs/heads/main"
	tag    = "refs/tags/v1"
)

// TestAnyReplica makes a request at one replica, approves it at others, has it signed at the third, and reads it at
// all. Who waits at one hears of an approval at another.
func TestAnyReplica(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 3)
	for i := range s.replicas {
		s.signs(i, branch, s.image(fmt.Sprintf("branch %d", i)))
	}
	image := s.image("release")
	made := s.create(0, image)
	if made.State != brokerapi.Pending {
		t.Fatalf("the request is %s", made.State)
	}
	var waiting []func() error
	for i := range s.replicas {
		cmd := s.command(s.job(i, tag), s.program, "request", "wait", made.ID, "--for", "24h")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, cmd.Wait)
	}
	s.approve(1, "alice", made.ID)
	if output, signed := s.sign(2, tag, image); signed || !strings.Contains(output, made.ID) {
		t.Errorf("with one approval: signed %v\n%s", signed, output)
	}
	s.approve(2, "bob", made.ID)
	for i, wait := range waiting {
		if err := wait(); err != nil {
			t.Errorf("who waits at replica %d: %v", i, err)
		}
	}
	s.signs(2, tag, image)
	for i := range s.replicas {
		if state := s.state(i, tag, made.ID); state != brokerapi.Signed {
			t.Errorf("replica %d shows the request as %s", i, state)
		}
	}
	s.sameLog(0, 1, 2)
}

// sameLog waits until replicas serve the same checkpoint, and verifies the log that each serves.
func (s *site) sameLog(replicas ...int) {
	s.t.Helper()
	first := s.replicas[replicas[0]]
	flags := first.LogFlags()
	await(s.t, "one checkpoint at all replicas", func() bool {
		var all []string
		for _, i := range replicas {
			all = append(all, s.checkpoint(i))
		}
		slices.Sort(all)
		return len(slices.Compact(all)) == 1
	})
	for _, i := range replicas {
		b := s.replicas[i]
		softhsmtest.Run(s.t, b.Program, append([]string{"log", "verify", b.URL + "/v1/log"}, flags...)...)
	}
}

// TestLeader kills the replica that leads: the others sign, one of them signs the log, and what was pending is not
// lost. A replica that starts again follows.
func TestLeader(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 3)
	image := s.image("release")
	first := s.leader(0, 1, 2)
	others := slices.DeleteFunc([]int{0, 1, 2}, func(i int) bool { return i == first })
	made := s.create(first, image)
	s.approve(first, "alice", made.ID)
	s.replicas[first].Kill()
	s.signs(others[0], branch, s.image("after the leader"))
	s.approve(others[0], "bob", made.ID)
	s.signs(others[1], tag, image)
	s.leader(others...)
	s.sameLog(others...)
	s.replicas[first].Start()
	s.signs(first, branch, s.image("after the start"))
	s.sameLog(0, 1, 2)
}

// TestLeaves stops the replica that leads in order: another one leads at once, since the others need not take it for
// dead.
func TestLeaves(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 2)
	first := s.leader(0, 1)
	s.replicas[first].Signal(t, syscall.SIGTERM)
	<-s.replicas[first].Ended
	if alive := s.server.SQL(t, s.database(), "SELECT count(*) FROM replicas"); alive != "1" {
		t.Errorf("%s replicas after one has left", alive)
	}
	s.leader(1 - first)
	s.signs(1-first, branch, s.image("alone"))
}

// database returns the name of the replicas' database.
func (s *site) database() string {
	s.t.Helper()
	return s.server.SQL(s.t, "postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'test%'")
}

// TestPolicy puts a policy into force at one replica: all decide by it, without a restart.
func TestPolicy(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 2)
	path := filepath.Join(s.dir, "policy.yaml")
	text := softhsmtest.Read(t, filepath.Join(s.replicas[0].Dir, "policy.yaml"))
	softhsmtest.Write(t, path, strings.Replace(text, "refs/heads/main", "refs/heads/trunk", 1))
	admin := []string{"NOTATION_HSM_BROKER=unix:" + s.replicas[0].Socket}
	var change brokerapi.Request
	out := s.succeeds(admin, s.replicas[0].Program, "policy", "apply", path, "--json")
	if err := json.Unmarshal([]byte(out), &change); err != nil {
		t.Fatal(err)
	}
	s.approve(1, "alice", change.ID)
	s.approve(0, "bob", change.ID)
	for i := range s.replicas {
		await(t, "the policy to be in force", func() bool {
			_, signed := s.sign(i, "refs/heads/trunk", s.image(fmt.Sprintf("trunk %d", i)))
			return signed
		})
		if output, signed := s.sign(i, branch, s.image(fmt.Sprintf("main %d", i))); signed {
			t.Errorf("replica %d signs by the old policy:\n%s", i, output)
		}
	}
	s.sameLog(0, 1)
}

// TestConfig changes the config of replicas one after the other: who has not the config in force signs nothing and
// says so, and nothing of what others do is lost.
func TestConfig(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 2)
	for _, b := range s.replicas {
		text := softhsmtest.Read(t, b.Config())
		softhsmtest.Write(t, b.Config(), strings.Replace(text, "mtls: {}", "mtls: {allow: [CN=ci]}", 1))
	}
	s.replicas[0].Restart()
	if detail, ready := s.detail(0, "signing"); ready || !strings.Contains(detail, "config apply") {
		t.Errorf("with another config than the one in force: ready %v, %s", ready, detail)
	}
	s.signs(1, branch, s.image("by the old config"))
	var change brokerapi.Request
	out := s.succeeds([]string{"NOTATION_HSM_BROKER=unix:" + s.replicas[0].Socket}, s.replicas[0].Program, "config",
		"apply",
		"--json")
	if err := json.Unmarshal([]byte(out), &change); err != nil {
		t.Fatal(err)
	}
	s.approve(0, "alice", change.ID)
	s.approve(1, "bob", change.ID)
	await(t, "the new config to be in force", func() bool {
		_, ready := s.detail(0, "signing")
		return ready
	})
	s.signs(0, branch, s.image("by the new config"))
	await(t, "the other replica to notice", func() bool {
		_, ready := s.detail(1, "signing")
		return !ready
	})
	s.replicas[1].Restart()
	s.signs(1, branch, s.image("by the new config, too"))
	s.sameLog(0, 1)
}

// TestPaused stops the process that leads until the others have taken it for dead: they go on, and it joins them again.
func TestPaused(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 2)
	first := s.leader(0, 1)
	s.replicas[first].Signal(t, syscall.SIGSTOP)
	s.leader(1 - first)
	s.signs(1-first, branch, s.image("while the other one is paused"))
	s.replicas[first].Signal(t, syscall.SIGCONT)
	await(t, "the replica to join again", func() bool {
		detail, ready := s.detail(first, "replica")
		return ready && !strings.Contains(detail, "it leads")
	})
	s.signs(first, branch, s.image("after the pause"))
	s.sameLog(0, 1)
}

// TestDatabaseAway stops PostgreSQL: replicas say so at once, answer, and go on when it is back. Nothing is lost.
func TestDatabaseAway(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 2)
	image := s.image("release")
	made := s.create(0, image)
	s.approve(1, "alice", made.ID)
	s.server.Stop(t)
	for i := range s.replicas {
		await(t, "the replica to say so", func() bool { return !s.readiness(i).Ready })
		if detail, ready := s.detail(i, "store"); ready || detail == "" {
			t.Errorf("without its database, replica %d: ready %v, %q", i, ready, detail)
		}
		if output, signed := s.sign(i, branch, image); signed {
			t.Errorf("replica %d signs without its database:\n%s", i, output)
		}
	}
	s.server.Start(t)
	for i := range s.replicas {
		await(t, "the replica to be ready", func() bool { return s.readiness(i).Ready })
	}
	s.approve(0, "bob", made.ID)
	s.signs(1, tag, image)
	s.sameLog(0, 1)
}

// TestStandby says whether commits wait for a standby of the database.
func TestStandby(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 1)
	s.server.SQL(t, "postgres", "GRANT pg_monitor TO "+softhsmtest.PostgresRole)
	await(t, "the replica to miss a standby", func() bool { // it looks every few seconds, and may not have had the right
		return slices.ContainsFunc(s.readiness(0).Parts, func(p brokerapi.Part) bool {
			return p.Name == "standby" && !p.Ready && strings.Contains(p.Detail, "commits wait for no standby")
		})
	})
	check := func() string {
		return s.succeeds(s.at(0), s.replicas[0].Program, "check-config", "--online", "--config", s.replicas[0].Config())
	}
	if out := check(); !strings.Contains(out, "commits wait for no standby") {
		t.Errorf("check-config does not warn:\n%s", out)
	}
	s.server.Standby(t)
	await(t, "the replica to see the standby", func() bool {
		_, ready := s.detail(0, "standby")
		return ready
	})
	if out := check(); strings.Contains(out, "standby") {
		t.Errorf("check-config warns:\n%s", out)
	}
	s.signs(0, branch, s.image("with a standby"))
}
