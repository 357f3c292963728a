package broker

import (
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// clients is how many sign at once.
const clients = 64

// crowd makes signatures from clients at once.
type crowd struct {
	t   *testing.T
	key keystore.Key

	mu      sync.Mutex
	current map[int]int // the signature that each client makes now
	last    int
	failed  []error
}

// sign makes a number of signatures and returns the failures. before is called before each, with its number and that of
// the oldest that has not ended.
func (c *crowd) sign(count int, before func(n, oldest int)) []error {
	c.current, c.failed, c.last = map[int]int{}, nil, 0
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			for {
				n := c.next(i, count, before)
				if n == 0 {
					return
				}
				if err := sign(c.t, c.key, n); err != nil {
					c.mu.Lock()
					c.failed = append(c.failed, err)
					c.mu.Unlock()
				}
			}
		})
	}
	group.Wait()
	return c.failed
}

// next returns the number of a client's next signature; 0 if there is none.
func (c *crowd) next(client, count int, before func(n, oldest int)) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.current, client)
	if c.last == count {
		return 0
	}
	c.last++
	c.current[client] = c.last
	oldest := c.last
	for _, n := range c.current {
		oldest = min(oldest, n)
	}
	before(c.last, oldest)
	return c.last
}

// expect fails the test for failures of another kind.
func expect(t *testing.T, failed []error, kind failure.Kind) {
	t.Helper()
	for _, err := range failed {
		if f := failure.From(err); f.Kind != kind || f.Hint == "" {
			t.Errorf("%s, not %s: %v (hint: %q)", f.Kind, kind, err, f.Hint)
		}
	}
}

// TestFaults signs 2,000 times from 64 clients while the module fails. The agent recovers by itself, and uses no more
// than before.
func TestFaults(t *testing.T) {
	softhsmtest.NeedRoot(t) // to look at the agent's process, which shows itself to root alone
	for name, c := range map[string]struct {
		variables map[string]string                        // of the shim
		before    func(t *testing.T, s *spied, n int) bool // does harm before a signature, and reports whether it did
		timeout   string
		kind      failure.Kind          // of the failures
		failures  func(workers int) int // how many there are at most; nil for none
		starts    int                   // processes of the module, at least
		logins    int                   // at least
	}{
		"worker killed": {
			before: func(t *testing.T, s *spied, _ int) bool { s.signal(t, syscall.SIGKILL); return true },
			starts: 2,
		},
		"worker stopped": {
			starts: 2, timeout: "3s", // the process is ended some seconds after that, and its calls are repeated in the next
			before: func(t *testing.T, s *spied, n int) bool {
				if n == 1000 {
					s.signal(t, syscall.SIGSTOP)
				}
				return n == 1000
			},
		},
		"module hangs": {
			timeout: "3s", variables: map[string]string{"SHIM_FAULT": "C_Sign:hang", "SHIM_FAULT_AFTER": "600"},
			kind: failure.Timeout, failures: func(workers int) int { return workers }, starts: 2,
		},
		"module crashes": {
			variables: map[string]string{"SHIM_FAULT": "C_Sign:crash", "SHIM_FAULT_AFTER": "600"}, starts: 3,
		},
		"sessions lost": {variables: map[string]string{"SHIM_LOSE": "sessions:600"}, logins: 3},
		"login lost":    {variables: map[string]string{"SHIM_LOSE": "login:600"}, logins: 3},
		"device lost":   {variables: map[string]string{"SHIM_LOSE": "device:600"}, logins: 3},
		"module lost":   {variables: map[string]string{"SHIM_LOSE": "module:600"}, logins: 3},
	} {
		t.Run(name, func(t *testing.T) {
			softhsmtest.Parallel(t)
			for name, value := range c.variables {
				softhsmtest.Setenv(t, name, value)
			}
			var args []string
			if c.timeout != "" {
				args = []string{"--timeout", c.timeout}
			}
			s := startSpied(t, []string{"EC-256"}, args...)
			crowd := &crowd{t: t, key: s.open(t)}
			if failed := crowd.sign(500, func(int, int) {}); len(failed) > 0 {
				t.Fatal(failed[0])
			}
			before := used(t, s.PID())
			last := 0 // the signature before which harm was done
			failed := crowd.sign(2000, func(n, oldest int) {
				// A call is repeated once: none meets two faults.
				if c.before != nil && n >= last+400 && oldest > last && c.before(t, s, n) {
					last = n
				}
			})
			recovers(t, s, crowd, before)
			workers := s.calls(t, "C_GetFunctionList")
			if workers < c.starts {
				t.Errorf("%d processes of the module", workers)
			}
			allowed := 0
			if c.failures != nil {
				allowed = c.failures(workers)
			}
			expect(t, failed, c.kind)
			if len(failed) > allowed {
				t.Errorf("%d signatures failed, not at most %d", len(failed), allowed)
			}
			if logins := s.calls(t, "C_Login"); logins < max(c.logins, workers) || logins > max(workers, 8) {
				t.Errorf("%d logins in %d processes", logins, workers)
			}
		})
	}
}

