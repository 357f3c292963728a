package pin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const commandHint = "run the command by hand to see its errors; it has no shell and no terminal, so put quotes and " +
	"pipes into a script, and use sudo for the first PIN of a process only"

// readCommand makes the first line that a command prints the PIN. The command has its own session and no terminal. When
// the command has ended, has printed more than a PIN, or has run longer than ctx allows, all processes of that session
// are killed. A process that left the session, such as an agent that the command started, keeps running.
//
// What the command prints to standard error is dropped, since it may contain the PIN.
func (s *Secret) readCommand(ctx context.Context, line string) error {
	args := strings.Fields(line)
	if len(args) == 0 {
		return failure.New(failure.Invalid, "pin-source names no command").WithHint(formsHint)
	}
	name := fmt.Sprintf("the command %q", args[0])
	late, err := s.runCommand(ctx, args)
	switch {
	case late:
		return unreadable("%s did not end in time: %w", name, ctx.Err()).
			WithHint("find out why it is slow, or set a longer timeout")
	case s.length > limit: // cutLine refuses it
	case err != nil:
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			err = errors.New(exit.String()) // without what the command printed
		}
		return unreadable("%s failed: %w", name, err).WithHint(commandHint)
	}
	return s.cutLine("the output of " + name)
}

// runCommand runs a command and reads what it prints, up to limit+1 bytes. late is true if ctx ended first.
func (s *Secret) runCommand(ctx context.Context, args []string) (late bool, err error) {
	out, in, err := os.Pipe()
	if err != nil {
		return false, err
	}
	defer out.Close()
	// exec.CommandContext would kill the command alone. The command is the user's own.
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx,gosec // see above
	cmd.Stdout = in
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	in.Close()
	if err != nil {
		return false, err
	}
	dropPrivileges()

	ended, enough, killed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		waitForEnd(cmd.Process.Pid)
	}()
	go func() {
		defer close(killed)
		select {
		case <-ended:
		case <-enough:
		case <-ctx.Done():
			late = true
		}
		// Until Wait, the kernel gives the number of the process, which is also that of its session, to no other.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		<-ended
		_ = out.SetReadDeadline(time.Unix(1, 0)) // a process that left the session may keep the pipe open
	}()
	readErr := s.readFrom(out)
	if s.length > limit {
		close(enough)
	}
	<-killed
	err = cmd.Wait()
	if errors.Is(readErr, os.ErrDeadlineExceeded) {
		readErr = s.readAvailable(out)
	}
	if err == nil {
		err = readErr
	}
	return late, err
}

// waitForEnd waits until a child process has ended, and leaves it to Wait.
func waitForEnd(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// readAvailable appends what a pipe has without waiting for more.
func (s *Secret) readAvailable(pipe *os.File) error {
	if err := pipe.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	conn, err := pipe.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		for s.length < len(s.memory) {
			n, err := unix.Read(int(fd), s.memory[s.length:])
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n <= 0 {
				break
			}
			s.length += n
		}
		return true
	})
}
