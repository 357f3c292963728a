package team

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// backUp copies the database of the running broker.
func (s *team) backUp() string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "backup.db")
	softhsmtest.Run(s.t, s.Program, "backup", path, "--config", s.Config())
	return path
}

// restore makes the database of the stopped broker of a backup, as an operator does on a new disk.
func (s *team) restore(backup string, log ...string) {
	s.t.Helper()
	if err := os.RemoveAll(filepath.Dir(s.Database())); err != nil {
		s.t.Fatal(err)
	}
	softhsmtest.Run(s.t, s.Program, append([]string{"restore", backup, "--config", s.Config()}, log...)...)
}

// readiness returns what the broker says of its parts.
func (s *team) readiness() brokerapi.Readiness {
	s.t.Helper()
	response, err := s.http.Get(s.URL + brokerapi.ReadyPath) //nolint:noctx // the client has a timeout
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	var state brokerapi.Readiness
	if err := json.NewDecoder(response.Body).Decode(&state); err != nil {
		s.t.Fatal(err)
	}
	if state.Ready != (response.StatusCode == http.StatusOK) {
		s.t.Errorf("%s: %+v", response.Status, state)
	}
	return state
}

// published waits until a checkpoint covers a request.
func (s *team) published(id string) {
	s.t.Helper()
	for {
		var r brokerapi.Request
		problem, err := s.call(s.ci(), http.MethodGet, brokerapi.RequestPath(id), nil, &r)
		if err != nil || problem != nil {
			s.t.Fatalf("%v, %v", problem, err)
		}
		if r.Proof != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestRestoredBackup restores yesterday's backup: the broker signs nothing, and changes nothing, before the entries
// that it lacks are replayed from a copy of the log, or a new epoch of the log begins.
func TestRestoredBackup(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, softhsmtest.TeamOptions{})
	first := s.signs()
	s.published(first.Request)
	yesterday := s.backUp()
	var last *brokerapi.Signature
	for range 3 {
		last = s.signs()
	}
	s.published(last.Request)
	s.propose(brokerapi.KeyPath("release") + "/block")
	copied := s.ExportLog(s.flags)
	before := s.auditDir(copied, softhsmtest.LogOrigin)
	s.Stop()
	checkpoint := softhsmtest.Read(t, s.Checkpoint())

	began := time.Now()
	s.restore(yesterday)
	s.Start()
	t.Logf("restored, and started, in %s", time.Since(began))
	const older = "older than the checkpoint outside"
	s.refuses(failure.Unavailable, older)
	if state := s.readiness(); state.Ready {
		t.Errorf("the broker says that it is ready: %+v", state)
	}
	var made brokerapi.Request
	for path, body := range map[string]any{brokerapi.KeyPath("release") + "/block": nil,
		brokerapi.PolicyPath: brokerapi.NewPolicy{Policy: s.policyWith("refs/heads/main", "refs/heads/other")}} {
		problem, err := s.callBy(s.operator(), "", http.MethodPost, path, body, &made)
		if err != nil || problem == nil || problem.Kind != failure.Unavailable || !strings.Contains(problem.Error(), older) {
			t.Errorf("%s: %v, %v", path, problem, err)
		}
	}
	s.Restart()
	s.refuses(failure.Unavailable, older)
	s.Stop()
	if softhsmtest.Read(t, s.Checkpoint()) != checkpoint {
		t.Error("the checkpoint outside of the database has changed")
	}

	began = time.Now()
	s.restore(yesterday, copied)
	s.Start()
	t.Logf("restored, replayed %d entries, and started, in %s", len(before), time.Since(began))
	s.refuses(failure.Denied, "is blocked") // which the backup does not know
	s.propose(brokerapi.KeyPath("release") + "/unblock")
	s.signs()
	s.Restart()
	if events := s.audit(); len(events) != len(before)+3 || count(events, "signed/v1") != 5 {
		t.Errorf("after %d, the log has %+v", len(before), events)
	}
}

// TestNewEpoch begins a new epoch after the loss of entries.
func TestNewEpoch(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, softhsmtest.TeamOptions{})
	s.published(s.signs().Request)
	yesterday := s.backUp()
	s.published(s.signs().Request)
	s.Stop()
	s.restore(yesterday)
	s.Start()
	var made brokerapi.Request
	if problem, err := s.call(s.ci(), http.MethodPost, brokerapi.EpochPath, nil, &made); err != nil || problem == nil ||
		problem.Kind != failure.Denied {
		t.Errorf("a job of CI begins an epoch: %v, %v", problem, err)
	}
	s.refuses(failure.Unavailable, "older than the checkpoint outside")
	s.propose(brokerapi.EpochPath)
	s.signs()
	if state := s.readiness(); !state.Ready {
		t.Errorf("the broker is not ready: %+v", state)
	}
	s.Restart()
	s.signs()
	s.Restart()
	const origin = softhsmtest.LogOrigin + "/2"
	s.flags[3] = origin
	events := s.auditDir(s.ExportLog(s.flags), origin)
	if count(events, "epoch/v1") != 1 || count(events, "signed/v1") != 3 {
		t.Errorf("the log has %+v", events)
	}
	printed := strings.TrimSpace(softhsmtest.Run(t, s.Program, "log", "key", "--config", s.Config()))
	if !strings.HasPrefix(printed, origin+"+") {
		t.Errorf("in epoch 2, the key of the log is %s", printed)
	}
	today := s.backUp()
	s.published(s.signs().Request)
	copied := s.ExportLog(s.flags)
	s.Stop()
	s.restore(today, copied)
	s.Start()
	s.signs()
}

