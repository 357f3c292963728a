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

// TestAnyReplica makes a request at one replica, approves it at others, has it signed at the third, and reads it at all.
// Who waits at one hears of an approval at another.
func TestAnyReplica(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, 3)
	for i := range s.replicas {
		s.signs(i, branch, s.image(fmt.Sprintf("branch %d", i)))
	}
	image := s.image("release")
	made := s.create(0, tag, image)
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
	made := s.create(first, tag, image)
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