// recovers holds that the agent signs again for all, and uses no more than before.
func recovers(t *testing.T, s *spied, c *crowd, before use) {
	t.Helper()
	s.until(t, "a signature", func() bool { return sign(t, c.key, 1) == nil })
	if failed := c.sign(200, func(int, int) {}); len(failed) > 0 {
		t.Errorf("%d of 200 signatures failed: %v", len(failed), failed[0])
	}
	s.until(t, "as few descriptors and processes as before", func() bool {
		now := used(t, s.PID())
		return now.descriptors <= before.descriptors && now.children <= before.children
	})
}

// TestReboot has every call to the module fail for a while. Each signature fails as Unavailable, and the agent logs in
// again when the HSM is back.
func TestReboot(t *testing.T) {
	softhsmtest.NeedRoot(t)
	for name, fault := range map[string]string{"device error": "*:30", "token not present": "*:E0"} {
		t.Run(name, func(t *testing.T) {
			softhsmtest.Parallel(t)
			softhsmtest.Setenv(t, "SHIM_FAULT_TIMES", "0")
			s := startSpied(t, []string{"EC-256"})
			c := &crowd{t: t, key: s.open(t)}
			if failed := c.sign(500, func(int, int) {}); len(failed) > 0 {
				t.Fatal(failed[0])
			}
			before := used(t, s.PID())
			s.set(t, "SHIM_FAULT", fault)
			failed := c.sign(200, func(int, int) {})
			if len(failed) != 200 {
				t.Errorf("%d of 200 signatures failed", len(failed))
			}
			expect(t, failed, failure.Unavailable)
			s.set(t, "SHIM_FAULT", "")
			recovers(t, s, c, before)
		})
	}
}

// TestChangedPINUnderLoad loses the login after the PIN of the token was changed. The old PIN is tried once, whatever
// is done after that, and every signature fails as Denied, until the PIN is cleared.
func TestChangedPINUnderLoad(t *testing.T) {
	softhsmtest.Parallel(t)
	s := startSpied(t, []string{"EC-256"})
	c := &crowd{t: t, key: s.open(t)}
	if failed := c.sign(200, func(int, int) {}); len(failed) > 0 {
		t.Fatal(failed[0])
	}
	const next = "98765"
	softhsmtest.Run(t, softhsmtest.Program(t, "pkcs11-tool"), "--module", s.token.Module, "--token-label", "signing",
		"--login", "--pin", softhsmtest.PIN, "--change-pin", "--new-pin", next)
	logins := s.calls(t, "C_Login")
	s.set(t, "SHIM_LOSE", "module:1") // while SoftHSM runs, it takes the old PIN
	var denied atomic.Int64
	failed := c.sign(500, func(int, int) {})
	for _, err := range failed {
		if failure.Is(err, failure.Denied) && failure.From(err).CKR == "CKR_PIN_INCORRECT" {
			denied.Add(1)
		}
	}
	if len(failed) != 500 || denied.Load() != 500 {
		t.Errorf("%d failures, %d for the PIN; such as %v", len(failed), denied.Load(), failed[0])
	}
	s.set(t, "SHIM_LOSE", "")
	for range 3 { // another process does not try it either
		s.signal(t, syscall.SIGKILL)
		failed := c.sign(clients, func(int, int) {})
		if len(failed) != clients {
			t.Errorf("%d of %d signatures failed", len(failed), clients)
		}
		expect(t, failed, failure.Denied)
	}
	s.runs(t)
	if n := s.calls(t, "C_Login") - logins; n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
	softhsmtest.Write(t, s.pin, next)
	softhsmtest.Run(t, s.Program, "agent", "clear", "--socket", s.Socket)
	if failed := c.sign(200, func(int, int) {}); len(failed) > 0 {
		t.Errorf("%d of 200 signatures failed with the right PIN: %v", len(failed), failed[0])
	}
	if n := s.calls(t, "C_Login") - logins; n != 2 {
		t.Errorf("%d logins, not the wrong one and the right one", n)
	}
}