// policyWith returns the policy with a part replaced.
func (s *team) policyWith(old, replacement string) string {
	s.t.Helper()
	text := strings.ReplaceAll(policy, "ISSUER", s.Issuer.URL)
	if !strings.Contains(text, old) {
		s.t.Fatalf("the policy has no %q", old)
	}
	return strings.ReplaceAll(text, old, replacement)
}

// edit changes the database of the stopped broker by hand.
func (s *team) edit(statements string) {
	s.t.Helper()
	db, err := sql.Open("sqlite", "file:"+s.Database())
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(context.Background(), statements); err != nil {
		s.t.Fatalf("%s: %v", statements, err)
	}
}

// TestEditedDatabase edits the database of a stopped broker in each way that might permit something. Either the broker
// does not start, or it decides as its log says.
func TestEditedDatabase(t *testing.T) {
	softhsmtest.Parallel(t)
	limited := strings.Replace(policy, `"refs/heads/main"`, "\"refs/heads/main\"\n      limit: 2 per hour", 1)
	s := start(t, softhsmtest.TeamOptions{Policy: limited})
	used, request := s.ci(), s.image()
	signature, problem, err := s.sign(used, request)
	if err != nil || problem != nil {
		t.Fatal(problem, err)
	}
	s.published(s.signs().Request)
	s.refuses(failure.Throttled, "limit of 2 per")
	s.propose(brokerapi.KeyPath("release") + "/block")
	s.Stop()
	dir, saved := filepath.Dir(s.Database()), filepath.Join(t.TempDir(), "saved")
	outside := softhsmtest.Read(t, s.Checkpoint())
	softhsmtest.Run(t, "cp", "-a", dir, saved)

	for name, one := range map[string]struct {
		edit   func()
		output string // of a broker that does not start
		signs  failure.Kind
		text   string // of a broker that starts
	}{
		"state of a request": {edit: func() {
			s.edit("update requests set state = 'approved', signature = null, " +
				"body = cast(replace(body, '\"signed\"', '\"approved\"') as blob)")
		}, signs: failure.Denied, text: "is blocked"},
		"no requests": {edit: func() { s.edit("delete from requests") }, signs: failure.Denied, text: "is blocked"},
		"another policy": {edit: func() {
			s.edit("update documents set data = cast(replace(data, 'limit: 2', 'limit: 9') as blob)")
		}, output: "policy in force"},
		"no policy": {edit: func() { s.edit("delete from documents") }, output: "policy in force"},
		"an entry changed": {edit: func() {
			s.edit("update entries set entry = cast(replace(entry, 'intent', 'intend') as blob) where idx = 1")
		}, output: "database was edited"},
		"block removed from the entry": {edit: func() {
			s.edit("update entries set entry = cast(replace(entry, 'blocked/v1', 'unblocked/v1') as blob)")
		}, output: "database was edited"},
		"an entry deleted": {edit: func() { s.edit("delete from entries where idx = 1") }, output: "database was edited"},
		"an entry at the end deleted": {edit: func() {
			s.edit("delete from entries where idx = (select max(idx) from entries)")
		}, output: "database was edited"},
		"truncated log with its checkpoint removed": {edit: func() {
			s.edit("delete from entries where idx > 1; delete from meta where name = 'checkpoint'")
		}, output: "policy in force"}, // no checkpoint covers it
		"a tile changed": {edit: func() {
			s.edit("update tiles set hashes = cast(zeroblob(length(hashes)) as blob)")
		}, output: "database was edited"},
		"checkpoint removed": {edit: func() {
			s.edit("delete from meta where name = 'checkpoint'")
		}, signs: failure.Denied, text: "is blocked"}, // the one outside covers the same
		"no database": {edit: func() { softhsmtest.Run(t, "rm", "-r", dir) }, output: "database is empty"},
		"no file of checkpoints": {edit: func() {
			softhsmtest.Run(t, "rm", s.Checkpoint())
		}, signs: failure.Unavailable, text: "the checkpoint outside of the database is missing"},
		"a file of checkpoints of someone else": {edit: func() {
			softhsmtest.Write(t, s.Checkpoint(), strings.Replace(outside, "\n", "\n1", 1))
		}, output: "checkpoint"},
	} {
		softhsmtest.Run(t, "rm", "-rf", dir)
		softhsmtest.Run(t, "cp", "-a", saved, dir)
		softhsmtest.Write(t, s.Checkpoint(), outside)
		one.edit()
		output, started := s.TryStart()
		if !started {
			if one.output == "" || !strings.Contains(output, one.output) || !strings.Contains(output, "hint: ") {
				t.Errorf("%s: the broker ended:\n%s", name, output)
			}
			continue
		}
		if one.output != "" {
			t.Errorf("%s: the broker has started", name)
			s.Stop()
			continue
		}
		// A new image is refused.
		s.refuses(one.signs, one.text)
		// So is the use of the token for another one, also after the key is unblocked.
		if one.signs == failure.Denied {
			s.propose(brokerapi.KeyPath("release") + "/unblock")
			s.refuses(failure.Throttled, "limit of 2 per")
			if _, problem, err := s.sign(used, s.image()); err != nil || problem == nil {
				t.Errorf("%s: a used token signs: %v", name, err)
			}
			// The same bytes have the signature of before, or none.
			if again, problem, err := s.sign(used, request); err != nil ||
				problem == nil && !bytes.Equal(again.Signature, signature.Signature) {
				t.Errorf("%s: the same bytes were signed again: %v, %v", name, problem, err)
			}
		}
		s.Stop()
	}
}
