package docker

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// start starts docker hsm run, and returns when the container has started. ended gets docker's exit code.
func (u *user) start(t *testing.T, prepare func(*exec.Cmd)) (docker *exec.Cmd, ended chan int) {
	t.Helper()
	cmd := softhsmtest.Command(t, u.docker, "hsm", "run", u.repository+":signed")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	prepare(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan int, 1)
	go func() {
		_ = cmd.Wait() // the exit code says it
		ended <- cmd.ProcessState.ExitCode()
	}()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	select {
	case <-u.started:
	case code := <-ended:
		t.Fatalf("docker ended with %d: %s", code, output.String())
	}
	return cmd, ended
}

// TestTerminate forwards a signal that docker gets to the container.
func TestTerminate(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	u.endures, u.code = 1, 143
	docker, ended := u.start(t, func(*exec.Cmd) {})
	if err := docker.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	code := <-ended
	if got := u.asked(); code != 143 || !slices.Contains(got, "kill TERM") {
		t.Errorf("%d %q", code, got)
	}
}

// TestTerminal has a person press Ctrl-C. The terminal sends the signal to docker, the plugin, and the docker that it
// runs: the container gets it once.
func TestTerminal(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	u.endures, u.code = 2, 130
	person, program := softhsmtest.PseudoTerminal(t)
	t.Cleanup(func() { person.Close(); program.Close() })
	go func() { // or docker could not write
		for buffer := make([]byte, 256); ; {
			if n, err := person.Read(buffer); err != nil || n == 0 {
				return
			}
		}
	}()
	docker, ended := u.start(t, func(cmd *exec.Cmd) {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = program, program, program
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	})
	if _, err := person.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	for u.killed() == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	// The plugin forwards what it gets itself, in order.
	plugin := child(t, docker.Process.Pid)
	if err := syscall.Kill(plugin, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	code := <-ended
	want := []string{"start", "kill INT", "kill USR1"}
	if got := u.asked(); code != 130 || !slices.Equal(got[len(got)-3:], want) {
		t.Errorf("%d %q, not %q", code, got, want)
	}
}

// child returns the one child of a process.
func child(t *testing.T, parent int) int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent)) // each thread has its own
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, file := range files {
		text += softhsmtest.Read(t, file)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}
