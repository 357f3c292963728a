package softhsmtest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// postmaster is the first process of a server, which starts all others.
type postmaster struct {
	process *os.Process
	ended   chan struct{} // closed when it has ended
}

// Start starts a server that was stopped, and waits until it takes connections.
func (s *PostgresServer) Start(t testing.TB) {
	t.Helper()
	if s.running != nil {
		t.Fatal("the server runs already")
	}
	log, err := os.OpenFile(filepath.Join(s.Dir, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := s.command("postgres", "-D", s.data(), "-p", strconv.Itoa(s.Port))
	cmd.Stdout, cmd.Stderr = log, log
	if s.running, err = startTied(cmd, syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	await(t, "PostgreSQL to start", func() bool {
		select {
		case <-s.running.ended:
			t.Fatalf("PostgreSQL ended: %s", Read(t, log.Name()))
		default:
		}
		lines := strings.Split(s.pidFile(), "\n")
		if len(lines) < 8 || lines[0] != strconv.Itoa(s.running.process.Pid) {
			return false
		}
		status := strings.TrimSpace(lines[7])
		return status == "ready" || status == "standby"
	})
}

// pidFile returns what a server says of itself: its process in the first line, whether it is ready in the eighth.
func (s *PostgresServer) pidFile() string {
	data, _ := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	return string(data)
}

// Output returns what the server has printed.
func (s *PostgresServer) Output(t testing.TB) string {
	t.Helper()
	return Read(t, filepath.Join(s.Dir, "output"))
}

// Stop ends the server: it aborts open transactions, and closes connections.
func (s *PostgresServer) Stop(t testing.TB) {
	t.Helper()
	s.end(t, syscall.SIGINT)
}

// Crash ends the server as a power failure does, but for what the kernel has not yet written to the disk.
func (s *PostgresServer) Crash(t testing.TB) {
	t.Helper()
	processes := s.processes()
	for _, process := range processes {
		_ = syscall.Kill(process, syscall.SIGKILL)
	}
	await(t, "the processes of PostgreSQL to end", func() bool {
		for _, process := range processes[1:] { // the first is a zombie until it is waited for
			if alive(process) {
				return false
			}
		}
		return true
	})
	s.end(t, syscall.SIGKILL)
}

// alive reports whether a process exists and has not ended.
func alive(process int) bool {
	state := processState(process)
	return state != "" && state != "Z" && state != "X"
}

// processState returns the state of a process as ps(1) shows it, such as T for a stopped one, or "" when there is none.
func processState(process int) string {
	stat, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(process), "stat"))
	_, after, _ := strings.Cut(string(stat), ") ") // PID (NAME) STATE
	state, _, _ := strings.Cut(after, " ")
	return state
}

// Restart ends the server and starts it again, on the same port.
func (s *PostgresServer) Restart(t testing.TB) {
	t.Helper()
	s.Stop(t)
	s.Start(t)
}

// end sends the server a signal and waits for its end.
func (s *PostgresServer) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if s.running == nil {
		t.Fatal("the server does not run")
	}
	_ = s.running.process.Signal(signal)
	<-s.running.ended
	s.running = nil
}

// Pause stops all processes of the server, as a machine that hangs, until Continue or the end of the test.
func (s *PostgresServer) Pause(t testing.TB) {
	t.Helper()
	await(t, "the processes of PostgreSQL to stop", func() bool {
		s.signalAll(t, syscall.SIGSTOP) // those too that were started meanwhile
		return !slices.ContainsFunc(s.processes(), func(process int) bool {
			return alive(process) && processState(process) != "T"
		})
	})
	Write(t, s.paused(), strings.Trim(fmt.Sprint(s.processes()), "[]"))
	s.user.own(t, s.paused())
	t.Cleanup(func() { s.Continue(t) })
}

// Continue ends Pause.
func (s *PostgresServer) Continue(t testing.TB) {
	t.Helper()
	s.signalAll(t, syscall.SIGCONT)
	_ = os.Remove(s.paused())
}

