package team

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// load asks for signatures from 8 clients at once, each of another image. harm is called before the number given. Each
// answer must be a signature, or a failure of one of the kinds, with a hint. It returns the failures.
func (s *team) load(count, at int, harm func(), kinds ...failure.Kind) (failed []*failure.Error) {
	s.t.Helper()
	var mu sync.Mutex
	var group sync.WaitGroup
	n := 0
	next := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == at {
			harm()
		}
		return n <= count
	}
	for range 8 {
		group.Go(func() {
			for next() {
				_, problem, err := s.sign(s.ci(), s.image())
				if err != nil {
					s.t.Errorf("signing: %v", err)
				}
				if problem == nil {
					continue
				}
				if !slices.Contains(kinds, problem.Kind) || problem.Hint == "" {
					s.t.Errorf("signing: %s: %v (hint: %q)", problem.Kind, problem, problem.Hint)
				}
				mu.Lock()
				failed = append(failed, problem)
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return failed
}

// recovers waits until the broker signs again, and has it sign under load without a failure.
func (s *team) recovers() {
	s.t.Helper()
	for {
		_, problem, err := s.sign(s.ci(), s.image())
		if err != nil {
			s.t.Fatal(err)
		}
		if problem == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.load(40, 0, nil)
}

// survived audits the log after faults. What they have left without an outcome is logged as lost at the next start at
// the latest, and is in the signed log once an image that is signed after it is.
func (s *team) survived() {
	s.t.Helper()
	s.Restart()
	last := s.signs().Request
	var events []event
	for !slices.ContainsFunc(events, func(e event) bool { return e.Type == "signed/v1" && e.Request == last }) {
		events = s.audit()
	}
	s.account(events)
}

// accounted audits the log.
func (s *team) accounted() {
	s.t.Helper()
	s.Restart()
	s.account(s.audit())
}

// account checks that each signature was made once, and that each intent has an outcome.
func (s *team) account(events []event) {
	s.t.Helper()
	signed := map[string]bool{}
	var intents, outcomes int
	for _, e := range events {
		switch e.Type {
		case "intent/v1":
			intents++
		case "signed/v1":
			if signed[e.Payload] {
				s.t.Errorf("%s was signed twice", e.Payload)
			}
			signed[e.Payload] = true
			outcomes++
		case "lost/v1", "failed/v1":
			outcomes++
		}
	}
	if intents != outcomes || len(signed) == 0 {
		s.t.Errorf("the log has %d intents and %d outcomes", intents, outcomes)
	}
}

// TestModuleFails has the module fail under load.
func TestModuleFails(t *testing.T) {
	softhsmtest.NeedRoot(t) // to kill what the broker runs
	for name, c := range map[string]struct {
		fault, times, after string // in each process of the module
		timeout             string
		kinds               []failure.Kind
		fails               bool // for certain
	}{
		"hangs": {fault: "C_Sign:hang", times: "1", timeout: "3s", fails: true,
			kinds: []failure.Kind{failure.Timeout, failure.Unavailable}},
		// The call is repeated once in a new process of the module.
		"crashes": {fault: "C_Sign:crash", times: "1", after: "30", kinds: []failure.Kind{failure.Unavailable}},
		"refuses": {fault: "*:30", times: "0", kinds: []failure.Kind{failure.Unavailable}, fails: true},
		"lies": {fault: "C_Sign:wrong", times: "1", fails: true,
			kinds: []failure.Kind{failure.Internal, failure.Unavailable}},
	} {
		t.Run(name, func(t *testing.T) {
			softhsmtest.Parallel(t)
			token, settings := softhsmtest.NewToken(t, "prod"), t.TempDir()
			softhsmtest.Setenv(t, "SHIM_SETTINGS", settings)
			softhsmtest.Setenv(t, "SHIM_FAULT_TIMES", c.times)
			softhsmtest.Setenv(t, "SHIM_FAULT_AFTER", c.after)
			s := startOn(t, token, softhsmtest.TeamOptions{Module: softhsmtest.Shim(t, token.Module),
				Timeout: c.timeout, Limits: manyRequests})
			s.load(20, 0, nil)
			failed := s.load(100, 20, func() { set(t, settings, c.fault) }, c.kinds...)
			set(t, settings, "")
			if c.fails && len(failed) == 0 {
				t.Error("nothing failed")
			}
			t.Logf("%d of 100 failed", len(failed))
			s.recovers()
			s.survived()
		})
	}
}

// manyRequests are limits that no test meets.
const manyRequests = "requests: 1000000 per minute, open: 100000"

// set has the shim fail.
func set(t testing.TB, settings, fault string) {
	t.Helper()
	path := filepath.Join(settings, "SHIM_FAULT")
	if err := os.WriteFile(path+".new", []byte(fault), 0o600); err != nil {
		t.Error(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Error(err)
	}
}

// TestFullDisk fills the disk of the database under load.
func TestFullDisk(t *testing.T) {
	softhsmtest.NeedRoot(t) // to mount a small disk
	softhsmtest.Parallel(t)
	s := start(t, softhsmtest.TeamOptions{Limits: manyRequests})
	s.Stop()
	dir := filepath.Dir(s.Database())
	saved := filepath.Join(t.TempDir(), "saved")
	softhsmtest.Run(t, "cp", "-a", dir, saved)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		softhsmtest.Missing(t, "the right to mount a file system")
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	softhsmtest.Run(t, "cp", "-a", saved+"/.", dir)
	s.Start()
	s.load(20, 0, nil)
	filler := filepath.Join(dir, "filler")
	failed := s.load(200, 20, func() {
		err := os.WriteFile(filler, make([]byte, 16<<20), 0o600)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("filling the disk: %v", err)
		}
	}, failure.Unavailable)
	if len(failed) == 0 {
		t.Fatal("nothing failed")
	}
	t.Logf("%d of 200 failed, such as: %v (hint: %s)", len(failed), failed[0], failed[0].Hint)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	s.recovers()
	s.survived()
}

// TestLockedDatabase starts a second broker with the database, and has another program lock it.
func TestLockedDatabase(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, softhsmtest.TeamOptions{Limits: manyRequests})
	s.signs()
	_, stderr, err := softhsmtest.Try(t, "", s.Program, "serve", "--config", s.Config())
	if err == nil || !strings.Contains(stderr, "another process has the database") ||
		!strings.Contains(stderr, "hint: ") {
		t.Errorf("a second broker: %v\n%s", err, stderr)
	}
	db, err := sql.Open("sqlite", "file:"+s.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lock, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.ExecContext(t.Context(), "delete from requests"); err != nil {
		t.Fatal(err)
	}
	s.refuses(failure.Unavailable, "locked")
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	s.recovers()
	s.survived()
}

// TestIssuerDown has the issuer of tokens fail. What the broker knows of its keys is enough under load, and a broker
// that knows nothing yet says so.
func TestIssuerDown(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, softhsmtest.TeamOptions{Limits: manyRequests})
	s.load(40, 10, func() { s.Issuer.Down(true) })
	s.Restart()
	s.refuses(failure.Unavailable, s.Issuer.URL)
	s.Issuer.Down(false)
	s.recovers()
	s.survived()
}
