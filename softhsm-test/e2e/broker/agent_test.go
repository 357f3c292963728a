package broker

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/remote"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// spied is an agent whose process is looked at, and whose module is SoftHSM, behind the shim or not.
type spied struct {
	*softhsmtest.Agent
	token    *softhsmtest.Token
	notation *softhsmtest.Notation
	log      string // of the module's calls
	settings string // a folder: a file there replaces a variable of the shim
	pin      string // a file
}

// startSpied starts an agent whose module is behind the shim. Its token holds a key release-SPEC for each spec. The
// programs that the test starts use the agent.
func startSpied(t *testing.T, specs []string, args ...string) *spied {
	t.Helper()
	s := newSpied(t, specs)
	s.log, s.settings = filepath.Join(t.TempDir(), "calls"), t.TempDir()
	module := softhsmtest.Shim(t, s.token.Module)
	softhsmtest.Setenv(t, "SHIM_SETTINGS", s.settings)
	softhsmtest.Setenv(t, "SHIM_LOG", s.log)
	return s.start(t, module, args...)
}

// newSpied makes a token. start starts the agent.
func newSpied(t *testing.T, specs []string) *spied {
	t.Helper()
	s := &spied{token: softhsmtest.NewToken(t, "signing"), pin: filepath.Join(t.TempDir(), "pin")}
	s.notation = softhsmtest.NewNotation(t, s.token)
	for _, spec := range specs {
		softhsmtest.NewKey(t, s.token, s.notation.Plugin, spec, "release-"+spec)
	}
	softhsmtest.Write(t, s.pin, softhsmtest.PIN)
	return s
}

func (s *spied) start(t *testing.T, module string, args ...string) *spied {
	t.Helper()
	token := *s.token
	token.Module = module
	s.Agent = softhsmtest.StartAgent(t, &token, append([]string{"--pin-source", "file:" + s.pin}, args...)...)
	s.Use(t)
	return s
}

// set sets a variable of the shim while the agent runs.
func (s *spied) set(t *testing.T, name, value string) {
	t.Helper()
	next := filepath.Join(s.settings, name+".next")
	softhsmtest.Write(t, next, value)
	if err := os.Rename(next, filepath.Join(s.settings, name)); err != nil { // none reads half of it
		t.Fatal(err)
	}
}

// calls returns how often a function of the module was called.
func (s *spied) calls(t *testing.T, name string) int {
	t.Helper()
	return softhsmtest.Count(softhsmtest.Calls(t, s.log), name)
}

// worker returns the process of the module; 0 if there is none.
func (s *spied) worker(t *testing.T) int {
	t.Helper()
	for _, pid := range children(t, s.PID()) {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(command), "\x00pkcs11-worker\x00") {
			return pid
		}
	}
	return 0
}

// signal sends a signal to the process of the module, when there is one.
func (s *spied) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	s.until(t, "a process of the module", func() bool {
		pid := s.worker(t)
		return pid != 0 && syscall.Kill(pid, signal) == nil
	})
}

// runs fails the test if the agent has ended.
func (s *spied) runs(t *testing.T) {
	t.Helper()
	select {
	case <-s.Ended:
		t.Fatalf("the agent ended:\n%s", s.Output.String())
	default:
	}
}

// open returns the key release-EC-256 as a client of the agent has it.
func (s *spied) open(t *testing.T) keystore.Key {
	t.Helper()
	ks := keystore.New(nil, remote.New())
	t.Cleanup(func() { ks.Close() })
	store, err := ks.Reference(&config.Settings{
		Broker: "unix:" + s.Socket, Key: config.URI{Broker: true, Object: "release-EC-256"}, Timeout: time.Hour,
	}).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k, err := store.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sign has the agent sign one payload. A signature that does not verify fails the test.
func sign(t *testing.T, k keystore.Key, number int) error {
	t.Helper()
	message := softhsmtest.SigningInput("ES256", number)
	signature, err := k.SignMessage(t.Context(), message, crypto.SHA256)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(message)
	if !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], signature) {
		t.Errorf("signature %d does not verify", number)
	}
	return nil
}

// use is what a process uses.
type use struct{ descriptors, children, memory int }

// used returns what a process uses: descriptors, child processes and KiB of memory.
func used(t *testing.T, pid int) (u use) {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	u.descriptors, u.children = len(files), len(children(t, pid))
	status := softhsmtest.Read(t, fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(status) {
		if fields := strings.Fields(line); fields[0] == "VmRSS:" {
			u.memory, _ = strconv.Atoi(fields[1])
		}
	}
	return u
}

// children returns the processes that a process has started, also those that it has not waited for.
func children(t *testing.T, pid int) (all []int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, _ := os.ReadFile(file) // the thread may have ended
		for _, word := range strings.Fields(string(text)) {
			child, _ := strconv.Atoi(word)
			all = append(all, child)
		}
	}
	return all
}

// until waits for a condition, while the agent runs.
func (s *spied) until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for !condition() {
		s.runs(t)
		if t.Context().Err() != nil {
			t.Fatalf("it never came: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
