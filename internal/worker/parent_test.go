package worker

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// parent starts a program that has the key open, and returns when it has.
func (f *fixture) parent(t testing.TB) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "WORKER_TEST_PARENT=1")
	for name, value := range f.settings.Env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "<nil>" {
		t.Fatalf("%q: %v", line, err)
	}
	return cmd
}

// byHand returns the command that a person would type.
func byHand() *exec.Cmd { return exec.Command("/proc/self/exe", argument, "/memory") }
