// Package worker tests modules in processes of their own: what a program that signs for long sees when they crash, hang
// and lose what they hold.
package worker

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

func TestMain(m *testing.M) {
	backends.ServeWorker()
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// A service is a keystore with a key on a SoftHSM token behind the shim.
type service struct {
	settings config.Settings
	public   *ecdsa.PublicKey
	log      string // of the calls of all processes
	sessions string // a folder with a file for each open session
}

// newService makes a token with a key. faults are variables of the shim, such as SHIM_FAULT=C_Sign:hang.
func newService(t *testing.T, faults ...string) *service {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	s := &service{log: filepath.Join(t.TempDir(), "calls"), sessions: t.TempDir()}
	s.settings = config.Settings{
		ModulePath: softhsmtest.Shim(t, token.Module), PIN: softhsmtest.PIN, Timeout: time.Minute,
		Key: config.URI{Token: "signing", Object: "release"},
		Env: map[string]string{
			"SOFTHSM2_CONF": filepath.Join(token.Dir, "softhsm2.conf"), "SHIM_MODULE": token.Module,
		},
	}
	ks := backends.Service()
	defer ks.Close()
	spec, err := key.ParseSpec("EC-256")
	if err != nil {
		t.Fatal(err)
	}
	made, err := ks.Reference(&s.settings).Generate(t.Context(),
		key.Request{Spec: spec, Label: "release", Usage: key.Sign})
	if err != nil {
		t.Fatal(err)
	}
	s.public = made.Public.(*ecdsa.PublicKey)
	s.settings.Env["SHIM_LOG"], s.settings.Env["SHIM_LOCK_DIR"] = s.log, s.sessions
	for _, fault := range faults {
		name, value, _ := strings.Cut(fault, "=")
		s.settings.Env[name] = value
	}
	return s
}

// calls returns how often the processes have called a function of the module.
func (s *service) calls(t testing.TB, name string) int {
	t.Helper()
	return softhsmtest.Count(softhsmtest.Calls(t, s.log), name)
}

// sign makes 1,000 signatures from a number of goroutines and returns the failures. A signature that does not verify
// fails the test. before is called with the number of each signature and with that of the oldest that is not made yet.
func (s *service) sign(t *testing.T, k keystore.Key, goroutines int, before func(n, oldest int64)) (failed []error) {
	t.Helper()
	var mu sync.Mutex
	var made atomic.Int64
	var group sync.WaitGroup
	current := make([]int64, goroutines)
	for i := range goroutines {
		group.Go(func() {
			for n := made.Add(1); n <= 1000; n = made.Add(1) {
				mu.Lock()
				current[i] = n
				before(n, slices.Min(current))
				mu.Unlock()
				digest := sha256.Sum256([]byte(strconv.FormatInt(n, 10)))
				signature, err := k.Sign(t.Context(), digest[:], crypto.SHA256)
				if err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				} else if !ecdsa.VerifyASN1(s.public, digest[:], signature) {
					t.Errorf("signature %d does not verify", n)
				}
			}
			mu.Lock()
			current[i] = math.MaxInt64
			mu.Unlock()
		})
	}
	group.Wait()
	return failed
}

// open opens the key.
func (s *service) open(t *testing.T, ks *keystore.Keystore) (keystore.Store, keystore.Key) {
	t.Helper()
	store, err := ks.Reference(&s.settings).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k, err := store.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return store, k
}

