package chaos

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// process is a program that runs on a host.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	last  syscall.Signal // when the test ends
}

// start starts a program on a host, as another user if one is given. What it prints is appended to a file of the run.
// It is killed when this process ends.
func (w *world) start(h *host, as *syscall.Credential, env []string, log, name string, args ...string) *process {
	w.t.Helper()
	file, err := os.OpenFile(filepath.Join(w.dir, "logs", log), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer file.Close()
	fmt.Fprintf(file, "--- %s after %s\n", filepath.Base(name), w.now().Round(time.Millisecond))
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = file, file, "/"
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Pdeathsig: syscall.SIGKILL}
	h.do(func() { err = cmd.Start() })
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{cmd: cmd, ended: make(chan struct{}), last: syscall.SIGKILL}
	go func() {
		_ = cmd.Wait()
		close(p.ended)
	}()
	w.t.Cleanup(func() { p.signal(p.last); <-p.ended })
	return p
}

// signal sends a signal, unless the program has ended.
func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// kill ends the program at once.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// runs reports whether the program has not ended.
func (p *process) runs() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// run runs a program on a host, and returns what it prints.
func (h *host) run(as *syscall.Credential, env []string, name string, args ...string) (string, error) {
	var output bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = &output, &output, "/", append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Pdeathsig: syscall.SIGKILL}
	var err error
	h.do(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s %v on %s: %w: %s", filepath.Base(name), args, h.name, err, output.String())
	}
	return output.String(), err
}