// paused returns the path of a file with the processes that Pause has stopped, for removeAtExit.
func (s *PostgresServer) paused() string { return filepath.Join(s.Dir, "paused") }

// signalAll sends all processes of the server a signal.
func (s *PostgresServer) signalAll(t testing.TB, signal syscall.Signal) {
	t.Helper()
	for _, process := range s.processes() {
		if err := syscall.Kill(process, signal); err != nil && err != syscall.ESRCH { //nolint:errorlint // an Errno
			t.Fatal(err)
		}
	}
}

// processes returns the processes of the server, the one that started the others first.
func (s *PostgresServer) processes() []int {
	if s.running == nil {
		return nil
	}
	first := strconv.Itoa(s.running.process.Pid)
	processes := []int{s.running.process.Pid}
	children, _ := os.ReadFile(filepath.Join("/proc", first, "task", first, "children"))
	for child := range strings.FieldsSeq(string(children)) {
		if process, err := strconv.Atoi(child); err == nil {
			processes = append(processes, process)
		}
	}
	return processes
}

// remove ends the server, whatever its state, and removes its folder.
func (s *PostgresServer) remove() {
	for _, process := range s.processes() {
		_ = syscall.Kill(process, syscall.SIGKILL)
	}
	if s.running != nil {
		<-s.running.ended
		s.running = nil
	}
	_ = os.RemoveAll(s.Dir)
}

// startTied starts a program that gets a signal when this process ends, however it ends.
func startTied(cmd *exec.Cmd, signal syscall.Signal) (*postmaster, error) {
	p := &postmaster{ended: make(chan struct{})}
	started := make(chan error)
	cmd.SysProcAttr.Pdeathsig = signal
	go func() {
		runtime.LockOSThread() // the kernel sends the signal when the thread that started the program ends
		err := cmd.Start()
		p.process = cmd.Process
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(p.ended)
		}
	}()
	return p, <-started
}

// removeAtExit removes the folder of a server when this process ends, however it ends: a shell waits for the end of its
// input, has what is paused go on, since a stopped process does not end, and waits until the server is gone.
func removeAtExit(t testing.TB, owner *ownUser, dir string) {
	t.Helper()
	const script = `cat >/dev/null
[ ! -e "$1/paused" ] || kill -CONT $(cat "$1/paused")
for i in $(seq 100); do [ -e "$1/data/postmaster.pid" ] || break; sleep 0.1; done
rm -rf "$1"`
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", script, "sh", dir)
	cmd.Stdin, cmd.Dir, cmd.SysProcAttr = read, "/", owner.attributes()
	cmd.SysProcAttr.Setsid = true // ^C is for the tests
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read.Close()
	atExit = append(atExit, write)
}

// atExit are the inputs of programs that wait for the end of this process. Nothing else may close them: not the
// collector of garbage.
var atExit []io.Closer

// ownUser is the user that servers run as which refuse to run as root. nil is the user of this process.
type ownUser struct{ uid, gid int }

// postgresUser returns the user to run PostgreSQL and a pooler as.
func postgresUser(t testing.TB) *ownUser {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	account, err := user.Lookup("postgres")
	if err != nil {
		account, err = user.Lookup(Unprivileged)
	}
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(account.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return &ownUser{uid, gid}
}

// attributes returns how to start a program as the user.
func (u *ownUser) attributes() *syscall.SysProcAttr {
	if u == nil {
		return &syscall.SysProcAttr{}
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.gid)}}
}

// temporary makes a folder of the user. Its path is short, for sockets.
func (u *ownUser) temporary(t testing.TB, prefix string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		t.Fatal(err)
	}
	u.own(t, dir)
	return dir
}

// own gives a file to the user.
func (u *ownUser) own(t testing.TB, path string) {
	t.Helper()
	if u == nil {
		return
	}
	if err := os.Chown(path, u.uid, u.gid); err != nil {
		t.Fatal(err)
	}
}