// TestLosses signs a thousand times while the module fails: every signature after the recovery is made and is right.
func TestLosses(t *testing.T) {
	for _, c := range []struct {
		name    string
		faults  []string
		killed  bool         // the process is, every 100 signatures
		starts  int          // how many processes there are at least
		allowed failure.Kind // of the calls that fail themselves; Internal for none
		// A call is repeated once. So that none meets two faults, those that come after a count meet one call at a time.
		goroutines int
	}{
		{name: "nothing", starts: 1, goroutines: 4},
		{name: "SIGSEGV", faults: []string{"SHIM_FAULT=C_Sign:crash", "SHIM_FAULT_AFTER=150"}, starts: 6, goroutines: 1},
		{name: "SIGABRT", faults: []string{"SHIM_FAULT=C_SignInit:abort", "SHIM_FAULT_AFTER=300"}, starts: 3, goroutines: 1},
		{name: "SIGKILL", killed: true, starts: 2, goroutines: 4},
		{name: "hang", faults: []string{"SHIM_FAULT=C_Sign:hang", "SHIM_FAULT_AFTER=400"}, starts: 2,
			allowed: failure.Timeout, goroutines: 4},
		{name: "sessions", faults: []string{"SHIM_LOSE=sessions:100"}, starts: 1, goroutines: 4},
		{name: "login", faults: []string{"SHIM_LOSE=login:100"}, starts: 1, goroutines: 4},
		{name: "device", faults: []string{"SHIM_LOSE=device:100"}, starts: 1, goroutines: 4},
		{name: "module", faults: []string{"SHIM_LOSE=module:100"}, starts: 1, goroutines: 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newService(t, c.faults...)
			if c.allowed == failure.Timeout {
				s.settings.Timeout = 3 * time.Second
			}
			goroutines, files := runtime.NumGoroutine(), descriptors(t)
			ks := backends.Service()
			store, k := s.open(t, ks)
			var killed int64 // the signature before which the process was killed last
			failed := s.sign(t, k, c.goroutines, func(n, oldest int64) {
				// A call is repeated once, so that none must meet two kills.
				if c.killed && n >= killed+100 && oldest > killed {
					kill(t)
					killed = n
				}
			})
			digest := sha256.Sum256(nil)
			if _, err := k.Sign(t.Context(), digest[:], crypto.SHA256); err != nil {
				t.Errorf("after all: %v", err)
			}
			starts := s.calls(t, "C_GetFunctionList")
			for _, err := range failed {
				if c.allowed == failure.Internal || !failure.Is(err, c.allowed) {
					t.Errorf("%v: %s", err, failure.From(err).Hint)
				}
			}
			if starts < c.starts || c.starts == 1 && starts != 1 || c.allowed != failure.Internal && len(failed) > starts-1 {
				t.Errorf("%d processes, %d failures", starts, len(failed))
			}
			if logins := s.calls(t, "C_Login"); len(c.faults) > 0 && strings.HasPrefix(c.faults[0], "SHIM_LOSE") && logins < 2 ||
				!strings.HasPrefix(strings.Join(c.faults, ""), "SHIM_LOSE") && logins > starts {
				t.Errorf("%d logins in %d processes", logins, starts)
			}
			if err := store.Close(); err != nil {
				t.Error(err)
			}
			if err := ks.Close(); err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob(filepath.Join(s.sessions, "s*")); c.name == "nothing" && len(left) > 0 {
				t.Errorf("%d sessions were left open", len(left))
			}
			until(t, "the end of goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
			until(t, "the end of descriptors", func() bool { return descriptors(t) <= files })
		})
	}
}

// TestWrongPIN calls C_Login once with a wrong PIN, in whatever process.
func TestWrongPIN(t *testing.T) {
	s := newService(t)
	s.settings.PIN = "0000"
	ks := backends.Service()
	defer ks.Close()
	for range 4 {
		store, err := ks.Reference(&s.settings).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := store.Key(t.Context(), nil); !failure.Is(err, failure.Denied) ||
				failure.From(err).CKR != "CKR_PIN_INCORRECT" {
				t.Error(err)
			}
		}
		kill(t)
		store.Close()
	}
	if logins := s.calls(t, "C_Login"); logins != 1 {
		t.Errorf("%d logins", logins)
	}
}

// TestManyStores opens, signs and closes from many goroutines at once.
func TestManyStores(t *testing.T) {
	s := newService(t)
	ks := backends.Service()
	defer ks.Close()
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			for range 10 {
				err := ks.Reference(&s.settings).WithKey(t.Context(), func(_ keystore.Store, k keystore.Key) error {
					digest := sha256.Sum256(nil)
					signature, err := k.Sign(t.Context(), digest[:], crypto.SHA256)
					if err == nil && !ecdsa.VerifyASN1(s.public, digest[:], signature) {
						err = fmt.Errorf("the signature does not verify")
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if err := ks.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.sessions, "s*")); len(left) > 0 {
		t.Errorf("%d sessions were left open", len(left))
	}
	if starts := s.calls(t, "C_GetFunctionList"); starts == 0 {
		t.Error("the module was not loaded")
	}
}

// until waits for a condition.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for !condition() {
		if ctx.Err() != nil {
			t.Errorf("it never came: %s", what)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// kill sends SIGKILL to the processes of modules that this process has started.
func kill(t testing.TB) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		arguments, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(arguments, []byte("\x00pkcs11-worker\x00")) {
			continue
		}
		process := filepath.Base(filepath.Dir(file))
		status, err := os.ReadFile(filepath.Join("/proc", process, "status"))
		if err != nil || !bytes.Contains(status, fmt.Appendf(nil, "\nPPid:\t%d\n", os.Getpid())) {
			continue
		}
		pid, _ := strconv.Atoi(process)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
